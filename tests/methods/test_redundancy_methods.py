"""VICReg and Barlow Twins: the papers' sums of two views, written out on the network's own output."""

from typing import Any

import pytest
import torch
from small_tasks import gradient, small
from torch import Tensor
from torch.nn import functional as F

from selftaught.core.functional import apply
from selftaught.losses.redundancy import barlow_twins_terms, vicreg_terms
from selftaught.methods.barlow import BarlowTwins
from selftaught.methods.vicreg import VICReg, expander

KINDS: list[Any] = [VICReg, BarlowTwins]


def embeddings(method: Any, net: Any, weights: dict[str, Tensor], tasks: Any) -> Tensor:
    """[V B D] of all views of the one task, normalised by the batch."""
    x = torch.cat([tasks.support.x[0], tasks.query.x[0]])
    return apply(net, weights, x, "batch").unflatten(0, (method.views, -1))


def test_vicreg_is_the_papers_sum() -> None:
    method = VICReg(batch=6, hidden=12, out=5, invariance=3.0, variance=7.0, covariance=11.0)
    net, params, slow, tasks = small(method)
    a, b = embeddings(method, net, params | slow, tasks)
    expected = 3 * F.mse_loss(a, b)
    for z in (a, b):
        c = z.T.cov()
        expected = expected + 7 * F.relu(1 - (c.diagonal() + 1e-4).sqrt()).mean()
        expected = expected + 11 * (c.square().sum() - c.diagonal().square().sum()) / 5
    loss, aux = method.loss(net, params, slow, tasks)
    assert torch.allclose(loss, expected, rtol=1e-10)
    total = [3 * aux.metrics["invariance"], 14 * aux.metrics["variance"], 22 * aux.metrics["covariance"]]
    assert torch.allclose(torch.stack(total).sum(), loss, rtol=1e-12)


def test_barlow_twins_is_the_papers_sum() -> None:
    method = BarlowTwins(batch=6, hidden=12, out=5, off_diagonal=0.3)
    net, params, slow, tasks = small(method)
    a, b = embeddings(method, net, params | slow, tasks)
    a, b = (F.batch_norm(z, None, None, training=True) for z in (a, b))
    c = a.T @ b / 6
    weight = torch.full((5, 5), 0.3, dtype=c.dtype).fill_diagonal_(1)
    expected = (weight * (torch.eye(5) - c).square()).sum()
    loss, aux = method.loss(net, params, slow, tasks)
    assert torch.allclose(loss, expected, rtol=1e-10)
    total = aux.metrics["on_diagonal"] + 0.3 * aux.metrics["off_diagonal"]
    assert torch.allclose(total, loss, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_three_views_are_the_mean_over_pairs(kind: Any) -> None:
    method = kind(batch=6, views=3, hidden=12, out=5)
    net, params, slow, tasks = small(method)
    z = embeddings(method, net, params | slow, tasks)
    found = []
    for pair in (z[[0, 1]], z[[0, 2]], z[[1, 2]]):
        if kind is VICReg:
            invariance, variance, covariance = vicreg_terms(pair)
            found.append(25 * invariance + 50 * variance + 2 * covariance)
        else:
            on, off = barlow_twins_terms(pair)
            found.append(on + 0.005 * off)
    assert torch.allclose(method.loss(net, params, slow, tasks)[0], torch.stack(found).mean(), rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_both_views_teach_and_statistics_are_all_that_is_slow(kind: Any) -> None:
    """No stop-gradient: a step of either view's pictures changes the loss, and every parameter is reached."""
    method = kind(batch=6, hidden=12, out=5)
    net, params, slow, tasks = small(method, norm="group")
    _, slopes = gradient(method, net, params, slow, tasks)
    # The offset of the encoder's output is taken away by the expander's first normalisation.
    lost = {k for k, g in slopes.items() if g.abs().max() < 1e-8}
    assert lost <= {"encoder.blocks.3.norm.bias"}
    for x in (tasks.support.x, tasks.query.x):
        x.requires_grad_()
    loss, aux = method.loss(net, params, slow, tasks)
    assert all(g.any() for g in torch.autograd.grad(loss, [tasks.support.x, tasks.query.x]))
    assert list(slow) == [k for k, _ in net.named_buffers()] and aux.buffers.keys() == slow.keys()
    assert not any(v.requires_grad for v in aux.metrics.values())


def test_the_expander_ends_bare() -> None:
    head = expander(7, 12, 5)
    assert [tuple(p.shape) for p in head.parameters()] == [(12, 7), (12,), (12,), (12, 12), (12,), (12,), (5, 12)]
    assert head.width == 5 and head(torch.randn(4, 7)).shape == (4, 5)
