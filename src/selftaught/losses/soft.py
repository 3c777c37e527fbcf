"""Cross-entropy for labels that are shares of classes."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(logits: Float[Tensor, "*T Q N"], target: Float[Tensor, "*T Q N"]) -> Float[Tensor, ""]:
    """Mean over rows of -sum_n target_n log softmax(logits)_n; with one-hot rows the usual cross-entropy."""
    return -(target * F.log_softmax(logits, dim=-1)).sum(-1).mean()
