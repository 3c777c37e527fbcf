"""Conv4's training step in closed form is the step operation by operation."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from selftaught.core.functional import Norm, set_norm
from selftaught.nets.conv4 import Conv4
from selftaught.nets.conv4_closed import serves, train_step_features

NOT_TRAINING: tuple[Norm, ...] = ("running", "batch")
CASES = [(1, 28, "flatten"), (3, 33, "flatten"), (2, 47, "mean")]
each_case = pytest.mark.parametrize(("channels", "size", "readout"), CASES)


def encoder(channels: int, size: int, readout: str) -> Conv4:
    """In float64, with scales of both signs and statistics that are not the initial ones."""
    torch.manual_seed(0)
    net = Conv4(channels, size, 8, readout=readout).double()  # type: ignore[arg-type]
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
            m.running_mean = torch.randn(8).double()
            m.running_var = torch.rand(8).double()
    set_norm(net, "update")
    return net


def both(channels: int, size: int, readout: str) -> tuple[Conv4, Conv4, Tensor]:
    net = encoder(channels, size, readout)
    return net, copy.deepcopy(net), torch.rand(5, channels, size, size).double()


def plain(net: Conv4, x: Tensor) -> Tensor:
    return net.upper(net.lower(x))


def closed(net: Conv4, x: Tensor) -> Tensor:
    return train_step_features(net.blocks, x, net.readout == "mean")


@each_case
def test_same_features_gradients_and_averages(channels: int, size: int, readout: str) -> None:
    net, other, x = both(channels, size, readout)
    got, want = closed(net, x), plain(other, x)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    direction = torch.randn_like(want)
    ours = torch.autograd.grad(got, list(net.parameters()), direction)
    theirs = torch.autograd.grad(want, list(other.parameters()), direction)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for (name, a), (_, b) in zip(net.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=name)


@each_case
def test_second_derivative_is_autograds(channels: int, size: int, readout: str) -> None:
    net, other, x = both(channels, size, readout)

    def norm_of_gradient(net: Conv4, run: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        weights = list(net.parameters())
        slope = torch.autograd.grad(run(x).square().sum(), weights, create_graph=True)
        return torch.autograd.grad(torch.stack([g.square().sum() for g in slope]).sum(), weights)

    theirs = norm_of_gradient(other, lambda x: plain(other, x))
    ours = norm_of_gradient(net, lambda x: closed(net, x))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_where_it_does_not_serve() -> None:
    """Whatever watches, transforms or freezes the operations in between gets them."""
    net, _, x = both(1, 28, "flatten")
    assert serves(net.blocks, x)
    assert type(net(x).grad_fn).__name__ == type(closed(net, x).grad_fn).__name__
    assert not serves(net.blocks, x.expand(-1, 3, -1, -1)), "colour"
    assert not serves(net.blocks, x.clone().requires_grad_()), "the gradient of the pictures is wanted"
    with torch.no_grad():
        assert not serves(net.blocks, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not serves(net.blocks, x)
    assert not torch.vmap(lambda one: one.sum() + serves(net.blocks, one))(x[:, None]).ne(x.sum((1, 2, 3))).any()
    hook = net.blocks[1].register_forward_hook(lambda *_: None)
    assert not serves(net.blocks, x)
    hook.remove()
    assert serves(net.blocks, x)
    for mode in NOT_TRAINING:
        set_norm(net, mode)
        assert not serves(net.blocks, x)


def test_pictures_of_one_colour_stay_finite() -> None:
    net = encoder(1, 28, "flatten")
    out = net(torch.full((3, 1, 28, 28), 0.7).double())
    found = torch.autograd.grad(out.sum(), list(net.parameters()))
    assert out.isfinite().all() and all(g.isfinite().all() for g in found)
