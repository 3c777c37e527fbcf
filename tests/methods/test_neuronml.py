"""NeuronML: MAML where all gates are open, a plain slow loop where they are not, and what reaches what."""

from typing import Any

import pytest
import torch
from small_tasks import distance, gradient, leaves_of, pictures, small
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import set_norm
from selftaught.core.train import start, train
from selftaught.core.types import Examples, Params, Task
from selftaught.data.views import Views
from selftaught.methods.maml import MAML
from selftaught.methods.neuronml import NeuronML
from selftaught.nets import build_encoder
from selftaught.nets.gates import by_layer, layers_of, masked, masks, opened
from selftaught.optimizers.gradient import Gradient

SMALL: dict[str, Any] = {"tasks": 3, "ways": 3, "queries": 2, "inner_steps": 3, "inner_rate": 0.4}
FREE: dict[str, Any] = {"frugality": 0.0, "plasticity": 0.0, "sensitivity": 0.0}


def case(norm: str = "batch", **changes: Any) -> tuple[Any, nn.Module, Params, Params, Task]:
    method = NeuronML(**SMALL | changes)
    net, params, slow, tasks = small(method, norm)
    # A head of zeros hides mistakes, and gates that answer strongly tell tasks apart.
    noise = torch.Generator().manual_seed(3)
    for k, scale in (("head.weight", 1.0), ("gates.scores.weight", 2.0)):
        params[k] = scale * torch.randn(params[k].shape, generator=noise, dtype=torch.float64)
    slow |= {"gates.centre": summaries(net, params, slow, tasks).mean(0)}
    return method, net, params, slow, tasks


def theta(params: Params) -> Params:
    return {k: v for k, v in params.items() if not k.startswith("gates.")}


# ------------------------------------------------------------------------------------------ all gates open


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("graph", ["auto", "unrolled", "adjoint", "first-order"])
def test_with_all_gates_open_it_is_maml(graph: str, norm: str) -> None:
    method, net, params, slow, tasks = case(norm, budget=1.0, graph=graph, **FREE)
    params |= {"gates.scores.bias": torch.full_like(params["gates.scores.bias"], 100.0)}
    plain = MAML(**SMALL, graph=graph)  # type: ignore[arg-type]
    loss, found = gradient(method, net, params, slow, tasks)
    expected, slopes = gradient(plain, net, theta(params), slow, tasks)
    assert torch.allclose(loss, expected, rtol=1e-13)
    assert distance(theta(found), slopes) < 1e-12
    assert not any(found[k].any() for k in found if k.startswith("gates.")), "a saturated gate has no slope"
    aux = method.loss(net, params, slow, tasks)[1]
    assert aux.metrics["active"] == 1 and aux.metrics["overlap"] == 1
    after, other = (m.refresh(net, slow, params, tasks, aux) for m in (method, plain))
    assert all(torch.allclose(after[k], other[k], rtol=1e-12) for k in other if k.startswith("encoder."))
    support, asked = Examples(tasks.support.x[0], tasks.support.y[0]), tasks.query.x[0]  # type: ignore[index]
    logits = [
        m.learner(net).predict(m.learner(net).adapt(params | slow, support, 3), asked) for m in (method, plain)
    ]
    assert torch.allclose(logits[0], logits[1], rtol=1e-10)


# ------------------------------------------------------------------------------------- some gates closed


def slow_neuronml(method: Any, net: nn.Module, params: Params, tasks: Task, gates: Tensor) -> tuple[Tensor, ...]:
    """Loss, and its gradient in theta and in the gates [T U] where these start the weights."""
    leaves, gates = leaves_of(theta(params)), gates.clone().requires_grad_()
    layers = layers_of(net.get_submodule("encoder"))
    set_norm(net, "batch")
    losses = []
    for t in range(SMALL["tasks"]):
        w = dict(leaves)
        w |= {k: torch.cat([leaves[k]] * SMALL["ways"]) for k in ("head.weight", "head.bias")}
        hold = masks(gates[t].detach(), layers, w)
        w = masked(w, masks(gates[t], layers, w))
        for _ in range(SMALL["inner_steps"]):
            logits = functional_call(net, masked(w, hold), (tasks.support.x[t],))
            loss = F.cross_entropy(logits, tasks.support.y[t])  # type: ignore[index]
            slopes = torch.autograd.grad(loss, list(w.values()), create_graph=True)
            w = {k: v - SMALL["inner_rate"] * g for (k, v), g in zip(w.items(), slopes, strict=True)}
        losses.append(F.cross_entropy(functional_call(net, w, (tasks.query.x[t],)), tasks.query.y[t]))  # type: ignore[index]
    mean = torch.stack(losses).mean()
    *found, to_gates = torch.autograd.grad(mean, [*leaves.values(), gates], materialize_grads=True)
    return mean.detach(), dict(zip(leaves, found, strict=True)), to_gates  # type: ignore[return-value]


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("graph", ["auto", "unrolled", "adjoint"])
def test_equals_a_plain_slow_loop(graph: str, norm: str) -> None:
    method, net, params, slow, tasks = case(norm, graph=graph, **FREE)
    aux = method.loss(net, params, slow, tasks)[1]
    hard = aux.carry["open"]
    assert 0 < aux.metrics["overlap"] < 1
    expected, slopes, to_gates = slow_neuronml(method, net, params, tasks, hard)
    loss, found = gradient(method, net, params, slow, tasks)
    assert torch.allclose(loss, expected, rtol=1e-12)
    assert distance(theta(found), slopes) < 1e-9  # type: ignore[arg-type]
    unusual = summaries(net, params, slow, tasks) - slow["gates.centre"]
    unusual = unusual / unusual.norm(dim=1, keepdim=True)
    values = unusual @ params["gates.scores.weight"].T + params["gates.scores.bias"]
    soft = torch.sigmoid(values)
    assert torch.allclose(found["gates.scores.bias"], (to_gates * soft * (1 - soft)).sum(0), rtol=1e-8, atol=1e-12)


def summaries(net: nn.Module, params: Params, slow: Params, tasks: Task) -> Tensor:
    set_norm(net, "running")
    weights = {k.removeprefix("encoder."): v for k, v in (params | slow).items() if k.startswith("encoder.")}
    rows = [functional_call(net.get_submodule("encoder"), weights, (x,)).mean(0) for x in tasks.support.x]
    return torch.stack(rows)


def test_structure_moves_the_gates_and_not_the_weights() -> None:
    _, free = gradient(*case(**FREE))
    for name in FREE:
        _, one = gradient(*case(**FREE | {name: 1.0}))
        assert distance(theta(one), theta(free)) < 1e-12, name
        assert not torch.allclose(one["gates.scores.bias"], free["gates.scores.bias"], rtol=1e-3), name
    method, net, params, slow, tasks = case(frugality=1.0, plasticity=1.0, sensitivity=1.0)
    loss, aux = method.loss(net, params, slow, tasks)
    parts = sum(aux.metrics[k] for k in ("query_loss", "active", "plasticity", "sensitivity"))
    assert torch.allclose(loss, parts, rtol=1e-10)


def test_closed_units_feel_the_task() -> None:
    """Below the head: a gate that is closed has a gradient of the task's loss, so that it can open again."""
    method, net, params, slow, tasks = case(**FREE)
    hard = method.loss(net, params, slow, tasks)[1].carry["open"]
    shut = (hard.sum(0) == 0)[:-8]
    assert shut.any()
    assert gradient(method, net, params, slow, tasks)[1]["gates.scores.bias"][:-8][shut].abs().min() > 0


def test_closed_units_stay_closed_on_a_new_task() -> None:
    method, net, params, slow, tasks = case()
    learner = method.learner(net)
    assert tasks.support.y is not None
    adapted = learner.adapt(params | slow, Examples(tasks.support.x[0], tasks.support.y[0]), 3)
    layers = layers_of(net.get_submodule("encoder"))
    for layer, gates in zip(layers, by_layer(adapted["open"], layers), strict=True):
        before = params[layer.weight].expand_as(adapted[layer.weight])
        still = (adapted[layer.weight] == before).movedim(1, 0).reshape(len(gates), -1).all(1)
        assert torch.equal(still, gates == 0), layer.weight
    assert torch.equal(adapted["open"], method.loss(net, params, slow, tasks)[1].carry["open"][0])


def test_fixed_gates_are_never_trained_and_shared_ones_are_one() -> None:
    _, fixed = gradient(*case(gates="fixed"))
    assert not any(fixed[k].any() for k in fixed if k.startswith("gates."))
    method, net, params, slow, tasks = case(gates="shared")
    assert method.loss(net, params, slow, tasks)[1].metrics["overlap"] == 1
    assert gradient(method, net, params, slow, tasks)[1]["gates.scores.bias"].any()


def test_the_budget_holds_in_training_and_both_running_means_move() -> None:
    method = NeuronML(**SMALL | {"budget": 0.3})
    net = method.network(build_encoder("conv4", 1, 16, 0, width=16))
    optimizer = Gradient(rate=1e-2)
    state = start(method, net, optimizer, 0)
    layers = layers_of(net.get_submodule("encoder"))
    for after, figures in train(method, net, method.source(pictures(), Views()), optimizer, state, 4):
        assert 1 / 16 <= figures["active"] <= 4 / 16
        moved = after.slow["gates.importance"]
        assert not torch.equal(moved, state.slow["gates.importance"]) and moved.isfinite().all()
        assert all(m.mean() == pytest.approx(1, abs=1e-4) for m in by_layer(moved, layers))
    assert after.slow["gates.centre"].any()


def test_centre_and_importance_move_a_tenth() -> None:
    method, net, params, slow, tasks = case()
    slow |= {"gates.centre": torch.zeros_like(slow["gates.centre"])}
    _, aux = method.loss(net, params, slow, tasks)
    after = method.refresh(net, slow, params, tasks, aux)
    assert torch.allclose(after["gates.centre"], 0.1 * summaries(net, params, slow, tasks).mean(0))
    assert torch.allclose(after["gates.importance"], 0.9 + 0.1 * aux.carry["importance"])


def test_structure_alone_does_not_close_a_layer() -> None:
    """Pressed down by all three measures, every layer keeps its best unit."""
    method = NeuronML(**SMALL | {"frugality": 100.0, "plasticity": 100.0, "sensitivity": 100.0})
    net = method.network(build_encoder("conv4", 1, 16, 0, width=16))
    optimizer = Gradient(rate=0.3)
    state = start(method, net, optimizer, 0)
    steps = list(train(method, net, method.source(pictures(), Views()), optimizer, state, 8))
    assert all(figures["active"] >= 1 / 16 for _, figures in steps)
    after, figures = steps[-1]
    assert figures["active"] < 0.2 and all(v.isfinite().all() for v in after.params.values())


def test_other_encoders_have_gates_on_their_features() -> None:
    method = NeuronML(**SMALL)
    net = method.network(build_encoder("resnet12", 1, 16, 0, widths=(8, 8, 8, 16))).double()
    params, slow = method.init(net)
    tasks = small(method)[3]
    loss, found = gradient(method, net, params, slow, tasks)
    assert loss.isfinite() and found["gates.scores.bias"].shape == (16,)
    assert method.loss(net, params, slow, tasks)[1].metrics["active"] == 0.5


@pytest.mark.parametrize("wrong", [{"budget": 0.0}, {"budget": 1.5}, {"temperature": 0.0}])
def test_wrong_options_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="use a budget"):
        NeuronML(**wrong)  # type: ignore[arg-type]


def test_opened_is_what_is_logged() -> None:
    method, net, params, slow, tasks = case()
    hard = method.loss(net, params, slow, tasks)[1].carry["open"]
    assert torch.equal(hard, hard.round()) and hard.mean() <= method.budget
    assert torch.equal(opened(hard - 0.5, 1.0), hard)
