"""Batches of labelled pictures with the labels of the whole set, for methods that train a classifier."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError, DataError, TooFewPicturesError
from selftaught.core.types import Examples, Task
from selftaught.data.augment import augment
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.tasks.views import distinct


@dataclass(frozen=True)
class LabelledBatches:
    """A `TaskSource` whose one task has all M classes of the set as ways: labels mean the same in every batch.

    `support` [1 S C H W] is a batch to train on, `query` [1 Q C H W] one to ask about, each of up to `batch`
    different pictures in one view; rows come in random order, so the labels have to be read. With `held_out`
    the query comes from that fraction of every class (at least one picture, never the only one), chosen once by
    the set alone and never trained on; with 0 it is the support itself. `index` [1 S+Q] or [1 S] are their
    places in the set.

    Raises DataError without labels, ConfigError for a fraction outside [0, 1), and TooFewPicturesError
    where fewer than two pictures are left on a side.
    """

    pictures: Pictures
    views: Views
    batch: int = 100
    held_out: float = 0.0

    def __post_init__(self) -> None:
        if self.pictures.y is None:
            raise DataError("labelled batches need labelled pictures; put them in one folder per class")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out={self.held_out} is no fraction to hold out; use one from 0 to below 1")
        for side, name in zip(self.sides, ("train on", "hold out"), strict=False):
            if len(side) < 2:
                raise TooFewPicturesError(
                    f"{len(side)} of {len(self.pictures)} picture(s) to {name}, at least 2 are needed: add "
                    "pictures, or change held_out (0 asks about the training batch itself)"
                )

    @property
    def classes(self) -> int:
        """M, the number of classes of the set."""
        assert self.pictures.y is not None
        return max(len(self.pictures.classes), int(self.pictures.y.max()) + 1 if len(self.pictures) else 0)

    @cached_property
    def sides(self) -> tuple[Tensor, ...]:
        """Places of the pictures to train on and, where some are held out, of those; both in ascending order."""
        assert self.pictures.y is not None
        if self.held_out == 0:
            return (torch.arange(len(self.pictures)),)
        generator = torch.Generator().manual_seed(0)  # the split belongs to the set, not to a run
        held = torch.zeros(len(self.pictures), dtype=torch.bool)
        for n in self.pictures.y.unique().tolist():
            own = (self.pictures.y == n).nonzero()[:, 0]
            count = min(max(1, round(self.held_out * len(own))), len(own) - 1)
            held[own[torch.randperm(len(own), generator=generator)[:count]]] = True
        return (~held).nonzero()[:, 0], held.nonzero()[:, 0]

    def __call__(self, generator: torch.Generator) -> Task:
        drawn = [self._draw(side, generator) for side in self.sides]
        (support, index), (query, _) = drawn[0], drawn[-1]
        every = torch.cat([where for _, where in drawn]) if len(drawn) > 1 else index
        return Task(support, query, ways=self.classes, index=every[None])

    def _draw(self, side: Tensor, generator: torch.Generator) -> tuple[Examples, Tensor]:
        index = side[distinct(len(side), min(self.batch, len(side)), generator)]
        assert self.pictures.y is not None
        x = augment(self.pictures.x[index], self.views, generator)
        return Examples(x[None], self.pictures.y[index][None]), index
