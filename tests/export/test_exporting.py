"""Exported models: what they compute, in a process without selftaught, on real files; and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_files import embedded, picture_files, pixels, run_alone, said
from PIL import Image
from sklearn.pipeline import make_pipeline
from torch import nn

import selftaught
from selftaught.app.classifier import Classifier
from selftaught.app.cli import main
from selftaught.app.config import Config
from selftaught.app.exporting import as_pipeline, exportable, head_of
from selftaught.app.model import Model
from selftaught.core.errors import ConfigError, RunError, SaveError
from selftaught.evaluate.estimators import EncoderTransformer, FewShotClassifier
from selftaught.export import to_hub, to_onnx
from selftaught.export.checking import TOLERANCE, difference, torch_runner
from selftaught.export.folder import write_folder
from selftaught.export.network import Exportable, LinearHead, Network, reference, traceable
from selftaught.export.to_hub import export_hub, hub_class, load_hub
from selftaught.export.to_onnx import export_onnx
from selftaught.export.to_torch import export_torch
from selftaught.nets import build_encoder

ENCODERS: dict[str, dict[str, Any]] = {
    "conv4": {"width": 8},
    "resnet12": {"widths": (64, 64, 64, 72)},  # wide enough for the fast convolution that is no part of a graph
    "resnet18": {"width": 64},
    "vit": {"depth": 2, "width": 24},
}
MACHINE = str(Path(selftaught.__file__).parent.parent)
"""No export may name a folder of the machine it was made on."""


def untrained(encoder: str = "conv4", channels: int = 3, size: int = 16) -> Model:
    """A model whose normalisation knows pictures, as after training."""
    config = Config(
        method="protonet", method_options={}, encoder=encoder, options=ENCODERS[encoder], size=size,
        channels=channels, views_name="flat", views={}, steps=1, rate=0.1, warmup=0, weight_decay=0.0, seed=0,
        data={"source": MACHINE, "pictures": 3}, command=MACHINE,
    )  # fmt: skip
    net = config.build_network()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all that is seen
    seen = np.stack([pixels(i, size, size, channels) for i in range(32)])
    with torch.no_grad():
        net.train().get_submodule("encoder")(torch.from_numpy(seen).permute(0, 3, 1, 2) / 255)
    return Model(net, {k: v.clone() for k, v in net.state_dict().items()}, config)


def labelled(seed: int = 0) -> dict[str, np.ndarray]:
    """Three classes with unequal counts."""
    return {
        name: np.stack([pixels(seed + 10 * c + i, 24, 24, 3) for i in range(c + 1)])
        for c, name in enumerate(("Ähre", "b: c", "d"))
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return picture_files(tmp_path_factory.mktemp("pictures") / "of all kinds")


@pytest.fixture(scope="module")
def clf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "clf"
    untrained().adapt(labelled()).save(folder)
    return folder


@pytest.fixture(scope="module")
def onnx_folder(clf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    out = tmp_path_factory.mktemp("exported") / "deep" / "onnx"
    assert main(["export", str(clf), "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_onnx_alone_says_what_selftaught_says(
    clf: Path, onnx_folder: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(clf), *map(str, files), "--json"]) == 0
    wanted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    lines = run_alone(onnx_folder / "predict.py", files, ["selftaught", "torch"])
    assert len(lines) == len(files) == len(wanted)
    for line, one in zip(lines, wanted, strict=True):
        label, probability = said(line)
        assert one["label"].endswith(label)  # "b: c" holds the separator
        assert probability == pytest.approx(one["probability"], abs=1e-4), line
    assert len({one["label"] for one in wanted}) > 1


@pytest.mark.slow
def test_onnx_takes_any_number_of_pictures(clf: Path, onnx_folder: Path) -> None:
    run = to_onnx.runner((onnx_folder / "model.onnx").read_bytes())
    x = np.stack([pixels(i, 16, 16, 3) for i in range(7)])
    embedding, probability = run(x)
    loaded = Classifier.load(clf)
    np.testing.assert_allclose(embedding, loaded.model.embed(x), atol=1e-5)
    expected = [list(p.probabilities.values()) for p in loaded.predict(x)]
    np.testing.assert_allclose(probability, expected, atol=1e-5)
    np.testing.assert_allclose(run(x[3:4])[1], probability[3:4], atol=1e-6)


@pytest.mark.slow
def test_onnx_folder_describes_itself_and_names_no_folder(onnx_folder: Path) -> None:
    import onnx

    assert {p.name for p in onnx_folder.iterdir()} == {"model.onnx", "model.json", "predict.py", "README.md"}
    about = json.loads((onnx_folder / "model.json").read_text(encoding="utf-8"))
    assert about["input"]["shape"] == ["batch", 16, 16, 3]
    assert about["classes"] == ["Ähre", "b: c", "d"]
    assert about["outputs"]["probability"] == ["batch", 3]
    assert about["check"]["largest difference"] <= TOLERANCE
    graph = onnx.load(onnx_folder / "model.onnx")
    onnx.checker.check_model(graph)
    kept = {p.key: p.value for p in graph.metadata_props}
    assert json.loads(kept["classes"]) == about["classes"]
    for path in onnx_folder.iterdir():
        assert MACHINE.encode() not in path.read_bytes(), path
    assert len((onnx_folder / "predict.py").read_text().splitlines()) < 50


@pytest.mark.slow
def test_torch_alone_says_what_selftaught_says(files: list[Path], tmp_path: Path) -> None:
    model = untrained("vit", channels=1)
    export_torch(exportable(model.adapt(labelled(), "ridge")), tmp_path / "out")
    wanted = model.adapt(labelled(), "ridge").predict(files)
    lines = run_alone(tmp_path / "out" / "predict.py", files, ["selftaught"])
    for line, one in zip(lines, wanted, strict=True):
        assert one.label.endswith(said(line)[0])
        assert said(line)[1] == pytest.approx(one.probability, abs=1e-4), line
    assert MACHINE.encode() not in (tmp_path / "out" / "model.pt2").read_bytes()


@pytest.mark.slow
def test_a_run_without_classes_gives_embeddings(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = untrained()
    model.save(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--format", "torch"]) == 0
    assert "embed.py" in capsys.readouterr().out
    assert not (tmp_path / "out" / "predict.py").exists()
    lines = run_alone(tmp_path / "out" / "embed.py", files, ["selftaught"])
    np.testing.assert_allclose([embedded(line) for line in lines], model.embed(files), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_every_encoder_in_every_format(encoder: str, channels: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    what = exportable(untrained(encoder, channels, 32).adapt(labelled(), "logistic"))
    for name, export in (("onnx", export_onnx), ("torch", export_torch), ("hf", export_hub)):
        assert export(what, tmp_path / name) < TOLERANCE / 2, name


def test_the_copy_for_tracing_computes_the_same_and_leaves_the_model() -> None:
    for name, options in ENCODERS.items():
        encoder = build_encoder(name, 3, 32, 0, **options).eval()
        what = Exportable(encoder, 32, 3)
        before = [getattr(m, "channels_last", None) for m in encoder.modules()]
        copied = traceable(what)
        assert difference(what, torch_runner(copied)) < 1e-5
        assert not any(getattr(m, "channels_last", False) for m in copied.modules())
        assert [getattr(m, "channels_last", None) for m in encoder.modules()] == before


def test_grey_is_pillows() -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    grey = Network(nn.Identity(), 1, None)(torch.from_numpy(x))[0] * 255
    expected = np.stack([np.asarray(Image.fromarray(one).convert("L")) for one in x])
    assert torch.equal(grey[:, 0].round().to(torch.uint8), torch.from_numpy(expected))


@pytest.mark.parametrize("head", ["prototype", "ridge", "logistic"])
@pytest.mark.parametrize("classes", [2, 3])
def test_head_is_the_estimators(head: Any, classes: int) -> None:
    some = dict(list(labelled().items())[:classes])
    classifier = untrained().adapt(some, head)
    x = np.stack([pixels(i, 16, 16, 3) for i in range(6)])
    with torch.no_grad():
        got = reference(exportable(classifier))(torch.from_numpy(x))[1]
    expected = [list(p.probabilities.values()) for p in classifier.predict(x)]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("encoder", ["conv4", "resnet12"])
def test_hub_layout_reads_back(encoder: str, tmp_path: Path) -> None:
    classifier = untrained(encoder).adapt(labelled(), "ridge")
    what = exportable(classifier)
    assert export_hub(what, tmp_path / "hf") == 0
    assert {p.name for p in (tmp_path / "hf").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    network = load_hub(tmp_path / "hf")
    assert network.classes == classifier.classes
    assert difference(what, torch_runner(network)) == 0
    for name in ("config.json", "README.md"):
        assert MACHINE not in (tmp_path / "hf" / name).read_text()


@pytest.mark.parametrize(
    "change", [{"options": {"width": 16}}, {"classes": ["a", "b"]}, {"nosuch": 1}, {"temperature": "warm"}]
)
def test_hub_layout_that_does_not_fit_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    export_hub(exportable(untrained().adapt(labelled())), tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(RunError, match=r"config\.json"):
        load_hub(tmp_path / "hf")


def test_hub_mixin_loads_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    what = exportable(untrained().adapt(labelled()))
    export_hub(what, tmp_path / "hf")
    network: Any = hub_class()
    loaded = network.from_pretrained(str(tmp_path / "hf")).eval()
    assert difference(what, torch_runner(loaded)) == 0


def test_hub_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"selftaught\[hub\]"):
        hub_class()


def test_an_encoder_without_a_name_has_no_hub_layout(tmp_path: Path) -> None:
    what = Exportable(build_encoder("conv4", 3, 16, 0, width=8).eval(), 16, 3)
    with pytest.raises(ConfigError, match="--format onnx"):
        export_hub(what, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", ["shifted", "nan", "shape"])
def test_a_model_that_computes_something_else_is_not_written(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = exportable(untrained())
    honest = torch_runner(reference(what))
    change = {"shifted": lambda z: z * 1.001, "nan": lambda z: z * np.nan, "shape": lambda z: z[:, 1:]}[wrong]

    def runner(content: object) -> Any:
        return lambda pictures: [change(z) for z in honest(pictures)]

    monkeypatch.setattr(to_hub, "torch_runner", runner)
    monkeypatch.setattr(to_onnx, "runner", runner)
    monkeypatch.setattr(to_onnx, "_graph", lambda what: b"")
    monkeypatch.setattr(to_onnx, "find_spec", lambda name: name)
    for export in (export_hub, export_onnx):
        with pytest.raises(SaveError, match="nothing was exported: embedding"):
            export(what, tmp_path / "out")
        assert not list(tmp_path.iterdir())


def test_missing_extra_is_named(clf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(to_onnx, "find_spec", lambda name: None)
    assert main(["export", str(clf), "--out", str(tmp_path / "out")]) == 5
    assert "pip install 'selftaught[export]'" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["onnx", "torch", "hf"])
def test_what_is_there_is_not_replaced(
    format: str, clf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert main(["export", str(clf), "--out", str(tmp_path / "mine"), "--format", format]) == 4
    assert "--out" in capsys.readouterr().err
    assert [p.read_text() for p in (tmp_path / "mine").iterdir()] == ["keep"]


def test_no_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 4
    (tmp_path / "empty").mkdir()
    assert main(["export", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 4
    assert "empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_method_without_an_encoder_is_refused() -> None:
    model = untrained()
    with pytest.raises(RunError, match="no encoder of pictures"):
        exportable(dataclasses.replace(model, net=nn.Linear(2, 2)))


def test_a_classifier_of_inner_steps_is_refused(clf: Path) -> None:
    classifier = dataclasses.replace(Classifier.load(clf), head="own")  # type: ignore[arg-type, unused-ignore]
    with pytest.raises(ConfigError, match="--head prototype"):
        head_of(classifier)


def test_a_failing_export_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(SaveError, match="No space left"):
        write_folder(tmp_path / "out", fill)
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()  # an empty folder may stand there
    write_folder(tmp_path / "out", lambda folder: None)


def test_what_a_killed_export_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    def begun(out: Path) -> Path:
        """What a process that dies in the middle of `fill` leaves."""
        copy: list[Path] = []

        def fill(folder: Path) -> None:
            (folder / "half").write_text("x")
            copy.append(Path(shutil.copytree(folder, folder.with_name(folder.name.replace("-", "-0", 1)))))

        write_folder(out, fill)
        shutil.rmtree(out)
        return copy[0]

    mine, other = begun(tmp_path / "out"), begun(tmp_path / "other")
    write_folder(tmp_path / "out", lambda folder: None)
    assert sorted(tmp_path.iterdir()) == sorted([other, tmp_path / "out"]) and not mine.exists()


def test_an_export_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "slow").write_text("x")
        write_folder(tmp_path / "out", lambda other: (other / "quick").touch())
        assert (folder / "slow").is_file()

    with pytest.raises(SaveError):  # the other one came first
        write_folder(tmp_path / "out", fill)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["out", "out/quick"]


def test_wrong_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match="class names"):
        LinearHead(torch.zeros(3, 4), torch.zeros(3), 1.0, ("a", "b"))
    with pytest.raises(ConfigError, match="temperature"):
        LinearHead(torch.zeros(1, 4), torch.zeros(1), 0.0, ("a",))


@pytest.mark.parametrize("head", ["prototype", "ridge", "logistic"])
def test_a_pipeline_is_kept_as_a_classifier(head: Any, tmp_path: Path, files: list[Path]) -> None:
    """Fitted by scikit-learn's own rules, or restored from safetensors and JSON: the same answers."""
    model = untrained()
    given = labelled()
    x = np.concatenate(list(given.values()))
    y = [name for name, some in given.items() for _ in some]
    fitted = make_pipeline(EncoderTransformer(model), FewShotClassifier(head)).fit(x, y)
    model.adapt(given, head).save(tmp_path / "clf")
    loaded = selftaught.load(tmp_path / "clf")
    assert isinstance(loaded, Classifier)
    restored = as_pipeline(loaded)
    paths = [str(p) for p in files]
    np.testing.assert_allclose(restored.predict_proba(paths), fitted.predict_proba(paths), atol=1e-5)
    assert list(restored.predict(paths)) == list(fitted.predict(paths))
    assert not [p for p in (tmp_path / "clf").rglob("*") if p.suffix in (".pkl", ".pickle", ".joblib")]
