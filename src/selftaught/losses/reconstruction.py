"""Losses that ask for what was hidden: pictures cut into patches, and the error on the hidden ones alone."""

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor


def patches_of(x: Float[Tensor, "B C H W"], patch: int) -> Float[Tensor, "B P E"]:
    """Patches of `patch` x `patch` pixels row by row, each as E = C * patch * patch numbers, channel first."""
    return rearrange(x, "b c (r p) (s q) -> b (r s) (c p q)", p=patch, q=patch)


def standardised(patches: Float[Tensor, "*B E"], eps: float = 1e-6) -> Float[Tensor, "*B E"]:
    """Each patch with its own mean 0 and variance 1: (x - mean) / sqrt(variance + eps) (MAE, He et al. 2022).

    The variance is divided by E and taken over all channels together; a patch of one colour becomes zeros.
    """
    variance = patches.var(-1, correction=0, keepdim=True)
    return (patches - patches.mean(-1, keepdim=True)) / (variance + eps).sqrt()


def hidden_square_error(
    prediction: Float[Tensor, "B P E"], target: Float[Tensor, "B P E"], hidden: Bool[Tensor, "B P"]
) -> Float[Tensor, ""]:
    """Mean squared error over the numbers of the hidden patches (MAE, He et al. 2022, sec. 3).

    Patches that were seen count nothing, and `prediction` gets no gradient there; nor does `target` anywhere.
    Raises ValueError where nothing is hidden.
    """
    if not bool(hidden.any()):
        raise ValueError("hidden_square_error has nothing to ask for: no patch is hidden")
    return (prediction - target.detach())[hidden].square().mean()
