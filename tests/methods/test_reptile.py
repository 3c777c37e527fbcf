"""Reptile against a plain loop; what its direction is at one step, and what it does not see."""

from dataclasses import replace

import pytest
import torch
from small_tasks import distance, gradient, leaves_of, small
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from selftaught.core.errors import ConfigError
from selftaught.core.functional import set_norm
from selftaught.core.types import Examples, Params, Task
from selftaught.losses.matching import half_squared_distance
from selftaught.losses.straight_through import straight_through
from selftaught.methods.reptile import Reptile, trained
from selftaught.optimizers.gradient import Gradient

METHOD = Reptile(inner_steps=3, inner_rate=0.4, tasks=2, ways=3, shots=2, queries=2)


def one(tasks: Task, t: int) -> Task:
    picked: Task = tree_map(lambda x: x[t], tasks)
    return picked


def slow_end(net: nn.Module, params: Params, task: Task, batches: list[list[int]]) -> Params:
    """w_K by plain autograd; each batch is a list of support rows."""
    w = leaves_of(params)
    assert task.support.y is not None
    for rows in batches:
        loss = F.cross_entropy(functional_call(net, w, (task.support.x[rows],)), task.support.y[rows])
        slopes = torch.autograd.grad(loss, list(w.values()))
        moved = {k: v.detach() - 0.4 * g for (k, v), g in zip(w.items(), slopes, strict=True)}
        w = leaves_of(moved)
    return {k: v.detach() for k, v in w.items()}


def rowed(params: Params, ways: int = 3) -> Params:
    """Different head rows for the classes, as after some steps."""
    generator = torch.Generator().manual_seed(3)
    width = params["head.weight"].shape[1]
    rows = torch.randn(ways, width, generator=generator, dtype=torch.float64)
    return params | {"head.weight": rows, "head.bias": torch.arange(ways, dtype=torch.float64)}


def test_the_gradient_is_the_mean_way_from_the_end_to_the_start() -> None:
    net, params, slow, tasks = small(METHOD)
    params = params | {"head.weight": torch.randn_like(params["head.weight"])}
    loss, found = gradient(METHOD, net, params, slow, tasks)
    set_norm(net, "batch")
    spread = params | {k: params[k].expand(3, *params[k].shape[1:]).clone() for k in ("head.weight", "head.bias")}
    # Two shots of three classes, one shot a step: the third step is back at the first shot.
    batches = [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    ends = [slow_end(net, spread, one(tasks, t), batches) for t in range(2)]
    way = {k: sum(spread[k] - end[k] for end in ends) / 2 for k in spread}
    for k in ("head.weight", "head.bias"):
        assert torch.allclose(way[k].sum(0), torch.zeros(()).double(), atol=1e-12), "a shared row stays"
        way[k] = way[k].sum(0, keepdim=True)
    assert distance(found, way) < 1e-9
    asked = [functional_call(net, ends[t], (tasks.query.x[t],)) for t in range(2)]
    assert tasks.query.y is not None
    expected = F.cross_entropy(torch.cat(asked), tasks.query.y.flatten())
    assert torch.allclose(loss, expected, rtol=1e-9)


def test_one_step_is_the_rate_times_the_plain_gradient() -> None:
    net, params, _, tasks = small(METHOD)
    set_norm(net, "batch")
    task, leaves = one(tasks, 0), leaves_of(rowed(params))
    end = trained(net, leaves, task, steps=1, rate=0.4, step_shots=2)
    direction = torch.autograd.grad(half_squared_distance(leaves, end), list(leaves.values()))
    assert task.support.y is not None
    plain = F.cross_entropy(functional_call(net, leaves, (task.support.x,)), task.support.y)
    slopes = torch.autograd.grad(plain, list(leaves.values()))
    expected = {k: 0.4 * g for k, g in zip(leaves, slopes, strict=True)}
    assert distance(dict(zip(leaves, direction, strict=True)), expected) < 1e-10
    assert all(g.abs().sum() > 0 for k, g in expected.items() if k.startswith("encoder.blocks.0.conv.w"))


def test_the_end_is_a_constant() -> None:
    net, params, _, tasks = small(METHOD)
    set_norm(net, "batch")
    end = trained(net, leaves_of(rowed(params)), one(tasks, 0), 2, 0.4, 1)
    assert not any(v.requires_grad for v in end.values())


def test_a_whole_sgd_step_of_one_task_ends_where_its_training_ended() -> None:
    method = replace(METHOD, tasks=1)
    net, params, slow, tasks = small(method)
    optimizer = Gradient(rate=1.0, algorithm="sgd", schedule="constant", momentum=0.0)
    after, _, _ = optimizer.step(lambda p: method.loss(net, p, slow, tasks), params, optimizer.init(params))
    set_norm(net, "batch")
    spread = params | {k: params[k].expand(3, *params[k].shape[1:]).clone() for k in ("head.weight", "head.bias")}
    end = slow_end(net, spread, one(tasks, 0), [[0, 1, 2], [3, 4, 5], [0, 1, 2]])
    body = [k for k in params if k.startswith("encoder.")]
    assert distance({k: after[k] for k in body}, {k: end[k] for k in body}) < 1e-10
    assert distance({k: params[k] for k in body}, {k: end[k] for k in body}) > 1e-6


def test_the_direction_does_not_see_the_query() -> None:
    net, params, slow, tasks = small(METHOD)
    other = replace(tasks, query=Examples(torch.rand_like(tasks.query.x), tasks.query.y))
    (loss, found), (elsewhere, same) = (gradient(METHOD, net, params, slow, t) for t in (tasks, other))
    assert loss != elsewhere and all(torch.equal(found[k], same[k]) for k in found)


def test_larger_batches_take_shots_in_turn() -> None:
    net, params, _, tasks = small(replace(METHOD, shots=3))
    set_norm(net, "batch")
    start, task = rowed(params), one(tasks, 0)
    turns = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 0, 1, 2]]
    assert distance(trained(net, start, task, 2, 0.4, 2), slow_end(net, start, task, turns)) < 1e-10
    everything = [list(range(9))] * 2
    assert distance(trained(net, start, task, 2, 0.4, 7), slow_end(net, start, task, everything)) < 1e-10


def test_one_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="inner_steps >= 2"):
        Reptile(inner_steps=1)
    with pytest.raises(ConfigError, match="step_shots >= 1"):
        Reptile(step_shots=0)


def test_straight_through_has_the_value_of_one_and_the_slope_of_the_other() -> None:
    def at(x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        out = straight_through(leaf.sin(), leaf**3)
        return out.detach(), torch.autograd.grad(out.sum(), leaf)[0]

    value, slope = at(torch.tensor([0.5, -2.0]))
    assert torch.equal(value, torch.tensor([0.5, -2.0]).sin()) and torch.equal(slope, torch.tensor([0.75, 12.0]))
