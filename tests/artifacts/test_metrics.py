"""The log survives kills, full disks and resuming."""

import errno
import json
import math
from pathlib import Path

import pytest

from selftaught.artifacts import metrics
from selftaught.artifacts.metrics import append_metrics, cut_metrics, read_metrics
from selftaught.core.errors import RunError, SaveError


def filled(path: Path, count: int = 3) -> Path:
    for step in range(1, count + 1):
        append_metrics(path, step, {"loss": 1 / step})
    return path


def test_figures_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.jsonl"
    append_metrics(path, 3, {"loss": 0.1, "big": math.inf, "low": -math.inf})
    append_metrics(path, 4, {"loss": math.nan})
    first, second = read_metrics(path)
    assert first == {"step": 3, "loss": 0.1, "big": math.inf, "low": -math.inf}
    assert math.isnan(second["loss"])
    for line in path.read_text().splitlines():  # valid JSON for other programs, which know no NaN
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


def test_no_log_is_an_empty_log(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "m.jsonl") == []
    cut_metrics(tmp_path / "m.jsonl", 3)
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize("torn", [b'{"step": 4, "lo', b'{"step": 4, "loss": 0.25}', b"\0\0\0", b"x" * 200_000])
def test_a_torn_last_line_is_left_out_and_cut(tmp_path: Path, torn: bytes) -> None:
    path = filled(tmp_path / "m.jsonl")
    with path.open("ab") as file:
        file.write(torn)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    append_metrics(path, 4, {"loss": 0.5})
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4]
    assert torn not in path.read_bytes().splitlines()


def test_a_log_that_is_one_torn_line(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(b'{"st')
    append_metrics(tmp_path / "m.jsonl", 1, {})
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 1}]


@pytest.mark.parametrize("broken", ["{", "[]", '{"loss": 1}', '{"step": 2, "loss": null}', "3", ""])
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, broken: str) -> None:
    path = filled(tmp_path / "m.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], broken, lines[2], ""]))
    with pytest.raises(RunError, match=r"m\.jsonl, line 2 is broken"):
        read_metrics(path)


@pytest.mark.parametrize("step", [-1, 0, 1, 2, 3, 9])
def test_lines_after_the_step_are_dropped(tmp_path: Path, step: int) -> None:
    path = filled(tmp_path / "m.jsonl")
    append_metrics(path, 3, {"accuracy": 0.5})
    before = path.read_bytes()
    cut_metrics(path, step)
    assert [line["step"] for line in read_metrics(path)] == [s for s in (1, 2, 3, 3) if s <= step]
    assert before.startswith(path.read_bytes())


def test_a_refused_line_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "m.jsonl")
    before = path.read_bytes()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics, "_end_of_whole_lines", full)
    with pytest.raises(SaveError, match=r"m\.jsonl could not be written: No space"):
        append_metrics(path, 4, {"loss": 0.0})
    assert path.read_bytes() == before
