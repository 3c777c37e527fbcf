"""Contrast with pseudo-shots: items of a queue that stand in for the support of a few-shot task.

PsCo: Jang, Lee, Shin, "Unsupervised Meta-Learning via Few-shot Pseudo-supervised Contrastive Learning", ICLR 2023,
arXiv 2303.00996.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def top_shots(codes: Float[Tensor, "B L"], shots: int) -> Bool[Tensor, "B L"]:
    """Which of L queue items each of B queries takes as its shots: the `shots` largest of its row.

    A queue shorter than `shots` gives every item. No gradient.
    """
    chosen = codes.topk(min(shots, codes.shape[1]), dim=-1).indices
    return torch.zeros_like(codes, dtype=torch.bool).scatter_(1, chosen, True)


def pseudo_shot_contrast(
    q: Float[Tensor, "B D"], queue: Float[Tensor, "L D"], member: Bool[Tensor, "B L"], temperature: float
) -> Float[Tensor, ""]:
    """Each query against its own shots, among the shots of all queries (SupCon's L_out on queue items).

    With C the items that any row of `member` marks, the mean over queries b and over the items j marked for b of
    -log exp(cos(q_b, queue_j) / temperature) / sum_{i in C} exp(cos(q_b, queue_i) / temperature).
    An item marked for several queries stands in C once. Queries and queue are L2-normalised here; the queue gets
    no gradient. Every row of `member` must mark at least one item.
    """
    logits = F.normalize(q, dim=-1) @ F.normalize(queue.detach(), dim=-1).mT / temperature
    log_p = F.log_softmax(logits.masked_fill(~member.any(0), -torch.inf), dim=-1)
    return -(torch.where(member, log_p, 0.0).sum(-1) / member.sum(-1)).mean()
