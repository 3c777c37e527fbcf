"""The matrix of methods is read from the methods, one line each."""

import dataclasses
import io
from typing import cast

import pytest
from rich.console import Console

from selftaught.app.cli import main
from selftaught.app.listing import Listed, as_table, base_learner, learns_from, matrix, options_of
from selftaught.methods import METHODS


@pytest.mark.parametrize("row", matrix(tuple(METHODS)), ids=lambda row: row.name)
def test_every_cell_says_something_short(row: Listed) -> None:
    for column, text in dataclasses.asdict(row).items():
        why = f"{row.name}: {column}: first lines of the docstrings of the module, `source` and `learner`"
        assert text and "\n" not in text and len(text) <= 120, why
    assert row.objective != row.name and not row.objective.endswith(".")


def test_what_is_known_of_some() -> None:
    known = {"simclr": "pictures", "umtra": "pictures", "maml": "labels", "maxl": "labels", "bmg": "both"}
    assert {name: learns_from(METHODS[name]) for name in known} == known
    learners = {"simclr": "prototype", "maml": "gradient", "r2d2": "ridge"}
    assert {name: base_learner(METHODS[name]) for name in learners} == learners


def test_one_line_a_method_and_options_only_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[0] for line in lines]
    assert named[0] == "name" and sorted(named[1:]) == sorted(METHODS)
    from_what = [learns_from(METHODS[name]) for name in named[1:]]
    assert from_what == sorted(from_what, key=("pictures", "both", "labels").index), (
        "grouped by what they learn from"
    )
    group = [name for name in METHODS if learns_from(METHODS[name]) == "pictures"]
    assert named[1 : 1 + len(group)] == group
    assert "inner_steps" not in "".join(lines)
    assert main(["methods", "--options"]) == 0
    every = capsys.readouterr().out
    assert all(f"{name}: {', '.join(options_of(kind))}" in every for name, kind in METHODS.items())


@pytest.mark.parametrize("width", [60, 80, 120, 250])
def test_a_line_each_at_every_width(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None, highlight=False)
    console.print(as_table(matrix(tuple(METHODS)), width))
    lines = cast(io.StringIO, console.file).getvalue().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(METHODS)
    assert all(len(line) <= width for line in lines) and ("tasks" in lines[0]) == (width == 250)


def test_one_method_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "maml"]) == 0
    out = capsys.readouterr().out
    assert "inner_steps=5" in out and "labels" in out and "simclr" not in out
    assert main(["methods", "nosuch"]) == 5
    assert "simclr" in capsys.readouterr().err
