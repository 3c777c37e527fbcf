"""Encoders of other libraries, by stand-ins; with timm itself where it is installed."""

import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from hub_fakes import Attention, Net, NormAct, Tokens, fake_open_clip, fake_timm, fake_transformers, random_numbers
from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply_update, buffers_of, params_of
from selftaught.nets import build_encoder
from selftaught.nets.frozen import FrozenNorm, freeze_statistics
from selftaught.nets.hub import HubEncoder, version_of

HF = {"model_type": "vit", "hidden_size": 8}


@pytest.fixture(autouse=True)
def _stand_ins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real" in request.node.name:
        return
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    monkeypatch.setitem(sys.modules, "open_clip", fake_open_clip())
    monkeypatch.setitem(sys.modules, "transformers", fake_transformers())


def _encoder(name: str, channels: int = 3, size: int = 16, **options: object) -> HubEncoder:
    found = build_encoder(name, channels, size, 0, **options)
    assert isinstance(found, HubEncoder)
    return found


def test_pictures_are_normalised_as_the_network_was_trained() -> None:
    encoder = _encoder("timm:smallnet_a")
    x = torch.rand(2, 3, 16, 16)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
    plain = Net().eval()
    plain.load_state_dict(encoder.trunk.state_dict())
    torch.testing.assert_close(encoder.eval()(x), plain((x - mean) / std))
    assert encoder.width == 8


def test_bytes_grey_and_other_sizes_are_taken() -> None:
    encoder = _encoder("timm:smallnet_a").eval()
    x = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(encoder(x), encoder(x / 255))
    grey = _encoder("timm:smallnet_a", channels=1).eval()
    grey.load_state_dict(encoder.state_dict())
    one = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(grey(one), encoder(one.repeat(1, 3, 1, 1)))
    for size in (8, 40):
        x = torch.rand(2, 3, size, size)
        fitted = F.interpolate(x, (16, 16), mode="bilinear", align_corners=False, antialias=size > 16)
        torch.testing.assert_close(encoder(x), encoder(fitted))
    with pytest.raises(ConfigError, match=r"\[B 1 H W\]"):
        grey(torch.rand(2, 3, 16, 16))


def test_frozen_statistics_are_those_of_evaluation_and_never_move() -> None:
    norm = NormAct(4)
    norm.load_state_dict(random_numbers(norm))
    x = torch.randn(3, 4, 5, 5)
    want = norm.eval()(x)
    frozen = freeze_statistics(nn.Sequential(norm, nn.BatchNorm1d(2, affine=False)))
    assert isinstance(frozen[0], FrozenNorm) and isinstance(frozen[1], FrozenNorm)  # type: ignore[index]
    first: nn.Module = frozen[0]  # type: ignore[index]
    torch.testing.assert_close(first(x), want)
    assert list(first.state_dict()) == list(norm.state_dict())
    _, moved = apply_update(first, params_of(first), buffers_of(first), x)
    assert all(torch.equal(moved[k], v) for k, v in buffers_of(first).items())


def test_frozen_statistics_have_right_second_derivatives_in_batched_tasks() -> None:
    encoder = _encoder("timm:smallnet_a", input=4).double().eval()
    weights = params_of(encoder) | buffers_of(encoder)
    name, start = "trunk.bn1.weight", params_of(encoder)["trunk.bn1.weight"]
    x = torch.rand(2, 3, 3, 4, 4, dtype=torch.double)

    def loss(scale: torch.Tensor) -> torch.Tensor:
        def one(x: torch.Tensor) -> torch.Tensor:
            def inner(w: torch.Tensor) -> torch.Tensor:
                return functional_call(encoder, {**weights, name: w}, (x,)).square().mean()

            return inner(scale - 0.1 * torch.func.grad(inner)(scale))

        return vmap(one)(x).mean()

    assert torch.autograd.gradcheck(loss, (start.clone().requires_grad_(),))


def test_batch_statistics_on_request() -> None:
    encoder = _encoder("timm:smallnet_a", norm="batch")
    assert isinstance(encoder.trunk.bn1, NormAct) and not encoder.trunk.bn1.act.inplace  # type: ignore[union-attr]
    _, moved = apply_update(encoder, params_of(encoder), buffers_of(encoder), torch.rand(4, 3, 16, 16))
    assert not torch.equal(moved["trunk.bn1.running_mean"], torch.zeros(8))


def test_the_attention_of_torch_can_be_differentiated_twice() -> None:
    encoder = _encoder("openclip:ViT-S")
    assert isinstance(encoder.trunk, Attention) and encoder.side == 16
    torch.testing.assert_close(encoder.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    w = encoder.trunk.attention.in_proj_weight
    (g,) = torch.autograd.grad(encoder(torch.rand(2, 3, 16, 16)).square().sum(), w, create_graph=True)
    (second,) = torch.autograd.grad(g.square().sum(), w)
    assert second.isfinite().all() and second.abs().sum() > 0


def test_transformers_are_pooled_as_asked() -> None:
    x = torch.rand(2, 3, 16, 16)
    found = {}
    for pool in ("pooler", "first", "mean"):
        encoder = _encoder("hf:mine", config=HF, pool=pool, mean=[0.0] * 3, std=[1.0] * 3).eval()
        net: Tokens = encoder.trunk.net  # type: ignore[assignment]
        assert (net.pooler is None) == (pool != "pooler")
        hidden = F.gelu(net.embed(x).flatten(2).mT)
        want = {"first": hidden[:, 0], "mean": hidden.mean(1)}.get(pool)
        found[pool] = encoder(x)
        torch.testing.assert_close(found[pool], net.pooler(hidden[:, 0]) if want is None else want)  # type: ignore[misc]
    assert not torch.allclose(found["first"], found["mean"])


@pytest.mark.parametrize(
    ("name", "channels", "options", "said"),
    [
        ("timm:smallnet_c", 3, {}, "near: smallnet_b, smallnet_a|near: smallnet_a, smallnet_b"),
        ("timm:broken", 3, {}, "cannot build 'broken'"),
        ("timm:odd", 3, {}, "gives no embeddings"),
        ("timm:smallnet_a", 4, {}, "1 or 3 channels"),
        ("timm:smallnet_a", 3, {"width": 3}, "no option width"),
        ("timm:smallnet_a", 3, {"norm": "group"}, "'frozen' or 'batch'"),
        ("timm:smallnet_a", 3, {"mean": [0.5] * 4}, "cannot take pictures"),
        ("openclip:nothing", 3, {}, "no network 'nothing' among 1$"),
        ("hf:mine", 3, {}, "config"),
        ("hf:mine", 3, {"config": {"model_type": "elsewhere"}}, "cannot build hf:mine"),
        ("hf:mine", 3, {"config": HF, "pool": "last"}, "pool is"),
        ("torchvision:resnet18", 3, {}, "timm:NAME, openclip:NAME, hf:NAME"),
        ("timm:", 3, {}, "timm:NAME"),
    ],
)
def test_what_cannot_be_built_is_said(name: str, channels: int, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_encoder(name, channels, 16, 0, **options)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, extra in (("timm", "timm:a", "encoders"), ("open_clip", "openclip:a", "openclip")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match=rf"pip install 'selftaught\[{extra}\]'"):
            build_encoder(name, 3, 16, 0)


def test_the_seed_decides_and_the_global_generator_stays() -> None:
    before = torch.get_rng_state()
    a, b, c = (build_encoder("timm:smallnet_a", 3, 16, s).state_dict()["trunk.conv.weight"] for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(before, torch.get_rng_state())
    assert version_of("timm") == "timm 9.9"


@pytest.mark.oracle
def test_real_timm_agrees_with_itself() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'selftaught[encoders]'")
    for name in ("test_resnet", "test_vit", "test_efficientnet"):
        encoder = build_encoder(f"timm:{name}", 3, 64, 0, input=64).eval()
        kwargs = {"dynamic_img_size": True} if name == "test_vit" else {}
        plain = timm.create_model(name, pretrained=False, num_classes=0, **kwargs).eval()
        plain.load_state_dict(encoder.trunk.state_dict())  # type: ignore[union-attr]
        x = torch.rand(2, 3, 64, 64)
        want = plain((x - encoder.mean) / encoder.std)
        torch.testing.assert_close(encoder(x), want, rtol=1e-4, atol=1e-5)
