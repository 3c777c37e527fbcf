"""Functions known at some points: sinusoids, and pictures as functions of the pixel's place.

Order of axes: (batch, points, dim), here [F P I] for F functions at P points with I inputs. Some libraries of
neural processes take (batch, dim, points): `with_points_last` and `with_points_first` go there and back.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from selftaught.core.errors import ConfigError, DataError
from selftaught.core.functional import to_float
from selftaught.data.pictures import Pictures


@dataclass(frozen=True)
class Functions:
    """F functions, each observed at P points: inputs `x` [F P I] and outputs `y` [F P O], float.

    `truth` [F R] are the numbers that made each function, `labels` [F] its class, where known. Raises DataError
    for shapes that do not match, no points, and outputs or inputs that are not finite.
    """

    x: Float[Tensor, "F P I"]
    y: Float[Tensor, "F P O"]
    truth: Float[Tensor, "F R"] | None = None
    labels: Int64[Tensor, " F"] | None = None

    def __post_init__(self) -> None:
        shapes = [tuple(t.shape) for t in (self.x, self.y)]
        if self.x.ndim != 3 or self.y.ndim != 3 or shapes[0][:2] != shapes[1][:2] or 0 in shapes[0] + shapes[1]:
            raise DataError(
                f"functions need inputs [F P I] and outputs [F P O] at the same points, got {shapes[0]} and "
                f"{shapes[1]}; with_points_first turns (batch, dim, points) round"
            )
        for name, given in (("truth", self.truth), ("labels", self.labels)):
            if given is not None and len(given) != len(self):
                raise DataError(f"{len(given)} rows of {name} for {len(self)} functions: give one a function")
        for name, values in (("inputs", self.x), ("outputs", self.y)):
            bad = ~values.isfinite().flatten(1).all(1)
            if bad.any():
                which = bad.nonzero().flatten()[:3].tolist()
                raise DataError(
                    f"{int(bad.sum())} of {len(self)} functions have {name} that are NaN or infinite (first: "
                    f"{which}); leave these functions out with take(), or these points"
                )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def sets(self) -> Float[Tensor, "F P I+O"]:
        """Every point as one row of inputs, then outputs."""
        return torch.cat([self.x, self.y], -1)

    def take(self, index: Tensor) -> "Functions":
        """The functions at `index` [n] int64, in that order."""
        parts = (self.truth, self.labels)
        return Functions(self.x[index], self.y[index], *(None if p is None else p[index] for p in parts))


def draw_sinusoids(count: int, *, points: int = 20, noise: float = 0.0, seed: int = 0) -> Functions:
    """`count` functions a sin(x - b), a in 0.1..5 and b in 0..pi uniform, at `points` uniform x in -5..5.

    `truth` is (a, b). White noise of standard deviation `noise` is added to the outputs; the same seed gives the
    same functions and points at every noise. Raises ConfigError for counts below 1 or negative noise.
    """
    if count < 1 or points < 1 or not 0 <= noise < math.inf:
        raise ConfigError(
            f"use one or more functions and points and a noise from 0, not {count}, {points}, {noise}"
        )
    generator = torch.Generator().manual_seed(seed)
    high, low = torch.tensor([5.0, math.pi]), torch.tensor([0.1, 0.0])
    truth = low + (high - low) * torch.rand(count, 2, generator=generator)
    x = 10 * torch.rand(count, points, 1, generator=generator) - 5
    y = truth[:, :1, None] * torch.sin(x - truth[:, 1:, None])
    return Functions(x, y + noise * torch.randn(y.shape, generator=generator), truth)


def picture_functions(pictures: Pictures) -> Functions:
    """Each picture [C H W] as a function from a pixel's place to its colour.

    Inputs are row and column of the pixel's centre in -1..1 [B HW 2], outputs the channels in 0..1 [B HW C];
    labels are those of the pictures. Four bytes a number: C + 2 numbers a pixel.
    """
    _, height, width = pictures.shape
    rows, columns = ((2 * torch.arange(n) + 1) / n - 1 for n in (height, width))
    place = torch.cartesian_prod(rows, columns).expand(len(pictures), -1, -1)
    return Functions(place, to_float(pictures.x).flatten(2).mT, labels=pictures.y)


def with_points_last(x: Float[Tensor, "*B P I"]) -> Float[Tensor, "*B I P"]:
    """(batch, points, dim) as (batch, dim, points); no copy."""
    return x.mT


def with_points_first(x: Float[Tensor, "*B I P"]) -> Float[Tensor, "*B P I"]:
    """(batch, dim, points) as (batch, points, dim); no copy."""
    return x.mT
