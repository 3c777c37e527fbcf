"""What makes a set of open units a good structure for a task: NeuronML's three measures, on gates of one layer.

Wang, Guo, Qiang, Li, Zheng, Xiong, Hua, "Neuromodulated Meta-Learning", 2024, arXiv 2411.06746. A gate M is 1
where a unit is open and 0 where it is closed. The paper's: the three measures by name and purpose. Ours: the
relaxed forms below, each a mean over units, tasks or pairs, so that a weight means the same at any width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_FLOOR = 1e-3
"""What an insensitive unit counts, in parts of the layer's mean."""


def frugality(gates: Float[Tensor, "*T U"]) -> Float[Tensor, ""]:
    """The share of open units. It moves gates, not weights: an L1 norm of masked weights would shrink those."""
    return gates.mean()


def plasticity(gates: Float[Tensor, "T U"], importance: Float[Tensor, " U"]) -> Float[Tensor, ""]:
    """Mean over ordered pairs of different tasks of sum_u p_u M_i[u] M_j[u], p = softmax(importance).

    The product stands for the paper's indicator "open in both", whose gradient is zero. 0 for a single task.
    """
    count = len(gates)
    if count < 2:
        return gates.sum() * 0
    p = importance.softmax(-1)
    together = gates.sum(0).square() - gates.square().sum(0)  # sum over i != j of M_i M_j
    return (p * together).sum() / (count * (count - 1))


def relative_sensitivity(slopes: Float[Tensor, "*T U"]) -> Float[Tensor, "*T U"]:
    """Magnitudes of `slopes` in parts of their layer's mean, at least about `_FLOOR`.

    Slopes have signs, so the paper's log(s / S) is nan for half of them: hence magnitudes, and a floor that keeps
    the logarithm finite where a unit is dead.
    """
    s = slopes.abs()
    s = s + _FLOOR * s.mean(-1, keepdim=True) + torch.finfo(s.dtype).tiny
    return s / s.mean(-1, keepdim=True)


def sensitivity(gates: Float[Tensor, "*T U"], relative: Float[Tensor, "*T U"]) -> Float[Tensor, ""]:
    """Mean over units of -log(s_u / S) M_u, S the sum over the layer: open units should be those that matter."""
    cost = -(relative / relative.sum(-1, keepdim=True)).log()
    return (cost * gates).mean()


def overlap(gates: Float[Tensor, "T U"]) -> Float[Tensor, ""]:
    """Mean over pairs of different tasks of |open in both| / |open in either|; 1 for a single task."""
    count = len(gates)
    if count < 2:
        return gates.new_ones(())
    both = gates @ gates.T
    own = gates.sum(-1)
    ratio = both / (own[:, None] + own - both).clamp_min(1)
    return (ratio.sum() - ratio.diagonal().sum()) / (count * (count - 1))
