"""SimSiam against its formula, picture by picture, and what its target must not pass on."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_tasks import gradient, leaves_of, small
from torch import Tensor

from selftaught.core.functional import set_norm
from selftaught.core.types import Params
from selftaught.methods.simsiam import SimSiam
from selftaught.nets.heads import MLP

METHOD = SimSiam(batch=6, hidden=12, out=5, narrow=3)


def forward(net: Any, params: Params, x: Tensor) -> tuple[Tensor, Tensor]:
    """z and p [B D] of pictures, normalised by the batch, through the modules themselves."""
    set_norm(net, "batch")
    with torch.no_grad():
        for name, value in params.items():
            net.get_parameter(name).copy_(value)
    z = net.projector(net.encoder(x))
    return z, net.predictor(z)


def slow_loss(p: Tensor, z: Tensor, n: int) -> Tensor:
    """One picture and one direction at a time; rows are the first view of all pictures, then the second."""
    terms = []
    for i in range(n):
        for a, b in ((i, n + i), (n + i, i)):
            target = z[b].detach()
            length = math.sqrt(float(p[a].detach().square().sum())) * math.sqrt(float(target.square().sum()))
            assert length > 0
            cosine = (p[a] * target).sum() / (p[a].square().sum().sqrt() * target.square().sum().sqrt())
            terms.append(2 - 2 * cosine)
    return torch.stack(terms).mean()


def test_the_loss_and_its_gradient_are_the_formulas() -> None:
    net, params, slow, tasks = small(METHOD)
    z, p = forward(net, params, torch.cat([tasks.support.x[0], tasks.query.x[0]]))
    expected = slow_loss(p, z, 6)
    loss, found = gradient(METHOD, net, params, slow, tasks)
    assert torch.allclose(loss, expected.detach(), rtol=1e-10)
    slopes = torch.autograd.grad(expected, list(net.parameters()))
    for (k, mine), theirs in zip(found.items(), slopes, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-12), k


def test_its_target_is_held_constant() -> None:
    """With a target that flows the gradient would be another one."""
    net, params, slow, tasks = small(METHOD)
    z, p = forward(net, params, torch.cat([tasks.support.x[0], tasks.query.x[0]]))
    flowing = (2 - 2 * torch.nn.functional.cosine_similarity(p, z.roll(6, 0))).mean()
    loss, found = gradient(METHOD, net, params, slow, tasks)
    assert torch.allclose(loss, flowing.detach(), rtol=1e-10)
    slopes = torch.autograd.grad(flowing, list(net.parameters()))
    reached = [k for (k, g), s in zip(found.items(), slopes, strict=True) if not torch.allclose(g, s, rtol=1e-3)]
    assert any(k.startswith("encoder.") for k in reached)
    # The predictor sees only its own side: there both are the same.
    assert not any(k.startswith("predictor.") for k in reached)


def test_it_differs_from_the_papers_loss_by_scale_and_offset() -> None:
    net, params, slow, tasks = small(METHOD)
    z, p = forward(net, params, torch.cat([tasks.support.x[0], tasks.query.x[0]]))
    (p1, p2), (z1, z2) = p.detach().chunk(2), z.detach().chunk(2)
    negative = [-torch.nn.functional.cosine_similarity(a, b).mean() for a, b in ((p1, z2), (p2, z1))]
    paper = (negative[0] + negative[1]) / 2
    assert torch.allclose(METHOD.loss(net, params, slow, tasks)[0], 2 * paper + 2, rtol=1e-10)


def test_spread_tells_a_full_sphere_from_a_point() -> None:
    net, params, slow, tasks = small(SimSiam(batch=36, hidden=64, out=16))
    spread = SimSiam(batch=36, hidden=64, out=16).loss(net, params, slow, tasks)[1].metrics["spread"]
    assert 0.6 / math.sqrt(16) < spread <= 1.01 / math.sqrt(16)
    point = params | {k: torch.zeros_like(v) for k, v in params.items() if k.startswith("projector.layers.3")}
    assert SimSiam(batch=36).loss(net, point, slow, tasks)[1].metrics["spread"] < 1e-6


def test_the_projector_ends_normalised_and_the_predictor_bare() -> None:
    net: Any = small(METHOD)[0]
    assert isinstance(net.projector, MLP) and isinstance(net.predictor, MLP)
    last = net.projector.layers[-1]
    assert isinstance(last, torch.nn.BatchNorm1d) and not list(last.parameters())
    assert isinstance(net.predictor.layers[-1], torch.nn.Linear)
    assert [layer.out_features for layer in net.predictor.layers if isinstance(layer, torch.nn.Linear)] == [3, 5]


def test_every_statistic_moves_and_is_all_that_is_slow() -> None:
    net, params, slow, tasks = small(METHOD)
    _, aux = METHOD.loss(net, leaves_of(params), slow, tasks)
    after = METHOD.refresh(net, slow, params, tasks, aux)
    assert list(after) != [] and after.keys() == slow.keys() == {k for k, _ in net.named_buffers()}
    assert (
        not any(torch.equal(after[k], slow[k]) for k in slow)
        and not after["predictor.layers.1.running_var"].requires_grad
    )


@pytest.fixture
def torchvision_schemas() -> Iterator[None]:
    """torchvision's wheel registers kernels for two operators that a CPU torch does not know."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield
    library._destroy()


@pytest.mark.oracle
def test_the_loss_is_lightlys_at_another_scale(torchvision_schemas: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    net, params, slow, tasks = small(METHOD)
    z, p = forward(net, params, torch.cat([tasks.support.x[0], tasks.query.x[0]]))
    (p1, p2), (z1, z2) = p.chunk(2), z.detach().chunk(2)
    expected = 2 + reference(p1, z2) + reference(p2, z1)
    torch.testing.assert_close(METHOD.loss(net, params, slow, tasks)[0], expected.detach())
