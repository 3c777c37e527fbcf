"""MAML against a slow loop with nothing of the library in it; UMTRA's tasks."""

from typing import Any, Literal

import pytest
import torch
from small_tasks import distance, gradient, leaves_of, pictures, small
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.errors import DataError
from selftaught.core.functional import set_norm
from selftaught.core.types import Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.methods.maml import MAML
from selftaught.methods.protonet import ProtoNet
from selftaught.methods.umtra import UMTRA

SMALL: dict[str, Any] = {"tasks": 3, "ways": 3, "queries": 2, "inner_steps": 3, "inner_rate": 0.4}


def slow_maml(net: Any, params: Params, tasks: Task, names: list[str], first_order: bool) -> tuple[Tensor, Params]:
    leaves = leaves_of(params)
    set_norm(net, "batch")
    losses = []
    for t in range(SMALL["tasks"]):
        w = dict(leaves)
        w["head.weight"] = torch.cat([leaves["head.weight"]] * SMALL["ways"])
        w["head.bias"] = torch.cat([leaves["head.bias"]] * SMALL["ways"])
        for _ in range(SMALL["inner_steps"]):
            loss = F.cross_entropy(functional_call(net, w, (tasks.support.x[t],)), tasks.support.y[t])
            slopes = torch.autograd.grad(loss, [w[k] for k in names], create_graph=not first_order)
            w = w | {k: w[k] - SMALL["inner_rate"] * g for k, g in zip(names, slopes, strict=True)}
        losses.append(F.cross_entropy(functional_call(net, w, (tasks.query.x[t],)), tasks.query.y[t]))
    mean = torch.stack(losses).mean()
    found = torch.autograd.grad(mean, list(leaves.values()), materialize_grads=True)
    return mean.detach(), dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("moving", ["all", "head"])
@pytest.mark.parametrize("graph", ["unrolled", "adjoint", "first-order"])
@pytest.mark.parametrize("kind", [MAML, UMTRA])
def test_equals_a_plain_slow_loop(kind: type[Any], graph: str, moving: Literal["all", "head"]) -> None:
    method = kind(**SMALL, graph=graph, moving=moving)
    net, params, slow, tasks = small(method)
    params = params | {"head.weight": torch.randn_like(params["head.weight"])}  # a head of zeros hides mistakes
    names = [k for k in params if moving == "all" or k.startswith("head.")]
    expected, slopes = slow_maml(net, params, tasks, names, graph == "first-order")
    loss, found = gradient(method, net, params, slow, tasks)
    assert torch.allclose(loss, expected, rtol=1e-12)
    assert distance(found, slopes) < 1e-9


def test_adaptation_helps_the_query() -> None:
    def loss(steps: int) -> Tensor:
        method = MAML(**SMALL | {"inner_steps": steps})
        return method.loss(*small(method, "batch"))[0]

    assert loss(5) < loss(0) - 0.01


def test_episodes_need_labels() -> None:
    bare = Pictures(pictures().x, pictures().names)
    for kind in (MAML, ProtoNet):
        with pytest.raises(DataError, match="label"):
            kind().source(bare, Views())


def test_running_statistics_move_once_a_step() -> None:
    method = MAML(**SMALL)
    net, params, slow, tasks = small(method)
    _, aux = method.loss(net, params, slow, tasks)
    after = method.refresh(net, slow, params, tasks, aux)
    name = "encoder.blocks.0.norm."
    assert after[name + "num_batches_tracked"] == slow[name + "num_batches_tracked"] + 1
    first = net.encoder.blocks[0].conv(tasks.query.x.flatten(0, 1))
    assert torch.allclose(after[name + "running_mean"], 0.1 * first.mean((0, 2, 3)))


def test_umtras_support_is_the_pictures_and_its_queries_are_not() -> None:
    method = UMTRA(tasks=3, ways=4, queries=2)
    tasks = method.source(pictures(), Views(rotate=20))(torch.Generator().manual_seed(0))
    assert tasks.index is not None
    raw = pictures().x[tasks.index].float() / 255
    assert torch.equal(tasks.support.x, raw)
    both = tasks.query.x.unflatten(1, (2, 4))
    assert not any(torch.equal(both[t, v, n], raw[t, n]) for t in range(3) for v in range(2) for n in range(4))
