"""Low-rank adapters on small networks: what they add, what stays, derivatives, and what they refuse."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from hub_fakes import fake_open_clip, fake_timm, random_numbers
from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply_update, buffers_of, params_of
from selftaught.nets import build_encoder
from selftaught.nets.adapters import Adapters, adaptable
from selftaught.nets.hub import HubEncoder


@pytest.fixture(autouse=True)
def _stand_ins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real" not in request.node.name:
        monkeypatch.setitem(sys.modules, "timm", fake_timm())
        monkeypatch.setitem(sys.modules, "open_clip", fake_open_clip())


def _encoder(name: str, **options: object) -> HubEncoder:
    found = build_encoder(name, 3, 16, 0, **options)
    assert isinstance(found, HubEncoder)
    return found.eval()


def _learned(encoder: HubEncoder, seed: int = 1) -> dict[str, torch.Tensor]:
    """Numbers for its adapters as after training."""
    generator = torch.Generator().manual_seed(seed)
    return {k: 0.3 * torch.randn(v.shape, generator=generator) for k, v in encoder.named_parameters()}


@pytest.mark.parametrize("name", ["timm:smallnet_a", "openclip:ViT-S"])
def test_nothing_changes_at_the_start_and_names_stay(name: str) -> None:
    plain, adapted = _encoder(name), _encoder(name, adapter_rank=2)
    x = torch.rand(3, 3, 16, 16)
    assert torch.equal(plain(x), adapted(x))
    assert set(plain.state_dict()) == {k for k in adapted.state_dict() if not k.startswith("adapters.")}
    assert {k for k, _ in plain.named_parameters()} <= {k for k, _ in adapted.named_buffers()}
    assert {k.split(".")[0] for k, _ in adapted.named_parameters()} == {"adapters"}


@pytest.mark.parametrize("name", ["timm:smallnet_a", "openclip:ViT-S"])
def test_the_sum_is_what_merging_gives(name: str) -> None:
    encoder = _encoder(name, adapter_rank=2)
    encoder.trunk.load_state_dict(random_numbers(encoder.trunk))
    x, learned, before = torch.rand(3, 3, 16, 16), _learned(encoder), copy.deepcopy(encoder)
    encoder.load_state_dict(learned, strict=False)
    want = encoder(x)
    torch.testing.assert_close(functional_call(before, learned, (x,)), want)
    assert not torch.allclose(want, before(x))
    key = "conv-weight"
    up, down = learned[f"adapters.up.{key}"], learned[f"adapters.down.{key}"]
    slow = torch.stack([sum(up[o, r] * down[r] for r in range(2)) for o in range(len(up))])  # type: ignore[misc]
    encoder.merge()
    changed = encoder.trunk.get_buffer("conv.weight") - before.trunk.get_buffer("conv.weight")
    torch.testing.assert_close(changed.flatten(1), slow)
    torch.testing.assert_close(encoder(x), want)
    plain = _encoder(name)
    plain.load_state_dict(encoder.state_dict())  # under the names of the library
    torch.testing.assert_close(plain(x), want)


@pytest.mark.parametrize("name", ["timm:smallnet_a", "openclip:ViT-S"])
def test_derivatives_of_both_orders_in_batched_tasks(name: str) -> None:
    encoder = _encoder(name, adapter_rank=1).double()
    if name.startswith("timm"):
        encoder.side = 4
    learned = {k: v.double() for k, v in _learned(encoder).items()}
    first = next(k for k in learned if ".up." in k)
    x = torch.rand(2, 2, 3, encoder.side, encoder.side, dtype=torch.double)

    def loss(up: torch.Tensor) -> torch.Tensor:
        def one(x: torch.Tensor) -> torch.Tensor:
            def inner(w: torch.Tensor) -> torch.Tensor:
                return functional_call(encoder, {**learned, first: w}, (x,)).square().mean()

            return inner(up - 0.1 * torch.func.grad(inner)(up))

        return vmap(one)(x).mean()

    assert torch.autograd.gradcheck(loss, (learned[first].clone().requires_grad_(),))


def test_batch_statistics_move_and_nothing_else() -> None:
    encoder = _encoder("timm:smallnet_a", adapter_rank=2, norm="batch")
    before = buffers_of(encoder)
    _, moved = apply_update(encoder, params_of(encoder), before, torch.rand(4, 3, 16, 16))
    changed = {k for k, v in moved.items() if not torch.equal(v, before[k])}
    assert changed == {f"trunk.bn1.{k}" for k in ("running_mean", "running_var", "num_batches_tracked")}


def test_which_weights_have_one() -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.Linear(16, 2))
    assert list(adaptable(net)) == ["0.weight", "1.weight", "3.weight"]
    # Of rank 3: a depthwise convolution of 8 x 9 needs 51 numbers for 72, a layer of 2 x 16 would need 54 for 32.
    assert Adapters(copy.deepcopy(net), 3).names == ("0.weight", "1.weight")
    for rank, said in ((0, "at least 1"), (-1, "at least 1"), (99, "large enough")):
        with pytest.raises(ConfigError, match=said):
            Adapters(copy.deepcopy(net), rank)


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_real_peft_computes_the_same() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 16)).eval()
    mine, x = Adapters(copied := copy.deepcopy(net), 4), torch.rand(2, 3, 4, 4)
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0", "2"])
    theirs = peft.inject_adapter_in_model(config, net)
    for i in (0, 2):
        a, b = torch.randn(mine.down[f"{i}-weight"].shape), torch.randn(mine.up[f"{i}-weight"].shape)
        mine.down[f"{i}-weight"].data, mine.up[f"{i}-weight"].data = a, b
        layer = theirs.get_submodule(str(i))
        layer.lora_A["default"].weight.data = a.view_as(layer.lora_A["default"].weight)
        layer.lora_B["default"].weight.data = b.view_as(layer.lora_B["default"].weight)
    got = functional_call(copied, mine.weights(copied), (x,))
    torch.testing.assert_close(got, theirs(x), rtol=1e-5, atol=1e-5)
