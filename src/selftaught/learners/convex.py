"""Learning a task by regularised logistic regression, solved to its optimum; only the optimum is differentiated.

Lee, Maji, Ravichandran, Soatto, "Meta-Learning with Differentiable Convex Optimization", CVPR 2019,
arXiv 1904.03758: a convex base learner, and its gradient from the optimality conditions. Theirs is a support
vector machine solved as a quadratic program; logistic regression and the way to solve it are ours.

    W, b = argmin F,   F = sum_s CE(z_s W + b; y_s) + lambda/2 ||W||^2
    dF/dW = 0 at the optimum, so  d(W, b) = -H^-1 d(dF/d(W, b)),   H the Hessian of F there
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply, part
from selftaught.core.types import Examples, Params
from selftaught.learners.heads import one_hot
from selftaught.learners.prototype import LearnerNorm, embed_support
from selftaught.learners.ridge import Ridge, SolvedRidge

_HALVINGS = 6
_ENOUGH = 1e-4  # of the decrease that the slope promises (Armijo)
_ROUGH = 1e-3  # how well a Newton step is solved for: each then gains three digits


@final
@dataclass(frozen=True)
class Newton:
    """At most `steps` Newton steps, until the gradient is `tolerance` times the first one.

    At most `cg_steps` products with the Hessian find each step, and as many the way back, up to a residual of
    `tolerance`. Raises ConfigError for fewer than one of either and a `tolerance` outside 0..1.
    """

    steps: int = 15
    cg_steps: int = 30
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if self.steps < 1 or self.cg_steps < 1 or not 0 <= self.tolerance < 1:
            raise ConfigError("Newton: use steps and cg_steps of 1 or more, and a tolerance from 0 to below 1")


@final
@dataclass(frozen=True)
class _Problem:
    """F with lambda 1; `z` [... S D+1] ends in a column of ones, `target` [... S N], weights are [... D+1 N]."""

    z: Tensor
    target: Tensor

    def pull(self, w: Tensor) -> Tensor:
        """The penalty's gradient: the weights, and of the intercepts their mean, which changes no posterior.

        Without that mean the Hessian would be singular, and rounding would let it drift.
        """
        return torch.cat([w[..., :-1, :], w[..., -1:, :].mean(-1, keepdim=True).expand_as(w[..., -1:, :])], -2)

    def value(self, w: Tensor) -> Tensor:
        log_p = (self.z @ w).log_softmax(-1)
        return (self.pull(w) * w).sum((-2, -1)) / 2 - (self.target * log_p).sum((-2, -1))

    def slope(self, w: Tensor) -> Tensor:
        return self.z.mT @ ((self.z @ w).softmax(-1) - self.target) + self.pull(w)

    def product(self, w: Tensor) -> Callable[[Tensor], Tensor]:
        """Each task's Hessian at `w` times a direction."""
        p = (self.z @ w).softmax(-1)

        def times(along: Tensor) -> Tensor:
            moved = self.z @ along
            bent = p * (moved - (p * moved).sum(-1, keepdim=True))
            return self.z.mT @ bent + self.pull(along)

        return times


def solve_logistic(
    weights: Params,
    z: Float[Tensor, "... S D"],
    ways: int,
    y: Int64[Tensor, "... S"] | None = None,
    newton: Newton = Newton(),
) -> tuple[Ridge, Tensor]:
    """The head for support features `z`, with `log_scale` and `log_penalty` of `weights`.

    Its gradient, which can be taken once, is that of the optimum: towards `z`, scale and penalty. Also the largest
    gradient norm of F left in any task, which is zero at an optimum. Rows are ordered by shot, then class, unless
    `y` is given; every class needs a row, or its intercept has no optimum.
    """
    scale, shrink = weights["log_scale"].exp(), (-weights["log_penalty"] / 2).exp()
    # Penalty l on features z is penalty 1 on z / sqrt(l). The intercept is free, so centring changes nothing but
    # how soon conjugate gradient is done.
    mean = z.mean(-2, keepdim=True)
    centred = (z - mean) * shrink
    rows = torch.cat([centred, torch.ones_like(centred[..., :1])], -1)
    problem = _Problem(rows, one_hot(z.shape[-2], ways, y, z).expand(*rows.shape[:-1], ways))
    fixed = _Problem(rows.detach(), problem.target)
    with torch.no_grad():
        solved = _minimum(fixed, newton)
        gap = fixed.slope(solved).square().sum((-2, -1)).sqrt().max()
    found = _AtOptimum.apply(problem.slope(solved), solved, fixed, newton)
    weight = shrink * found[..., :-1, :]
    bias = found[..., -1, :] - (mean @ weight).squeeze(-2)
    return Ridge(scale * weight, scale * bias), gap


def _minimum(problem: _Problem, newton: Newton) -> Tensor:
    """Newton's method from zero, with a step size of its own for every task."""
    z, target = problem.z, problem.target
    w = z.new_zeros(*z.shape[:-2], z.shape[-1], target.shape[-1])
    first = None
    for _ in range(newton.steps):
        slope = problem.slope(w)
        size = slope.square().sum((-2, -1)).sqrt()
        first = size if first is None else first
        if bool((size <= newton.tolerance * first).all()):
            break
        along = _conjugate_gradient(problem.product(w), -slope, newton.cg_steps, _ROUGH)
        stride = _stride(problem, w, along, (slope * along).sum((-2, -1)))
        if not bool(stride.any()):
            break
        w = w + stride[..., None, None] * along
    return w


def _stride(problem: _Problem, w: Tensor, along: Tensor, promised: Tensor) -> Tensor:
    """For each task the first of 1, 1/2, 1/4 ... that brings F down enough, and 0 where none does."""
    start = problem.value(w)
    # Close to the optimum F changes by less than its own rounding; a full step is right there.
    slack = 8 * torch.finfo(w.dtype).eps * start.abs()
    stride, stays = torch.ones_like(start), torch.ones_like(start, dtype=torch.bool)
    for _ in range(_HALVINGS):
        reached = problem.value(w + stride[..., None, None] * along)
        stays = reached > start + _ENOUGH * stride * promised + slack
        if not bool(stays.any()):
            return stride
        stride = torch.where(stays, stride / 2, stride)
    return torch.where(stays, torch.zeros_like(stride), stride)


def _conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, steps: int, tolerance: float
) -> Tensor:
    """H^-1 `target` for every task, each until its own residual has shrunk to `tolerance`.

    `implicit.conjugate_gradient` looks at no number, as `vmap` demands, and takes all its steps; this one stops.
    """
    x, residual, along = torch.zeros_like(target), target, target
    size = _squared(residual)
    goal = tolerance**2 * size
    for _ in range(steps):
        live = size > goal
        if not bool(live.any()):
            break
        image = product(along)
        bend = (along * image).sum((-2, -1), keepdim=True)
        live = live & (bend > 0)
        stride = torch.where(live, size / bend, 0)
        x, residual = x + stride * along, residual - stride * image
        left = _squared(residual)
        along = residual + torch.where(live, left / size, 0) * along
        size = left
    return x


def _squared(x: Tensor) -> Tensor:
    return x.square().sum((-2, -1), keepdim=True)


class _AtOptimum(torch.autograd.Function):
    """The optimum as a function of the gradient that vanishes there: d optimum = -H^-1 d slope."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, solved: Tensor, problem: _Problem, newton: Newton) -> Tensor:
        ctx.problem, ctx.newton = problem, newton
        ctx.save_for_backward(solved)
        return solved.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> Any:
        (solved,) = ctx.saved_tensors
        product, newton = ctx.problem.product(solved), ctx.newton
        return -_conjugate_gradient(product, incoming, newton.cg_steps, newton.tolerance), None, None, None


@final
@dataclass(frozen=True)
class LogisticLearner:
    """Solves a logistic head on `net.encoder` with the weights' `log_scale` and `log_penalty`.

    `norm` as in `PrototypeLearner`; raises ConfigError for other names.
    """

    net: nn.Module
    newton: Newton = Newton()
    norm: LearnerNorm = "running"

    def __post_init__(self) -> None:
        if self.norm not in ("running", "support", "transductive"):
            raise ConfigError(f"norm must be running, support or transductive, got {self.norm!r}")

    @torch.no_grad()
    def adapt(self, weights: Params, support: Examples, ways: int) -> SolvedRidge:
        """The head of one support set: `x` [S C H W], `y` [S] or None if ordered by shot, then class."""
        net, own = self.net.get_submodule("encoder"), part(weights, "encoder")
        z, own = embed_support(net, own, support.x, self.norm)
        return SolvedRidge(solve_logistic(weights, z, ways, support.y, self.newton)[0], own)

    @torch.no_grad()
    def predict(self, adapted: SolvedRidge, x: Float[Tensor, "Q C H W"]) -> Float[Tensor, "Q N"]:
        """Log-odds times the learned scale."""
        norm: Literal["running", "batch"] = "batch" if self.norm == "transductive" else "running"
        return adapted.head.logits(apply(self.net.get_submodule("encoder"), adapted.weights, x, norm))
