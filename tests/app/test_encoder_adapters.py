"""Runs with low-rank adapters: what is trained, resumed, saved and exported; what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hub_fakes import Net, fake_timm, random_numbers
from selftaught.app.encoders import chosen_encoder
from selftaught.app.exporting import exportable
from selftaught.app.model import Model
from selftaught.app.pretrain import pretrain
from selftaught.artifacts.tensors import load_tensors, save_tensors
from selftaught.core.errors import ConfigError
from selftaught.export.checking import difference, torch_runner
from selftaught.export.network import reference, traceable
from selftaught.export.to_hub import export_hub, load_hub
from selftaught.optimizers.gradient import Gradient

SMALL: dict[str, Any] = {"batch": 4, "hidden": 8, "out": 4}
TASKS: dict[str, Any] = {"ways": 3, "hidden": 8, "out": 4}


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm())


@pytest.fixture
def pictures() -> "np.ndarray[Any, np.dtype[np.uint8]]":
    return np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    save_tensors(tmp_path / "net.safetensors", random_numbers(Net()), {"encoder": "timm:smallnet_a"})
    return f"timm:smallnet_a={tmp_path / 'net.safetensors'}+lora2"


def _run(x: Any, out: Path, encoder: str, steps: int, **kwargs: Any) -> Model:
    given = {"method": "simclr", "options": SMALL, "size": 16, "quiet": True, "views": "photo", "rate": 0.01}
    return pretrain(x, out=out, encoder=encoder, steps=steps, **{**given, **kwargs})


@pytest.mark.parametrize(
    ("method", "options"),
    [("simclr", SMALL), ("byol", {"batch": 4}), ("bmssl", TASKS), ("bmssl", TASKS | {"adapt": "all"})],
)
def test_adapters_and_heads_are_trained_and_nothing_else(
    tmp_path: Path, pictures: Any, encoder: str, method: str, options: dict[str, Any]
) -> None:
    before = _run(pictures, tmp_path / "a", encoder, 0, method=method, options=options)
    after = _run(pictures, tmp_path / "b", encoder, 2, method=method, options=options)
    moved = {k for k, v in after.weights.items() if not torch.equal(v, before.weights[k])}
    # "up" is zero and "down" gets its first gradient in the second step.
    assert {k for k in moved if k.startswith("encoder.")} == {
        f"encoder.adapters.{part}.conv-weight" for part in ("down", "up")
    }
    assert any(k.startswith("projector.") for k in moved)
    assert after.config.trunk_rate is None  # they learn as the heads do
    assert "encoder.trunk.conv.weight" in after.weights


def test_a_stopped_run_goes_on_to_the_same_bits_and_loads(tmp_path: Path, pictures: Any, encoder: str) -> None:
    whole = _run(pictures, tmp_path / "whole", encoder, 4)
    step = Gradient.step

    def fails(self: Gradient, loss_fn: Any, params: Any, opt: Any) -> Any:
        if int(opt["step"]) == 2:
            raise KeyboardInterrupt
        return step(self, loss_fn, params, opt)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Gradient, "step", fails)
        _run(pictures, tmp_path / "stopped", encoder, 4)
    resumed = pretrain(pictures, out=tmp_path / "stopped", resume=True, quiet=True)
    assert all(torch.equal(resumed.weights[k], v) for k, v in whole.weights.items())
    (tmp_path / "net.safetensors").unlink()
    loaded = Model.load(tmp_path / "stopped")
    np.testing.assert_array_equal(loaded.embed(pictures), whole.embed(pictures))
    assert loaded.config.options["adapter_rank"] == 2


def test_exports_have_plain_weights_and_compute_the_same(tmp_path: Path, pictures: Any, encoder: str) -> None:
    model = _run(pictures, tmp_path / "run", encoder, 3)
    what = exportable(model)
    plain = traceable(what)
    assert not any("adapters" in k for k in plain.state_dict())
    assert difference(what, torch_runner(plain)) < 1e-5
    assert any("adapters" in k for k in reference(what).state_dict())  # the model itself keeps them
    assert export_hub(what, tmp_path / "hf") < 1e-5
    assert "adapter_rank" not in json.loads((tmp_path / "hf" / "config.json").read_text())["options"]
    tensors, _ = load_tensors(tmp_path / "hf" / "model.safetensors")
    assert not any("adapters" in k for k in tensors)
    merged = tensors["network.encoder.trunk.conv.weight"]
    assert not torch.equal(merged, random_numbers(Net())["conv.weight"])
    x = torch.from_numpy(pictures)
    torch.testing.assert_close(load_hub(tmp_path / "hf")(x)[0], torch.from_numpy(model.embed(pictures)))


def test_how_they_are_asked_for(tmp_path: Path, encoder: str) -> None:
    chosen = chosen_encoder(encoder, {})
    file = encoder.removesuffix("+lora2")
    assert chosen.options["adapter_rank"] == 2 and not chosen.trained
    assert chosen == chosen_encoder(file, {"adapter_rank": 2})
    assert chosen_encoder(file, {}).trained
    assert chosen_encoder("timm:smallnet_a=random+lora8", {}).options["adapter_rank"] == 8
    named = chosen_encoder(f"path:{tmp_path / 'net.safetensors'}+lora3", {})
    assert (named.encoder, named.options["adapter_rank"]) == ("timm:smallnet_a", 3)


def test_what_is_refused(tmp_path: Path, pictures: Any, encoder: str) -> None:
    with pytest.raises(ConfigError, match=r"conv4 cannot have adapters.*\+lora4"):
        chosen_encoder("conv4+lora4", {})
    with pytest.raises(ConfigError, match="at least 1"):
        chosen_encoder("timm:smallnet_a=random+lora0", {})
    with pytest.raises(ConfigError, match="lower it"):
        _run(pictures, tmp_path / "x", encoder.replace("lora2", "lora99"), 0)
    _run(pictures, tmp_path / "own", encoder.removesuffix("+lora2"), 0)
    with pytest.raises(ConfigError, match="cannot have adapters"):
        chosen_encoder(f"path:{tmp_path / 'own'}+lora2", {})
    _run(pictures, tmp_path / "mine", encoder, 1)
    further = chosen_encoder(f"path:{tmp_path / 'mine'}", {})
    assert further.options["adapter_rank"] == 2 and further.init_from == tmp_path / "mine"
