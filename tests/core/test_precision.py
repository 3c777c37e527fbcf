"""bfloat16 is asked for by name, refused where it would only be imitated, and leaves the loss in float32."""

import pytest
import torch

from selftaught.core import precision
from selftaught.core.errors import ConfigError
from selftaught.core.functional import params_of
from selftaught.core.precision import encoding, has_bfloat16
from selftaught.core.types import Examples, Method, Task
from selftaught.learners.projector import AnyNet
from selftaught.methods.bmssl import BMSSL
from selftaught.methods.byol import BYOL
from selftaught.methods.protoclr import ProtoCLR
from selftaught.methods.simclr import SimCLR
from selftaught.nets.conv4 import Conv4
from selftaught.nets.split import adapted_part, shared_features

CPU = torch.device("cpu")
METHODS = {"simclr": SimCLR, "byol": BYOL, "protoclr": ProtoCLR}


def view_task(ways: int = 6, dtype: torch.dtype = torch.float32) -> Task:
    x = torch.rand(1, 2 * ways, 1, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = torch.arange(ways)[None]
    return Task(Examples(x[:, :ways], y), Examples(x[:, ways:], y), ways)


def gradient(method: Method, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = method.network(Conv4(1, 16, 16)).to(dtype)
    params, slow = method.init(net)
    leaves = {k: v.requires_grad_() for k, v in params.items()}
    loss, _ = method.loss(net, leaves, slow, view_task(dtype=dtype))
    return loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()))])


def test_refused_where_the_device_only_imitates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    with pytest.raises(ConfigError, match="precision='float32'"):
        encoding("bfloat16", CPU)
    with pytest.raises(ConfigError, match="precision='float32'"):
        gradient(SimCLR(precision="bfloat16"))
    encoding("float32", CPU)
    with pytest.raises(ConfigError, match="'half'"):
        encoding("half", CPU)  # type: ignore[arg-type]


def test_what_counts_as_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for known, expected in (({"avx512_bf16": True}, True), ({"avx512_f": True, "avx512_bf16": False}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known, raising=False)
        assert has_bfloat16(CPU) is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_bfloat16(CPU)
    assert not has_bfloat16(torch.device("meta"))


@pytest.mark.parametrize("name", METHODS)
def test_near_float32_with_the_loss_in_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    _, exact = gradient(METHODS[name]())
    low, rounded = gradient(METHODS[name](precision="bfloat16"))
    assert low.dtype == rounded.dtype == torch.float32
    error = (rounded - exact).norm() / exact.norm()
    assert 0.03 < error < 0.3
    assert not torch.is_autocast_enabled("cpu")


def test_float32_leaves_float64_alone() -> None:
    loss, _ = gradient(SimCLR(), torch.float64)
    assert loss.dtype == torch.float64


def test_parameters_stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    method = BYOL(precision="bfloat16")
    net = method.network(Conv4(1, 16, 16))
    params, slow = method.init(net)
    tasks = view_task()
    _, aux = method.loss(net, params, slow, tasks)
    after = method.refresh(net, slow, params, tasks, aux)
    assert {v.dtype for v in (after | params_of(net)).values()} <= {torch.float32, torch.int64}


def test_bmssl_lowers_the_encoder_and_neither_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    for adapt in ("last", "all"):
        with pytest.raises(ConfigError, match="adapt='head'"):
            BMSSL(adapt=adapt, precision="bfloat16")
    x = torch.rand(1, 24, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6).repeat(1, 2)
    tasks = Task(Examples(x[:, :12], y), Examples(x[:, 12:], y), 6)
    found = {}
    for name in ("float32", "bfloat16"):
        method = BMSSL(precision=name, inner_steps=2, inner_rate=0.1)
        torch.manual_seed(0)
        net = method.network(Conv4(1, 16, 16))
        params, slow = method.init(net)
        leaves = {k: v.requires_grad_() for k, v in params.items()}
        loss, _ = method.loss(net, leaves, slow, tasks)
        found[name] = loss, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    (_, exact), (low, rounded) = found["float32"], found["bfloat16"]
    assert {low.dtype} | {g.dtype for g in rounded.values()} == {torch.float32}
    errors = {k: float((rounded[k] - g).norm() / g.norm()) for k, g in exact.items() if g.norm() > 1e-4}
    assert 0.003 < max(errors.values()) < 0.5 and not torch.equal(low, found["float32"][0])

    # The same features, rounded, through both levels in float32: loss and the head's gradient to the bit.
    with encoding("bfloat16", CPU):
        h, _ = shared_features(net, params, slow, x.flatten(0, 1), "head")
    own, moving = adapted_part(net, leaves, "head")
    loss, _ = method.levels(AnyNet(own), moving, h.float()[:12], h.float()[12:], 6)
    slopes = torch.autograd.grad(loss, list(moving.values()))
    assert torch.allclose(loss, low, atol=1e-6)
    assert all(torch.allclose(g, rounded[k], rtol=1e-4, atol=1e-6) for k, g in zip(moving, slopes, strict=True))
