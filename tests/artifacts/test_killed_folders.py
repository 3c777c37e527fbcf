"""Folders that are replaced while a process is killed: the old or the new one is there, whole."""

from pathlib import Path

import pytest
import torch

from selftaught.artifacts.files import replace_folder, standing, temporary_beside
from selftaught.artifacts.lock import locked
from selftaught.artifacts.model import load_model, save_model
from selftaught.artifacts.run import Run
from selftaught.core.errors import RunError
from selftaught.core.types import Params


class Killed(BaseException):
    """Stands for the end of the process at that line: nothing after it runs that a dead process would not run."""


def weights(value: float) -> Params:
    return {"w": torch.full((2,), value)}


def between_the_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies when the old folder is laid aside and the new one not yet in its place."""
    real, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise Killed
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)


def test_a_model_laid_aside_is_still_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "run" / "model", weights(1), {"n": 1}, "old")
    between_the_renames(monkeypatch)
    with pytest.raises(Killed):
        save_model(tmp_path / "run" / "model", weights(2), {"n": 2}, "new")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "model").exists()
    for place in (tmp_path / "run", tmp_path / "run" / "model"):
        assert load_model(place)[1] == {"n": 1}
    save_model(tmp_path / "run" / "model", weights(3), {"n": 3}, "newest")
    assert load_model(tmp_path / "run")[1] == {"n": 3}
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["model"]


def test_the_next_writer_puts_back_and_clears_away(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    save_model(run.path / ".model.before.selftaught-tmp", weights(1), {"n": 1}, "aside")
    save_model(temporary_beside(run.path / "model"), weights(2), {"n": 2}, "unfinished")
    with run.lock():
        assert sorted(p.name for p in run.path.iterdir()) == ["config.json", "model", "run.lock", "run.pid"]
    assert load_model(run.path)[1] == {"n": 1}
    save_model(run.path / ".model.before.selftaught-tmp", weights(0), {"n": 0}, "older")
    with run.lock():
        assert load_model(run.path)[1] == {"n": 1}
    assert not list(run.path.glob(".*"))


def test_standing_is_the_folder_itself_wherever_it_is(tmp_path: Path) -> None:
    assert standing(tmp_path / "x") == tmp_path / "x"
    (tmp_path / "new").mkdir()
    (tmp_path / ".x.before.selftaught-tmp").mkdir()
    assert standing(tmp_path / "x").name == ".x.before.selftaught-tmp"
    replace_folder(tmp_path / "new", tmp_path / "x")
    assert standing(tmp_path / "x") == tmp_path / "x"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_any_folder_has_one_writer(tmp_path: Path) -> None:
    with locked(tmp_path):
        with (
            pytest.raises(RunError, match=r"is being written by process \d+.*choose another folder"),
            locked(tmp_path),
        ):
            pytest.fail("locked twice")
        (tmp_path / "run.pid").unlink()
        with pytest.raises(RunError, match="process of unknown number"), locked(tmp_path):
            pytest.fail("locked twice")
    with locked(tmp_path):
        pass
