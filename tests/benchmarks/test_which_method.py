"""The page that helps to choose is made of the methods' own pages and the review claim's times."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.which_method import best, costs, point, table

from benchmarks import which_method
from selftaught.methods import METHODS

PAGE = """# M

## When

- Small sets: see [simclr](simclr.md), [its claim](../claims/split.md), [a paper](https://arxiv.org/x), on
  two lines. Not this.
- Not that.

## When not

- One | two; not this.

## Options
"""


def test_the_first_point_with_links_as_seen_from_docs() -> None:
    said = point(PAGE, "When")
    assert said == (
        "Small sets: see [simclr](methods/simclr.md), [its claim](claims/split.md), "
        "[a paper](https://arxiv.org/x), on two lines"
    )
    assert point(PAGE, "When not") == "One \\| two"
    with pytest.raises(ValueError, match="Nowhere"):
        point(PAGE, "Nowhere")


def test_every_method_has_a_line_and_costs_are_simclrs_multiples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(name: str, seconds: Any, ridge: float) -> dict[str, Any]:
        return {"objective": name, "seconds": seconds, "ridge": {"mean": ridge}}

    file = tmp_path / "claim_review.json"
    rows = [row("simclr", {"mean": 2.0}, 0.5), row("maml", {"mean": 5.0}, 0.6), row("raw pixels", "-", 0.9)]
    file.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    monkeypatch.setattr(which_method, "REVIEW", file)
    assert costs() == {"simclr": 1.0, "maml": 2.5} and best("ridge") == "maml (0.600)"
    lines = table().splitlines()
    assert {line.split("]")[0].removeprefix("| [") for line in lines[2:]} == set(METHODS)
    assert next(line for line in lines if line.startswith("| [maml]")).endswith("| 2.5 |")
    assert next(line for line in lines if line.startswith("| [byol]")).endswith("| not measured |")
    monkeypatch.setattr(which_method, "REVIEW", tmp_path / "none.json")
    assert costs() == {} and best("ridge") == "not measured"
