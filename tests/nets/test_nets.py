"""Encoders: shapes, the split in lower and upper, second derivatives, normalisation by name."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from selftaught.core.errors import ConfigError
from selftaught.core.functional import (
    apply,
    apply_update,
    buffers_of,
    in_batches,
    params_of,
    part,
    prefixed,
    set_norm,
)
from selftaught.core.types import Encoder, Params
from selftaught.nets.conv4 import Conv4
from selftaught.nets.heads import MLP, WithPredictor
from selftaught.nets.resnet import ResNet12, ResNet18
from selftaught.nets.vit import ViT, sincos_positions

SMALL: dict[str, Callable[[int, int], nn.Module]] = {
    "conv4-batch": lambda c, s: Conv4(c, s, 8, "batch"),
    "conv4-group": lambda c, s: Conv4(c, s, 16, "group"),
    "conv4-mean": lambda c, s: Conv4(c, s, 8, "batch", "mean"),
    "resnet12-batch": lambda c, s: ResNet12(c, (4, 8, 8, 16), "batch"),
    "resnet12-group": lambda c, s: ResNet12(c, (8, 8, 16, 16), "group"),
    "resnet18-batch": lambda c, s: ResNet18(c, width=32),
    "resnet18-group": lambda c, s: ResNet18(c, norm="group", width=64),
    "resnet18-large": lambda c, s: ResNet18(c, stem="large", width=32),
    "vit-mean": lambda c, s: ViT(c, width=16, depth=2, heads=2),
    "vit-cls": lambda c, s: ViT(c, width=16, depth=2, heads=2, pool="cls", positions="learned", size=s),
}


def build(name: str, channels: int = 1, size: int = 28) -> nn.Module:
    torch.manual_seed(0)
    return SMALL[name](channels, size)


def weights_of(net: nn.Module) -> Params:
    return {**params_of(net), **buffers_of(net)}


def clones(weights: Params) -> Params:
    return {k: v.clone() for k, v in weights.items()}


def assert_same(a: Params, b: Params) -> None:
    assert a.keys() == b.keys()
    for k in a:
        assert torch.equal(a[k], b[k]), k


# --- shapes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [28, 32, 64, 84])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SMALL)
def test_shape_width_and_split(name: str, channels: int, size: int) -> None:
    net = build(name, channels, size).eval()
    assert isinstance(net, Encoder)
    x = torch.rand(2, channels, size, size)
    with torch.no_grad():
        out = net(x)
        again = net.upper(net.lower(x))
    assert out.shape == (2, net.width)
    assert torch.isfinite(out).all() and not torch.equal(out[0], out[1])
    assert torch.equal(out, again)


@pytest.mark.parametrize("name", SMALL)
def test_last_holds_all_of_upper_and_nothing_of_lower(name: str) -> None:
    """`adapt="last"` rests on this: gradients of `upper` reach exactly the tensors under `last`."""
    net = build(name)
    x = torch.rand(3, 1, 28, 28)
    net.upper(net.lower(x).detach()).square().sum().backward()
    touched = {k for k, p in net.named_parameters() if p.grad is not None}
    assert touched == {k for k, _ in net.named_parameters() if k.startswith(net.last + ".")}
    assert touched
    net.zero_grad(set_to_none=True)
    net.lower(x).square().sum().backward()
    below = {k for k, p in net.named_parameters() if p.grad is not None}
    assert below == {k for k, _ in net.named_parameters()} - touched


def test_conv4_floors() -> None:
    """28 -> 14 -> 7 -> 3 -> 1; rounding up would give 256 features."""
    assert Conv4(1, 28).width == 64
    assert Conv4(1, 28).eval()(torch.rand(1, 1, 28, 28)).shape == (1, 64)
    assert Conv4(3, 84).width == 1600


@pytest.mark.parametrize("shape", [(32, 64), (64, 32)])
@pytest.mark.parametrize("name", ["resnet12-batch", "resnet18-batch", "vit-mean", "vit-cls"])
def test_oblong_pictures(name: str, shape: tuple[int, int]) -> None:
    net = build(name, 3, 32).eval()
    assert net(torch.rand(2, 3, *shape)).shape == (2, net.width)


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (lambda: ResNet18(3), 11_168_832),
        # torchvision's resnet18 has 11 689 512 with its 513 000 of classifier.
        (lambda: ResNet18(3, stem="large"), 11_176_512),
        (lambda: ResNet12(3), 12_424_320),
        # The usual 113 088 of Conv4 less its 256 convolution biases.
        (lambda: Conv4(3, 84), 112_832),
    ],
)
def test_known_parameter_counts(net: Callable[[], nn.Module], count: int) -> None:
    assert sum(p.numel() for p in net().parameters()) == count


def test_resnet18_is_the_published_one() -> None:
    """The large stem at 224 px: stages of 56, 28, 14 and 7 px, as in table 1 of the paper."""
    net = ResNet18(3, stem="large", width=64).eval()
    sides: list[int] = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        stage.register_forward_hook(lambda _m, _i, out: sides.append(out.shape[-1]))
    net(torch.rand(1, 3, 224, 224))
    assert sides == [56, 28, 14, 7]


def test_same_seed_same_start() -> None:
    for name in SMALL:
        assert_same(params_of(build(name)), params_of(build(name)))


def test_errors_name_the_shape() -> None:
    with pytest.raises(ConfigError, match="12 x 28"):
        ResNet12(1, (8, 8, 8, 8))(torch.rand(1, 1, 12, 28))
    with pytest.raises(ConfigError, match="30 x 28"):
        ViT(1, width=16, heads=2)(torch.rand(1, 1, 30, 28))
    with pytest.raises(ConfigError, match="heads 3"):
        ViT(1, width=16, heads=3)
    with pytest.raises(ConfigError, match="size 30"):
        ViT(1, width=16, heads=2, positions="learned", size=30)
    with pytest.raises(ConfigError, match="width 36"):
        ResNet18(1, width=36)
    with pytest.raises(ConfigError, match="multiples of 8"):
        ResNet18(1, width=32, norm="group")
    with pytest.raises(ConfigError, match="15 pixels"):
        Conv4(1, 15)


# --- transformer ----------------------------------------------------------------------------------------


def test_attention_equals_the_fused_one() -> None:
    torch.manual_seed(0)
    net = ViT(1, width=16, heads=2, depth=1)
    attention = net.final[0].attention
    x = torch.randn(2, 5, 16)
    reference = nn.MultiheadAttention(16, 2, batch_first=True)
    names = {"in_proj_weight": attention.qkv.weight, "in_proj_bias": attention.qkv.bias}
    names |= {"out_proj.weight": attention.out.weight, "out_proj.bias": attention.out.bias}
    expected = functional_call(reference, names, (x, x, x))[0]
    torch.testing.assert_close(attention(x), expected)


def test_positions_tell_patches_apart() -> None:
    """Without positions the mean over patches would not see that two patches changed places."""
    for name in ("vit-mean", "vit-cls"):
        net = build(name).double()
        x = torch.rand(1, 1, 28, 28, dtype=torch.float64)
        swapped = x.clone()
        swapped[..., 0:4, 0:4], swapped[..., 8:12, 16:20] = x[..., 8:12, 16:20], x[..., 0:4, 0:4]
        assert (net(x) - net(swapped)).abs().max() > 1e-6
    table = sincos_positions(3, 5, 16, torch.zeros(()))
    assert table.shape == (15, 16)
    assert torch.cdist(table, table).add(torch.eye(15) * 9).min() > 0.1
    # Row-major, rows in the first half of the features, columns in the second.
    assert torch.equal(table[1, :8], table[4, :8]) and torch.equal(table[1, 8:], table[11, 8:])


def test_learned_positions_are_resampled() -> None:
    net = build("vit-cls", 1, 32)
    net.positions.data[:] = 1.5
    torch.testing.assert_close(net.place(4, 12, torch.zeros(())), torch.full((48, 16), 1.5))


def test_one_block_vit() -> None:
    net = ViT(1, width=8, depth=1, heads=1)
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 8)


# --- second derivatives and vmap ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_second_derivative_equals_finite_differences(name: str) -> None:
    """Hessian times a direction, by differentiating twice, against central differences of the gradient."""
    net = build(name, 1, 16).double()
    size = 32 if name == "resnet18-large" else 16
    g = torch.Generator().manual_seed(1)
    x = torch.rand(4, 1, size, size, generator=g, dtype=torch.float64)
    weights, buffers = params_of(net), buffers_of(net)
    goal = torch.randn(4, net.width, generator=g, dtype=torch.float64)

    def loss(p: Params) -> Tensor:
        return (apply(net, {**buffers, **p}, x, "batch") - goal).square().mean()

    u = {k: torch.randn(v.shape, generator=g, dtype=v.dtype) * 0.1 for k, v in weights.items()}
    leaves = {k: v.clone().requires_grad_() for k, v in weights.items()}
    first = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True)
    along = sum((a * b).sum() for a, b in zip(first, u.values(), strict=True))
    assert isinstance(along, Tensor)
    exact = dict(zip(leaves, torch.autograd.grad(along, list(leaves.values())), strict=True))
    eps = 1e-6
    plus = grad(loss)({k: v + eps * u[k] for k, v in weights.items()})
    minus = grad(loss)({k: v - eps * u[k] for k, v in weights.items()})
    rough = {k: (plus[k] - minus[k]) / (2 * eps) for k in weights}
    scale = max(float(v.abs().max()) for v in rough.values())
    assert scale > 1e-4
    for k in weights:
        assert (exact[k] - rough[k]).abs().max() < 1e-5 * scale, k


@pytest.mark.parametrize("name", list(SMALL))
def test_vmap_over_tasks_equals_the_loop(name: str) -> None:
    net = build(name).double()
    x = torch.rand(3, 4, 1, 28, 28, dtype=torch.float64)
    weights = weights_of(net)

    def per_task(pictures: Tensor) -> Tensor:
        return apply(net, weights, pictures, "batch")

    together = vmap(per_task)(x)
    torch.testing.assert_close(together, torch.stack([per_task(task) for task in x]))
    if buffers_of(net):
        pooled = per_task(x.flatten(0, 1)).unflatten(0, (3, 4))
        assert not torch.allclose(together, pooled), "statistics must belong to one task"


# --- normalisation by name ------------------------------------------------------------------------------

WITH_BATCH_NORM = ["conv4-batch", "resnet12-batch", "resnet18-batch"]


def warm(net: nn.Module) -> Params:
    """Weights whose running statistics are neither 0 and 1 nor those of the test pictures."""
    weights = weights_of(net)
    for k, v in weights.items():
        if k.endswith("running_mean"):
            v += 0.3
        if k.endswith("running_var"):
            v *= 2.0
    return weights


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_running_is_inductive_and_batch_is_not(name: str) -> None:
    net = build(name)
    weights = warm(net)
    x = torch.rand(6, 1, 28, 28)
    alone = torch.cat([apply(net, weights, x[i : i + 1], "running") for i in range(6)])
    torch.testing.assert_close(apply(net, weights, x, "running"), alone, rtol=1e-4, atol=1e-5)
    others = torch.cat([x[:1], 1 - x[1:]])
    changed = apply(net, weights, others, "batch")[0] - apply(net, weights, x, "batch")[0]
    assert changed.abs().max() > 1e-3
    assert not torch.allclose(apply(net, weights, x, "running"), apply(net, weights, x, "batch"))


@pytest.mark.parametrize("name", ["conv4-group", "resnet12-group", "vit-mean"])
def test_group_and_layer_norm_are_the_same_under_all_modes(name: str) -> None:
    net = build(name)
    weights = weights_of(net)
    x = torch.rand(4, 1, 28, 28)
    running = apply(net, weights, x, "running")
    assert torch.equal(running, apply(net, weights, x, "batch"))
    assert torch.equal(running, apply_update(net, weights, {}, x)[0])
    torch.testing.assert_close(running[:1], apply(net, weights, x[:1], "running"), rtol=1e-4, atol=1e-5)


def test_update_moves_statistics_by_the_momentum() -> None:
    net = build("conv4-batch").double()
    weights = warm(net)
    params, buffers = params_of(net), part(prefixed("n", weights), "n")
    buffers = {k: v for k, v in buffers.items() if k not in params}
    x = torch.rand(5, 1, 28, 28, dtype=torch.float64)
    out, moved = apply_update(net, params, buffers, x)
    torch.testing.assert_close(out, apply(net, weights, x, "batch"))
    first = net.blocks[0].conv(x)
    mean, var = first.mean((0, 2, 3)), first.transpose(0, 1).flatten(1).var(-1)
    name = "blocks.0.norm."
    torch.testing.assert_close(moved[name + "running_mean"], 0.9 * buffers[name + "running_mean"] + 0.1 * mean)
    torch.testing.assert_close(moved[name + "running_var"], 0.9 * buffers[name + "running_var"] + 0.1 * var)
    assert int(moved[name + "num_batches_tracked"]) == int(buffers[name + "num_batches_tracked"]) + 1
    assert not any(v.requires_grad for v in moved.values())


@pytest.mark.parametrize("mode", ["running", "batch"])
@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_apply_changes_nothing_it_was_given(name: str, mode: str) -> None:
    net = build(name)
    weights = warm(net)
    before, own = clones(weights), clones(weights_of(net))
    apply(net, weights, torch.rand(4, 1, 28, 28), mode)
    assert_same(weights, before)
    assert_same(weights_of(net), own)


def test_apply_refuses_to_move_statistics() -> None:
    net = build("conv4-batch")
    with pytest.raises(ValueError, match="apply_update"):
        apply(net, warm(net), torch.rand(4, 1, 28, 28), "update")


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_apply_update_changes_nothing_it_was_given(name: str) -> None:
    net = build(name)
    weights, params = warm(net), params_of(net)
    buffers = {k: v for k, v in weights.items() if k not in params}
    old_params, old_buffers, own = clones(params), clones(buffers), clones(weights_of(net))
    _, moved = apply_update(net, params, buffers, torch.rand(4, 1, 28, 28))
    assert_same(params, old_params)
    assert_same(buffers, old_buffers)
    assert_same(weights_of(net), own)
    assert not any(torch.equal(moved[k], buffers[k]) for k in buffers)


def test_modes_do_not_stick() -> None:
    """`set_norm` writes flags on a shared skeleton: each call must set its own, whatever came before."""
    net = build("resnet12-batch")
    weights, x = warm(net), torch.rand(4, 1, 28, 28)
    first = apply(net, weights, x, "running")
    apply(net, weights, x, "batch")
    apply_update(net, params_of(net), buffers_of(net), x)
    assert torch.equal(first, apply(net, weights, x, "running"))


def test_dropout_rests() -> None:
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4))
    for mode in ("running", "batch", "update"):
        set_norm(net, mode)
        assert not net[0].training
        assert net[1].training is (mode != "running")


def test_in_batches_equals_one_call_and_scales_bytes() -> None:
    net = build("conv4-batch")
    weights = warm(net)
    x = torch.randint(0, 256, (7, 1, 28, 28), dtype=torch.uint8)
    expected = apply(net, weights, x.float() / 255)
    torch.testing.assert_close(in_batches(net, weights, x, batch=3), expected, rtol=1e-4, atol=1e-5)


# --- heads ----------------------------------------------------------------------------------------------


def test_heads() -> None:
    torch.manual_seed(0)
    encoder = Conv4(1, 28, 8)
    net = WithPredictor(encoder, MLP([8, 12, 4], norm=True), MLP([4, 6, 4]))
    out = apply(net, weights_of(net), torch.rand(3, 1, 28, 28))
    assert out.shape == (3, 4)
    kinds = [type(layer).__name__ for layer in net.projector.layers]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert net.projector.width == 4 and not any(getattr(m, "inplace", False) for m in net.modules())
