"""Differentiable views: nothing at strength zero, each change as its formula says, gradients that are right."""

import math

import pytest
import torch
from torch import Tensor

from selftaught.data.differentiable import LIMITS, NOISE_CHANNELS, differentiable_view

NAMES = list(LIMITS)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def strength(**values: float) -> Tensor:
    return torch.tensor([values.get(name, 0.0) for name in NAMES], dtype=torch.float64)


def noise_with(draw: dict[int, float], b: int = 1, size: int = 9) -> Tensor:
    """Noise whose named draws are given, as u on [-1, 1]; all others are 0."""
    noise = torch.full((b, NOISE_CHANNELS, size, size), 0.5, dtype=torch.float64)
    for place, u in draw.items():
        noise[:, 0].flatten(1)[:, place] = (u + 1) / 2
    return noise


@pytest.mark.parametrize("channels", [1, 3])
def test_strength_zero_is_the_picture(channels: int) -> None:
    x = uniform(4, channels, 9, 12)
    assert torch.allclose(differentiable_view(x, uniform(4, 2, 9, 12, seed=1), strength()), x, atol=1e-12)


def test_a_quarter_turn_a_shift_and_a_zoom() -> None:
    x = uniform(1, 2, 9, 9)
    turned = differentiable_view(x, noise_with({0: 1.0}), strength(rotate=90.0))
    assert torch.allclose(turned, x.rot90(1, (2, 3)), atol=1e-9)
    # A third of nine pixels along x, and the border's colour comes into view.
    shifted = differentiable_view(x, noise_with({2: 1.0}), strength(translate=1 / 3))
    assert torch.allclose(shifted[..., :6], x[..., 3:], atol=1e-9)
    assert torch.allclose(shifted[..., 6:], x[..., -1:].expand(-1, -1, -1, 3), atol=1e-9)
    up = differentiable_view(x, noise_with({3: -1.0}), strength(translate=1 / 3))
    assert torch.allclose(up[..., 3:, :], x[..., :6, :], atol=1e-9)
    # Three times as large: the middle pixel is the middle pixel, three from it shows its neighbour.
    zoomed = differentiable_view(x, noise_with({1: 1.0}), strength(scale=math.log(3)))
    assert torch.allclose(zoomed[..., 1::3, 1::3], x[..., 3:6, 3:6], atol=1e-9)


def test_grey_levels() -> None:
    x = uniform(2, 3, 9, 9)
    mean = x.mean((1, 2, 3), keepdim=True)
    harder = differentiable_view(x, noise_with({4: 0.5}, 2), strength(contrast=0.4))
    assert torch.allclose(harder, mean + 1.2 * (x - mean), atol=1e-12)
    darker = differentiable_view(x, noise_with({5: -1.0}, 2), strength(brightness=0.3))
    assert torch.allclose(darker, 0.7 * x, atol=1e-12)
    noise = uniform(2, 2, 9, 9, seed=3)
    grainy = differentiable_view(x, noise, strength(noise=0.2))
    assert torch.allclose(grainy - x, 0.2 * (2 * noise[:, 1:] - 1).expand(-1, 3, -1, -1), atol=1e-12)


def test_every_picture_has_draws_of_its_own() -> None:
    x = uniform(1, 1, 9, 9).expand(2, -1, -1, -1)
    for name in NAMES:
        found = differentiable_view(x, uniform(2, 2, 9, 9, seed=1), strength(**{name: LIMITS[name] / 3}))
        assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[0], x[0])


def test_the_gradient_of_every_strength_is_right() -> None:
    x, noise = uniform(3, 2, 9, 9), uniform(3, 2, 9, 9, seed=1)
    weigh = uniform(3, 2, 9, 9, seed=2)
    a = torch.tensor([0.3 * v for v in LIMITS.values()], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((differentiable_view(x, noise, a) * weigh).sum(), [a])
    for i in range(len(LIMITS)):
        step = torch.zeros(len(LIMITS), dtype=torch.float64)
        step[i] = 1e-7
        values = [float((differentiable_view(x, noise, a.detach() + s) * weigh).sum()) for s in (step, -step)]
        assert (values[0] - values[1]) / 2e-7 == pytest.approx(float(slope[i]), rel=1e-5, abs=1e-6)
