"""What MoSS is asked: mixture divergences, the contrast of tasks, SAC's target. Pure functions.

Letters: K components, L latent numbers; leading axes are any.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def categorical_kl(log_y: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """KL(q(y) || uniform) in nats, from log probabilities: sum_k q_k (log q_k + log K)."""
    return (log_y.exp() * (log_y + math.log(log_y.shape[-1]))).sum(-1)


def mean_categorical_kl(log_y: Float[Tensor, "*B K"]) -> Float[Tensor, ""]:
    """KL(mean q(y) || uniform): all components are used over a batch, each belief may be certain.

    The KL of each belief by itself would pull every one of them to uniform, and the classes together.
    """
    log_mean = torch.logsumexp(log_y.flatten(0, -2), 0) - math.log(log_y[..., 0].numel())
    return categorical_kl(log_mean)


def component_kl(
    mean: Float[Tensor, "*B K L"],
    log_var: Float[Tensor, "*B K L"],
    prior_mean: Float[Tensor, "K L"],
    prior_log_var: Float[Tensor, ""] | float,
) -> Float[Tensor, "*B K"]:
    """KL in nats of each component N(mean, exp(log_var)) from its prior, summed over the latent's numbers."""
    gap = log_var - prior_log_var
    inverse = math.exp(-prior_log_var) if isinstance(prior_log_var, float) else (-prior_log_var).exp()
    return (gap.exp() + (mean - prior_mean).square() * inverse - 1 - gap).sum(-1) / 2


def task_contrast(
    a: Float[Tensor, "B D"],
    b: Float[Tensor, "B D"],
    same: Bool[Tensor, "B B"],
    valid: Bool[Tensor, " B"],
    temperature: float,
) -> Float[Tensor, ""]:
    """InfoNCE in both directions between two windows of each episode: find your own among those of other tasks.

    loss = - mean over valid i of log exp(s_ii) / (exp(s_ii) + sum of exp(s_ij) over valid j of other tasks)

    with s the cosine over `temperature`. `same[i, j]`: windows a_i and b_j are of one task, so that b_j is no
    negative of i. `valid[i]`: both windows of i are of one task. Without a valid row it is 0.
    """
    logits = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT / temperature
    itself = torch.eye(len(a), dtype=torch.bool, device=a.device)
    use = (itself | ~same) & valid[:, None] & valid | itself
    logits = logits.masked_fill(~use, -torch.inf)
    there, back = (-x.log_softmax(-1).diagonal() for x in (logits, logits.mT))
    return ((there + back) / 2 * valid).sum() / valid.sum().clamp(min=1)


def soft_target(
    reward: Float[Tensor, "*B"],
    next_q: Float[Tensor, "*pair_B"],
    next_log_p: Float[Tensor, "*B"],
    temperature: Float[Tensor, ""] | float,
    discount: float,
) -> Float[Tensor, "*B"]:
    """r + discount * (min of both target critics - temperature * log pi), as in SAC (arXiv 1812.05905)."""
    return reward + discount * (next_q.amin(0) - temperature * next_log_p)
