"""Two classes of points in the square [-1, 1]^2, cut by ten shapes: the toy tasks of update-rule learning.

After Sandler et al. (ICML 2021, arXiv 2104.04657), who meta-train on such shapes and test on others. Places and
sizes of the shapes are ours; the larger class of each is named by `majority`.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from selftaught.core.types import Examples
from selftaught.tasks.lessons import Draw


def _triangle(p: Tensor) -> Tensor:
    """Corners (-0.9, -0.8), (0.9, -0.8), (0, 0.95)."""
    x, y = p.unbind(-1)
    return (y > -0.8) & (y < 0.95 - x.abs() * 1.75 / 0.9)


def _cross(p: Tensor) -> Tensor:
    """Two bars of width 0.5."""
    return (p.abs() < 0.25).any(-1)


def _pie_slice(p: Tensor) -> Tensor:
    """The angles from -20 to 100 degrees, and far from the middle more than the square has."""
    angle = torch.atan2(p[:, 1], p[:, 0])
    return (angle > math.radians(-20)) & (angle < math.radians(100))


REGIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "xor": lambda p: (p[:, 0] > 0) != (p[:, 1] > 0),
    "and": lambda p: (p > 0).all(-1),
    "circle": lambda p: p.square().sum(-1) < 0.6,
    "or": lambda p: (p > 0).any(-1),
    "nxor": lambda p: (p[:, 0] > 0) == (p[:, 1] > 0),
    "pie slice": _pie_slice,
    "triangle": _triangle,
    "cross": _cross,
    "quadrant": lambda p: (p[:, 0] < 0.2) & (p[:, 1] > -0.2),
}
"""Name -> which points [B 2] are of class 1."""


def region(inside: Callable[[Tensor], Tensor]) -> Draw:
    """Points uniform in the square, class 1 inside."""

    def draw(count: int, generator: torch.Generator) -> Examples:
        x = torch.rand(count, 2, generator=generator) * 2 - 1
        return Examples(x, inside(x).long())

    return draw


def two_moons(count: int, generator: torch.Generator) -> Examples:
    """Two half circles that reach into each other, with normal noise of 0.08."""
    y = torch.randint(2, (count,), generator=generator)
    angle = torch.rand(count, generator=generator) * math.pi
    side = 1 - 2.0 * y
    x = torch.stack([side * (angle.cos() * 0.6 - 0.3), side * (angle.sin() * 0.8 - 0.2)], -1)
    return Examples(x + 0.08 * torch.randn(count, 2, generator=generator), y)


def planes(*names: str) -> dict[str, tuple[Draw, Draw]]:
    """Data sets by name, for `Lessons`: those of `REGIONS` and "two-moon". Raises KeyError for another name."""
    found = {name: two_moons if name == "two-moon" else region(REGIONS[name]) for name in names}
    return {name: (draw, draw) for name, draw in found.items()}


def majority(draw: Draw, points: int = 10_000) -> float:
    """The share of the larger class: what answering always the same gives."""
    y = draw(points, torch.Generator().manual_seed(0)).y
    assert y is not None
    return float(y.bincount().max()) / points
