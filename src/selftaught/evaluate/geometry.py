"""What features look like without any label: how many directions they fill, and whether they collapsed.

Effective rank: Roy and Vetterli 2007. Alignment and uniformity: Wang and Isola 2020 (arXiv 2005.10242).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from selftaught.core.errors import DataError

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Geometry:
    """`effective_rank` in 1 .. min(B - 1, D), `uniformity` <= 0 (0: collapse), `mean_std` in 0 .. 1."""

    effective_rank: float
    uniformity: float
    mean_std: float
    width: int


def geometry(z: Float[Tensor, "B D"]) -> Geometry:
    """All label-free figures of one feature set. Raises DataError for fewer than two rows or nan."""
    return Geometry(effective_rank(z), uniformity(z), mean_std(z), z.shape[1])


def effective_rank(z: Float[Tensor, "B D"]) -> float:
    """exp of the entropy of the singular values (as shares of their sum) of the centred features.

    1 where all features lie on a line (or on a point), D where all directions are filled alike.
    """
    _check(z)
    centred = z.double() - z.double().mean(0)
    values = torch.linalg.svdvals(centred)
    # Below this, singular values are rounding noise of the centring.
    values = values[values > z.double().norm() * torch.finfo(z.dtype).eps * math.sqrt(z.shape[1])]
    if len(values) == 0:
        return 1.0
    share = values / values.sum()
    return math.exp(-(share * share.log()).sum().item())


def alignment(a: Float[Tensor, "B D"], b: Float[Tensor, "B D"], power: float = 2.0) -> float:
    """Mean distance to `power` between normalised features of two views of the same pictures; 0 is best."""
    _check(a)
    _check(b)
    if a.shape != b.shape:
        raise DataError(f"two views need one shape [B D], got {list(a.shape)} and {list(b.shape)}")
    gap = F.normalize(a.double(), dim=1) - F.normalize(b.double(), dim=1)
    return gap.norm(dim=1).pow(power).mean().item()


def uniformity(z: Float[Tensor, "B D"], t: float = 2.0) -> float:
    """log of the mean of exp(-t * squared distance) over all pairs of normalised features; 0 is collapse.

    Takes B * B / 2 distances, in blocks: pass a few thousand rows.
    """
    _check(z)
    unit = F.normalize(z.double(), dim=1)
    total = torch.zeros((), dtype=torch.float64)
    for rows in unit.split(_ROWS_AT_ONCE):
        total += torch.exp(-t * (2 - 2 * rows @ unit.T).clamp_(min=0)).sum().cpu()
    many = len(unit)
    # The sum holds every pair twice and each row with itself, which counts one.
    return math.log((total.item() - many) / (many * (many - 1)))


def mean_std(z: Float[Tensor, "B D"]) -> float:
    """Standard deviation of the normalised features, mean over the dimensions, times sqrt(D).

    About 1 for directions spread evenly, 0 where all pictures have one feature (SimSiam's collapse figure).
    """
    _check(z)
    return F.normalize(z.double(), dim=1).std(0).mean().item() * math.sqrt(z.shape[1])


def collapse_warning(z: Float[Tensor, "B D"], least_std: float = 0.01, least_rank: float = 2.0) -> str | None:
    """One sentence on what is wrong with the features and what to try, or None. The limits are our choice."""
    if z.ndim == 2 and not z.isfinite().all():
        return "features hold nan or infinite numbers: lower the learning rate or clip gradients"
    spread, rank = mean_std(z), effective_rank(z)
    if spread < least_std:
        return (
            f"features have collapsed: all pictures get nearly the same one (relative spread {spread:.1e}); "
            "try stronger or more varied views, a lower learning rate, or a method with negatives"
        )
    if rank < least_rank and min(len(z) - 1, z.shape[1]) > least_rank:
        return (
            f"features have collapsed to {rank:.1f} of {z.shape[1]} dimensions; try a larger batch, "
            "stronger views or more training pictures"
        )
    return None


def _check(z: Tensor) -> None:
    if z.ndim != 2 or len(z) < 2 or not z.is_floating_point():
        raise DataError(f"need float features [B D] of at least two pictures, got {z.dtype} {list(z.shape)}")
    if not z.isfinite().all():
        raise DataError("features hold nan or infinite numbers: the encoder has diverged; train it again")
