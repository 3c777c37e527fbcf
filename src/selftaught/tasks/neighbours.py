"""Tasks without labels whose classes are pictures together with their nearest neighbours in feature space.

The neighbours are found once, with features learned before, as in Van Gansbeke et al., "SCAN: Learning to
Classify Images without Labels", ECCV 2020, arXiv 2005.12320. SCAN trains a clustering on them; here they become
more examples of the picture's class, so that a method that takes view tasks also sees how two pictures of one
thing differ. That, the demand that both have each other among their nearest, and the share of a picture's own
views are our choice.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from selftaught.core.errors import ConfigError, TooFewPicturesError
from selftaught.core.types import Examples, Task
from selftaught.data.augment import augment
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.tasks.views import distinct, labels

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Neighbours:
    """Of each of B pictures the positions `index` [B k], of which the first `count` [B] are neighbours."""

    index: Int64[Tensor, "B k"]
    count: Int64[Tensor, " B"]

    @property
    def share(self) -> float:
        """The part of the pictures that have a neighbour at all."""
        return float((self.count > 0).float().mean())


def mutual_neighbours(z: Float[Tensor, "B D"], k: int) -> Neighbours:
    """Pairs of rows that are each among the other's `k` nearest by cosine, nearest first.

    Raises ConfigError unless 1 <= k < B.
    """
    if not 1 <= k < len(z):
        raise ConfigError(f"k={k} neighbours among {len(z)} pictures; use 1 to {len(z) - 1}")
    z = F.normalize(z, dim=-1)
    nearest = []
    for rows in torch.arange(len(z), device=z.device).split(_ROWS_AT_ONCE):
        cosines = z[rows] @ z.mT
        cosines[torch.arange(len(rows)), rows] = -torch.inf
        nearest.append(cosines.topk(k, dim=-1).indices)
    index = torch.cat(nearest)
    itself = torch.arange(len(z), device=z.device)[:, None, None]
    mutual = (index[index] == itself).any(-1)
    accepted_first = torch.argsort(~mutual, dim=-1, stable=True)
    return Neighbours(index.gather(1, accepted_first), mutual.sum(-1))


@dataclass(frozen=True)
class NeighbourTasks:
    """A `TaskSource` as `ViewTasks`, in which a class shows views of one picture and of its neighbours.

    Each of `tasks` tasks draws `ways` different pictures. The first support view shows the picture itself. Every
    other view shows, with probability `own` or where there is no neighbour, the picture again, else one of
    its neighbours, each as likely as the others. Rows are ordered by view, then class. `index` holds the first
    pictures. Raises TooFewPicturesError for fewer than two pictures, ConfigError where sizes do not match.
    """

    pictures: Pictures
    views: Views
    neighbours: Neighbours
    tasks: int = 1
    ways: int = 32
    support_views: int = 1
    query_views: int = 1
    own: float = 0.25

    def __post_init__(self) -> None:
        if len(self.pictures) < 2:
            raise TooFewPicturesError(
                f"{len(self.pictures)} picture(s) to learn from: telling pictures apart needs at least 2"
            )
        if len(self.neighbours.index) != len(self.pictures):
            raise ConfigError(
                f"neighbours of {len(self.neighbours.index)} pictures for a set of {len(self.pictures)}; "
                "find them in this set"
            )
        if self.support_views < 1 or self.query_views < 1:
            raise ConfigError("NeighbourTasks: use at least one support and one query view")

    def __call__(self, generator: torch.Generator) -> Task:
        ways, views = min(self.ways, len(self.pictures)), self.support_views + self.query_views
        index = torch.stack([distinct(len(self.pictures), ways, generator) for _ in range(self.tasks)])
        shown = torch.stack([index] + [self._shown(index, generator) for _ in range(views - 1)], 1)  # [T V N]
        x = augment(self.pictures.x[shown.flatten()], self.views, generator).unflatten(
            0, (self.tasks, views * ways)
        )
        rows = self.support_views * ways
        return Task(
            Examples(x[:, :rows], labels(self.tasks, ways, self.support_views)),
            Examples(x[:, rows:], labels(self.tasks, ways, self.query_views)),
            ways=ways,
            index=index,
        )

    def _shown(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """The pictures of one further view of the classes `index` [T N]."""
        which, again = torch.rand(2, *index.shape, generator=generator)
        count = self.neighbours.count[index]
        # float32 draws below 1 times a count can round up to it.
        place = torch.minimum((which * count).long(), (count - 1).clamp(min=0))
        neighbour = self.neighbours.index[index, place]
        return torch.where((count > 0) & (again >= self.own), neighbour, index)
