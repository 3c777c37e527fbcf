"""A claim's outcome as a file: whole, plain, and with what is needed to repeat it."""

import dataclasses
import json
import math
import subprocess
from pathlib import Path

import pytest

import selftaught
from selftaught.app import provenance
from selftaught.app.claiming import record, seeds
from selftaught.app.cli import main
from selftaught.claims import CLAIMS
from selftaught.claims.outcome import Estimate, Line, Outcome, as_json, estimate, from_json

DONE = Outcome(
    "small",
    "Nobody, 2021, arXiv 2101.00001",
    "A | B",
    "three seeds",
    [{"row": "a", "risk": estimate([1.0, 2.0, 4.0])}, {"row": "b", "risk": estimate([2.0])}],
    "Not shown: so it is.",
    "everywhere",
    matrix=("risk",),
    lines=(Line("risk against steps", "a", (1.0, 2.0), (estimate([1.0, 2.0]), estimate([3.0]))),),
)


def test_json_and_back_is_the_same_outcome() -> None:
    text = json.dumps(as_json(DONE), allow_nan=False)
    again = from_json(json.loads(text))
    assert again.rows[0] == DONE.rows[0] and again.matrix == ("risk",) and again.lines[0].x == (1.0, 2.0)
    one = again.rows[1]["risk"]
    assert isinstance(one, Estimate) and one.mean == 2 and math.isnan(one.half_width) and one.seeds == 1
    assert as_json(again) == as_json(DONE)


def test_the_record_says_how_it_came_about() -> None:
    found = record(DONE, True, "abc", {"clock": 1.234, "processor": 1.0})
    assert found["command"] == "selftaught claim small --quick" and found["commit"] == "abc"
    assert found["seeds"] == seeds(DONE) == 3 and found["seconds"] == {"clock": 1.2, "processor": 1.0}
    assert {"processor", "cores", "threads", "torch", "python", "system"} <= set(found["machine"])
    assert record(DONE, False, "abc", {})["command"] == "selftaught claim small"


def test_the_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[bool] = []

    def run(quick: bool) -> Outcome:
        asked.append(quick)
        return DONE

    monkeypatch.setattr("selftaught.claims.CLAIMS", {**CLAIMS, "small": run})
    file = tmp_path / "deep" / "claim_small.json"
    assert main(["claim", "small", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    assert "quick:" not in text
    assert "Not shown" in text and "where it fails: everywhere" in text and str(file) in text
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert stored["rows"] == as_json(DONE)["rows"] and stored["quick"] is False and asked == [False]
    assert [p.name for p in file.parent.iterdir()] == ["claim_small.json"]
    assert main(["claim", "small", "--json", str(tmp_path)]) == 6


def test_a_claim_without_a_page_says_so_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(quick: bool) -> Outcome:
        raise AssertionError("it ran")

    monkeypatch.setattr("selftaught.claims.CLAIMS", {**CLAIMS, "small": run})
    assert main(["claim", "small", "--page", str(tmp_path / "page.html")]) == 5
    assert "draws no page" in (said := " ".join(capsys.readouterr().err.split())) and "hegr" in said
    assert not list(tmp_path.iterdir())


def test_in_a_pipe_a_row_is_a_line_and_quick_says_what_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = {f"a column of some length {n}": estimate([1.0, 2.0, 4.0]) for n in range(8)}
    done = dataclasses.replace(DONE, rows=[{"row": "a row with a long name", **wide}], matrix=(), lines=())
    monkeypatch.setattr("selftaught.claims.CLAIMS", {"small": lambda quick: done})
    assert main(["claim", "small", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("a column of some length 0" in line and "some length 7" in line for line in lines) == 1
    assert sum("a row with a long name" in line for line in lines) == 1
    assert lines[-1].startswith("quick: ") and "leave --quick out" in lines[-1]


def test_the_commit_is_that_of_the_code_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftaught, "__file__", str(tmp_path / "__init__.py"))
    assert provenance.commit() == "unknown"
    (tmp_path / "__init__.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert provenance.commit() == "unknown"  # a repository that does not hold the file
    subprocess.run([*git, "add", "__init__.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    first = provenance.commit()
    assert len(first) == 40
    (tmp_path / "__init__.py").write_text("1")
    assert provenance.commit() == f"{first} with changes"
