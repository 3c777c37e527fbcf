"""Pages made from stored results are what the script makes, and say what the stored file says."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from benchmarks.measure import ROOT
from benchmarks.omniglot import summary

from benchmarks import pages
from benchmarks import result_tables as tables
from selftaught.app.claiming import record
from selftaught.artifacts.files import read_json
from selftaught.claims.outcome import Line, Outcome, estimate
from selftaught.core.errors import ConfigError

DONE = Outcome(
    "small",
    "Nobody, 2021, arXiv 2101.00001",
    "It is so",
    "three seeds",
    [{"row": "a | b", "risk": estimate([1.0, 2.0, 4.0])}, {"row": "c", "risk": "-"}],
    "Not shown: so it is.",
    "everywhere",
    matrix=("risk",),
    lines=tuple(
        Line(f"risk against {x}", name, (1.0, 2.0), (estimate([1.0, 2.0]), estimate([3.0])))
        for x in ("steps", "seconds")
        for name in ("a < b", "c")
    ),
)
STORED: dict[str, Any] = record(DONE, False, "abc", {"clock": 300.0, "processor": 240.0})


@pytest.mark.parametrize("path", pages.pages(), ids=lambda p: Path(p).relative_to(ROOT).as_posix())
def test_the_committed_page_is_what_the_script_writes(path: Path) -> None:
    assert path.is_file(), "python -m benchmarks pages"
    assert path.read_text(encoding="utf-8") == pages.pages()[path], "python -m benchmarks pages"


def test_every_stored_claim_is_a_claim_that_exists() -> None:
    from selftaught.claims import CLAIMS

    for file in pages.RESULTS.glob("claim_*.json"):
        stored = read_json(file)
        assert stored["name"] in CLAIMS and file.name == f"claim_{stored['name']}.json"


def test_a_claims_page_says_it_all() -> None:
    made = pages.claim_files(STORED)
    page = made[pages.DOCS / "claims" / "small.md"]
    for said in (
        "# The claim `small`", "[arXiv 2101.00001](https://arxiv.org/abs/2101.00001)", "abc", "4 minutes",
        "selftaught claim small --json benchmarks/results/claim_small.json", "| a \\| b | 2.333 ± 3.795 |",
        "| c | - |", "Not shown: so it is.", "everywhere", "3 training seeds",
    ):  # fmt: skip
        assert said in " ".join(page.split()), said
    pictures = re.findall(r"\]\(\.\./(figures/[^)]+)\)", page)
    assert {pages.DOCS / p for p in pictures} == set(made) - {pages.DOCS / "claims" / "small.md"}


def test_its_drawings_are_whole_and_escaped() -> None:
    drawn = pages.drawings(DONE)
    assert set(drawn) == {"claim_small_matrix.svg", "claim_small_lines.svg"}
    for svg in drawn.values():
        root = ElementTree.fromstring(svg)
        assert root.attrib["role"] == "img" and root.attrib["aria-label"]
        assert "nan" not in svg and "inf" not in svg
    texts = [t.text for t in ElementTree.fromstring(drawn["claim_small_lines.svg"]).iter() if t.text]
    assert texts.count("a < b") >= 1 and "risk" in texts and {"steps", "seconds"} <= set(texts)
    assert "2.333" in drawn["claim_small_matrix.svg"]


def test_a_quick_run_makes_no_page() -> None:
    with pytest.raises(ConfigError, match="without --quick"):
        pages.claim_files({**STORED, "quick": True})


def test_writing_tells_what_changed_and_checking_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "pages", lambda: {tmp_path / "docs" / "a.md": "new\n"})
    with pytest.raises(SystemExit):
        pages.Pages(check=True).run()
    assert not (tmp_path / "docs").exists()
    pages.Pages().run()
    pages.Pages().run()
    pages.Pages(check=True).run()
    assert (tmp_path / "docs" / "a.md").read_text() == "new\n"
    assert capsys.readouterr().out.splitlines() == ["out of date: docs/a.md", "written: docs/a.md"]


def test_paragraphs_are_broken_and_links_made() -> None:
    assert (
        pages.linked("see arXiv 2106.15615, §2") == "see [arXiv 2106.15615](https://arxiv.org/abs/2106.15615), §2"
    )
    assert max(map(len, pages.fill("word " * 100).splitlines())) <= pages.COLUMNS
    assert pages.tidy("\n\na\n\n\n\nb\n\n") == "a\n\nb\n"


def test_the_readme_quotes_the_stored_figures() -> None:
    """Its tables are written by hand from those of the results page; what stands there must stand here."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in tables.demonstration().splitlines():
        assert line in readme, line
    runs = tables.stored("omniglot_views")["runs"].values()
    for size, shown in ((20, "20"), (100, "100"), (500, "500"), (2720, "2720"), (0, "all (16,260)")):
        cells = []
        for name in ("bmssl", "simclr", "protoclr", "umtra"):
            mine = [r for r in runs if r["name"] == name and r["size"] == size]
            found = [summary([r[task][0] for r in mine]) for task in ("5w1s", "20w1s")]
            cells.append(" / ".join(f"{mean:.1f} ± {half:.1f}" for mean, half in found))
        assert tables.row([shown, *cells]) in readme


def test_tables_say_what_the_files_say() -> None:
    kept = tables.stored("omniglot_time")["seconds_per_step"]
    assert float(tables.cost_ratio("omniglot_time", "bmssl", "simclr")) == pytest.approx(
        kept["bmssl"] / kept["simclr"], abs=0.005
    )
    assert (
        tables.lead("omniglot_views", "simclr", "bmssl")
        == f"{-float(tables.lead('omniglot_views', 'bmssl', 'simclr')):.1f}"
    )
    assert "0.53 [0.50, 0.68]" in tables.libraries() and tables.grid(["a"], [["b"]]) == "| a |\n|---|\n| b |"
