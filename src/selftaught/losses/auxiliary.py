"""Losses of learning beside an auxiliary task whose labels are generated.

MAXL: Liu, Davison, Johns, NeurIPS 2019, arXiv 1901.08933. Focal loss: Lin, Goyal, Girshick, He, Dollar, ICCV 2017,
arXiv 1708.02002.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from selftaught.losses.clustering import entropy


def subclass_mask(y: Int64[Tensor, "*B"], classes: int, subclasses: int) -> Bool[Tensor, "*B K"]:
    """Which of K = classes * subclasses auxiliary classes lie in the primary class `y` (0 to classes - 1)."""
    owner = torch.arange(classes * subclasses, device=y.device) // subclasses
    return owner == y[..., None]


def masked_softmax(logits: Float[Tensor, "*B K"], mask: Bool[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
    """Softmax over the entries that `mask` keeps; the others are zero and get no gradient.

    Printed as exp(M z) / sum exp(M z), a mask inside the exponent leaves a weight of one to every masked
    entry, which is most of the mass where few are kept. Here masked logits are minus infinity, and the maximum is
    taken off before the exponential, so that large logits stay finite. Every row needs an entry that is kept.
    """
    return F.softmax(logits.masked_fill(~mask, -torch.inf), dim=-1)


def focal_loss(
    logits: Float[Tensor, "B K"], target: Float[Tensor, "B K"], gamma: float = 2.0
) -> Float[Tensor, ""]:
    """Mean over rows of -sum_k target_k (1 - p_k)^gamma log p_k, p = softmax(logits); gamma = 0 is cross-entropy.

    Targets are distributions and may carry a gradient. Raises ValueError for a negative gamma.
    """
    if gamma < 0:
        raise ValueError(f"focal_loss needs gamma >= 0, got {gamma}")
    log_p = F.log_softmax(logits, dim=-1)
    each = log_p if gamma == 0 else (-torch.expm1(log_p)) ** gamma * log_p
    return -(target * each).sum(-1).mean()


def mean_label_negentropy(labels: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """H = sum_k m_k log m_k with m = mean of the labels over the batch: minus the entropy, in nats.

    It is that of the mean, not the mean of the pictures' own: sure labels that differ between pictures cost
    nothing. Lowest, -log K, where all K classes are used alike. A class that no label uses adds neither value nor
    gradient (its slope is infinite, and masked logits would turn it into NaN).
    """
    mean = labels.mean(0)
    return -entropy(torch.where(mean > 0, mean, torch.ones_like(mean)))
