"""A folder whose subfolders are classes, for the methods that learn from labels."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from selftaught.app import pretrain as training
from selftaught.app.cli import main
from selftaught.app.model import Model
from selftaught.core.train import train
from selftaught.data.strokes import draw_strokes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = draw_strokes(4, 3, size=16, seed=1)
    assert pictures.y is not None
    for i, (x, y) in enumerate(zip(pictures.x, pictures.y.tolist(), strict=True)):
        place = tmp_path / "pictures" / f"class {y}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[0].numpy()).save(place / f"{i}.png")
    return tmp_path / "pictures"


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    usual = "--method protonet --set ways=3 queries=1 --size 16 --channels 1 --steps 3 --no-report"
    return ["pretrain", str(folder), "--out", str(out), *usual.split(), *more]


def test_without_labels_the_way_out_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, tmp_path / "run")) != 0
    assert "--labelled" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_with_labels_goes_on_to_the_same_bits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(arguments(folder, tmp_path / "whole", "--labelled")) == 0

    def stopped(*given: object, **options: object) -> object:
        for step, found in enumerate(train(*given, **options)):  # type: ignore[arg-type]
            yield found
            if step == 0:
                raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(training, "train", stopped)
        assert main(arguments(folder, tmp_path / "half", "--labelled")) != 0
    assert main(arguments(folder, tmp_path / "half", "--resume")) == 0
    whole, half = (Model.load(tmp_path / name / "model").weights for name in ("whole", "half"))
    assert whole.keys() == half.keys() and all(torch.equal(whole[k], half[k]) for k in whole)
    shutil.rmtree(folder / "class 0")
    assert main(arguments(folder, tmp_path / "half", "--resume")) != 0


def test_too_few_pictures_name_the_sizes_and_no_labels(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 pictures: neither too few for an episode nor for clusters, but for these many queries."""
    few = arguments(folder, tmp_path / "run", "--labelled")
    few[few.index("queries=1")] = "queries=9"
    assert main(few) == 3
    assert "shots=1 queries=9; --set" in capsys.readouterr().err
    clusters = ["pretrain", str(folder), "--method", "cactus", "--size", "16", "--channels", "1"]
    assert main([*clusters, "--out", str(tmp_path / "run")]) == 3
    said = capsys.readouterr().err
    assert "queries=5; --set" in said and "--labelled" not in said, "labels would not help CACTUs"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["bmg", "metaopt"])
def test_views_are_a_way_out_where_the_method_takes_them(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = f"--method {name} --size 16 --channels 1 --steps 1 --no-report".split()
    assert main(["pretrain", str(folder), "--out", str(tmp_path / "run"), *usual]) == 2
    said = capsys.readouterr().err
    assert "--labelled" in said and "--set episodes=views" in said
    taken = ["--set", "episodes=views", "ways=3", "queries=1"]
    assert main(["pretrain", str(folder), "--out", str(tmp_path / "run"), *usual, *taken]) == 0
