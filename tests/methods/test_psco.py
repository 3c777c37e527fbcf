"""PsCo: its two losses from the formula, what gets no gradient, the queue, and the learner with two ends."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tasks import leaves_of, pictures, small
from torch import Tensor
from torch.nn import functional as F

from selftaught.artifacts.checkpoint import load_state, save_state
from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply, part, prefixed
from selftaught.core.train import start, train
from selftaught.core.types import Examples, Params, State, Task, merged
from selftaught.data.views import Views
from selftaught.learners.asymmetric import AsymmetricLearner
from selftaught.methods.psco import PsCo
from selftaught.nets.heads import WithProjector
from selftaught.optimizers.gradient import Gradient


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def psco(**changes: Any) -> PsCo:
    return PsCo(**{"batch": 6, "hidden": 12, "out": 5, "queue": 20, **changes})


def filled(method: PsCo, rows: int = 11) -> tuple[Any, Params, Params, Task]:
    """As after some steps: a slow network that has stayed behind, and a queue of `rows` unit vectors."""
    net, params, slow, tasks = small(method)
    behind = {k: v + 0.1 * normal(*v.shape, seed=3) for k, v in part(slow, "key").items()}
    queue = F.normalize(normal(rows, method.out, seed=4), dim=-1)
    return net, params, slow | prefixed("key", behind) | {"queue": queue}, tasks


def below(net: Any) -> WithProjector:
    return WithProjector(net.encoder, net.projector)


def slow_codes(scores: Tensor, epsilon: float, steps: int) -> list[list[float]]:
    """Sinkhorn-Knopp, entry by entry: columns, then rows."""
    codes = [[math.exp(float(s) / epsilon) for s in row] for row in scores]
    for _ in range(steps):
        columns = [sum(row[j] for row in codes) for j in range(len(codes[0]))]
        codes = [[c / columns[j] for j, c in enumerate(row)] for row in codes]
        codes = [[c / sum(row) for c in row] for row in codes]
    return codes


@pytest.mark.parametrize("shots", [1, 3])
def test_the_loss_is_the_papers_two(shots: int) -> None:
    method = psco(shots=shots, shot_temperature=0.7, temperature=0.3)
    net, params, slow, tasks = filled(method)
    q = F.normalize(apply(net, params, tasks.query.x[0], "batch"), dim=-1)
    k = F.normalize(apply(below(net), part(slow, "key"), tasks.support.x[0], "batch"), dim=-1)
    queue = slow["queue"]
    codes = slow_codes(k @ queue.mT, method.epsilon, method.sinkhorn_steps)
    own = [sorted(range(11), key=lambda j, row=row: -row[j])[:shots] for row in codes]  # type: ignore[misc]
    candidates = sorted({j for row in own for j in row})
    few, many = 0.0, 0.0
    for b in range(6):
        all_shots = sum(math.exp(float(q[b] @ queue[j]) / 0.7) for j in candidates)
        few -= sum(math.log(math.exp(float(q[b] @ queue[j]) / 0.7) / all_shots) for j in own[b]) / shots
        positive = math.exp(float(q[b] @ k[b]) / 0.3)
        many -= math.log(positive / (positive + sum(math.exp(float(q[b] @ n) / 0.3) for n in queue)))
    loss, aux = method.loss(net, params, slow, tasks)
    assert float(loss) == pytest.approx((few + many) / 6, rel=1e-9)
    assert float(aux.metrics["shot_loss"]) == pytest.approx(few / 6, rel=1e-9)
    assert float(aux.metrics["distinct_shots"]) == pytest.approx(len(candidates) / (6 * shots))


def test_the_first_step_takes_its_own_keys_for_the_queue() -> None:
    method = psco()
    net, params, slow, tasks = filled(method, rows=0)
    k = apply(below(net), part(slow, "key"), tasks.support.x[0], "batch")
    empty, aux = method.loss(net, params, slow, tasks)
    given, _ = method.loss(net, params, slow | {"queue": F.normalize(k, dim=-1)}, tasks)
    assert torch.allclose(empty, given, rtol=1e-12)
    assert float(aux.metrics["distinct_shots"]) == 1  # each its own


@pytest.mark.parametrize("rows", [0, 11])
def test_slow_network_and_queue_get_no_gradient(rows: int) -> None:
    method = psco()
    net, params, slow, tasks = filled(method, rows)
    asking = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in slow.items()}
    leaves = leaves_of(params)
    loss, aux = method.loss(net, leaves, asking, tasks)
    still = [v for k, v in asking.items() if k.startswith("key.") or k == "queue"]
    found = torch.autograd.grad(loss, [*still, *leaves.values()], allow_unused=True)
    assert all(g is None for g in found[: len(still)])
    assert all(g is not None and g.any() for g in found[len(still) :])
    assert not aux.carry["newest"].requires_grad


def test_shots_and_keys_come_from_the_slow_network_on_weak_views() -> None:
    method = psco()
    net, params, slow, tasks = filled(method)
    newest = method.loss(net, params, slow, tasks)[1].carry["newest"]
    other = {k: v + 0.1 * normal(*v.shape, seed=5) for k, v in params.items()}
    assert torch.equal(method.loss(net, other, slow, tasks)[1].carry["newest"], newest)
    swapped = dataclasses.replace(tasks, query=Examples(tasks.query.x.flip(1), tasks.query.y))
    assert torch.equal(method.loss(net, params, slow, swapped)[1].carry["newest"], newest)


def run(method: PsCo, state: State, net: Any, steps: int) -> list[State]:
    source, optimizer = method.source(pictures(), Views(rotate=10)), Gradient(rate=1e-2, schedule="constant")
    return [state, *(after for after, _ in train(method, net, source, optimizer, state, steps))]


def begin(method: PsCo) -> tuple[Any, State]:
    net = small(method)[0].float()
    return net, start(method, net, Gradient(rate=1e-2, schedule="constant"), 0)


def test_queue_and_slow_network_move_as_said() -> None:
    method = psco(momentum=0.9, queue=15)
    net, state = begin(method)
    states = run(method, state, net, 4)
    assert [len(s.slow["queue"]) for s in states] == [0, 6, 12, 15, 15]
    assert torch.equal(states[3].slow["queue"][:9], states[2].slow["queue"][3:])
    assert torch.allclose(states[4].slow["queue"].norm(dim=-1), torch.ones(15))
    old, new = part(states[3].slow, "key"), part(states[4].slow, "key")
    assert new.keys() == {k for k in state.params if not k.startswith("predictor.")}
    assert all(torch.allclose(new[k], 0.9 * old[k] + 0.1 * states[4].params[k], atol=1e-7) for k in new)


@pytest.mark.parametrize("half", [0, 1, 2])
def test_resumed_while_the_queue_grows_is_uninterrupted(half: int, tmp_path: Path) -> None:
    method = psco(queue=20)
    net, state = begin(method)
    states = run(method, state, net, 4)
    save_state(tmp_path / "half.safetensors", run(method, begin(method)[1], net, half)[-1])
    resumed = run(method, load_state(tmp_path / "half.safetensors"), net, 4)[-1]
    for found, whole in ((resumed.params, states[-1].params), (resumed.slow, states[-1].slow)):
        assert found.keys() == whole.keys() and all(torch.equal(found[k], whole[k]) for k in whole)


# ------------------------------------------------------------------------------------------ the learner


def test_only_the_query_passes_the_predictor() -> None:
    net, params, slow, tasks = filled(psco())
    weights, x, asked = merged(params, slow), tasks.support.x[0], tasks.query.x[0]
    own = {k: v for k, v in weights.items() if not k.startswith("key.") and k != "queue"}
    learner = AsymmetricLearner(net)
    logits = learner.predict(learner.adapt(weights, Examples(x), 3), asked)
    projected = {k: v for k, v in own.items() if not k.startswith("predictor.")}
    z = F.normalize(apply(below(net), projected, x), dim=-1)
    centres = F.normalize((z[:3] + z[3:]) / 2, dim=-1)
    expected = F.normalize(apply(net, own, asked), dim=-1) @ centres.mT
    assert torch.allclose(logits, expected, rtol=1e-10)
    turned = {k: v + normal(*v.shape) if k.startswith("predictor.layers.0") else v for k, v in weights.items()}
    before, after = (learner.adapt(w, Examples(x), 3) for w in (weights, turned))
    assert torch.equal(before.centres, after.centres)
    assert not torch.allclose(learner.predict(before, asked), learner.predict(after, asked))


def test_a_prediction_does_not_depend_on_the_other_queries() -> None:
    net, params, slow, tasks = filled(psco())
    learner = PsCo().learner(net)
    adapted = learner.adapt(merged(params, slow), Examples(tasks.support.x[0]), 3)
    x = tasks.query.x[0]
    assert torch.allclose(learner.predict(adapted, x)[:1], learner.predict(adapted, x[:1]), rtol=1e-10)


def test_impossible_options_are_refused_in_words() -> None:
    for changes in ({"shots": 0}, {"queue": 0}, {"momentum": 1.5}, {"momentum": math.nan}, {"weak": 2.0}):
        with pytest.raises(ConfigError, match="use"):
            psco(**changes)
