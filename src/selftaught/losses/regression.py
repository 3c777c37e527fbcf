"""Losses that pull an embedding to a fixed target."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def cosine_regression(p: Float[Tensor, "*B D"], target: Float[Tensor, "*B D"]) -> Float[Tensor, ""]:
    """2 - 2 cos(p, target), mean over rows (BYOL, Grill et al. 2020, eq. 2). The target gets no gradient."""
    return (2 - 2 * F.cosine_similarity(p, target.detach(), dim=-1)).mean()
