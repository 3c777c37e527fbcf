"""SwAV against its formula, part by part."""

import math

import pytest
import torch
from small_tasks import gradient, leaves_of, small
from torch.nn import functional as F

from selftaught.core.functional import apply, part
from selftaught.core.types import Params, Task
from selftaught.losses.clustering import sinkhorn_codes
from selftaught.methods.swav import SwAV
from selftaught.nets.prototypes import CosineScores


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
