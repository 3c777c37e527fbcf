"""Implicit MAML against a slow loop with nothing of the library in it, and against the unrolled solution."""

from typing import Any

import pytest
import torch
from benchmarks.implicit import BASELINE, Implicit, build
from benchmarks.variants import Shape
from small_tasks import distance, gradient, leaves_of, small
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import set_norm
from selftaught.core.types import Params, Task
from selftaught.methods.imaml import IMAML

SMALL: dict[str, Any] = {
    "strength": 30.0,
    "tasks": 2,
    "ways": 3,
    "queries": 2,
    "inner_steps": 3,
    "inner_rate": 0.01,
}
"""With so strong a pull these steps shrink errors, and no direction that the tests meet bends down."""


def spread(leaves: Params) -> Params:
    return {k: torch.cat([v] * 3) if k.startswith("head.") else v for k, v in leaves.items()}


def slow_imaml(net: Any, params: Params, tasks: Task, method: IMAML) -> tuple[Tensor, Params]:
    """One flat vector, a Hessian of products of the identity's rows only where conjugate gradient asks."""
    set_norm(net, "batch")
    losses, total = [], {k: torch.zeros_like(v) for k, v in params.items()}
    for t in range(method.tasks):
        sx, sy, qx, qy = tasks.support.x[t], tasks.support.y[t], tasks.query.x[t], tasks.query.y[t]  # type: ignore[index]
        theta = spread(params)
        w = dict(theta)
        for _ in range(method.inner_steps):
            leaves = leaves_of(w)
            loss = F.cross_entropy(functional_call(net, leaves, (sx,)), sy)
            loss = loss + method.strength / 2 * sum((leaves[k] - theta[k]).square().sum() for k in w)
            slopes = torch.autograd.grad(loss, list(leaves.values()))
            w = {k: w[k] - method.inner_rate * g for k, g in zip(w, slopes, strict=True)}
        leaves = leaves_of(w)
        query = F.cross_entropy(functional_call(net, leaves, (qx,)), qy)
        b = torch.cat([g.flatten() for g in torch.autograd.grad(query, list(leaves.values()))])
        support = F.cross_entropy(functional_call(net, leaves, (sx,)), sy)
        slope = torch.autograd.grad(support, list(leaves.values()), create_graph=True)
        slope = torch.cat([g.flatten() for g in slope])
        x, r, p = torch.zeros_like(b), b, b
        for _ in range(method.cg_steps):
            hv = torch.autograd.grad(slope @ p, list(leaves.values()), retain_graph=True)
            ap = p + torch.cat([h.flatten() for h in hv]) / method.strength
            assert p @ ap > 0
            a = (r @ r) / (p @ ap)
            x, new = x + a * p, r - a * ap
            r, p = new, new + (new @ new) / (r @ r) * p
        for k, g in zip(w, x.split([v.numel() for v in w.values()]), strict=True):
            g = g.view_as(w[k])
            total[k] += (g.sum(0, keepdim=True) if k.startswith("head.") else g) / method.tasks
        losses.append(query.detach())
    return torch.stack(losses).mean(), total


def unrolled(net: Any, params: Params, tasks: Task, method: IMAML) -> Params:
    """The head's problem solved to the end with a graph of every step: its gradient is the exact one."""
    set_norm(net, "batch")
    leaves, losses = leaves_of(params), []
    for t in range(method.tasks):
        theta = spread(leaves)
        head = {k: v for k, v in theta.items() if k.startswith("head.")}
        below = {k: v for k, v in leaves.items() if k.startswith("encoder.")}
        z = functional_call(net.encoder, {k.removeprefix("encoder."): v for k, v in below.items()},
                            (tasks.support.x[t],))  # fmt: skip
        w = dict(head)
        for _ in range(method.inner_steps):
            loss = F.cross_entropy(F.linear(z, w["head.weight"], w["head.bias"]), tasks.support.y[t])  # type: ignore[index]
            slopes = torch.autograd.grad(loss, list(w.values()), create_graph=True)
            w = {
                k: w[k] - method.inner_rate * (g + method.strength * (w[k] - head[k]))
                for k, g in zip(w, slopes, strict=True)
            }
        logits = functional_call(net, below | w, (tasks.query.x[t],))
        losses.append(F.cross_entropy(logits, tasks.query.y[t]))  # type: ignore[index]
    return dict(zip(leaves, torch.autograd.grad(torch.stack(losses).mean(), list(leaves.values())), strict=True))


def with_head(params: Params) -> Params:
    """A head of zeros hides mistakes."""
    return params | {"head.weight": 0.3 * torch.randn_like(params["head.weight"])}


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_equals_a_plain_slow_loop(norm: str) -> None:
    method = IMAML(**SMALL, cg_steps=3)
    net, params, slow, tasks = small(method, norm)
    params = with_head(params)
    expected, slopes = slow_imaml(net, params, tasks, method)
    loss, found = gradient(method, net, params, slow, tasks)
    assert torch.allclose(loss, expected, rtol=1e-12)
    assert distance(found, slopes) < 1e-9


def test_a_moving_head_gives_the_encoder_its_exact_gradient_too() -> None:
    method = IMAML(**SMALL | {"inner_steps": 150, "strength": 2.0, "inner_rate": 0.1}, cg_steps=20, moving="head")
    net, params, slow, tasks = small(method)
    params = with_head(params)
    expected = unrolled(net, params, tasks, method)
    _, aux = method.loss(net, params, slow, tasks)
    assert aux.metrics["inner_gradient"] < 1e-9
    _, found = gradient(method, net, params, slow, tasks)
    assert distance(found, expected) < 1e-7


def test_the_inner_gradient_shrinks_with_the_steps() -> None:
    def gap(steps: int) -> Tensor:
        method = IMAML(**SMALL | {"inner_steps": steps})
        net, params, slow, tasks = small(method)
        return method.loss(net, with_head(params), slow, tasks)[1].metrics["inner_gradient"]

    assert gap(40) < 0.2 * gap(1)


def test_adaptation_helps_the_query() -> None:
    def loss(strength: float) -> Tensor:
        method = IMAML(**SMALL | {"inner_steps": 20, "inner_rate": 0.9 / (9 + strength), "strength": strength})
        return method.loss(*small(method, "batch"))[0]

    assert loss(0.1) < loss(1e6) - 0.01


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"cg_steps": 0}, {"inner_steps": 0}, {"test_steps": 0}])
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"steps|strength"):
        IMAML(**options)


def test_the_benchmarks_variants_do_the_same_work() -> None:
    """A variant that computes something else would make its ratio worthless."""
    shape = Shape(tasks=2, ways=3, queries=2, size=16, width=8)
    found = {
        name: torch.cat([g.flatten() for g in prepare()()])
        for name, prepare in build(Implicit(steps=3, cg_steps=2), shape, torch.float64).items()
    }
    base = found.pop(BASELINE)
    assert len(found) == 2 and base.norm() > 1e-2
    for name, gradient_found in found.items():
        assert (gradient_found - base).norm() < 1e-10 * base.norm(), name
