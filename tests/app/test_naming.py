"""Captions on the command line: train on pairs, name by words, search by words, start few shots from words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selftaught.app.cli import main
from selftaught.app.loading import load
from selftaught.app.model import Model
from selftaught.app.naming import NameClassifier, found_by, picture_features
from selftaught.app.pairs import pictures_for
from selftaught.app.pretrain import pretrain
from selftaught.core.errors import DataError, RunError

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}


def pairs(folder: Path, each: int = 4) -> Path:
    """Noisy plain pictures, and a table that names their colours."""
    rng, lines = np.random.default_rng(0), ["file,caption"]
    folder.mkdir(parents=True)
    for name, colour in COLOURS.items():
        for k in range(each):
            x = np.clip(np.array(colour) + rng.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(x).save(folder / f"{name[0]}{k}.png")
            lines.append(f"{name[0]}{k}.png,{'a ' * (k % 2)}{name} thing")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run and its pairs."""
    home = tmp_path_factory.mktemp("clip")
    options = {"text_width": 16, "text_depth": 1, "out": 16, "batch": 12}
    pretrain(
        pairs(home / "pairs"), out=home / "run", method="clip", options=options, encoder_options={"width": 8},
        size=16, views="flat", steps=60, rate=5e-3, quiet=True,
    )  # fmt: skip
    return home / "run", home / "pairs"


def test_the_words_are_those_of_the_captions(trained: tuple[Path, Path]) -> None:
    model = load(trained[0])
    assert isinstance(model, Model)
    assert model.config.method_options["vocabulary"] == "a blue green red thing"


def test_pictures_are_named_from_the_command_line(trained: tuple[Path, Path], capsys: Any) -> None:
    run, folder = trained
    picture = str(folder / "g0.png")
    arguments = ["predict", str(run), picture, "--json", "--classes", "red thing", "green thing"]
    assert main([*arguments, "--templates", "{}", "a {}"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["label"] == "green thing" and set(said["probabilities"]) == {"red thing", "green thing"}
    assert main(["predict", str(run), picture, "--classes", "red", "green"]) == 0
    assert "nearest" not in capsys.readouterr().out
    assert main(["predict", str(run), picture, "--classes", "red", "teal"]) == DataError.exit_code
    assert "'teal'" in capsys.readouterr().err


def test_pictures_are_found_by_a_text(trained: tuple[Path, Path], capsys: Any) -> None:
    run, folder = trained
    assert main(["search", str(run), str(folder), "a blue thing", "--best", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(Path(line.split()[-1]).name.startswith("b") for line in lines)
    model = load(run)
    assert isinstance(model, Model)
    cosines = [c for _, c in found_by(model, model.read(folder), "red")]
    assert len(cosines) == 12 and cosines == sorted(cosines, reverse=True)
    assert main(["search", str(run), str(folder), "red", "--best", "0"]) == 5


def test_examples_move_the_classes_from_where_the_words_put_them(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    """`a` and `thing` say nothing of colours; one picture of each does."""
    run, folder = trained
    model = load(run)
    assert isinstance(model, Model)
    for name, file in (("a", "r0.png"), ("thing", "b0.png")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes((folder / file).read_bytes())
    words, shown = (NameClassifier.of(model, ["a", "thing"], examples=e) for e in (None, tmp_path))
    assert not np.allclose(words.matrix, shown.matrix)
    reds = [str(folder / f"r{k}.png") for k in range(1, 4)]
    blues = [str(folder / f"b{k}.png") for k in range(1, 4)]
    assert [p.label for p in shown.predict(reds + blues)] == ["a"] * 3 + ["thing"] * 3
    (tmp_path / "thing").rename(tmp_path / "else")
    with pytest.raises(DataError, match="'else'"):
        NameClassifier.of(model, ["a", "thing"], examples=tmp_path)


def test_other_captions_are_another_run(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder = pairs(tmp_path / "pairs")
    arguments: dict[str, Any] = {"method": "clip", "size": 16, "encoder_options": {"width": 4}, "quiet": True}
    pretrain(folder, out=tmp_path / "run", steps=1, options={"text_width": 8, "text_depth": 1}, **arguments)
    table = folder / "captions.csv"
    table.write_text(table.read_text().replace("red thing", "red stone"), encoding="utf-8")
    with pytest.raises(RunError, match="differ"):
        pretrain(folder, out=tmp_path / "run", resume=True, quiet=True)


def test_pictures_without_captions_and_models_without_words(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder = pairs(tmp_path / "pairs")
    (folder / "captions.csv").unlink()
    with pytest.raises(DataError, match=r"captions\.csv"):
        pretrain(folder, out=tmp_path / "run", method="clip", size=16, steps=1, quiet=True)
    assert not (tmp_path / "run").exists()
    other = pretrain(
        folder, out=tmp_path / "run", method="simclr", size=16, steps=1, options={"batch": 4},
        encoder_options={"width": 4}, quiet=True,
    )  # fmt: skip
    with pytest.raises(RunError, match="simclr, which reads no captions"):
        picture_features(other, other.read(folder))


def test_the_packaged_emoji_are_pairs() -> None:
    pictures = pictures_for("clip", "emoji:validation", 16, 3)
    assert pictures.shape == (3, 16, 16) and "grinning face\nface" in pictures.classes[0]
    assert "\n" not in pictures_for("protonet", "emoji:validation", 16, 3).classes[0]
