"""SwAV and DINO against their formulas, part by part."""

import math

import pytest
import torch
from small_tasks import gradient, leaves_of, pictures, small
from torch.nn import functional as F

from selftaught.core.functional import apply, part
from selftaught.core.train import start, train
from selftaught.core.types import Aux, Params, Task
from selftaught.data.views import Views
from selftaught.losses.clustering import sinkhorn_codes
from selftaught.methods.dino import DINO
from selftaught.methods.swav import SwAV
from selftaught.nets.prototypes import CosineScores
from selftaught.optimizers.gradient import Gradient


def swav(views: int = 2) -> SwAV:
    return SwAV(prototypes=4, batch=6, hidden=12, out=6, views=views)


def projections(net: torch.nn.Module, weights: Params, tasks: Task) -> torch.Tensor:
    """[V 6 6], by encoder and projector one after the other."""
    x = torch.cat([tasks.support.x[0], tasks.query.x[0]])
    h = apply(net.get_submodule("encoder"), part(weights, "encoder"), x, "batch")
    return apply(net.get_submodule("projector"), part(weights, "projector"), h, "batch").unflatten(0, (-1, 6))


def cosine_scores(z: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.einsum("vbd,kd->vbk", z / z.norm(dim=-1, keepdim=True), weight / weight.norm(dim=1, keepdim=True))


# ------------------------------------------------------------------------------------------------- SwAV


@pytest.mark.parametrize("views", [2, 3])
def test_swav_is_the_papers_loss(views: int) -> None:
    method = swav(views)
    net, params, slow, tasks = small(method)
    scores = cosine_scores(projections(net, params | slow, tasks), params["prototypes.weight"])
    assert scores.shape == (views, 6, 4)
    terms = []
    for a in range(views):
        codes = sinkhorn_codes(scores[a], 0.05, 3)
        log_p = [F.log_softmax(scores[b] / 0.1, dim=-1) for b in range(views) if b != a]
        terms += [-(codes * each).sum(-1).mean() for each in log_p]
    loss, aux = method.loss(net, params, slow, tasks)
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-9, atol=1e-12)
    assert 1 <= aux.metrics["used"] <= 4 + 1e-9 and 0 <= aux.metrics["code_entropy"] <= math.log(4) + 1e-9
    assert aux.buffers.keys() == slow.keys()


def test_swavs_codes_are_constants() -> None:
    """The gradient is that of a cross-entropy with codes computed beforehand."""
    method = swav()
    net, params, slow, tasks = small(method)
    found = gradient(method, net, params, slow, tasks)[1]
    leaves = leaves_of(params)
    scores = cosine_scores(projections(net, leaves | slow, tasks), leaves["prototypes.weight"])
    codes = sinkhorn_codes(scores.detach(), 0.05, 3)
    both = [-(codes[a] * F.log_softmax(scores[1 - a] / 0.1, dim=-1)).sum(-1).mean() for a in (0, 1)]
    expected = torch.autograd.grad(torch.stack(both).mean(), list(leaves.values()))
    for k, g in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found[k], g, rtol=1e-7, atol=1e-10)


def test_the_length_of_a_prototype_does_not_count() -> None:
    method = swav()
    net, params, slow, tasks = small(method)
    loss, slope = gradient(method, net, params, slow, tasks)
    weight = params["prototypes.weight"]
    stretched = params | {"prototypes.weight": weight * torch.tensor([[0.5], [1.0], [3.0], [10.0]])}
    torch.testing.assert_close(method.loss(net, stretched, slow, tasks)[0], loss)
    across = (slope["prototypes.weight"] * weight).sum(1)
    torch.testing.assert_close(across, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool(slope["prototypes.weight"].any(1).all())


def test_alike_embeddings_cost_log_k_and_use_all_prototypes() -> None:
    """With equal prototypes every score is equal: codes and predictions are uniform."""
    method = swav()
    net, params, slow, tasks = small(method)
    equal = params | {"prototypes.weight": torch.ones_like(params["prototypes.weight"])}
    loss, aux = method.loss(net, equal, slow, tasks)
    assert float(loss) == pytest.approx(math.log(4), rel=1e-9)
    assert float(aux.metrics["used"]) == pytest.approx(4, rel=1e-9)
    assert float(aux.metrics["code_entropy"]) == pytest.approx(math.log(4), rel=1e-9)


def test_cosine_scores_are_cosines() -> None:
    torch.manual_seed(0)
    net = CosineScores(5, 3).double()
    assert net.width == 3
    torch.testing.assert_close(net.weight.norm(dim=1), torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)
    z = torch.randn(7, 5, dtype=torch.float64)
    expected = F.cosine_similarity(z[:, None], net.weight[None], dim=-1)
    torch.testing.assert_close(net(z), expected)


# ------------------------------------------------------------------------------------------------- DINO


def dino(views: int = 2, momentum: float = 0.9, total_steps: int = 0) -> DINO:
    return DINO(4, momentum=momentum, total_steps=total_steps, batch=6, hidden=12, out=6, views=views)


def elsewhere(slow: Params) -> Params:
    """A teacher and a centre that differ from the start."""
    torch.manual_seed(3)
    return {
        k: v + 0.1 * torch.randn_like(v) if k.startswith(("teacher.", "centre")) else v for k, v in slow.items()
    }


def teacher_outputs(net: torch.nn.Module, slow: Params, tasks: Task) -> torch.Tensor:
    teacher = part(slow, "teacher")
    return cosine_scores(projections(net, teacher, tasks), teacher["prototypes.weight"])


@pytest.mark.parametrize("views", [2, 3])
def test_dino_is_the_papers_loss(views: int) -> None:
    method = dino(views)
    net, params, slow, tasks = small(method)
    slow = elsewhere(slow)
    buffers = {k: slow[k] for k, _ in net.named_buffers()}
    s = cosine_scores(projections(net, params | buffers, tasks), params["prototypes.weight"])
    q = ((teacher_outputs(net, slow, tasks) - slow["centre"]) / 0.04).softmax(-1)
    pairs = [(a, b) for a in range(views) for b in range(views) if a != b]
    terms = [-(q[a] * F.log_softmax(s[b] / 0.1, dim=-1)).sum(-1).mean() for a, b in pairs]
    loss, aux = method.loss(net, params, slow, tasks)
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-9, atol=1e-12)
    assert 1 - 1e-9 <= aux.metrics["used"] <= 4 + 1e-9 and aux.metrics["target_entropy"] >= 0


def test_dinos_teacher_and_centre_get_no_gradient() -> None:
    method = dino()
    net, params, slow, tasks = small(method)
    asking = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in elsewhere(slow).items()}
    leaves = leaves_of(params)
    loss, aux = method.loss(net, leaves, asking, tasks)
    held = [v for k, v in asking.items() if k.startswith(("teacher.", "centre"))]
    found = torch.autograd.grad(loss, [*held, *leaves.values()], allow_unused=True)
    assert len(held) == len(leaves) + 1 and all(g is None for g in found[: len(held)])
    assert all(g is not None and g.any() for g in found[len(held) :])
    assert not aux.carry["mean"].requires_grad


def test_dinos_centre_is_the_average_of_teacher_outputs() -> None:
    """From zero: after n steps of one batch and a teacher at rest, (1 - 0.9^n) times their mean."""
    method = dino(momentum=1.0)
    net, params, slow, tasks = small(method)
    assert not slow["centre"].any()
    mean = teacher_outputs(net, slow, tasks).flatten(0, 1).mean(0)
    for n in (1, 2, 3):
        slow = method.refresh(net, slow, params, tasks, method.loss(net, params, slow, tasks)[1])
        torch.testing.assert_close(slow["centre"], (1 - 0.9**n) * mean, rtol=1e-9, atol=1e-12)


def test_dino_of_uniform_outputs_is_log_k() -> None:
    """A student with equal prototypes costs log K whatever the teacher; so do equal targets, in entropy."""
    method = dino()
    net, params, slow, tasks = small(method)
    equal = torch.ones_like(params["prototypes.weight"])
    loss, _ = method.loss(net, params | {"prototypes.weight": equal}, elsewhere(slow), tasks)
    assert float(loss) == pytest.approx(math.log(4), rel=1e-9)
    _, aux = method.loss(net, params, slow | {"teacher.prototypes.weight": equal}, tasks)
    assert float(aux.metrics["target_entropy"]) == pytest.approx(math.log(4), rel=1e-9)
    assert float(aux.metrics["used"]) == pytest.approx(4, rel=1e-9)


def test_what_the_teacher_says_of_all_pictures_is_taken_off() -> None:
    """Outputs that are alike for every picture: one wins without the centre, none with it."""
    method = dino()
    net, params, slow, tasks = small(method)
    last = "teacher.projector.layers.6"
    bias = torch.linspace(-1, 1, 6, dtype=torch.float64)
    slow = slow | {f"{last}.weight": torch.zeros_like(slow[f"{last}.weight"]), f"{last}.bias": bias}
    used = []
    for _ in range(60):
        aux = method.loss(net, params, slow, tasks)[1]
        used.append(float(aux.metrics["used"]))
        slow = slow | {"centre": method.refresh(net, slow, params, tasks, aux)["centre"]}
    assert used[0] < 1.5 and used[-1] == pytest.approx(4, rel=1e-2) and used == sorted(used)


def test_dinos_teacher_moves_by_its_average_and_by_nothing_else() -> None:
    method = dino()
    net = small(method)[0].float()
    optimizer = Gradient(rate=1e-2, schedule="constant")
    state = start(method, net, optimizer, 0)
    assert {k: v.tolist() for k, v in part(state.slow, "teacher").items()} == {
        k: v.tolist() for k, v in state.params.items()
    }
    for after, _ in train(method, net, method.source(pictures(), Views(rotate=10)), optimizer, state, 3):
        old, new = part(state.slow, "teacher"), part(after.slow, "teacher")
        for k in new:
            torch.testing.assert_close(new[k], 0.9 * old[k] + 0.1 * after.params[k], rtol=0, atol=1e-7)
        assert all(not torch.equal(new[k], old[k]) for k in new)
        assert not torch.equal(after.slow["centre"], state.slow["centre"])
        state = after
    assert state.slow["count"] == 3


def test_dinos_momentum_rises_to_one() -> None:
    method = dino(momentum=0.8, total_steps=4)
    net, params, slow, tasks = small(method)
    other = {k: v + 1 for k, v in params.items()}
    for step in range(6):
        after = method.refresh(net, slow, other, tasks, Aux(carry={"mean": slow["centre"]}))
        m = 1 - 0.2 * (math.cos(math.pi * min(step / 4, 1)) + 1) / 2
        for k, v in part(slow, "teacher").items():
            torch.testing.assert_close(after[f"teacher.{k}"], m * v + (1 - m) * other[k])
        slow = after
