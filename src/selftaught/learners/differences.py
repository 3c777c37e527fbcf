"""A look ahead whose gradient is a central difference instead of a second derivative (Liu, Simonyan, Yang, DARTS,
ICLR 2019, arXiv 1806.09055, equation 8)."""

import torch
from torch import Tensor

from selftaught.core.types import Params
from selftaught.learners.inner import InnerLoss, descend_detached
from selftaught.losses.straight_through import straight_through

REACH = 0.01
"""How far the two weights of a difference lie from the start, as a norm over all weights (DARTS, footnote 2)."""


def look_ahead_by_differences(
    inner: InnerLoss, asked: InnerLoss, weights: Params, outer: tuple[Tensor, ...], rate: float
) -> Tensor:
    """`asked` after one step of size `rate` on `inner` from constant `weights`; a gradient for `outer` alone.

    With v the gradient of `asked` there and e = REACH / |v|, that gradient is
    -rate * (g(weights + e v) - g(weights - e v)) / 2e, where g is the gradient of `inner` for `outer`: exact up to
    O(e^2), without second derivatives or a graph of the step. `asked` may know `outer` through the weights only.
    """
    weights = {k: w.detach() for k, w in weights.items()}
    ahead = descend_detached(inner, weights, outer, rate, 1)
    ahead = {k: w.detach().requires_grad_() for k, w in ahead.items()}
    with torch.enable_grad():
        value = asked(ahead, ())
        slope = torch.autograd.grad(value, list(ahead.values()), materialize_grads=True)
    # A slope of zero has a difference of zero; the bound keeps it from being 0 / 0.
    step = REACH / torch.linalg.vector_norm(torch.stack(torch._foreach_norm(slope))).clamp_min(1e-12)
    plus, minus = (
        inner({k: w + s * g for (k, w), g in zip(weights.items(), slope, strict=True)}, outer)
        for s in (step, -step)
    )
    return straight_through(value, -rate * (plus - minus) / (2 * step))
