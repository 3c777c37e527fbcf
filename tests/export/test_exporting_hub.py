"""Exports of encoders of other libraries: by stand-ins, and by the libraries where they are installed."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_files import embedded, picture_files, pixels, run_alone, said

import selftaught
from hub_fakes import Attention, Net, Tokens, fake_open_clip, fake_timm, fake_transformers, random_numbers
from selftaught.app.classifier import Classifier
from selftaught.app.exporting import exportable
from selftaught.app.model import Model
from selftaught.app.pretrain import pretrain
from selftaught.artifacts.tensors import save_tensors
from selftaught.core.errors import ConfigError
from selftaught.export.checking import TOLERANCE, difference, torch_runner
from selftaught.export.network import Exportable, reference
from selftaught.export.to_hub import export_hub, load_hub
from selftaught.export.to_onnx import export_onnx, runner
from selftaught.export.to_torch import export_torch

BLOCKED = ["selftaught", "timm", "open_clip", "transformers"]
HF = {"model_type": "vit", "hidden_size": 8, "_name_or_path": "/home/someone/models/vit"}
STAND_INS: dict[str, tuple[torch.nn.Module, dict[str, Any]]] = {
    "timm:smallnet_a": (Net(), {"input": 12}),  # smaller than the pictures: they are averaged in the graph
    "openclip:ViT-S": (Attention(), {}),
    "hf:mine": (Tokens(8), {"config": HF}),
}
REAL: dict[str, dict[str, Any]] = {
    "timm:test_resnet": {"input": 32},
    "timm:test_vit": {"input": 32},
    "timm:test_efficientnet": {"input": 16},
    "openclip:ViT-S-32-alt": {},
    "hf:clip": {
        "config": {
            "model_type": "clip",
            "text_config": {
                "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2,
            },
            "vision_config": {
                "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 32, "patch_size": 8,
            },
        }
    },
}  # fmt: skip
LIBRARIES = {"timm": "timm", "openclip": "open_clip", "hf": "transformers"}


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    monkeypatch.setitem(sys.modules, "open_clip", fake_open_clip())
    monkeypatch.setitem(sys.modules, "transformers", fake_transformers())


def needs(name: str) -> None:
    """Skips where the encoder's library is not installed."""
    module = LIBRARIES[name.partition(":")[0]]
    try:
        importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"{module} is not installed ({error})")


def run(out: Path, encoder: str, options: dict[str, Any], channels: int = 3) -> Model:
    """A run of no steps: the encoder as it came."""
    x = np.stack([pixels(i, 16, 16, channels) for i in range(8)])
    return pretrain(
        x, out=out, method="simclr", options={"batch": 4, "hidden": 8, "out": 4}, encoder=encoder,
        encoder_options=options, size=16, channels=channels, steps=0, quiet=True, views="photo",
    )  # fmt: skip


def from_file(folder: Path, name: str, channels: int = 3) -> Model:
    """A run whose encoder came from a file, loaded again after the file is gone."""
    net, options = STAND_INS[name]
    file = folder / "numbers.safetensors"
    save_tensors(file, random_numbers(net), {})
    run(folder / "run", f"{name}={file}", options, channels)
    file.unlink()
    return Model.load(folder / "run")


def labelled(model: Model) -> Classifier:
    """Three classes of one to three pictures."""
    given = {c: np.stack([pixels(10 * i + k, 20, 20, 3) for k in range(i + 1)]) for i, c in enumerate("abc")}
    return model.adapt(given, "ridge")


def classifier(model: Model) -> Exportable:
    return exportable(labelled(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(STAND_INS))
@pytest.mark.usefixtures("stand_ins")
def test_onnx_alone_says_what_the_model_says(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model, files = from_file(tmp_path, name), picture_files(tmp_path / "pictures")
    what = classifier(model)
    export_onnx(what, tmp_path / "clf")
    x = np.stack([pixels(i, 16, 16, 3) for i in range(7)])
    embedding, probability = runner((tmp_path / "clf" / "model.onnx").read_bytes())(x)
    np.testing.assert_allclose(embedding, model.embed(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(probability, torch_runner(reference(what))(x)[1], rtol=1e-4, atol=1e-5)
    lines = run_alone(tmp_path / "clf" / "predict.py", files, [*BLOCKED, "torch"])
    for line, one in zip(lines, labelled(model).predict(files), strict=True):
        label, given = said(line)
        assert label == one.label and given == pytest.approx(one.probability, abs=1e-4)


@pytest.mark.parametrize("name", list(STAND_INS))
@pytest.mark.usefixtures("stand_ins")
def test_torch_and_hub_layout_give_the_same(name: str, tmp_path: Path) -> None:
    model = from_file(tmp_path, name)
    what, files = classifier(model), picture_files(tmp_path / "pictures")[:3]
    assert export_torch(exportable(model), tmp_path / "torch") <= TOLERANCE
    if name.startswith("timm"):
        lines = run_alone(tmp_path / "torch" / "embed.py", files, BLOCKED)
        np.testing.assert_allclose([embedded(line) for line in lines], model.embed(files), rtol=1e-4, atol=1e-5)
    assert export_hub(what, tmp_path / "hf") == 0
    assert difference(what, torch_runner(load_hub(tmp_path / "hf"))) == 0


@pytest.mark.usefixtures("stand_ins")
def test_no_export_names_where_weights_lay(tmp_path: Path) -> None:
    for name in STAND_INS:
        here = tmp_path / name.partition(":")[0]
        here.mkdir()
        model = from_file(here, name)
        assert str(tmp_path) in str(model.config.options["weights"])
        export_hub(classifier(model), here / "hf")
        export_torch(classifier(model), here / "torch")
        kept = json.loads((here / "hf" / "config.json").read_text())["options"]
        assert kept["weights"] == "numbers.safetensors" and len(kept["sha256"]) == 64
        for path in (*(here / "hf").iterdir(), *(here / "torch").iterdir()):
            content = path.read_bytes()
            assert str(tmp_path).encode() not in content and b"/home/someone" not in content, path
            assert str(Path(selftaught.__file__).parent.parent).encode() not in content, path


@pytest.mark.usefixtures("stand_ins")
def test_the_folder_says_how_pictures_are_resized_and_normalised(tmp_path: Path) -> None:
    export_torch(exportable(from_file(tmp_path, "timm:smallnet_a", channels=1)), tmp_path / "out")
    graph = json.loads((tmp_path / "out" / "model.json").read_text())["in the graph"]
    assert graph["resize"] == "to 12 x 12, bilinear, averaged" and "three times" in graph["planes"]
    np.testing.assert_allclose(graph["mean"] + graph["std"], [0.5, 0.4, 0.3, 0.2, 0.25, 0.5])


@pytest.mark.usefixtures("stand_ins")
def test_a_hub_layout_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_hub(exportable(from_file(tmp_path, "timm:smallnet_a")), tmp_path / "hf")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'selftaught\[encoders\]'"):
        load_hub(tmp_path / "hf")


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("name", list(REAL))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_networks_of_the_libraries_themselves(name: str, tmp_path: Path) -> None:
    needs(name)
    model = run(tmp_path / "run", f"{name}=random", REAL[name])
    what, files = classifier(model), picture_files(tmp_path / "pictures")[:4]
    if name.startswith("hf:"):
        assert "trunk.net.embeddings.position_ids" in model.encoder.state_dict()
    assert export_hub(what, tmp_path / "hf") == 0
    assert export_torch(what, tmp_path / "torch") < TOLERANCE
    run_alone(tmp_path / "torch" / "predict.py", files, BLOCKED)
    if importlib.util.find_spec("onnxscript") is None:
        return
    assert export_onnx(exportable(model), tmp_path / "onnx") < TOLERANCE
    lines = run_alone(tmp_path / "onnx" / "embed.py", files, [*BLOCKED, "torch"])
    want = model.embed(files)
    np.testing.assert_allclose([embedded(line) for line in lines], want, rtol=1e-3, atol=1e-4 * abs(want).max())
