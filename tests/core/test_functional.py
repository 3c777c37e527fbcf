"""What the tests of the networks leave open: names, copies and bytes."""

import pytest
import torch
from torch import nn

from selftaught.core.functional import (
    apply,
    apply_update,
    buffers_of,
    in_batches,
    params_of,
    part,
    prefixed,
    to_float,
)
from selftaught.core.types import merged


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def test_copies_share_nothing_with_the_skeleton() -> None:
    net = small()
    params, buffers = params_of(net), buffers_of(net)
    assert params.keys() | buffers.keys() == net.state_dict().keys() and not params.keys() & buffers.keys()
    assert not any(v.requires_grad for v in params.values())
    for v in merged(params, buffers).values():
        v.fill_(7)
    assert not any((v == 7).all() for v in net.state_dict().values())


def test_part_and_prefixed_undo_each_other() -> None:
    weights = {"a.w": torch.zeros(1), "ab.w": torch.ones(1), "a.b.w": torch.ones(2)}
    assert list(part(weights, "a")) == ["w", "b.w"], "'ab' is not below 'a'"
    inner = part(weights, "a")
    assert part(prefixed("x.y", inner), "x.y").keys() == inner.keys()
    assert prefixed("x", inner)["x.w"] is weights["a.w"]


def test_weights_other_than_the_skeletons_are_used() -> None:
    net, x = small(), torch.rand(3, 1, 4, 4)
    weights = merged(params_of(net), buffers_of(net))
    weights["4.bias"] += 1
    weights["1.running_mean"] += 1
    changed = apply(net, weights, x)
    assert not torch.allclose(changed, apply(net, merged(params_of(net), buffers_of(net)), x) + 1)
    for module in net.modules():
        for p in module.parameters(recurse=False):
            nn.init.zeros_(p)
    assert torch.equal(apply(net, weights, x), changed)


def test_moved_statistics_stay_with_the_caller() -> None:
    net = small()
    buffers = buffers_of(net)
    _, moved = apply_update(net, params_of(net), buffers, torch.rand(5, 1, 4, 4))
    assert moved.keys() == buffers.keys()
    assert not torch.equal(moved["1.running_mean"], buffers["1.running_mean"])
    assert torch.equal(dict(net.named_buffers())["1.running_mean"], buffers["1.running_mean"])


def test_apply_refuses_to_move_statistics() -> None:
    net = small()
    with pytest.raises(ValueError, match="apply_update"):
        apply(net, params_of(net), torch.rand(2, 1, 4, 4), "update")  # type: ignore[arg-type]


def test_bytes_become_fractions_and_floats_stay() -> None:
    x = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert torch.allclose(to_float(x), torch.tensor([0, 0.2, 1.0])) and x.tolist() == [0, 51, 255]
    assert to_float(x).dtype == torch.float32
    for y in (torch.rand(2), torch.rand(2, dtype=torch.float64)):
        assert to_float(y) is y


def test_in_batches_has_no_gradient_and_no_odd_last_batch() -> None:
    net = small()
    weights = merged({k: v.requires_grad_() for k, v in params_of(net).items()}, buffers_of(net))
    x = torch.rand(5, 1, 4, 4)
    whole = in_batches(net, weights, x, batch=5)
    assert whole.shape == (5, 2) and not whole.requires_grad
    assert torch.allclose(in_batches(net, weights, x, batch=2), whole, atol=1e-6)


@pytest.mark.parametrize(("shape", "calls"), [((600, 1, 84, 84), 2), ((150, 3, 224, 224), 3), ((600, 4), 2)])
def test_large_pictures_go_through_a_few_at_a_time(shape: tuple[int, ...], calls: int) -> None:
    seen: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return x.flatten(1)[:, :1]

    x = torch.zeros(shape, dtype=torch.uint8)
    assert len(in_batches(Counting(), {}, x)) == len(x) == sum(seen)
    assert len(seen) == calls and max(seen) <= 512
