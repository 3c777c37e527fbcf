"""The projector of several tasks at once against one task after the other, its gradient against autograd's."""

import pytest
import torch
from torch import Tensor, nn

from selftaught.core.types import Params
from selftaught.learners.inner import Graph, InnerLoss, descend, descend_detached
from selftaught.learners.projector import AnyNet, Projector, nt_xent_slope, projector_of
from selftaught.losses.contrastive import nt_xent
from selftaught.nets.heads import MLP
from selftaught.nets.split import Head

WAYS, TEMPERATURE = 4, 0.3


def setting(widths: tuple[int, ...] = (5, 7, 6, 3), tasks: int = 3) -> tuple[Head, Projector, Params, Tensor]:
    """A head, the same for several tasks at once, weights of each task, and rows in three views."""
    torch.manual_seed(0)
    net = Head(MLP(widths)).double()
    own = projector_of(net)
    assert own is not None
    w = {k: v.detach() + 0.3 * torch.randn(tasks, *v.shape, dtype=v.dtype) for k, v in net.named_parameters()}
    return net, own, w, torch.randn(tasks, 3 * WAYS, widths[0], dtype=torch.float64)


def test_every_task_has_its_own_weights() -> None:
    net, own, w, x = setting()
    found = own.embed(w, x)
    for t in range(len(x)):
        alone = AnyNet(net).embed({k: v[t] for k, v in w.items()}, x[t])
        assert torch.allclose(found[t], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("widths", [(5, 3), (5, 7, 3), (5, 7, 6, 3)])
def test_the_written_gradient_is_autograds(widths: tuple[int, ...]) -> None:
    _, own, w, x = setting(widths)
    loss = own.nt_xent(WAYS, TEMPERATURE)
    leaves = {k: v.clone().requires_grad_() for k, v in w.items()}
    expected = torch.autograd.grad(loss(leaves, (x,)), list(leaves.values()))
    found = loss.slope(w, (x,))
    assert list(found) == list(w)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in zip(found.values(), expected, strict=True))


def test_the_sum_is_that_of_the_tasks_own_losses() -> None:
    net, own, w, x = setting()
    each = [
        AnyNet(net).nt_xent(WAYS, TEMPERATURE)({k: v[t] for k, v in w.items()}, (x[t],)) for t in range(len(x))
    ]
    assert torch.allclose(own.nt_xent(WAYS, TEMPERATURE)(w, (x,)), torch.stack(each).sum(), rtol=1e-12)


def test_an_embedding_of_zeros_has_a_gradient() -> None:
    """As functional.normalize has: it divides by 1e-12 there."""
    z = torch.randn(1, 2 * WAYS, 3, dtype=torch.float64)
    z[0, 1] = 0
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(nt_xent(leaf[0].unflatten(0, (2, WAYS)), TEMPERATURE), leaf)
    assert torch.allclose(nt_xent_slope(z, WAYS, TEMPERATURE), expected, rtol=1e-10)


def test_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match="two views"):
        nt_xent_slope(torch.randn(1, WAYS, 3), WAYS, TEMPERATURE)


@pytest.mark.parametrize("graph", ["auto", "unrolled", "first-order", "adjoint"])
def test_steps_and_their_derivatives_are_those_of_autograd(graph: Graph) -> None:
    """Also more steps than `auto` unrolls for a loss that autograd differentiates."""
    _, own, w, x = setting((5, 6, 3))
    written = own.nt_xent(WAYS, TEMPERATURE)

    def gradients(loss: InnerLoss) -> list[Tensor]:
        leaves = {k: v.clone().requires_grad_() for k, v in w.items()}
        rows = x.clone().requires_grad_()
        moved = descend(loss, leaves, (rows,), 0.1, 6, graph)
        total = torch.stack([v.square().sum() for v in moved.values()]).sum()
        found = torch.autograd.grad(total, [*leaves.values(), rows], materialize_grads=True)
        return [*moved.values(), *found]

    def plain(w: Params, outer: tuple[Tensor, ...]) -> Tensor:
        return written.loss(w, outer)

    for a, b in zip(gradients(written), gradients(plain), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_detached_steps_leave_no_graph() -> None:
    _, own, w, x = setting()
    leaves = {k: v.clone().requires_grad_() for k, v in w.items()}
    moved = descend_detached(own.nt_xent(WAYS, TEMPERATURE), leaves, (x.requires_grad_(),), 0.1, 2)
    assert not any(v.requires_grad for v in moved.values())


def test_what_is_no_plain_projector_is_left_to_autograd() -> None:
    hooked, normed = Head(MLP([4, 5, 3])), Head(MLP([4, 5, 3], norm=True))
    hooked.projector.register_forward_hook(lambda *_: None)
    bare, smooth = MLP([4, 5, 3]), MLP([4, 5, 3])
    bare.layers[0] = nn.Linear(4, 5, bias=False)
    smooth.layers[1] = nn.GELU()
    others = [hooked, normed, Head(bare), Head(smooth), Head(nn.Sequential(nn.Linear(4, 3)))]
    assert [projector_of(net) for net in others] == [None] * 5
    assert projector_of(Head(MLP([4, 5, 3]))) is not None
