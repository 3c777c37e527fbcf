"""A classifier written over another: whoever reads meanwhile, or after a kill, gets one of them whole."""

import json
from pathlib import Path

import pytest
import torch

from selftaught.app import classifier as module
from selftaught.app.classifier import Classifier
from selftaught.app.config import Config
from selftaught.app.model import Model
from selftaught.core.errors import RunError, SaveError
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes


def a_classifier(seed: int) -> Classifier:
    """An untrained one, another for every seed."""
    config = Config(
        "simclr", {}, "conv4", {"width": 4}, 16, 1, "glyph", {}, steps=0, rate=0.0, warmup=0, weight_decay=0.0,
        seed=seed,
    )  # fmt: skip
    net = config.build_network()
    return Classifier.fit(Model(net, net.state_dict(), config), pictures(seed))


def pictures(seed: int) -> Pictures:
    return draw_strokes(2, 2, size=16, seed=seed)


def is_same(a: Classifier, b: Classifier) -> bool:
    return torch.equal(a.vectors, b.vectors) and torch.equal(
        a.model.features(pictures(5)), b.model.features(pictures(5))
    )


@pytest.mark.parametrize("part", ["save_tensors", "write_json"])
def test_stopped_while_replacing(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of the new one is there already, its support or the file that names them is not."""
    old, new = a_classifier(1), a_classifier(2)
    old.save(tmp_path)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, part, stop)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path)
    monkeypatch.undo()
    assert is_same(Classifier.load(tmp_path), old) and not is_same(old, new)
    for _ in range(3):  # each time in the other pair of places
        new.save(tmp_path)
        assert is_same(Classifier.load(tmp_path), new)
        assert len([p for p in tmp_path.iterdir() if p.name != "run.lock"]) == 3


def test_own_files_in_the_folder_stay(tmp_path: Path) -> None:
    a_classifier(1).save(tmp_path)
    (tmp_path / "predictions.csv").write_text("mine")
    a_classifier(2).save(tmp_path)
    assert (tmp_path / "predictions.csv").read_text() == "mine"


def test_a_broken_one_is_replaced(tmp_path: Path) -> None:
    a_classifier(1).save(tmp_path)
    (tmp_path / "classifier.json").write_text("{")
    with pytest.raises(RunError, match=r"classifier\.json is broken"):
        Classifier.load(tmp_path)
    a_classifier(2).save(tmp_path)
    assert is_same(Classifier.load(tmp_path), a_classifier(2))


@pytest.mark.parametrize("names", [("../model", "support.safetensors"), ("model", "/x"), ([], 3)])
def test_a_file_cannot_lead_elsewhere(tmp_path: Path, names: tuple[object, object]) -> None:
    a_classifier(1).save(tmp_path)
    content = json.loads((tmp_path / "classifier.json").read_text())
    content["model"], content["support"] = names
    (tmp_path / "classifier.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="names unknown parts"):
        Classifier.load(tmp_path)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "clf").touch()
    with pytest.raises(SaveError, match="clf could not be written"):
        a_classifier(1).save(tmp_path / "clf")
