"""A run whose clock jumps, whose folder another process holds, or whose disk is full: clear words, same bits."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import selftaught
from selftaught.app import pretrain as training
from selftaught.artifacts import metrics
from selftaught.artifacts.run import Run
from selftaught.artifacts.tensors import load_tensors
from selftaught.core.errors import RunError, SaveError
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes

TINY: dict[str, Any] = {
    "method": "simclr", "options": {"batch": 8}, "size": 16, "channels": 1, "views": "glyph", "quiet": True,
    "encoder_options": {"width": 4}, "steps": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def strokes() -> Pictures:
    return draw_strokes(4, 4, size=16, seed=1)


@pytest.fixture(scope="module")
def whole(strokes: Pictures, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of an undisturbed run."""
    return weights(
        selftaught.pretrain(strokes, out=tmp_path_factory.mktemp("m") / "run", **TINY).save, tmp_path_factory
    )


def weights(save: Any, factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    save(folder := factory.mktemp("w") / "model")
    return dict(load_tensors(folder / "model.safetensors")[0])


def ends_in(run: Path, expected: dict[str, torch.Tensor]) -> bool:
    found = load_tensors(run / "model" / "model.safetensors")[0]
    return list(found) == list(expected) and all(torch.equal(found[k], expected[k]) for k in expected)


def cut_at(step: int, strokes: Pictures, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies by an error after so many steps."""
    real = training.train

    def cut(*args: Any, **options: Any) -> Iterator[Any]:
        for n, item in enumerate(real(*args, **options)):
            if n == step:
                raise RuntimeError("power cut")
            yield item

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(training, "train", cut)
        selftaught.pretrain(strokes, out=out, **TINY)


def jumps() -> Iterator[float]:
    """Years forward, then back to before the epoch, then standing still, for ever."""
    while True:
        yield from (4e9, -1e9, 0.0, 0.0, 1e12)


def test_a_jumping_clock_changes_nothing(
    strokes: Pictures, whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = jumps()
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(time, "time", lambda: 1e9 + next(clock) / 1e3)
    cut_at(2, strokes, tmp_path / "run", monkeypatch)
    # The older a file, the newer it says it is.
    for age, name in enumerate(
        ("config.json", "checkpoints/previous.safetensors", "checkpoints/last.safetensors")
    ):
        if (tmp_path / "run" / name).exists():
            os.utime(tmp_path / "run" / name, (4e9 - age * 1e9, 4e9 - age * 1e9))
    selftaught.pretrain(strokes, out=tmp_path / "run", resume=True, quiet=True)
    assert ends_in(tmp_path / "run", whole)
    assert [line["step"] for line in Run.open(tmp_path / "run").metrics()] == [4]


def test_a_held_folder_names_its_holder(
    strokes: Pictures, whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    cut_at(2, strokes, run, monkeypatch)
    known = rf"run is being written by process {os.getpid()}.*choose another folder"
    with Run.open(run).lock():
        with pytest.raises(RunError, match=known):
            selftaught.pretrain(strokes, out=run, resume=True, quiet=True)
        with pytest.raises(RunError, match=r"holds an unfinished run already\. Resume it"):
            selftaught.pretrain(strokes, out=run, **TINY)
    selftaught.pretrain(strokes, out=run, resume=True, quiet=True)
    assert ends_in(run, whole)


def test_two_that_resume_at_once_do_not_both_train(
    strokes: Pictures, whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second goes on, to the end, between the first one's reading of the checkpoint and its training."""
    cut_at(2, strokes, tmp_path / "run", monkeypatch)
    real = training.start

    def overtaken(*args: Any) -> Any:
        monkeypatch.setattr(training, "start", real)
        selftaught.pretrain(strokes, out=tmp_path / "run", resume=True, quiet=True)
        return real(*args)

    monkeypatch.setattr(training, "start", overtaken)
    with pytest.raises(RunError, match=r"run went on meanwhile, from step 2 to 4.*Resume it again"):
        selftaught.pretrain(strokes, out=tmp_path / "run", resume=True, quiet=True)
    assert ends_in(tmp_path / "run", whole)
    assert [line["step"] for line in Run.open(tmp_path / "run").metrics()] == [4]


def test_a_disk_that_fills_while_logging(
    strokes: Pictures, whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        monkeypatch.context() as patch,
        pytest.raises(SaveError, match=r"metrics\.jsonl could not be written: No space"),
    ):
        patch.setattr(metrics, "_end_of_whole_lines", full)
        selftaught.pretrain(strokes, out=tmp_path / "run", **TINY)
    assert Run.open(tmp_path / "run").load_checkpoint().step == 4
    selftaught.pretrain(strokes, out=tmp_path / "run", resume=True, quiet=True)
    assert ends_in(tmp_path / "run", whole)
