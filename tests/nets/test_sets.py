"""A set encoder does not see the order of points, and says what it cannot take."""

import pytest
import torch
from torch import nn

from selftaught.core.errors import ConfigError
from selftaught.nets.sets import SetEncoder, WithPointDecoder


def encoder() -> SetEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SetEncoder(2, 1, hidden=16, width=8).double()


def test_the_order_of_points_is_of_no_effect() -> None:
    net, x = encoder(), torch.rand(4, 11, 3).double()
    order = torch.randperm(11)
    assert net(x).shape == (4, net.width)
    assert torch.allclose(net(x[:, order]), net(x), rtol=1e-12, atol=1e-14)
    changed = x.clone()
    changed[:, 3, 2] += 1
    assert not torch.allclose(net(changed), net(x))


def test_it_is_the_mean_over_points_of_a_network_of_each() -> None:
    net, x = encoder(), torch.rand(4, 10, 3).double()
    one_by_one = torch.stack([net(x[:, p : p + 1]) for p in range(10)]).mean(0)
    assert torch.allclose(net(x), one_by_one, rtol=1e-12)
    assert torch.allclose(net(x), (net(x[:, :5]) + net(x[:, 5:])) / 2, rtol=1e-12)


def test_what_it_cannot_take_is_refused() -> None:
    net = encoder()
    for x in (torch.rand(4, 3, 11), torch.rand(11, 3), torch.rand(4, 0, 3)):
        with pytest.raises(ConfigError, match="batch, points, dim"):
            net(x.double())
    with pytest.raises(ConfigError, match=r"Linear.*SetEncoder"):
        WithPointDecoder(nn.Linear(3, 3), 8)
