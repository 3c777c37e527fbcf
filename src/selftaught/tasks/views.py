"""Tasks without labels: N pictures, several views of each, and the picture itself as its class.

This is where self-supervision becomes few-shot learning: a batch of N pictures in V views is an N-way
task with S support views and V - S query views a class, whose labels are the pictures' positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selftaught.core.errors import TooFewPicturesError
from selftaught.core.functional import to_float
from selftaught.core.types import Examples, Task
from selftaught.data.augment import augment
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views


@dataclass(frozen=True)
class ViewTasks:
    """A `TaskSource` of `tasks` tasks, each of `ways` different pictures (drawn without replacement).

    `support_views` and `query_views` count the views on each side; `raw_support` leaves the support as it is
    in the set (UMTRA, ProtoCLR). Rows are ordered by view, then picture.

    Raises TooFewPicturesError when the set holds fewer than two pictures. Sets smaller than `ways` give
    tasks of as many ways as there are pictures.
    """

    pictures: Pictures
    views: Views
    tasks: int = 4
    ways: int = 32
    support_views: int = 2
    query_views: int = 2
    raw_support: bool = False

    def __post_init__(self) -> None:
        if len(self.pictures) < 2:
            raise TooFewPicturesError(
                f"{len(self.pictures)} picture(s) to learn from: telling pictures apart needs at least 2"
            )

    def __call__(self, generator: torch.Generator) -> Task:
        ways = min(self.ways, len(self.pictures))
        index = torch.stack([distinct(len(self.pictures), ways, generator) for _ in range(self.tasks)])
        x = self.pictures.x[index.flatten()].unflatten(0, (self.tasks, ways))
        support = self._several(x, self.support_views, generator, raw=self.raw_support)
        query = self._several(x, self.query_views, generator, raw=False)
        return Task(
            Examples(support, labels(self.tasks, ways, self.support_views)),
            Examples(query, labels(self.tasks, ways, self.query_views)),
            ways=ways,
            index=index,
        )

    def _several(self, x: Tensor, count: int, generator: torch.Generator, raw: bool) -> Tensor:
        """[T N C H W] -> [T count*N C H W]."""
        repeated = x[:, None].expand(-1, count, *x.shape[1:]).flatten(1, 2)
        if raw:
            return to_float(repeated)
        return augment(repeated.flatten(0, 1), self.views, generator).unflatten(0, repeated.shape[:2])


def labels(tasks: int, ways: int, per_class: int) -> Tensor:
    """[T per_class*N] labels 0..N-1, repeated for every view."""
    return torch.arange(ways).repeat(tasks, per_class)


def distinct(population: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` different numbers below `population`, in random order; never a full shuffle of a large set."""
    if population < 4 * count:
        return torch.randperm(population, generator=generator)[:count]
    seen: dict[int, None] = {}
    while len(seen) < count:
        for i in torch.randint(population, (count,), generator=generator).tolist():
            seen.setdefault(i)
    return torch.tensor(list(seen)[:count])
