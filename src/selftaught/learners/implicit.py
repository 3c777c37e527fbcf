"""The implicit inner loop: solve a task close to the start, differentiate the solution and not the way to it.

Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019, arXiv 1909.04630.

    phi* = argmin L(phi) + lambda/2 ||phi - theta||^2
    v^T d phi* / d theta = (I + H/lambda)^-1 v,   H the Hessian of L at phi*

The inverse is never formed: each step of conjugate gradient asks for one product of H with a vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply, set_norm
from selftaught.core.types import Examples, Params
from selftaught.learners.gradient import moving_names, spread_head
from selftaught.learners.inner import InnerLoss, Rules
from selftaught.learners.prototype import LearnerNorm, apply_recorded

Tensors = Sequence[Tensor]

Slope = Callable[[Tensors], Tensors]
"""Weights -> the inner loss's gradient there, without a graph."""

Product = Callable[[Tensors], Tensors]
"""Direction -> the inner loss's Hessian times it, at weights fixed before."""

Curvature = Callable[[Tensors], Product]
"""Weights -> products with the Hessian there. What all products share is computed once, here."""

BackEnd = Callable[[tuple[str, ...], tuple[Tensor, ...]], tuple[Slope, Curvature]]
"""(names of the weights, outer tensors) -> how to get gradients and products: a back end of the solver."""


@final
@dataclass(frozen=True)
class Proximal:
    """`steps` gradient steps of size `rate` on L + lambda/2 ||phi - theta||^2; `cg_steps` on the way back.

    `strength` is lambda. Errors shrink only while `rate` * (lambda + the largest curvature of L) < 2. Raises
    ConfigError for a `strength` not above 0 and for fewer than one step of either kind.
    """

    strength: float = 2.0
    rate: float = 0.1
    steps: int = 16
    cg_steps: int = 5

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise ConfigError(
                f"strength (lambda) must be above 0, got {self.strength}: nothing else ties a task's solution to "
                "its start; for an inner loop without it take MAML"
            )
        if self.cg_steps < 1 or self.steps < 1:
            raise ConfigError(
                f"the inner loop and conjugate gradient need one step or more, got steps={self.steps} and "
                f"cg_steps={self.cg_steps}; for no solve at all take MAML with graph='first-order'"
            )


def solve(slope: Slope, start: Tensors, proximal: Proximal) -> tuple[list[Tensor], Tensor]:
    """Weights after the steps from `start`, and how far from solved they were one step before.

    The second is the norm of the regularised gradient; the implicit gradient is exact where it is zero.
    """
    now, gap = list(start), start[0].new_zeros(())
    for _ in range(proximal.steps):
        both = [g + proximal.strength * (w - s) for g, w, s in zip(slope(now), now, start, strict=True)]
        gap = torch.stack([g.square().sum() for g in both]).sum().sqrt()
        now = [w - proximal.rate * g for w, g in zip(now, both, strict=True)]
    return now, gap


def conjugate_gradient(product: Callable[[Tensor], Tensor], target: Tensor, steps: int) -> Tensor:
    """An approximate solution x [P] of A x = `target` [P] by `steps` calls of `product`, x -> A x, A symmetric.

    It starts from zero: any other start costs a product to learn its residual. A need not be positive definite:
    where a direction bends down or not at all, the solution found so far stays, and it is `target` itself if
    that was the first direction (Nocedal, Wright, "Numerical Optimization", 2006, algorithm 7.1). No branch
    depends on numbers, so it runs under `vmap`.
    """
    x, residual, along = torch.zeros_like(target), target, target
    size = target @ target
    going = size > 0
    for step in range(steps):
        image = product(along)
        bend = along @ image
        going = going & (bend > 0) & (size > 0)  # a residual whose square underflows is solved
        stride = torch.where(going, size / bend, 0)
        x = x + stride * along if step else torch.where(going, stride * along, target)
        residual = residual - stride * image
        left = residual @ residual
        along = residual + torch.where(going, left / size, 0) * along
        size = left
    return x


def damped_inverse(product: Product, along: Tensors, proximal: Proximal) -> list[Tensor]:
    """(I + H/lambda)^-1 `along`, in the shapes of `along`, by `cg_steps` Hessian-vector products.

    Divided by lambda, as the paper writes it, the system's solution is the meta-gradient itself; of
    (H + lambda I) x = `along` it would be lambda times too small.
    """
    sizes, shapes = [v.numel() for v in along], [v.shape for v in along]

    def cut(flat: Tensor) -> list[Tensor]:
        return [v.view(shape) for v, shape in zip(flat.split(sizes), shapes, strict=True)]

    def damped(flat: Tensor) -> Tensor:
        return flat + _flat(product(cut(flat))) / proximal.strength

    return cut(conjugate_gradient(damped, _flat(along), proximal.cg_steps))


def by_autograd(loss: InnerLoss, names: tuple[str, ...], outer: tuple[Tensor, ...]) -> tuple[Slope, Curvature]:
    """The back end for every network. The graph of the gradient is built once and serves all products."""

    def slope(weights: Tensors) -> tuple[Tensor, ...]:
        return _slope(loss, names, tuple(weights), outer)

    def curvature(weights: Tensors) -> Product:
        back = torch.func.vjp(slope, tuple(weights))[1]
        return lambda along: back(tuple(along))[0]

    return slope, curvature


def by_rules(rules: Rules, names: tuple[str, ...], outer: tuple[Tensor, ...]) -> tuple[Slope, Curvature]:
    """The back end for an inner loss that brings its own derivatives; one tape serves all products."""

    def slope(weights: Tensors) -> Tensors:
        return list(rules.slope(dict(zip(names, weights, strict=True)))[0].values())

    def curvature(weights: Tensors) -> Product:
        tape = rules.slope(dict(zip(names, weights, strict=True)))[1]
        return lambda along: list(rules.curvature(tape, dict(zip(names, along, strict=True))).values())

    return slope, curvature


def descend_implicit(
    loss: InnerLoss, weights: Params, outer: tuple[Tensor, ...], proximal: Proximal, rules: Rules | None = None
) -> tuple[Params, Tensor]:
    """The solution near the start `weights`, and how far from solved it was (see `solve`).

    Its gradient, which can be taken once, reaches `weights` and every floating tensor of `outer` that asks for
    one, as if the problem had been solved exactly. No memory grows with the steps. Whatever differs between
    tasks must be in `outer` when this runs under `vmap`. `rules` are the derivatives of the same `loss` in
    closed form; without them autograd finds them.
    """
    back_end = partial(by_autograd, loss) if rules is None else partial(by_rules, rules)
    *solved, gap = _Implicit.apply(loss, back_end, tuple(weights), proximal, *weights.values(), *outer)
    return dict(zip(weights, solved, strict=True)), gap


class _Implicit(torch.autograd.Function):
    """phi* of the regularised problem; backward solves one linear system in place of unrolling the steps.

    With grad L(phi*, o) + lambda (phi* - theta) = 0 and an incoming gradient v: u = (I + H/lambda)^-1 v goes to
    theta, and -1/lambda d(grad L . u)/d o to an outer tensor o (differentiate the same equation by o).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        loss: InnerLoss, back_end: BackEnd, names: tuple[str, ...], proximal: Proximal, *tensors: Tensor
    ) -> Any:
        count = len(names)
        slope, _ = back_end(names, tensors[count:])
        solved, gap = solve(slope, tensors[:count], proximal)
        return (*solved, gap)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.loss, ctx.back_end, ctx.names, ctx.proximal, *tensors = inputs
        ctx.mark_non_differentiable(output[-1])
        ctx.save_for_backward(*output[:-1], *tensors[len(ctx.names) :])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> Any:
        names, count = ctx.names, len(ctx.names)
        solved, outer = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        product = ctx.back_end(names, outer)[1](solved)
        costate = damped_inverse(product, incoming[:-1], ctx.proximal)
        wanted = ctx.needs_input_grad[4 + count :]
        d_outer = _toward_outer(partial(_slope, ctx.loss, names, solved), outer, wanted, costate)
        scaled = (None if d is None else -d / ctx.proximal.strength for d in d_outer)
        return (None, None, None, None, *costate, *scaled)


def _slope(
    loss: InnerLoss, names: tuple[str, ...], weights: tuple[Tensor, ...], outer: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return tuple(torch.func.grad(loss)(dict(zip(names, weights, strict=True)), outer).values())


def _toward_outer(
    slope: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
    outer: tuple[Tensor, ...],
    wanted: Sequence[bool],
    along: Tensors,
) -> list[Tensor | None]:
    """d(slope(outer) . along) / d(outer), for the wanted ones."""
    places = [i for i, want in enumerate(wanted) if want]
    found: list[Tensor | None] = [None] * len(outer)
    if not places:
        return found

    def of_wanted(*some: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(places, some, strict=True))
        return slope(tuple(given.get(i, x) for i, x in enumerate(outer)))

    back = torch.func.vjp(of_wanted, *(outer[i] for i in places))[1]
    for i, d in zip(places, back(tuple(along)), strict=True):
        found[i] = d
    return found


def _flat(tensors: Tensors) -> Tensor:
    return torch.cat([x.reshape(-1) for x in tensors])


@final
@dataclass(frozen=True)
class ProximalLearner:
    """The same regularised steps on the support's cross-entropy, from `WithClassifier` weights.

    `moving` and `norm` as in `GradientLearner`.
    """

    net: nn.Module
    proximal: Proximal = Proximal()
    moving: Literal["all", "head"] = "all"
    norm: LearnerNorm = "running"

    def adapt(self, weights: Params, support: Examples, ways: int) -> Params:
        """Weights after the steps, with one head row a class; `weights` keep their numbers."""
        weights = {k: v.detach() for k, v in spread_head(weights, ways).items()}
        y = support.y
        if y is None:
            y = torch.arange(ways, device=support.x.device).repeat(len(support.x) // ways)
        names = moving_names(self.net, self.moving)
        fixed = {k: v for k, v in weights.items() if k not in names}
        set_norm(self.net, "running" if self.norm == "running" else "batch")

        def loss(moving: Params, outer: tuple[Tensor, ...]) -> Tensor:
            return F.cross_entropy(functional_call(self.net, {**fixed, **moving}, (support.x,)), y)

        start = {k: weights[k] for k in names}
        slope, _ = by_autograd(loss, tuple(start), ())
        adapted = fixed | dict(zip(start, solve(slope, list(start.values()), self.proximal)[0], strict=True))
        if self.norm == "support":
            adapted |= apply_recorded(self.net, adapted, support.x)[1]
        return {k: v.detach() for k, v in adapted.items()}

    def predict(self, adapted: Params, x: Tensor) -> Tensor:
        """Logits [Q N]."""
        return apply(self.net, adapted, x, "batch" if self.norm == "transductive" else "running").detach()
