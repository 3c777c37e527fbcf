"""Contrast with keys from earlier batches, kept in a queue."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def queue_contrast(
    q: Float[Tensor, "*B D"], k: Float[Tensor, "*B D"], queue: Float[Tensor, "L D"], temperature: float
) -> Float[Tensor, ""]:
    """InfoNCE of each query against its own key and the L keys of a queue (MoCo, He et al. 2020, eq. 1).

    -log exp(cos(q, k) / temperature) / (exp(cos(q, k) / temperature) + sum_l exp(cos(q, queue_l) / temperature)),
    mean over rows: the other keys of the batch are no negatives. Queries, keys and queue are L2-normalised here;
    keys and queue get no gradient.
    """
    q, k, queue = F.normalize(q, dim=-1), F.normalize(k.detach(), dim=-1), F.normalize(queue.detach(), dim=-1)
    logits = torch.cat([(q * k).sum(-1, keepdim=True), q @ queue.mT], -1) / temperature
    return (logits.logsumexp(-1) - logits[..., 0]).mean()
