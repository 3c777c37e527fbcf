"""The inner loop: gradient descent that a gradient can pass through, with or without a graph of its steps."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.core.types import Params

InnerLoss = Callable[[Params, tuple[Tensor, ...]], Tensor]
"""(weights, outer tensors such as features) -> scalar. Nothing else may carry a gradient."""

Graph = Literal["unrolled", "adjoint", "first-order"]
"""`unrolled` keeps the graph of all steps (fast when steps are few or weights small); `adjoint` keeps only
each step's weights and pays one Hessian-vector product per step on the way back, so activation memory does
not grow with the steps; `first-order` treats each step's gradient as a constant (FOMAML)."""


def descend(
    loss: InnerLoss,
    weights: Params,
    outer: tuple[Tensor, ...],
    rate: float | Tensor,
    steps: int,
    graph: Graph,
) -> Params:
    """`weights` after `steps` steps of size `rate`; the input tensors keep their numbers.

    Raises ConfigError for `adjoint` under `vmap`.
    """
    if steps == 0:
        return weights
    if graph == "adjoint":
        if torch._C._are_functorch_transforms_active():
            raise ConfigError(
                "graph='adjoint' runs one task at a time: use path='threads' or 'loop', or graph='unrolled'"
            )
        if not isinstance(rate, Tensor):
            # In the weights' own type: float32 would round a rate for float64 weights.
            rate = torch.tensor(rate, dtype=next(iter(weights.values())).dtype)
        moved = _Adjoint.apply(loss, list(weights), steps, rate, *weights.values(), *outer)
        return dict(zip(weights, moved, strict=True))
    for _ in range(steps):
        slope = torch.func.grad(loss)(weights, outer)
        if graph == "first-order":
            slope = {k: g.detach() for k, g in slope.items()}
        weights = {k: w - rate * slope[k] for k, w in weights.items()}
    return weights


def descend_detached(
    loss: InnerLoss, weights: Params, outer: tuple[Tensor, ...], rate: float | Tensor, steps: int
) -> Params:
    """The same steps on a copy that nothing can be differentiated through (bootstrapped targets, test time)."""
    weights = {k: w.detach() for k, w in weights.items()}
    outer = tuple(x.detach() for x in outer)
    rate = rate.detach() if isinstance(rate, Tensor) else rate
    for _ in range(steps):
        slope = torch.func.grad(loss)(weights, outer)
        weights = {k: w - rate * slope[k].detach() for k, w in weights.items()}
    return weights


class _Adjoint(torch.autograd.Function):
    """theta_K of gradient descent; backward runs the steps again from K to 0.

    With g_t the inner gradient at theta_t and lambda the incoming gradient:
    lambda_t = lambda_{t+1} - rate * d(g_t . lambda_{t+1}) / d theta, likewise for `outer`, and
    d rate = -sum_t lambda_{t+1} . g_t (the derivation is that of back-propagation through time).
    """

    @staticmethod
    def forward(ctx: Any, loss: InnerLoss, names: list[str], steps: int, rate: Tensor, *tensors: Tensor) -> Any:
        count = len(names)
        current, outer = list(tensors[:count]), tensors[count:]
        trail: list[Tensor] = []
        for _ in range(steps):
            trail += current
            slope = _slope(loss, names, current, outer)
            current = [w - rate * g for w, g in zip(current, slope, strict=True)]
        ctx.loss, ctx.names, ctx.steps = loss, names, steps
        ctx.save_for_backward(rate, *outer, *trail)
        return tuple(current)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> Any:
        rate, *saved = ctx.saved_tensors
        names, steps = ctx.names, ctx.steps
        count = len(names)
        n_outer = len(saved) - steps * count
        outer, trail = saved[:n_outer], saved[n_outer:]
        costate = list(incoming)
        d_outer: list[Tensor | None] = [None] * n_outer
        d_rate = torch.zeros_like(rate)
        for t in reversed(range(steps)):
            at = trail[t * count : (t + 1) * count]
            slope, products = _curvature(ctx.loss, names, at, outer, costate, ctx.needs_input_grad[4 + count :])
            d_rate = d_rate - sum(((c * g).sum() for c, g in zip(costate, slope, strict=True)), d_rate * 0)
            costate = [c if p is None else c - rate * p for c, p in zip(costate, products[:count], strict=True)]
            for i, p in enumerate(products[count:]):
                if p is not None:
                    d_outer[i] = -rate * p if d_outer[i] is None else d_outer[i] - rate * p
        return (None, None, None, d_rate, *costate, *d_outer)


def _slope(loss: InnerLoss, names: list[str], current: list[Tensor], outer: tuple[Tensor, ...]) -> list[Tensor]:
    """The inner gradient, without leaving a graph."""
    with torch.enable_grad():
        leaves = [w.detach().requires_grad_() for w in current]
        value = loss(dict(zip(names, leaves, strict=True)), tuple(x.detach() for x in outer))
        return list(torch.autograd.grad(value, leaves, materialize_grads=True))


def _curvature(
    loss: InnerLoss, names: list[str], at: list[Tensor], outer: list[Tensor], costate: list[Tensor], want: Any
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The inner gradient g at one step and d(g . costate) / d(weights, outer), reverse over reverse."""
    with torch.enable_grad():
        leaves = [w.detach().requires_grad_() for w in at]
        others = [x.detach().requires_grad_(bool(w)) for x, w in zip(outer, want, strict=True)]
        value = loss(dict(zip(names, leaves, strict=True)), tuple(others))
        slope = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
        asked = leaves + [x for x in others if x.requires_grad]
        # A weight that the loss is linear in, or does not know, has a constant gradient: nothing to pass on.
        bent = [i for i, g in enumerate(slope) if g.requires_grad]
        curved, along = [slope[i] for i in bent], [costate[i] for i in bent]
        nothing = [None] * len(asked)
        found = iter(torch.autograd.grad(curved, asked, along, allow_unused=True) if bent else nothing)
    products = [next(found) for _ in leaves] + [next(found) if x.requires_grad else None for x in others]
    return [g.detach() for g in slope], products
