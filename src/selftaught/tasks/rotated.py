"""More classes from the same pictures: a class turned by a right angle is another class.

Ni, Goldblum, Sharaf, Kong, Goldstein, "Data Augmentation for Meta-Learning", ICML 2021, call it task augmentation.
That all four orientations stand in one task, so that they must be told apart, and that it is a wrapper around any
source, is ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.core.types import Examples, Task, TaskSource

TURNS = 4
"""Upright, and by 90, 180 and 270 degrees."""


@dataclass(frozen=True)
class RotatedClasses:
    """Tasks of `source` with four classes for each: class `r * ways + n` is class n turned by r times 90 degrees.

    All pictures of a class are turned alike, counter-clockwise and without resampling; `index` stays that of the
    upright pictures. The draws from the generator are those of `source`. Raises ConfigError for pictures that are
    not square, or whose rows are not whole shots.
    """

    source: TaskSource

    def __call__(self, generator: torch.Generator) -> Task:
        task = self.source(generator)
        support, query = (_turned(side, task.ways) for side in (task.support, task.query))
        return Task(support, query, TURNS * task.ways, task.index)


def _turned(side: Examples, ways: int) -> Examples:
    """[(T) V*N C H W] -> [(T) V*4*N C H W], still by shot, then class."""
    height, width = side.x.shape[-2:]
    if height != width:
        raise ConfigError(f"pictures of {height} x {width} cannot be turned by 90 degrees: make them square")
    if side.x.shape[-4] % ways:
        raise ConfigError(f"{side.x.shape[-4]} rows are no whole shots of {ways} classes")
    x = side.x.unflatten(-4, (-1, 1, ways))
    turned = torch.cat([torch.rot90(x, r, (-2, -1)) for r in range(TURNS)], -5)
    return Examples(turned.flatten(-6, -4), None if side.y is None else _renumbered(side.y, ways))


def _renumbered(y: Tensor, ways: int) -> Tensor:
    shift = ways * torch.arange(TURNS, device=y.device)
    return (y.unflatten(-1, (-1, 1, ways)) + shift[:, None]).flatten(-3)
