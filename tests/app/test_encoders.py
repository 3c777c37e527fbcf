"""From `--encoder` to a run: files, records, refusals, training of a trunk and loading without the file."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from hub_fakes import Net, Tokens, fake_open_clip, fake_timm, fake_transformers, random_numbers
from selftaught.app.cli import main
from selftaught.app.encoders import chosen_encoder, load_trunk
from selftaught.app.evaluation import evaluate
from selftaught.app.model import Model
from selftaught.app.pretrain import pretrain
from selftaught.artifacts.tensors import save_tensors
from selftaught.core.errors import ConfigError, RunError
from selftaught.core.types import Aux
from selftaught.data.emoji import read_emoji
from selftaught.optimizers.gradient import Gradient


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    monkeypatch.setitem(sys.modules, "open_clip", fake_open_clip())
    monkeypatch.setitem(sys.modules, "transformers", fake_transformers())


@pytest.fixture
def pictures() -> "np.ndarray[Any, np.dtype[np.uint8]]":
    return np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of a network with a classifier of five classes, without counts of batches."""
    net = Net(classes=5)
    numbers = {k: v for k, v in random_numbers(net).items() if not k.endswith("num_batches_tracked")}
    save_tensors(tmp_path / "net.safetensors", numbers, {"encoder": "timm:smallnet_a"})
    return tmp_path / "net.safetensors"


def _plain(x: "np.ndarray[Any, np.dtype[np.uint8]]") -> "np.ndarray[Any, Any]":
    """What the file's network says of pictures [B H W C]."""
    net = Net().eval()
    net.load_state_dict({k: v for k, v in random_numbers(Net(5)).items() if "classifier" not in k}, strict=False)
    mean, std = (torch.tensor(net.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        return net((torch.from_numpy(x).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()


def _run(x: Any, out: Path, encoder: str, steps: int = 0, **kwargs: Any) -> Model:
    options = {"batch": 4, "hidden": 8, "out": 4} if kwargs.get("method", "simclr") == "simclr" else {}
    given: dict[str, Any] = {"method": "simclr", "options": options, "size": 16, "quiet": True, "views": "photo"}
    return pretrain(x, out=out, encoder=encoder, steps=steps, **{**given, **kwargs})


def test_no_steps_leave_it_frozen_and_the_file_is_needed_no_more(
    tmp_path: Path, pictures: Any, weights: Path
) -> None:
    _run(pictures, tmp_path / "run", f"timm:smallnet_a={weights}")
    weights.unlink()
    model = Model.load(tmp_path / "run")
    np.testing.assert_allclose(model.embed(pictures), _plain(pictures), rtol=1e-5, atol=1e-6)
    options = model.config.options
    assert options["library"] == "timm 9.9" and len(options["sha256"]) == 64
    assert model.config.encoder == "timm:smallnet_a" and model.config.trunk_rate == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("simclr", {"batch": 4, "hidden": 8, "out": 4}),
        ("bmssl", {"ways": 3, "hidden": 8, "out": 4}),
        ("bmssl", {"ways": 3, "hidden": 8, "out": 4, "adapt": "all", "bootstrap_steps": 2}),
    ],
)
def test_adapting_moves_the_trunk_less_than_the_head_and_no_statistic(
    tmp_path: Path, pictures: Any, weights: Path, method: str, options: dict[str, Any]
) -> None:
    name = f"timm:smallnet_a={weights}"
    before = _run(pictures, tmp_path / "a", name, method=method, options=options).weights
    after = _run(
        pictures, tmp_path / "b", name, 1, method=method, options=options, rate=0.01, trunk_rate=0.001
    ).weights
    moved = {k: float((after[k] - before[k]).abs().max()) for k in before}
    # A first step of Adam has the size of its rate wherever there is a gradient.
    assert moved["encoder.trunk.conv.weight"] == pytest.approx(0.001, rel=0.01)
    assert max(v for k, v in moved.items() if k.startswith("projector.")) == pytest.approx(0.01, rel=0.01)
    assert moved["encoder.trunk.bn1.weight"] > 0
    assert all(v == 0 for k, v in moved.items() if "running" in k or k.endswith((".mean", ".std")))


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, pictures: Any, weights: Path) -> None:
    name = f"timm:smallnet_a={weights}"
    whole = _run(pictures, tmp_path / "whole", name, 4)

    class Stopped(Exception):
        pass

    def fails(self: Gradient, loss_fn: Any, params: Any, opt: Any) -> Any:
        if int(opt["step"]) == 2:
            raise Stopped
        return step(self, loss_fn, params, opt)

    step = Gradient.step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Gradient, "step", fails)
        _run(pictures, tmp_path / "stopped", name, 4)
    resumed = pretrain(pictures, out=tmp_path / "stopped", resume=True, quiet=True)
    assert all(torch.equal(resumed.weights[k], v) for k, v in whole.weights.items())


def test_the_ways_to_say_path(tmp_path: Path, pictures: Any, weights: Path) -> None:
    want = _plain(pictures)
    run = _run(pictures, tmp_path / "run", f"path:{weights}")
    np.testing.assert_allclose(run.embed(pictures), want, rtol=1e-5, atol=1e-6)
    again = _run(pictures, tmp_path / "again", f"path:{tmp_path / 'run'}")
    assert again.config.init_from == str(tmp_path / "run") and again.config.encoder == "timm:smallnet_a"
    np.testing.assert_allclose(again.embed(pictures), want, rtol=1e-5, atol=1e-6)
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights.read_bytes())
    cfg = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5], "input_size": [3, 16, 16]}
    (folder / "config.json").write_text(json.dumps({"architecture": "smallnet_a", "pretrained_cfg": cfg}))
    np.testing.assert_allclose(
        _run(pictures, tmp_path / "timm", f"path:{folder}").embed(pictures), want, rtol=1e-5, atol=1e-6
    )
    own = _run(pictures, tmp_path / "own", "conv4", encoder_options={"width": 4})
    taken = _run(pictures, tmp_path / "taken", f"path:{tmp_path / 'own'}")
    np.testing.assert_array_equal(taken.embed(pictures), own.embed(pictures))


@pytest.mark.parametrize("pooler", [True, False])
def test_a_folder_of_transformers(tmp_path: Path, pictures: Any, pooler: bool) -> None:
    net, folder = Tokens(8), tmp_path / "vit"
    folder.mkdir()
    numbers = {f"vit.{k}": v for k, v in random_numbers(net).items() if pooler or "pooler" not in k}
    save_tensors(folder / "model.safetensors", numbers | {"classifier.weight": torch.zeros(2, 8)}, {})
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 8}))
    said = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    _run(pictures, tmp_path / "run", f"hf:{folder}")
    net.load_state_dict(random_numbers(net))
    x = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        out = net(x)
    want = out.pooler_output if pooler else out.last_hidden_state[:, 0]
    model = Model.load(tmp_path / "run")
    np.testing.assert_allclose(model.embed(pictures), want.numpy(), rtol=1e-5, atol=1e-6)
    assert model.config.encoder == "hf:vit" and model.config.options["input"] == 16


def test_published_weights_come_from_the_cache_and_are_fetched_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    asked = []

    def fetch(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(weights)

    hub: Any = ModuleType("huggingface_hub")
    hub.hf_hub_download, hub.try_to_load_from_cache = fetch, lambda repository, name: None
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(ConfigError, match=r"not on this machine\. Add =download"):
        chosen_encoder("timm:smallnet_a", {})
    assert not asked
    assert chosen_encoder("timm:smallnet_a=download", {}).options["weights"] == str(weights)
    assert asked == [("timm/smallnet_a", "model.safetensors")]
    hub.try_to_load_from_cache = lambda repository, name: str(weights)
    assert chosen_encoder("timm:smallnet_a", {}).options["weights"] == str(weights) and len(asked) == 1
    assert not chosen_encoder("timm:smallnet_a=random", {}).trained


def test_files_that_are_refused(tmp_path: Path, pictures: Any, weights: Path) -> None:
    for suffix in (".pt", ".pth", ".bin", ".ckpt"):
        bad = tmp_path / f"net{suffix}"
        bad.write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
        for name in (f"timm:smallnet_a={bad}", f"path:{bad}"):
            with pytest.raises(ConfigError, match=rf"net\{suffix} is a pickled file.*never opened"):
                chosen_encoder(name, {})
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "vit", "hidden_size": 8}')
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin is a pickled file"):
        chosen_encoder(f"hf:{folder}", {})
    with pytest.raises(RunError, match="missing"):
        chosen_encoder("timm:smallnet_a=nowhere.safetensors", {})
    with pytest.raises(ConfigError, match="needs a file"):
        chosen_encoder("openclip:ViT-S", {})
    save_tensors(tmp_path / "nameless.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(ConfigError, match="does not say which network"):
        chosen_encoder(f"path:{tmp_path / 'nameless.safetensors'}", {})
    with pytest.raises(RunError, match=r"lacks 5 of 5 tensors \(bn1.bias"):
        _run(pictures, tmp_path / "x", f"timm:smallnet_a={tmp_path / 'nameless.safetensors'}")
    wide = random_numbers(Net()) | {"conv.weight": torch.zeros(9, 3, 3, 3)}
    save_tensors(tmp_path / "wide.safetensors", wide, {})
    with pytest.raises(RunError, match=r"conv.weight \[9, 3, 3, 3\] for \[8, 3, 3, 3\]"):
        _run(pictures, tmp_path / "x", f"timm:smallnet_a={tmp_path / 'wide.safetensors'}")
    assert not (tmp_path / "x").exists()


def test_a_file_that_changed_does_not_begin_the_run_anew(tmp_path: Path, pictures: Any, weights: Path) -> None:
    run = _run(pictures, tmp_path / "run", f"timm:smallnet_a={weights}")
    save_tensors(weights, random_numbers(Net(), seed=1), {})
    with pytest.raises(RunError, match="SHA-256 differs"):
        load_trunk(run.net, run.config.options)


def test_one_that_adapts_its_last_block_is_refused(tmp_path: Path, pictures: Any, weights: Path) -> None:
    options = {"ways": 3, "adapt": "last"}
    with pytest.raises(ConfigError, match="adapt='last' needs an encoder"):
        _run(pictures, tmp_path / "run", f"timm:smallnet_a={weights}", 1, method="bmssl", options=options)


def test_the_command_line_from_a_trunk_to_an_evaluation(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    arguments = ["emoji", "--method", "simclr", "--encoder", f"timm:smallnet_a={weights}", "--size", "16"]
    assert main(["pretrain", *arguments, "--steps", "0", "--no-report", "--out", run]) == 0
    held_out = Model.load(run).read(read_emoji(split="test"))
    rows = evaluate({"frozen": Model.load(run)}, held_out, shots=(1,), episodes=5)
    assert [r.name for r in rows] == ["frozen", "raw pixels", "untrained encoder"]
    assert rows[2].norm == "evaluated pictures"
    assert main(["pretrain", *arguments[:3], "--encoder", "timm:smalnet", "--out", run + "2"]) == 5
    assert "smallnet_a" in capsys.readouterr().err


def test_rates_of_named_parameters_follow_the_schedule() -> None:
    params = {"encoder.w": torch.ones(2, 2), "encoder.b": torch.ones(2), "head.w": torch.ones(2, 2)}
    grouped = Gradient(0.1, 4, "sgd", momentum=0.0, weight_decay=0.5, rates=(("encoder.", 0.01),))
    slow, fast = (Gradient(rate, 4, "sgd", momentum=0.0, weight_decay=0.5) for rate in (0.01, 0.1))

    def loss(p: dict[str, torch.Tensor]) -> Any:
        return sum(v.square().sum() for v in p.values()), Aux()

    got, opt = params, grouped.init(params)
    a, oa, b, ob = params, slow.init(params), params, fast.init(params)
    for _ in range(3):
        (got, opt, _), (a, oa, _), (b, ob, _) = (
            grouped.step(loss, got, opt),
            slow.step(loss, a, oa),
            fast.step(loss, b, ob),
        )
    for name, v in got.items():
        assert torch.equal(v, (a if name.startswith("encoder.") else b)[name])
    assert grouped.rate_at(1, 0.01) == slow.rate_at(1)
