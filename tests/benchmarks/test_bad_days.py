"""A few bad moments of the hundreds of `python -m benchmarks bad_days`, and whether it would notice."""

from pathlib import Path

import pytest
import torch
from benchmarks.bad_days import BadDays
from benchmarks.wholeness import faults_in, same, temporaries

from selftaught.artifacts.files import write_json


def test_a_few_bad_moments_leave_no_trace() -> None:
    rows = BadDays(kills=4, every=0, steps=1, methods=("simclr",), formats=("hf",)).rows()
    assert {row["deviations"] for row in rows} == {0}, rows
    assert [row["command"] for row in rows] == ["pretrain (simclr)", "adapt", "adapt over another", "export (hf)"]
    assert sum(row["times"] for row in rows) >= 4


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.safetensors", b"\0" * 9), ("config.json", b'{"a'), ("report.html", b"<html>"),
     ("metrics.jsonl", b"{\n{}\n"), ("stray.bin", b""), ("model.onnx", b"\x08"), ("model.pt2", b"PK\3\4"),
     ("predict.py", b"def f(:\n"), ("README.md", b"# half")],
)  # fmt: skip
def test_what_is_not_whole_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    write_json(tmp_path / "fine.json", {})
    assert faults_in(tmp_path) == []
    (tmp_path / name).write_bytes(content)
    assert len(faults_in(tmp_path)) == 1 and faults_in(tmp_path)[0].startswith(name)


def test_temporaries_are_listed(tmp_path: Path) -> None:
    (tmp_path / ".ab.selftaught-tmp").mkdir()
    (tmp_path / ".ab.selftaught-tmp" / "half.json").write_text("{")
    assert faults_in(tmp_path) == [] and len(temporaries(tmp_path)) == 2


def test_sameness_is_of_bits() -> None:
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert same({"a": [1], "x": nan}, {"a": [1], "x": nan.clone()})
    assert same([{"x": nan}], [{"x": nan}]) and not same([zero], [-zero]) and not same([zero], [zero, zero])
    assert not same(zero, -zero) and not same(zero, zero.double()) and not same({"x": zero}, {"y": zero})
