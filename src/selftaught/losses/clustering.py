"""Losses in which one view predicts how another is assigned to prototypes (online clustering).

SwAV: Caron et al. 2020, arXiv 2006.09882. DINO: Caron et al. 2021, arXiv 2104.14294.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def sinkhorn_codes(scores: Float[Tensor, "*V B K"], epsilon: float, steps: int) -> Float[Tensor, "*V B K"]:
    """Soft assignments of B pictures to K prototypes that use every prototype alike (SwAV, eq. 3).

    Row b is a distribution over prototypes; in the limit of many `steps` every column sums to B / K, and among
    such matrices the codes maximise sum(codes * scores) + epsilon * entropy(codes). Each step of Sinkhorn-Knopp
    scales first columns, then rows: rows sum to one after any number of steps, columns only nearly. Leading axes
    (views) are solved apart. Computed with logarithms, so that no epsilon overflows: our choice. Codes have no
    gradient. Raises ValueError for an epsilon that is not positive or fewer than one step.
    """
    if epsilon <= 0 or steps < 1:
        raise ValueError(f"sinkhorn_codes needs epsilon > 0 and steps >= 1, got {epsilon} and {steps}")
    log_codes = scores / epsilon
    for _ in range(steps):
        log_codes = F.log_softmax(F.log_softmax(log_codes, dim=-2), dim=-1)
    return log_codes.exp()


@torch.no_grad()
def centred_targets(
    scores: Float[Tensor, "*V B K"], centre: Float[Tensor, " K"], temperature: float
) -> Float[Tensor, "*V B K"]:
    """softmax((scores - centre) / temperature), without gradient (DINO, section 3.1).

    The centre keeps one output from winning for every picture, a low temperature keeps all from being equal.
    """
    return F.softmax((scores - centre) / temperature, dim=-1)


def swapped_prediction(
    scores: Float[Tensor, "V B K"], targets: Float[Tensor, "V B K"], temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy of softmax(scores / temperature) of one view with the `targets` of another, a constant.

    Mean over ordered pairs of different views and over pictures (SwAV, eq. 2; DINO, eq. 3). Raises ValueError for
    fewer than two views.
    """
    views = len(scores)
    if views < 2:
        raise ValueError(f"swapped_prediction needs at least two views, got scores {tuple(scores.shape)}")
    log_p = F.log_softmax(scores / temperature, dim=-1)
    others = targets.detach().sum(0) - targets.detach()
    return -(others * log_p).sum(-1).mean() / (views - 1)


def entropy(p: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """Entropy in nats of distributions over the last axis; log K when all are alike, 0 when one has all."""
    return torch.special.entr(p).sum(-1)
