"""Time to the first step and the gain of drawing ahead, at toy size: what is measured, written and printed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.__main__ import main
from benchmarks._first import STAGES
from benchmarks.first_step import row_of
from benchmarks.measure import ROOT, Seconds
from benchmarks.prefetch import DRAWING, NONE, rows_of

from benchmarks import first_step, prefetch


def test_the_first_step_of_a_new_process_is_written(tmp_path: Path) -> None:
    """Stages follow one another; a later step takes less than everything before it."""
    out = tmp_path / "first.json"
    main(["first_step", "--methods", "protonet", "--size", "16", "--rounds", "1", "--out", str(out)])
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    assert row["method"] == "protonet" and tuple(row["cpu"]) == tuple(row["wall"]) == STAGES
    for kind in ("cpu", "wall"):
        loaded, library, first, second = (row[kind][s] for s in STAGES)
        assert 0 < loaded <= library < first and 0 < second < first
    assert "--methods protonet" in found["command"] and str(tmp_path) not in out.read_text()


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="nobody"):
        first_step.reading("nobody", 16, 1)


def test_rows_are_medians_and_are_printed() -> None:
    each = [{s: {"cpu": float(i), "wall": 2.0 * i} for s in STAGES} for i in (1, 9, 2)]
    row = row_of("simclr", each)
    assert row["cpu"]["first step"] == 2 and row["wall"]["second step"] == 4 and row["rounds"] == 3
    assert "2.00 (4.00)" in first_step.table([row])[1]


def test_the_process_loads_no_torch_before_its_clock_runs() -> None:
    asked = "import sys, benchmarks._first; print('torch' in sys.modules, 'selftaught' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "False"]


def test_drawing_ahead_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "prefetch.json"
    logged: dict[str, Any] = {}

    def once(calls: dict[str, Any], rounds: int, limit: float) -> dict[str, list[Seconds]]:
        logged.update({name: call() for name, call in calls.items()})
        return {name: [Seconds(1.0, 1.0)] for name in calls}

    monkeypatch.setattr(prefetch, "paired_rounds", once)
    monkeypatch.setattr(prefetch, "keep_freed_memory", lambda: True)
    sizes = ["--pictures", "12", "--size", "16", "--batch", "4", "--steps", "3"]
    try:
        main(["prefetch", *sizes, "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    assert list(logged) == [NONE, "1 ahead", "2 ahead", DRAWING]
    assert len(logged[NONE]) == 3 and logged[NONE] == logged["1 ahead"] == logged["2 ahead"]
    found = json.loads(out.read_text())
    assert [r["wall_ratio"] for r in found["rows"]] == [1, 1, 1, 1] and "2 ahead" in capsys.readouterr().out


def test_ratios_of_prefetch_are_by_the_clock_too() -> None:
    found = {NONE: [Seconds(4.0, 4.0)] * 3, "1 ahead": [Seconds(3.0, 4.4)] * 3}
    rows = rows_of(found)
    assert rows[1]["wall_ratio"] == 0.75 and rows[1]["cpu_ratio"] == 1.1
    assert "0.75" in prefetch.table(rows)[2]
