"""Models as folders, with a card that a stranger can use."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from selftaught.artifacts import model
from selftaught.artifacts.card import model_card
from selftaught.artifacts.files import read_json, write_json
from selftaught.artifacts.model import load_model, save_model
from selftaught.artifacts.run import Run
from selftaught.core.errors import ConfigError, RunError, SaveError

WEIGHTS = {"encoder.w": torch.arange(6.0).reshape(2, 3), "encoder.count": torch.tensor(3)}
CONFIG = {"method": "bmssl", "width": 64, "sizes": [1, 2]}
ROW = {
    "name": "bmssl", "ways": 5, "shots": 1, "mean": 0.612, "half_width": 0.0104,
    "head": "prototypes", "norm": "running", "episodes": 600,
}  # fmt: skip


def test_round_trip_from_model_and_run_folder(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"of": "the run"})
    save_model(run.model_path, WEIGHTS, CONFIG, "# card", {"rows": [1]})
    for folder in (run.model_path, run.path):
        weights, config = load_model(folder)
        assert config == CONFIG
        assert list(weights) == list(WEIGHTS)
        assert all(torch.equal(weights[k], WEIGHTS[k]) for k in WEIGHTS)
    assert (run.model_path / "README.md").read_text() == "# card"
    assert read_json(run.model_path / "extra.json") == {"rows": [1]}


def test_a_new_model_replaces_the_old_one_whole(tmp_path: Path) -> None:
    save_model(tmp_path / "m", WEIGHTS, CONFIG, "old", {"old": 1})
    save_model(tmp_path / "m", {"b": torch.ones(1)}, {}, "new")
    assert list(load_model(tmp_path / "m")[0]) == ["b"]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("part", ["save_tensors", "write_text", "replace_folder"])
def test_a_refused_save_keeps_the_old_model(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "m", WEIGHTS, CONFIG, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model, part, full)
    with pytest.raises(SaveError, match="No space left"):
        save_model(tmp_path / "m", {"b": torch.ones(1)}, {}, "new")
    assert load_model(tmp_path / "m")[1] == CONFIG
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_refused_rename_brings_the_old_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "m", WEIGHTS, CONFIG, "old")
    real, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(SaveError, match="Permission denied"):
        save_model(tmp_path / "m", {"b": torch.ones(1)}, {}, "new")
    assert load_model(tmp_path / "m")[1] == CONFIG
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_other_files_are_never_swept_away(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"holds other files \(thesis\.tex"):
        save_model(tmp_path, WEIGHTS, CONFIG, "card")
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(RunError, match="is a file"):
        save_model(tmp_path / "thesis.tex", WEIGHTS, CONFIG, "card")


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"model\.safetensors is missing"):
        load_model(tmp_path)
    run = Run.create(tmp_path / "run", {})
    run.log(1, {})
    with pytest.raises(RunError, match="a run without a model yet"):
        load_model(run.path)


def test_another_format_and_missing_parts(tmp_path: Path) -> None:
    save_model(tmp_path, WEIGHTS, CONFIG, "card")
    content = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", content | {"format": 2, "writer": "selftaught 9.9"})
    with pytest.raises(RunError, match=r"selftaught 9\.9 in model format 2"):
        load_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(RunError, match=r"config\.json is missing"):
        load_model(tmp_path)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_card_puts_numbers_beside_their_baselines() -> None:
    rows: list[dict[str, Any]] = [
        ROW | {"shots": 5},
        ROW,
        ROW | {"name": "pixels", "shots": 5, "mean": 0.4},
        ROW | {"name": "pixels", "mean": 0.005},
    ]
    card = model_card(CONFIG, rows, {"pictures": 1200, "classes": 60}, "selftaught train pictures")
    table = [cells(line) for line in card.splitlines() if "| running |" in line]
    assert [(row[0], row[1], row[2]) for row in table] == [
        ("5", "1", "bmssl"), ("5", "1", "pixels"), ("5", "5", "bmssl"), ("5", "5", "pixels"),
    ]  # fmt: skip
    assert table[0][3:] == ["61.2", "60.2 to 62.2", "20.0", "prototypes", "running", "600"]
    assert table[1][4] == "0.0 to 1.5"
    for needed in (
        "# bmssl on 1200 pictures",
        "| classes | 60 |",
        "selftaught train pictures",
        "load_model(",
    ):
        assert needed in card
    for heading in ("Data", "Method", "Protocol", "Numbers", "Limits", "How to load"):
        assert f"\n## {heading}\n" in card


def test_the_card_of_an_unmeasured_model_says_so() -> None:
    card = model_card({}, [], {}, "")
    assert "not evaluated" in card and "an unknown number of pictures" in card


def test_names_cannot_break_the_card() -> None:
    row = ROW | {"name": "a|b\n<script>", "half_width": float("nan")}
    card = model_card({"method": "x"}, [row], {}, "echo ```")
    assert "a\\|b &lt;script>" in card and "<script>" not in card
    assert "| unknown |" in card
    assert "````sh\necho ```\n````" in card


@pytest.mark.parametrize("wrong", [{"mean": 61.2}, {"mean": float("nan")}])
def test_rows_in_percent_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"'bmssl' has mean .* give a fraction"):
        model_card(CONFIG, [ROW | wrong], {}, "")
    with pytest.raises(ConfigError, match="lacks norm"):
        model_card(CONFIG, [{k: v for k, v in ROW.items() if k != "norm"}], {}, "")
