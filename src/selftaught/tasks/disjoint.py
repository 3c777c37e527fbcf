"""Tasks whose views are disjoint parts of what is known of a function: its points, or a picture's pixels.

Gondal, Joshi, Rahaman, Bauer, Wuethrich, Schoelkopf 2021, arXiv 2010.07093. A batch of functions is one task,
every function a class; no point is in two views, for a shared point would give the answer away.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from selftaught.core.errors import ConfigError, DataError, TooFewPicturesError
from selftaught.core.functional import to_float
from selftaught.core.types import Examples, Task
from selftaught.data.functions import Functions
from selftaught.data.pictures import Pictures
from selftaught.tasks.views import distinct, labels


@dataclass(frozen=True)
class DisjointSets:
    """A `TaskSource` of one task: `batch` functions, the points of each dealt out to `views` disjoint sets.

    `support.x` [1 B p I+O] is the first set of every function, `query.x` [1 (V-1)*B p I+O] the others, by set,
    then function; `index` [1 B]. `points` of the P are used in a step, a new choice each time (0: all); V sets of
    p = points // V are made of them, and what is left over is not used. `noise` puts as many numbers ~ N(0, 1)
    behind each support point's own, for losses that need random numbers (they draw none themselves).

    Raises DataError for fewer than two functions or fewer points than views, ConfigError for fewer than two views.
    """

    functions: Functions
    views: int = 2
    batch: int = 64
    points: int = 0
    noise: int = 0

    def __post_init__(self) -> None:
        known = self.functions.x.shape[1]
        if len(self.functions) < 2:
            raise DataError(f"{len(self.functions)} function(s): telling them apart needs at least 2")
        if not 0 <= self.points <= known:
            raise ConfigError(f"points={self.points} of functions known at {known}; use 0 for all of them")
        _enough(self.points or known, self.views, "points")

    def __call__(self, generator: torch.Generator) -> Task:
        index = distinct(len(self.functions), min(self.batch, len(self.functions)), generator)
        sets = torch.cat([self.functions.x[index], self.functions.y[index]], -1)
        parts = disjoint_parts(len(index), sets.shape[1], self.views, generator, self.points)
        x = sets[torch.arange(len(index))[:, None, None], parts].transpose(0, 1)  # [V B p I+O]
        task = _task(x, index)
        if not self.noise:
            return task
        beside = torch.randn(*task.support.x.shape[:-1], self.noise, generator=generator)
        support = Examples(torch.cat([task.support.x, beside.to(sets)], -1), task.support.y)
        return Task(support, task.query, task.ways, task.index)


@dataclass(frozen=True)
class DisjointPixels:
    """As `DisjointSets` for any encoder of pictures: views [B C H W] in which all pixels of other views are blank.

    Blank is 0, and what is seen stays as it is: float in 0..1. Raises TooFewPicturesError for fewer than two
    pictures, DataError for fewer pixels than views, ConfigError for fewer than two views.
    """

    pictures: Pictures
    views: int = 2
    batch: int = 64

    def __post_init__(self) -> None:
        if len(self.pictures) < 2:
            raise TooFewPicturesError(
                f"{len(self.pictures)} picture(s) to learn from: telling pictures apart needs at least 2"
            )
        _, height, width = self.pictures.shape
        _enough(height * width, self.views, "pixels")

    def __call__(self, generator: torch.Generator) -> Task:
        _, height, width = self.pictures.shape
        index = distinct(len(self.pictures), min(self.batch, len(self.pictures)), generator)
        x = to_float(self.pictures.x[index])
        parts = disjoint_parts(len(index), height * width, self.views, generator)
        seen = torch.zeros(*parts.shape[:2], height * width).scatter_(2, parts, 1.0)
        return _task((x[:, None] * seen.unflatten(2, (1, height, width))).transpose(0, 1), index)


def disjoint_parts(
    count: int, points: int, views: int, generator: torch.Generator, used: int = 0
) -> Int64[Tensor, "F V p"]:
    """For each of `count` functions `views` sets of point numbers below `points`, none in two of them.

    A set has (`used` or `points`) // `views` numbers. Every function has its own draw.
    """
    size = (used or points) // views
    order = torch.rand(count, points, generator=generator).argsort(1)
    return order[:, : size * views].unflatten(1, (views, size))


def _enough(points: int, views: int, what: str) -> None:
    if views < 2:
        raise ConfigError(f"views={views}: a function is compared with itself; use 2 views or more")
    if points < views:
        raise DataError(
            f"sets of {points} {what} cannot be dealt out to {views} disjoint views, which need one or more each; "
            f"observe each function at {views} {what} at least"
        )


def _task(x: Tensor, index: Tensor) -> Task:
    """Views [V B ...] of the functions at `index` [B] as one task."""
    views, ways = x.shape[:2]
    support, query = x[:1].flatten(0, 1)[None], x[1:].flatten(0, 1)[None]
    return Task(
        Examples(support, labels(1, ways, 1)), Examples(query, labels(1, ways, views - 1)), ways, index[None]
    )
