"""The tutorial is one program: it runs as written, and shows what it says it shows."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names its blocks leave behind, run in an empty folder."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tutorial"))
        torch.manual_seed(0)
        for block in blocks:
            exec(compile(block, PAGE.name, "exec"), names)
        names["files"] = {p.relative_to(Path.cwd()).as_posix() for p in Path.cwd().rglob("*.*")}
    return names


def test_it_leaves_what_it_says(ran: dict[str, Any]) -> None:
    assert {"pictures/239.png", "run/metrics.jsonl", "run/config.json", "clf/classifier.json"} <= ran["files"]
    assert len(ran["classifier"].classes) == 5 and not ran["pictures"].skipped


def test_nothing_worries_the_doctor_and_the_recipe_is_that_of_characters(ran: dict[str, Any]) -> None:
    assert {f.level for f in ran["examine"](ran["pictures"])} == {"ok"}
    assert ran["name"] == "glyph"


def test_training_shows(ran: dict[str, Any]) -> None:
    rows = {row.name: row for row in ran["rows"]}
    trained = rows.pop("simclr")
    assert set(rows) == {"raw pixels", "untrained encoder"}
    for row in rows.values():
        assert trained.mean - trained.half_width > row.mean + row.half_width
