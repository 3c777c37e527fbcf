"""BMG: the identity with MAML, a slow version with nothing of the library in it, and its constant target."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from small_tasks import distance, gradient, leaves_of, pictures, small
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.errors import ConfigError, DataError
from selftaught.core.functional import set_norm
from selftaught.core.types import Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.methods.bmg import BMG
from selftaught.methods.maml import MAML

SMALL: dict[str, Any] = {"tasks": 2, "ways": 3, "queries": 2, "inner_steps": 2, "inner_rate": 0.4}
METHOD = BMG(**SMALL, bootstrap_steps=3, target_rate=0.7, graph="unrolled")
Matching = Literal["kl", "kl-reverse", "l2"]


def started(method: Any, norm: str = "batch") -> tuple[nn.Module, Params, Params, Task]:
    """With a head that is not zero, which would hide mistakes."""
    net, params, slow, tasks = small(method, norm)
    generator = torch.Generator().manual_seed(4)
    row = torch.randn(params["head.weight"].shape, generator=generator, dtype=torch.float64)
    return net, params | {"head.weight": row}, slow, tasks


@pytest.mark.parametrize("graph", ["auto", "unrolled", "adjoint", "first-order"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_one_step_ahead_in_weights_is_a_multiple_of_maml(norm: str, graph: Any) -> None:
    method = replace(METHOD, bootstrap_steps=1, matching="l2", graph=graph)
    net, params, slow, tasks = started(method, norm)
    loss, found = gradient(method, net, params, slow, tasks)
    asked, slopes = gradient(MAML(**SMALL, graph=graph), net, params, slow, tasks)
    assert distance(found, {k: 0.7 * g for k, g in slopes.items()}) < 1e-8
    assert torch.allclose(loss, asked, rtol=1e-9)


def test_farther_ahead_is_not() -> None:
    net, params, slow, tasks = started(METHOD)
    slopes = {k: 0.7 * g for k, g in gradient(MAML(**SMALL), net, params, slow, tasks)[1].items()}
    for method in (replace(METHOD, matching="l2"), replace(METHOD, bootstrap_steps=1)):
        assert distance(gradient(method, net, params, slow, tasks)[1], slopes) > 0.1


def slow_bmg(method: BMG, net: nn.Module, params: Params, tasks: Task, cut: bool = True) -> Params:
    """Plain autograd; `cut=False` lets the target carry a gradient, which is the classic mistake."""
    leaves, losses = leaves_of(params), []
    set_norm(net, "batch")
    assert tasks.support.y is not None and tasks.query.y is not None
    names = [k for k in params if method.moving == "all" or k.startswith("head.")]
    for t in range(method.tasks):
        support, query = (tasks.support.x[t], tasks.support.y[t]), (tasks.query.x[t], tasks.query.y[t])
        w = dict(leaves)
        for k in ("head.weight", "head.bias"):
            w[k] = torch.cat([leaves[k]] * method.ways)

        def step(w: Params, rows: tuple[Tensor, Tensor], rate: float) -> Params:
            loss = F.cross_entropy(functional_call(net, w, (rows[0],)), rows[1])
            slopes = torch.autograd.grad(loss, [w[k] for k in names], create_graph=True)
            return w | {k: w[k] - rate * g for k, g in zip(names, slopes, strict=True)}

        for _ in range(method.inner_steps):
            w = step(w, support, method.inner_rate)
        ahead = w
        for _ in range(method.bootstrap_steps - 1):
            ahead = step(ahead, support if method.target_on == "support" else query, method.inner_rate)
        ahead = step(ahead, query, 0.7)
        if cut:
            ahead = {k: v.detach() for k, v in ahead.items()}
        if method.matching == "l2":
            losses.append(torch.stack([(w[k] - ahead[k]).square().sum() for k in names]).sum() / 2)
        else:
            now, then = (functional_call(net, v, (query[0],)).softmax(-1) for v in (w, ahead))
            p, q = (then, now) if method.matching == "kl" else (now, then)
            losses.append((p * (p / q).log()).sum(-1).mean())
    found = torch.autograd.grad(torch.stack(losses).mean(), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("moving", ["all", "head"])
@pytest.mark.parametrize("target_on", ["support", "query"])
@pytest.mark.parametrize("matching", ["kl", "kl-reverse", "l2"])
def test_equals_a_plain_slow_loop(matching: Matching, target_on: Any, moving: Any) -> None:
    method = replace(METHOD, matching=matching, target_on=target_on, moving=moving)
    net, params, slow, tasks = started(method)
    found = gradient(method, net, params, slow, tasks)[1]
    assert distance(found, slow_bmg(method, net, params, tasks)) < 1e-8


@pytest.mark.parametrize("matching", ["kl", "l2"])
def test_a_target_with_a_gradient_would_be_another_method(matching: Matching) -> None:
    method = replace(METHOD, matching=matching)
    net, params, slow, tasks = started(method)
    found = gradient(method, net, params, slow, tasks)[1]
    assert distance(slow_bmg(method, net, params, tasks, cut=False), found) > 0.01


def test_on_views_classes_are_pictures() -> None:
    method = replace(METHOD, episodes="views", shots=2, queries=3)
    bare = Pictures(pictures().x, pictures().names)
    tasks = method.source(bare, Views(rotate=20))(torch.Generator().manual_seed(0))
    assert tasks.index is not None and tasks.index.shape == (2, 3)
    assert tasks.support.x.shape[:2] == (2, 6) and tasks.query.x.shape[:2] == (2, 9)
    with pytest.raises(DataError, match="label"):
        METHOD.source(bare, Views())
    net, params, slow, tasks = started(method)
    found = gradient(method, net, params, slow, tasks)[1]
    assert distance(found, slow_bmg(method, net, params, tasks)) < 1e-8


@pytest.mark.parametrize("nonsense", [{"inner_steps": 0}, {"bootstrap_steps": 0}, {"target_rate": 0.0}])
def test_a_target_that_is_the_learner_is_refused(nonsense: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="BMG"):
        BMG(**nonsense)
