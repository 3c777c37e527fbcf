"""Training runs from Python: resuming, interrupting, starting from weights, the model and the classifier."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.pipeline import make_pipeline

import selftaught
from selftaught.app import pretrain as training
from selftaught.app.classifier import Classifier
from selftaught.app.model import Model
from selftaught.artifacts.run import Run
from selftaught.artifacts.tensors import load_tensors
from selftaught.core.errors import ConfigError, DataError, RunError, SaveError, TooFewPicturesError
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.methods import BMSSL, SimCLR

TINY = {"size": 16, "channels": 1, "views": "glyph", "quiet": True}
METHOD = BMSSL(ways=6, hidden=8, out=8)


@pytest.fixture(scope="module")
def strokes() -> Pictures:
    return draw_strokes(6, 4, size=16, seed=1)


@pytest.fixture(scope="module")
def model(strokes: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return selftaught.pretrain(strokes, out=tmp_path_factory.mktemp("m") / "run", method=METHOD, steps=4, **TINY)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(run / "model" / "model.safetensors")[0]


def test_resume_gives_the_same_bits(strokes: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selftaught.pretrain(strokes, out=tmp_path / "whole", method=METHOD, steps=7, **TINY)

    real = training.train

    def cut(*args, **kwargs):
        for n, item in enumerate(real(*args, **kwargs)):
            if n == 3:
                raise RuntimeError("power cut")
            yield item

    monkeypatch.setattr(training, "train", cut)
    with pytest.raises(RuntimeError, match="power cut"):
        selftaught.pretrain(strokes, out=tmp_path / "cut", method=METHOD, steps=7, **TINY)
    monkeypatch.setattr(training, "train", real)
    assert Run.open(tmp_path / "cut").load_checkpoint().step == 3
    selftaught.pretrain(strokes, out=tmp_path / "cut", resume=True, quiet=True)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_resume_refuses_other_pictures(strokes: Pictures, tmp_path: Path) -> None:
    selftaught.pretrain(strokes, out=tmp_path / "run", method=METHOD, steps=2, **TINY)
    with pytest.raises(RunError, match="differ"):
        selftaught.pretrain(draw_strokes(6, 4, size=16, seed=2), out=tmp_path / "run", resume=True, quiet=True)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    code = (
        "import selftaught\n"
        "from selftaught.data.strokes import draw_strokes\n"
        "from selftaught.methods import BMSSL\n"
        "if __name__ == '__main__':\n"
        "    selftaught.pretrain(draw_strokes(6, 4, size=16), out='run', method=BMSSL(ways=6), steps=10**6,\n"
        "                        size=16, channels=1, views='glyph', quiet=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "InterruptedRun" in err and "--resume" in err
    state = Run.open(tmp_path / "run").load_checkpoint()
    assert state.step >= 10


def test_init_from_takes_the_encoder_only(model: Model, strokes: Pictures, tmp_path: Path) -> None:
    model.save(tmp_path / "old")
    new = selftaught.pretrain(
        strokes, out=tmp_path / "run", method=SimCLR(batch=8, hidden=8, out=8), steps=1, rate=0.0,
        init_from=tmp_path / "old", **TINY,
    )  # fmt: skip
    key = "encoder.blocks.0.conv.weight"
    assert torch.equal(new.weights[key], model.weights[key])
    assert new.config.init_from == str(tmp_path / "old")


def test_init_from_another_architecture(model: Model, strokes: Pictures, tmp_path: Path) -> None:
    model.save(tmp_path / "old")
    with pytest.raises(RunError, match="another encoder"):
        selftaught.pretrain(
            strokes, out=tmp_path / "run", method=METHOD, steps=1, init_from=tmp_path / "old",
            encoder_options={"width": 32}, **TINY,
        )  # fmt: skip


def test_model_round_trip(model: Model, strokes: Pictures, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    again = selftaught.load(tmp_path / "model")
    assert isinstance(again, Model)
    assert np.array_equal(again.embed(strokes), model.embed(strokes))
    with torch.no_grad():
        assert np.allclose(model.encoder(strokes.x.float() / 255).numpy(), model.embed(strokes), atol=1e-5)


def test_adapt_from_mapping_folder_and_arrays(model: Model, strokes: Pictures, tmp_path: Path) -> None:
    assert strokes.y is not None
    arrays = strokes.x.permute(0, 2, 3, 1).numpy()
    for i in range(8):
        folder = tmp_path / "labelled" / f"c{i // 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(arrays[i, ..., 0]).save(folder / f"{i}.png")
    mapping = {"c0": arrays[:4], "c1": [tmp_path / "labelled" / "c1" / f"{i}.png" for i in range(4, 8)]}
    a = model.adapt(mapping).predict(arrays[:8])
    b = model.adapt(tmp_path / "labelled").predict(tmp_path / "labelled")
    assert [p.label for p in a] == [p.label for p in b]
    assert all(p.probability == pytest.approx(q.probability, abs=1e-5) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("head", ["prototype", "ridge", "logistic"])
def test_classifier_round_trip(model: Model, strokes: Pictures, tmp_path: Path, head) -> None:
    classifier = Classifier.fit(model, strokes, head)
    classifier.save(tmp_path / "clf")
    again = selftaught.load(tmp_path / "clf")
    assert isinstance(again, Classifier)
    assert again.predict(strokes) == classifier.predict(strokes)


def test_classifier_does_not_overwrite_foreign_folder(model: Model, strokes: Pictures, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="other files"):
        Classifier.fit(model, strokes).save(tmp_path)


def test_empty_class_is_named(model: Model, strokes: Pictures) -> None:
    with pytest.raises(DataError, match="ghost"):
        model.adapt({"real": strokes.x[:2], "ghost": strokes.x[:0]})


def test_sklearn_pipeline(model: Model, strokes: Pictures) -> None:
    pipe = make_pipeline(selftaught.EncoderTransformer(model), selftaught.FewShotClassifier())
    assert strokes.y is not None
    pipe.fit(strokes.x.numpy(), strokes.y.numpy())
    assert pipe.predict(strokes.x.numpy()).shape == (24,)


def test_same_seed_same_model(strokes: Pictures, tmp_path: Path) -> None:
    for name in ("a", "b"):
        selftaught.pretrain(strokes, out=tmp_path / name, method=METHOD, steps=3, seed=5, **TINY)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_two_pictures_are_enough_and_one_is_not(strokes: Pictures, tmp_path: Path) -> None:
    selftaught.pretrain(strokes.take(torch.tensor([0, 9])), out=tmp_path / "two", method=METHOD, steps=1, **TINY)
    with pytest.raises(TooFewPicturesError, match="at least 2"):
        selftaught.pretrain(strokes.take(torch.tensor([0])), out=tmp_path / "one", method=METHOD, steps=1, **TINY)


def test_disk_full_while_saving_keeps_what_was_there(
    strokes: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Run, state: object) -> None:
        raise SaveError(f"{self.path}: no space left")

    monkeypatch.setattr(Run, "save_checkpoint", full)
    with pytest.raises(SaveError, match="no space left"):
        selftaught.pretrain(strokes, out=tmp_path / "run", method=METHOD, steps=2, **TINY)
    assert not (tmp_path / "run" / "model").exists()


def test_pickle_as_weights_is_refused(model: Model, tmp_path: Path) -> None:
    import pickle

    model.save(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(RunError, match=r"model\.safetensors"):
        selftaught.load(tmp_path / "model")


def test_unknown_method_object(strokes: Pictures, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="METHODS"):
        selftaught.pretrain(strokes, out=tmp_path / "run", method=object(), **TINY)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.zeros((2, 5, 7, 9)), np.full((2, 8, 8), 9.0), 7])
def test_arrays_of_other_shapes_are_refused(model: Model, bad) -> None:
    with pytest.raises(DataError):
        model.embed(bad)
