"""The text tower: causal, read at the end, blind to padding; the scale and its limit."""

import math

import pytest
import torch

from selftaught.core.errors import ConfigError
from selftaught.nets.text import TextTransformer, clamped_scale


def tower() -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(tokens=20, context=8, width=16, depth=2, heads=2).double()


def test_a_text_is_read_at_its_end_whatever_follows() -> None:
    net = tower()
    z = net(torch.tensor([[1, 5, 7, 19, 0, 0, 0, 0], [1, 5, 7, 19, 3, 2, 9, 4], [1, 7, 5, 19, 0, 0, 0, 0]]))
    assert z.shape == (3, 16)
    assert torch.allclose(z[0], z[1], atol=1e-12) and not torch.allclose(z[0], z[2], atol=1e-3)
    assert torch.allclose(net(torch.tensor([[1, 5, 7, 19]]))[0], z[0], atol=1e-12)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="context"):
        tower()(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ConfigError, match="heads"):
        TextTransformer(20, 8, width=10, heads=4)


def test_the_scale_is_limited_and_can_come_back() -> None:
    low, high = torch.tensor(1.5, requires_grad=True), torch.tensor(9.0, requires_grad=True)
    assert float(clamped_scale(low).detach()) == pytest.approx(math.exp(1.5))
    assert float(clamped_scale(high).detach()) == pytest.approx(100, abs=1e-4)
    (slope,) = torch.autograd.grad(clamped_scale(high), high)
    assert float(slope) > 0
