"""How far a learner is from its (constant) target: matching functions of bootstrapped meta-learning."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from selftaught.core.types import Params


def kl_to_target(logits: Float[Tensor, "*Q N"], target: Float[Tensor, "*Q N"]) -> Float[Tensor, ""]:
    """KL(target || current), mean over rows: the direction of distillation. The target gets no gradient."""
    log_q = F.log_softmax(target.detach(), dim=-1)
    return (log_q.exp() * (log_q - F.log_softmax(logits, dim=-1))).sum(-1).mean()


def kl_from_target(logits: Float[Tensor, "*Q N"], target: Float[Tensor, "*Q N"]) -> Float[Tensor, ""]:
    """KL(current || target), mean over rows: the mode-seeking direction. The target gets no gradient."""
    log_p = F.log_softmax(logits, dim=-1)
    return (log_p.exp() * (log_p - F.log_softmax(target.detach(), dim=-1))).sum(-1).mean()


def half_squared_distance(weights: Params, target: Params) -> Float[Tensor, ""]:
    """Half the squared Euclidean distance in parameter space (Flennerhag et al. 2022)."""
    parts = [((weights[k] - target[k].detach()) ** 2).sum() for k in weights]
    return torch.stack(parts).sum() / 2
