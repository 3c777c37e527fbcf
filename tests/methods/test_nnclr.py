"""NNCLR against its formula, written with loops, and the laws of its queue."""

import math

import pytest
import torch
from small_tasks import leaves_of, pictures, small
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply, part
from selftaught.core.train import start, train
from selftaught.core.types import Aux, Params, Task
from selftaught.data.views import Views
from selftaught.methods.nnclr import NNCLR, nearest
from selftaught.optimizers.gradient import Gradient

METHOD = NNCLR(batch=6, queue=10, hidden=12, out=6)


def embeddings(
    net: torch.nn.Module, params: Params, slow: Params, tasks: Task
) -> tuple[torch.Tensor, torch.Tensor]:
    """z and p [2 6 6], by the three parts of the network one after the other."""
    weights = params | slow
    x = torch.cat([tasks.support.x[0], tasks.query.x[0]])
    h = apply(net.get_submodule("encoder"), part(weights, "encoder"), x, "batch")
    z = apply(net.get_submodule("projector"), part(weights, "projector"), h, "batch")
    p = apply(net.get_submodule("predictor"), part(weights, "predictor"), z, "batch")
    return z.unflatten(0, (2, 6)), p.unflatten(0, (2, 6))


def cosine(a: list[float], b: list[float]) -> float:
    inner = sum(x * y for x, y in zip(a, b, strict=True))
    return inner / math.hypot(*a) / math.hypot(*b)


def slow_loss(z: torch.Tensor, p: torch.Tensor, queue: torch.Tensor, temperature: float) -> float:
    """Picture by picture: find the neighbour, then -log of its share."""
    total, rows = 0.0, queue.tolist()
    for a, b in ((0, 1), (1, 0)):
        predictions = p[b].tolist()
        for i, own in enumerate(z[a].tolist()):
            friend = max(rows, key=lambda q: cosine(own, q))
            share = [math.exp(cosine(friend, each) / temperature) for each in predictions]
            total -= math.log(share[i] / sum(share))
    return total / (2 * len(z[0]))


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_nnclr_is_the_papers_loss(temperature: float) -> None:
    method = NNCLR(temperature, batch=6, queue=10, hidden=12, out=6)
    net, params, slow, tasks = small(method)
    z, p = embeddings(net, params, slow, tasks)
    loss, aux = method.loss(net, params, slow, tasks)
    assert float(loss) == pytest.approx(slow_loss(z, p, slow["queue"], temperature), rel=1e-9)
    assert -1 <= aux.metrics["neighbour_cosine"] <= 1


def test_the_nearest_is_that_of_the_largest_cosine() -> None:
    queue = torch.eye(3)
    z = torch.tensor([[[5.0, 1, 0], [0, 0.1, -9]], [[-2.0, -1, -3], [0, 0.1, 0.2]]])
    assert nearest(z, queue).argmax(-1).tolist() == [[0, 1], [1, 2]]


def test_a_picture_that_is_its_own_neighbour_gives_a_contrast_of_z_with_p() -> None:
    """With both views' embeddings in the queue the neighbour of z is z: no neighbours, plain InfoNCE."""
    net, params, slow, tasks = small(METHOD)
    z, p = embeddings(net, params, slow, tasks)
    own = slow | {"queue": F.normalize(z.flatten(0, 1), dim=-1)}
    loss, aux = METHOD.loss(net, params, own, tasks)
    assert float(aux.metrics["neighbour_cosine"]) == pytest.approx(1, rel=1e-9)
    unit, other = F.normalize(z, dim=-1), F.normalize(p, dim=-1)
    both = [F.cross_entropy(unit[a] @ other[1 - a].T / 0.1, torch.arange(6)) for a in (0, 1)]
    torch.testing.assert_close(loss, torch.stack(both).mean(), rtol=1e-9, atol=1e-12)


def test_no_gradient_goes_into_the_neighbours() -> None:
    """None into the queue; the projector's comes through p alone, as a constant choice of neighbour shows."""
    net, params, slow, tasks = small(METHOD)
    queue = slow["queue"].clone().requires_grad_()
    leaves = leaves_of(params)
    loss, aux = METHOD.loss(net, leaves, slow | {"queue": queue}, tasks)
    (asked,) = torch.autograd.grad(loss, [queue], allow_unused=True, retain_graph=True)
    found = torch.autograd.grad(loss, list(leaves.values()))
    assert asked is None or not asked.any(), "the queue would learn"
    assert not aux.carry["newest"].requires_grad
    again = leaves_of(params)
    z, p = embeddings(net, again, slow, tasks)
    friends = F.normalize(nearest(z.detach(), slow["queue"]), dim=-1)
    both = [F.cross_entropy(friends[a] @ F.normalize(p[1 - a], dim=-1).T / 0.1, torch.arange(6)) for a in (0, 1)]
    expected = torch.autograd.grad(torch.stack(both).mean(), list(again.values()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_the_queue_starts_from_unit_vectors_that_no_seed_changes() -> None:
    net = small(METHOD)[0]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = METHOD.init(net)[1]["queue"], METHOD.init(net)[1]["queue"]
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), before)
    assert first.shape == (10, 6) and first.dtype == torch.float64
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(10, dtype=torch.float64))
    assert torch.linalg.matrix_rank(first) == 6


def test_the_newest_enter_and_the_oldest_leave() -> None:
    net, params, slow, tasks = small(METHOD)
    old = slow["queue"]
    aux = METHOD.loss(net, params, slow, tasks)[1]
    z = embeddings(net, params, slow, tasks)[0]
    after = METHOD.refresh(net, slow, params, tasks, aux)
    torch.testing.assert_close(after["queue"][-6:], F.normalize(z[0], dim=-1), rtol=1e-9, atol=1e-12)
    assert torch.equal(after["queue"][:4], old[6:]) and after["queue"].shape == old.shape
    large = Aux(carry={"newest": torch.arange(72.0, dtype=torch.float64).reshape(12, 6)})
    whole = METHOD.refresh(net, after, params, tasks, large)["queue"]
    assert torch.equal(whole, large.carry["newest"][2:])


def test_training_fills_the_queue_with_pictures() -> None:
    net = small(METHOD)[0].float()
    optimizer = Gradient(rate=1e-3, schedule="constant")
    state = start(METHOD, net, optimizer, 0)
    begun = state.slow["queue"]
    run = train(METHOD, net, METHOD.source(pictures(), Views(rotate=10)), optimizer, state, 2)
    one, two = (after.slow["queue"] for after, _ in run)
    assert torch.equal(one[:4], begun[6:]) and torch.equal(two[:4], one[6:])
    assert not (two[:, None] == begun[None]).all(-1).any()


def test_a_queue_smaller_than_the_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="queue=8 is smaller than batch=9"):
        NNCLR(queue=8, batch=9)
    assert NNCLR(queue=9, batch=9).queue == 9
