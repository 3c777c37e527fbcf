"""Losses that keep features apart instead of pictures: no negatives, no teacher, statistics over the batch."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def vicreg_terms(
    z: Float[Tensor, "V B D"], floor: float = 1.0, eps: float = 1e-4
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Invariance, variance and covariance of V views (VICReg, Bardes, Ponce, LeCun 2022, eq. 1 to 5).

    Invariance: mean over unordered pairs of views, rows and features of the squared difference. Variance: mean
    over views and features of max(0, floor - sqrt(Var + eps)), Var over the batch (divided by B - 1). Covariance:
    mean over views of the sum of squared off-diagonal entries of the covariance matrix, divided by D.

    Raises ValueError for fewer than two views or fewer than two rows, which have no variance.
    """
    _enough(z, "vicreg_terms")
    # The mean of |z_a - z_b|^2 over pairs is twice the variance over views.
    invariance = 2 * z.var(0).mean()
    variance = F.relu(floor - (z.var(1) + eps).sqrt()).mean()
    centred = z - z.mean(1, keepdim=True)
    matrix = centred.mT @ centred / (z.shape[1] - 1)
    return invariance, variance, off_diagonal_squares(matrix).mean() / z.shape[-1]


def barlow_twins_terms(
    z: Float[Tensor, "V B D"], eps: float = 1e-5
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum over the diagonal of (1 - C)^2 and over the rest of C^2 (Barlow Twins, Zbontar et al. 2021, eq. 1).

    C [D D] is the cross-correlation over the batch of two views' features (eq. 2), each feature standardised in
    its own view as batch normalisation does it: the variance divided by B, `eps` inside the root. With more than
    two views both sums are averaged over unordered pairs of views (transposing C changes neither).

    Raises ValueError for fewer than two views or fewer than two rows.
    """
    _enough(z, "barlow_twins_terms")
    centred = z - z.mean(1, keepdim=True)
    standard = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt()
    a, b = torch.triu_indices(len(z), len(z), 1, device=z.device)
    c = standard[a].mT @ standard[b] / z.shape[1]
    on = (1 - c.diagonal(dim1=-2, dim2=-1)).square().sum(-1)
    return on.mean(), off_diagonal_squares(c).mean()


def off_diagonal_squares(matrix: Float[Tensor, "*P D D"]) -> Float[Tensor, "*P"]:
    """Sum of the squared entries off the diagonal."""
    itself = torch.eye(matrix.shape[-1], dtype=torch.bool, device=matrix.device)
    return matrix.masked_fill(itself, 0).square().sum((-2, -1))


def _enough(z: Tensor, name: str) -> None:
    if len(z) < 2 or z.shape[1] < 2:
        raise ValueError(f"{name} needs two views and two pictures or more, got embeddings {tuple(z.shape)}")
