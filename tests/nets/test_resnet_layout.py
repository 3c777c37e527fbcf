"""Channels-last memory and Winograd convolutions in the residual encoders: the same numbers as the plain ones."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from selftaught.nets import winograd
from selftaught.nets.resnet import Conv, ResNet12, ResNet18


def direct(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def pair(shape: tuple[int, int, int, int], out: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    return x, torch.randn(out, shape[1], 3, 3, dtype=torch.float64, requires_grad=True)


# Whole tiles, a remainder in both axes, less than a tile, and more pictures than one block holds.
SHAPES = [((2, 3, 8, 4), 5), ((3, 4, 7, 10), 2), ((2, 2, 3, 1), 3), ((35, 2, 32, 32), 1)]


@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_winograd_is_the_convolution(shape: tuple[int, int, int, int], out: int) -> None:
    x, weight = pair(shape, out)
    got, expected = winograd.conv3x3(x, weight), direct(x, weight)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    g = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(got, (x, weight), g), torch.autograd.grad(expected, (x, weight), g), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-9)


def test_winograd_has_derivatives_of_every_order() -> None:
    x, weight = pair((2, 2, 5, 4), 3)
    assert torch.autograd.gradcheck(winograd.conv3x3, (x, weight))
    assert torch.autograd.gradgradcheck(winograd.conv3x3, (x, weight))


@pytest.mark.parametrize("tiles", [1, 256])
def test_winograd_passes_through_transforms(tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient inside `vmap`, with weights of their own for every task, and a gradient through it."""
    monkeypatch.setattr(winograd, "_TILES_AT_ONCE", tiles)
    x, weight = pair((6, 2, 4, 4), 2)
    tasks, weights = x.detach().unflatten(0, (3, 2)), weight.detach().expand(3, -1, -1, -1, -1) * 1.5

    def outer(f: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        def after_step(w: Tensor, x: Tensor) -> Tensor:
            return f(x, w - 0.1 * grad(lambda v: f(x, v).pow(3).mean())(w)).square().mean()

        return grad(lambda w: vmap(after_step)(w, tasks).sum())(weights)

    torch.testing.assert_close(outer(winograd.conv3x3), outer(direct), rtol=1e-10, atol=1e-10)


def test_winograd_rounds_little_in_float32() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(8, 128, 8, 8), torch.randn(128, 128, 3, 3)
    exact = direct(x.double(), weight.double())
    error = (winograd.conv3x3(x, weight).double() - exact).norm() / exact.norm()
    assert error < 1e-5


def test_where_winograd_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_measured_cpu", lambda: True)
    x, weight = torch.empty(1, 64, 8, 8), torch.empty(64, 64, 3, 3)
    assert winograd.suits(x, weight)
    assert not winograd.suits(x, weight, stride=2)
    assert not winograd.suits(x[:, :63], weight[:, :63])
    assert not winograd.suits(x, weight[..., :1, :1])
    assert not winograd.suits(x.bfloat16(), weight.bfloat16())
    assert not winograd.suits(x[..., :5, :5], weight)  # 25 of 64 numbers would be padding
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.suits(x, weight)
    monkeypatch.setattr(winograd, "_measured_cpu", lambda: False)
    assert not winograd.suits(x, weight)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Winograd everywhere that its shape allows, whatever the machine and however narrow the net."""
    monkeypatch.setattr(winograd, "_measured_cpu", lambda: True)
    monkeypatch.setattr(winograd, "_LEAST_CHANNELS", 4)
    yield


def plainly(net: nn.Module, x: Tensor) -> Tensor:
    """The same network in plain memory with direct convolutions: no layout asked for anywhere."""
    for module in net.modules():
        if hasattr(module, "channels_last"):
            module.channels_last = False
    assert x.is_contiguous()
    return net(x)


ENCODERS = {
    "resnet12": lambda channels: ResNet12(channels, (4, 8, 8, 16)),
    "resnet18": lambda channels: ResNet18(channels, width=64),
    "resnet18-large": lambda channels: ResNet18(channels, stem="large", width=32),
}


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_same_numbers_in_either_layout(name: str, channels: int) -> None:
    torch.manual_seed(0)
    net = ENCODERS[name](channels).double().train()
    x = torch.rand(4, channels, 32, 32, dtype=torch.float64)
    found = []
    for run in (lambda: net(x), lambda: plainly(net, x)):
        z = run()
        found.append([z, *torch.autograd.grad(z.square().sum(), list(net.parameters()))])
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() < 1e-10 * b.norm()


@pytest.mark.parametrize("name", ENCODERS)
def test_features_stay_in_channels_last_memory(name: str) -> None:
    net = ENCODERS[name](3)
    layouts: list[bool] = []
    for module in net.modules():
        if isinstance(module, Conv):
            module.register_forward_hook(
                lambda _m, _i, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    net(torch.rand(2, 3, 32, 32))
    assert layouts and all(layouts)


def test_narrow_strided_shortcuts_do_not_touch_foreign_memory() -> None:
    """Width 32 gives a strided 1x1 convolution from 4 channels, whose kernel crashed in this layout."""
    conv = Conv(4, 8, 1, 2, "batch")
    x = last(torch.randn(3, 4, 9, 9)).requires_grad_()
    # Not by F.conv2d: a 1x1 weight counts as either layout, so it can meet the very kernel that reads beyond.
    expected = torch.einsum("bchw,oc->bohw", x[:, :, ::2, ::2], conv.weight[:, :, 0, 0])
    torch.testing.assert_close(conv(x), expected)
    for _ in range(5):
        conv(x).square().sum().backward()
