"""MoCo v2+: the contrast with a queue, what gets no gradient, and how queue and key network move."""

import dataclasses
import math
from itertools import pairwise
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
from selftaught.core.types import Aux, Params, State, Task
from selftaught.data.views import Views
from selftaught.losses.momentum_contrast import queue_contrast
from selftaught.methods.moco import MoCo
from selftaught.optimizers.gradient import Gradient


def normal(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def moco(**changes: Any) -> MoCo:
    return MoCo(**{"batch": 6, "hidden": 12, "out": 5, "queue": 20, **changes})


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def slow_contrast(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> float:
    """Row by row and key by key."""
    total = 0.0
    for i in range(len(q)):
        positive = math.exp(cosine(q[i], k[i]) / temperature)
        total -= math.log(positive / (positive + sum(math.exp(cosine(q[i], n) / temperature) for n in queue)))
    return total / len(q)


# ---------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("length", [1, 7])
def test_queue_contrast_equals_the_loop(length: int, temperature: float) -> None:
    q, k, queue = normal(4, 3), 2 * normal(4, 3, seed=1), 3 * normal(length, 3, seed=2)
    found = queue_contrast(q, k, queue, temperature)
    assert float(found) == pytest.approx(slow_contrast(q, k, queue, temperature), rel=1e-12)
    several = queue_contrast(q.unflatten(0, (2, 2)), k.unflatten(0, (2, 2)), queue, temperature)
    assert torch.allclose(several, found, rtol=1e-12)


def test_queue_contrast_by_hand() -> None:
    q = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    queue = torch.tensor([[-1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    expected = math.log(1 + math.exp(-4) + math.exp(-2))  # cosines 1, -1 and 0 over 0.5
    assert float(queue_contrast(q, q, queue, 0.5)) == pytest.approx(expected, rel=1e-12)
    assert float(queue_contrast(q, q, q.expand(9, 2), 0.5)) == pytest.approx(math.log(10), rel=1e-12)


def test_another_pictures_key_is_no_negative_and_the_queue_has_no_order() -> None:
    q, k, queue = normal(2, 3), normal(2, 3, seed=1), normal(7, 3, seed=2)
    first = queue_contrast(q[:1], k[:1], queue, 0.2)
    changed = torch.stack([k[0], -k[1]])
    both = 2 * queue_contrast(q, changed, queue, 0.2) - queue_contrast(q[1:], changed[1:], queue, 0.2)
    assert torch.allclose(both, first, rtol=1e-10)
    assert torch.allclose(queue_contrast(q, k, queue.flip(0), 0.2), queue_contrast(q, k, queue, 0.2), rtol=1e-12)


def test_queries_alone_get_a_gradient() -> None:
    q, k, queue = (x.requires_grad_() for x in (normal(4, 3), normal(4, 3, seed=1), normal(7, 3, seed=2)))
    found = torch.autograd.grad(queue_contrast(q, k, queue, 0.2), [q, k, queue], allow_unused=True)
    assert [g is None for g in found] == [False, True, True]
    assert torch.autograd.gradcheck(lambda x: queue_contrast(x, k, queue, 0.5), q)


# -------------------------------------------------------------------------------------------- the method


def filled(method: MoCo, rows: int = 11) -> tuple[Any, Params, Params, Task]:
    """As after some steps: a key network that has stayed behind, and a queue of `rows` unit vectors."""
    net, params, slow, tasks = small(method)
    behind = {k: v + 0.1 * normal(*v.shape, seed=3) for k, v in part(slow, "key").items()}
    queue = F.normalize(normal(rows, method.out, seed=4), dim=-1)
    return net, params, slow | prefixed("key", behind) | {"queue": queue}, tasks


def both_views(tasks: Task) -> Tensor:
    return torch.cat([tasks.support.x[0], tasks.query.x[0]])


def test_moco_is_the_papers_loss_in_both_directions() -> None:
    method = moco(temperature=0.3)
    net, params, slow, tasks = filled(method)
    q = apply(net, params, both_views(tasks), "batch")
    k = apply(net, part(slow, "key"), both_views(tasks), "batch")
    there = slow_contrast(q[:6], k[6:], slow["queue"], 0.3)
    back = slow_contrast(q[6:], k[:6], slow["queue"], 0.3)
    assert float(method.loss(net, params, slow, tasks)[0]) == pytest.approx((there + back) / 2, rel=1e-10)
    assert abs(there - back) > 1e-6  # so that one direction alone would be found out


def test_the_first_step_takes_its_own_keys_for_the_queue() -> None:
    method = moco()
    net, params, slow, tasks = filled(method, rows=0)
    k = apply(net, part(slow, "key"), both_views(tasks), "batch")
    empty, _ = method.loss(net, params, slow, tasks)
    given, _ = method.loss(net, params, slow | {"queue": k}, tasks)
    assert torch.allclose(empty, given, rtol=1e-12)


@pytest.mark.parametrize("rows", [0, 11])
def test_key_network_and_queue_get_no_gradient(rows: int) -> None:
    method = moco()
    net, params, slow, tasks = filled(method, rows)
    asking = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in slow.items()}
    leaves = leaves_of(params)
    loss, aux = method.loss(net, leaves, asking, tasks)
    still = [v for k, v in asking.items() if k.startswith("key.") or k == "queue"]
    found = torch.autograd.grad(loss, [*still, *leaves.values()], allow_unused=True)
    assert all(g is None for g in found[: len(still)])
    assert all(g is not None and g.any() for g in found[len(still) :])
    assert not aux.carry["newest"].requires_grad


def test_keys_come_from_the_key_network_alone() -> None:
    """Its weights decide what enters the queue; the query network's do not."""
    method = moco()
    net, params, slow, tasks = filled(method)
    newest = method.loss(net, params, slow, tasks)[1].carry["newest"]
    other = {k: v + 0.1 * normal(*v.shape, seed=5) for k, v in params.items()}
    assert torch.equal(method.loss(net, other, slow, tasks)[1].carry["newest"], newest)
    moved = slow | prefixed("key", other)
    assert not torch.allclose(method.loss(net, params, moved, tasks)[1].carry["newest"], newest)
    assert torch.allclose(newest.norm(dim=-1), torch.ones(12, dtype=newest.dtype))


# ------------------------------------------------------------------------------------- queue and momentum


def run(method: MoCo, state: State, net: Any, steps: int) -> list[State]:
    source = method.source(pictures(), Views(rotate=10))
    optimizer = Gradient(rate=1e-2, schedule="constant")
    return [state, *(after for after, _ in train(method, net, source, optimizer, state, steps))]


def begin(method: MoCo) -> tuple[Any, State]:
    net = small(method)[0].float()
    return net, start(method, net, Gradient(rate=1e-2, schedule="constant"), 0)


def test_the_queue_grows_to_its_length_and_forgets_the_oldest() -> None:
    """12 keys a step into a queue of 20: no multiple, and the oldest go first."""
    method = moco()
    states = run(method, begin(method)[1], begin(method)[0], 4)
    queues = [s.slow["queue"] for s in states]
    assert [len(q) for q in queues] == [0, 12, 20, 20, 20]
    for old, new in pairwise(queues):
        assert torch.equal(new[:-12], old[len(old) - len(new) + 12 :])
        assert not torch.equal(new[-12:], old[-12:])
    assert torch.allclose(queues[-1].norm(dim=-1), torch.ones(20))


def test_what_enters_the_queue_are_the_keys_of_that_batch() -> None:
    method = moco()
    net, state = begin(method)
    after = run(method, state, net, 1)[-1]
    tasks = method.source(pictures(), Views(rotate=10))(torch.Generator().manual_seed(0))
    keys = F.normalize(apply(net, state.params, both_views(tasks), "batch"), dim=-1)
    assert torch.allclose(after.slow["queue"], keys, atol=1e-6)


def test_a_queue_shorter_than_a_batch_keeps_the_last_keys() -> None:
    method = moco(queue=5)
    net, params, slow, tasks = filled(method, rows=5)
    _, aux = method.loss(net, params, slow, tasks)
    assert torch.equal(method.refresh(net, slow, params, tasks, aux)["queue"], aux.carry["newest"][-5:])


def test_the_key_network_moves_by_its_average_and_by_nothing_else() -> None:
    method = moco(momentum=0.9)
    net, state = begin(method)
    assert all(torch.equal(v, state.params[k]) for k, v in part(state.slow, "key").items())
    states = run(method, state, net, 3)
    for before, after in pairwise(states):
        old, new = part(before.slow, "key"), part(after.slow, "key")
        assert new.keys() == after.params.keys()
        assert all(torch.allclose(new[k], 0.9 * old[k] + 0.1 * after.params[k], atol=1e-7) for k in new)
        assert any(not torch.equal(new[k], old[k]) for k in new)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_ends_of_momentum(momentum: float) -> None:
    """0: the key network is the query network; 1: it stays as it began."""
    method = moco(momentum=momentum)
    net, params, slow, tasks = filled(method)
    aux = Aux(carry={"newest": slow["queue"][:2]})
    moved = part(method.refresh(net, slow, params, tasks, aux), "key")
    wanted = params if momentum == 0 else part(slow, "key")
    assert all(torch.equal(moved[k], wanted[k]) for k in moved)


@pytest.mark.parametrize("half", [0, 1, 2])
def test_resumed_while_the_queue_grows_is_uninterrupted(half: int, tmp_path: Path) -> None:
    method = moco(queue=40)
    net, state = begin(method)
    states = run(method, state, net, 4)
    save_state(tmp_path / "half.safetensors", run(method, begin(method)[1], net, half)[-1])
    resumed = run(method, load_state(tmp_path / "half.safetensors"), net, 4)[-1]
    assert len(resumed.slow["queue"]) == 40
    for found, whole in ((resumed.params, states[-1].params), (resumed.slow, states[-1].slow)):
        assert found.keys() == whole.keys() and all(torch.equal(found[k], whole[k]) for k in whole)


def test_impossible_options_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="queue=0 holds no negatives; use"):
        MoCo(queue=0)
    for momentum in (-0.1, 1.5, math.nan):
        with pytest.raises(ConfigError, match=f"momentum={momentum} is no average; use"):
            dataclasses.replace(moco(), momentum=momentum)
