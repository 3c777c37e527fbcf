"""What is asked of sets of points: which belongs to the same function, and what other points of it are.

All take (batch, points, dim). Means over points as well as functions, so that sizes of sets do not matter.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from selftaught.core.errors import ConfigError


def cross_view_info_nce(z: Float[Tensor, "V B D"], temperature: float) -> Float[Tensor, ""]:
    """For each ordered pair of views a != b: find, among the B sets of view b, the one of the same function.

    loss = - mean over a != b and k of log exp(s(z_k^a, z_k^b)) / sum_m exp(s(z_k^a, z_m^b)),  s = cos /
    temperature

    Gondal et al. 2021 (arXiv 2010.07093). Sets of the same view are no negatives, unlike in NT-Xent; with two
    views it is the symmetric loss of CLIP. Raises ConfigError for fewer than two views.
    """
    views, functions = z.shape[:2]
    if views < 2:
        raise ConfigError(f"embeddings {tuple(z.shape)}: a pair needs two views; use [V B D] with V of 2 or more")
    z = F.normalize(z, dim=-1)
    logits = torch.einsum("akd,bmd->abkm", z, z) / temperature
    different = ~torch.eye(views, dtype=torch.bool, device=z.device)
    right = torch.arange(functions, device=z.device).repeat(views * (views - 1))
    return F.cross_entropy(logits[different].flatten(0, 1), right)


def likelihood_loss(
    mean: Float[Tensor, "*B P O"], deviation: Float[Tensor, "*B P O"], y: Float[Tensor, "*B P O"]
) -> Float[Tensor, ""]:
    """Minus the Gaussian log density of outputs, summed over O, mean over everything else."""
    return -Normal(mean, deviation).log_prob(y).sum(-1).mean()


def divergence(q: Normal, p: Normal) -> Float[Tensor, ""]:
    """KL(q || p) of diagonal Gaussians [... L], summed over L, mean over the rest."""
    return kl_divergence(q, p).sum(-1).mean()
