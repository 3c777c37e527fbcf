"""The evidence bound of a variational autoencoder (Kingma, Welling 2014, arXiv 1312.6114)."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def normal_kl(mean: Float[Tensor, "*B Z"], log_var: Float[Tensor, "*B Z"]) -> Float[Tensor, "*B"]:
    """KL divergence in nats of N(mean, exp(log_var)) from N(0, 1), summed over the code (appendix B)."""
    return (log_var.exp() + mean.square() - 1 - log_var).sum(-1) / 2


def negative_elbo(
    logits: Float[Tensor, "B C H W"],
    x: Float[Tensor, "B C H W"],
    mean: Float[Tensor, "B Z"],
    log_var: Float[Tensor, "B Z"],
) -> Float[Tensor, ""]:
    """Cross-entropy of the pixels, summed over a picture, plus the KL to the prior; mean over pictures, in nats.

    Pixels `x` in 0..1 are read as probabilities, so that no noise level has to be chosen.
    """
    pixels = F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
    return (pixels + normal_kl(mean, log_var)).mean()
