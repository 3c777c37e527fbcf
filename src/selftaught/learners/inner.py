"""The inner loop: gradient descent that a gradient can pass through, with or without a graph of its steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.core.types import Params

InnerLoss = Callable[[Params, tuple[Tensor, ...]], Tensor]
"""(weights, outer tensors such as features) -> scalar. Nothing else may carry a gradient."""


@final
@dataclass(frozen=True)
class Written:
    """An inner loss whose gradient is written out, in operations that autograd can differentiate again: fewer
    than autograd's own, and none of them kept where no graph is asked for. Not for `vmap`."""

    loss: InnerLoss
    slope: Callable[[Params, tuple[Tensor, ...]], Params]
    """(weights, outer tensors) -> the gradient by the weights, in their order."""

    def __call__(self, weights: Params, outer: tuple[Tensor, ...]) -> Tensor:
        return self.loss(weights, outer)


Graph = Literal["auto", "unrolled", "adjoint", "first-order"]
"""`unrolled` keeps the graph of all steps (fast when steps are few or weights small); `adjoint` keeps only
each step's weights and pays one Hessian-vector product per step on the way back, so activation memory does
not grow with the steps; `first-order` treats each step's gradient as a constant (FOMAML); `auto` is
`choose_graph`."""

FusedGraph = Graph | Literal["fused", "fused-remat"]
"""`fused` has gradient and product in closed form, where the loss brings `Rules`, and keeps each step's
activations; `fused-remat` makes them again from the weights, so memory does not grow with the steps."""

FEW_STEPS = 5
"""Up to here `auto` unrolls: a tenth faster than the adjoint at five steps (`python -m benchmarks meta_step`)."""


class Rules(Protocol):
    """An inner loss that brings its own derivatives."""

    @property
    def tape_mib(self) -> float:
        """About what one tape holds."""
        ...

    def slope(self, weights: Params) -> tuple[Params, Any]:
        """The gradient, and a tape of what the product needs."""
        ...

    def curvature(self, tape: Any, along: Params) -> Params:
        """The Hessian at the tape's weights times `along`."""
        ...


def runs_batched(graph: FusedGraph) -> bool:
    """Whether tasks can go through `vmap` with it; the adjoints, fused or not, take one task at a time."""
    return graph in ("auto", "unrolled", "first-order")


TAPES_MIB = 128.0
"""What the tapes of one task's inner steps may hold before `auto` makes them again instead."""


def choose_graph(
    graph: FusedGraph, steps: int, *, rules: Rules | None = None, device: str, batched: bool
) -> FusedGraph:
    """The implementation that `auto` stands for; any other name stands for itself.

    With `rules` on a CPU: `fused`, or `fused-remat` where the tapes of all steps would pass `TAPES_MIB`.
    Else `unrolled` up to `FEW_STEPS` and for `batched` tasks (`vmap`), and `adjoint` beyond.
    """
    if graph != "auto":
        return graph
    if rules is not None and device == "cpu" and not batched:
        return "fused" if steps * rules.tape_mib <= TAPES_MIB else "fused-remat"
    return "unrolled" if steps <= FEW_STEPS or batched else "adjoint"


def descend(
    loss: InnerLoss,
    weights: Params,
    outer: tuple[Tensor, ...],
    rate: float | Tensor,
    steps: int,
    graph: FusedGraph,
    rules: Rules | None = None,
) -> Params:
    """`weights` after `steps` steps of size `rate`; the input tensors keep their numbers.

    `rules` serve `fused` and `fused-remat`; they know no `outer`. Raises ConfigError for a `fused` graph
    without rules, and for `adjoint` under `vmap`.
    """
    if steps == 0:
        return weights
    batched = torch._C._are_functorch_transforms_active()
    device = next(iter(weights.values())).device.type
    unroll = batched or isinstance(loss, Written)
    graph = choose_graph(graph, steps, rules=rules, device=device, batched=unroll)
    if graph.startswith("fused"):
        if rules is None:
            raise ConfigError(f"graph={graph!r} needs an inner loss in closed form; use graph='auto'")
        products: _Products = _Closed(rules, list(weights), keep=graph == "fused")
        return _descend_adjoint(products, weights, (), rate, steps)
    if graph == "adjoint":
        if batched:
            raise ConfigError(
                "graph='adjoint' runs one task at a time: use path='threads' or 'loop', or graph='unrolled'"
            )
        return _descend_adjoint(_Autograd(loss, list(weights)), weights, outer, rate, steps)
    for _ in range(steps):
        slope = _gradient(loss, weights, outer, graph=graph == "unrolled")
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
        slope = _gradient(loss, weights, outer, graph=False)
        weights = {k: w - rate * slope[k] for k, w in weights.items()}
    return weights


def _gradient(loss: InnerLoss, weights: Params, outer: tuple[Tensor, ...], graph: bool) -> Params:
    """The inner gradient; with `graph` it can be differentiated again."""
    if torch._C._are_functorch_transforms_active():
        slope = torch.func.grad(loss)(weights, outer)
        return slope if graph else {k: g.detach() for k, g in slope.items()}
    graph = graph and torch.is_grad_enabled()
    if isinstance(loss, Written):
        with torch.set_grad_enabled(graph):
            return loss.slope(weights, outer)
    # Not torch.func here: its first call imports a compiler, two seconds before the first step.
    with torch.enable_grad():
        # Views, since what leads to the same weights through `outer` is no part of this gradient.
        own = {k: w.view_as(w) if w.requires_grad else w.detach().requires_grad_() for k, w in weights.items()}
        value = loss(own, outer)
        slopes = torch.autograd.grad(value, list(own.values()), create_graph=graph, materialize_grads=True)
    return dict(zip(own, slopes if graph else [g.detach() for g in slopes], strict=True))


def _descend_adjoint(
    products: "_Products", weights: Params, outer: tuple[Tensor, ...], rate: float | Tensor, steps: int
) -> Params:
    if not isinstance(rate, Tensor):
        # In the weights' own type: float32 would round a rate for float64 weights.
        first = next(iter(weights.values()))
        rate = torch.tensor(rate, dtype=first.dtype, device=first.device)
    moved = _Adjoint.apply(products, len(weights), steps, rate, *weights.values(), *outer)
    return dict(zip(weights, moved, strict=True))


class _Products(Protocol):
    """Where the adjoint gets its numbers from; weights in a fixed order."""

    def slope(self, weights: list[Tensor], outer: tuple[Tensor, ...]) -> tuple[list[Tensor], Any]:
        """The inner gradient, and a tape of the pass or None."""
        ...

    def curvature(
        self, weights: list[Tensor], tape: Any, outer: list[Tensor], costate: list[Tensor], want: list[bool]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """The inner gradient g again, and d(g . costate) / d(weights, outer)."""
        ...


class _Adjoint(torch.autograd.Function):
    """theta_K of gradient descent; backward goes through the steps from K to 0.

    With g_t the inner gradient at theta_t and lambda the incoming gradient:
    lambda_t = lambda_{t+1} - rate * d(g_t . lambda_{t+1}) / d theta, likewise for `outer`, and
    d rate = -sum_t lambda_{t+1} . g_t (the derivation is that of back-propagation through time).
    """

    @staticmethod
    def forward(ctx: Any, products: _Products, count: int, steps: int, rate: Tensor, *tensors: Tensor) -> Any:
        current, outer = list(tensors[:count]), tensors[count:]
        trail: list[Tensor] = []
        ctx.products, ctx.count, ctx.tapes = products, count, []
        # One block for each weight: kept singly between maps that come and go, they leave holes.
        room = [_rows_like(w, steps) for w in current]
        for t in range(steps):
            slope, tape = products.slope(current, outer)
            trail += current
            ctx.tapes.append(tape)
            current = [torch.sub(w, rate * g, out=r[t]) for w, g, r in zip(current, slope, room, strict=True)]
        ctx.save_for_backward(rate, *outer, *trail)
        return tuple(current)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> Any:
        rate, *saved = ctx.saved_tensors
        count, steps = ctx.count, len(ctx.tapes)
        outer, trail = saved[: len(saved) - steps * count], saved[len(saved) - steps * count :]
        want = list(ctx.needs_input_grad[4 + count :])
        costate = list(incoming)
        d_outer: list[Tensor | None] = [None] * len(outer)
        d_rate = torch.zeros_like(rate)
        for t in reversed(range(steps)):
            at = trail[t * count : (t + 1) * count]
            slope, products = ctx.products.curvature(at, ctx.tapes[t], outer, costate, want)
            if ctx.needs_input_grad[3]:
                d_rate = d_rate - sum(((c * g).sum() for c, g in zip(costate, slope, strict=True)), d_rate * 0)
            own, others = products[:count], products[count:]
            costate = [c if p is None else torch.addcmul(c, p, -rate) for c, p in zip(costate, own, strict=True)]
            for i, p in enumerate(others):
                if p is not None:
                    d_outer[i] = -rate * p if d_outer[i] is None else d_outer[i] - rate * p
        return (None, None, None, d_rate, *costate, *d_outer)


def _rows_like(w: Tensor, rows: int) -> Tensor:
    """Uninitialised [rows *w.shape]; each row has the memory layout that a result computed from `w` would have."""
    one = torch.empty_like(w)
    return one.new_empty_strided((rows, *one.shape), (one.numel(), *one.stride()))


@dataclass(frozen=True)
class _Closed:
    """Rules in closed form, with tapes kept or made again."""

    rules: Rules
    names: list[str]
    keep: bool

    def slope(self, weights: list[Tensor], outer: tuple[Tensor, ...]) -> tuple[list[Tensor], Any]:
        slope, tape = self.rules.slope(dict(zip(self.names, weights, strict=True)))
        found = list(slope.values())
        return found, (found, tape) if self.keep else None

    def curvature(
        self, weights: list[Tensor], tape: Any, outer: list[Tensor], costate: list[Tensor], want: list[bool]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        if tape is None:
            again, pass_ = self.rules.slope(dict(zip(self.names, weights, strict=True)))
            tape = list(again.values()), pass_
        along = dict(zip(self.names, costate, strict=True))
        return tape[0], list(self.rules.curvature(tape[1], along).values())


@dataclass(frozen=True)
class _Autograd:
    """Any differentiable loss: one step's graph at a time, reverse over reverse."""

    loss: InnerLoss
    names: list[str]

    def slope(self, weights: list[Tensor], outer: tuple[Tensor, ...]) -> tuple[list[Tensor], Any]:
        with torch.enable_grad():
            leaves = [w.detach().requires_grad_() for w in weights]
            value = self.loss(dict(zip(self.names, leaves, strict=True)), tuple(x.detach() for x in outer))
            return list(torch.autograd.grad(value, leaves, materialize_grads=True)), None

    def curvature(
        self, weights: list[Tensor], tape: Any, outer: list[Tensor], costate: list[Tensor], want: list[bool]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        with torch.enable_grad():
            leaves = [w.detach().requires_grad_() for w in weights]
            others = [x.detach().requires_grad_(w) for x, w in zip(outer, want, strict=True)]
            value = self.loss(dict(zip(self.names, leaves, strict=True)), tuple(others))
            slope = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
            asked = leaves + [x for x in others if x.requires_grad]
            # A weight that the loss is linear in, or does not know, has a constant gradient: nothing to pass on.
            bent = [i for i, g in enumerate(slope) if g.requires_grad]
            curved, along = [slope[i] for i in bent], [costate[i] for i in bent]
            nothing = [None] * len(asked)
            found = iter(torch.autograd.grad(curved, asked, along, allow_unused=True) if bent else nothing)
        products = [next(found) for _ in leaves] + [next(found) if x.requires_grad else None for x in others]
        return [g.detach() for g in slope], products
