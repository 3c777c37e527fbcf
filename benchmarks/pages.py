"""Pages written from stored results: `docs/results.md`, `docs/claims/` and their drawings.

Texts live in `benchmarks/templates/`, figures come from `benchmarks/results/` only.
"""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks import result_tables as tables
from benchmarks import which_method
from benchmarks.measure import ROOT
from selftaught.app.drawings import heat_map, line_panels
from selftaught.artifacts.files import read_json, write_text
from selftaught.claims.outcome import Estimate, Outcome, from_json
from selftaught.core.errors import ConfigError

RESULTS, DOCS, TEMPLATES = ROOT / "benchmarks/results", ROOT / "docs", ROOT / "benchmarks/templates"
COLUMNS = 120
"""Where lines of text are broken; tables are not."""


@final
@dataclass(frozen=True)
class Pages:
    """Write every page that is made from stored results; with `check`, only name those that would change."""

    check: bool = False
    """Write nothing; exit with 1 where a page is not up to date."""

    def run(self) -> None:
        """Write what has changed and name it."""
        stale = {p: text for p, text in pages().items() if not p.is_file() or p.read_text("utf-8") != text}
        for path, text in stale.items():
            if not self.check:
                write_text(path, text)
            print(f"{'out of date' if self.check else 'written'}: {path.relative_to(ROOT).as_posix()}")
        if stale and self.check:
            raise SystemExit(1)


def pages() -> dict[Path, str]:
    """Every file there should be, with its text."""
    out: dict[Path, str] = {}
    for file in sorted(RESULTS.glob("claim_*.json")):
        out |= claim_files(read_json(file))
    return out | {DOCS / "results.md": results(), DOCS / "which-method.md": which()}


def which() -> str:
    """The page that helps to choose."""
    page = environment().get_template("which-method.md.jinja")
    known = (which_method.table, which_method.winners, which_method.takers, which_method.told)
    return tidy(page.render({f.__name__: f for f in known}, measured=which_method.costs()))


def results() -> str:
    """The page of all measured tables."""
    known = {k: v for k, v in vars(tables).items() if callable(v) and not k.startswith("_")}
    return tidy(environment().get_template("results.md.jinja").render(known))


def claim_files(stored: Mapping[str, Any]) -> dict[Path, str]:
    """The page of one claim and its drawings. Raises ConfigError for the result of a quick run."""
    if stored["quick"]:
        raise ConfigError(
            f"claim {stored['name']}: a quick run shows a direction, not figures; run it without --quick"
        )
    done = from_json(stored)
    drawn = drawings(done)
    special = f"claims/{done.name}.md.jinja"
    known = environment()
    page = known.get_template(special if (TEMPLATES / special).is_file() else "claim.md.jinja").render(
        {**stored, "rows": done.rows},
        table=table(done),
        file=f"benchmarks/results/claim_{done.name}.json",
        pictures=[{"file": name, "alt": alt_of(done, name)} for name in drawn],
        provenance=provenance(stored),
    )
    figures = {DOCS / "figures" / name: svg for name, svg in drawn.items()}
    return {DOCS / "claims" / f"{done.name}.md": tidy(page)} | figures


def drawings(done: Outcome) -> dict[str, str]:
    """File name to SVG of the outcome's matrix and lines."""
    out = {}
    if done.matrix:
        first = next(iter(done.rows[0]))
        rows = {str(r[first]): [number(r.get(c, "")) for c in done.matrix] for r in done.rows}
        name = f"claim_{done.name}_matrix.svg"
        out[name] = heat_map(rows, done.matrix, alt_of(done, name))
    if done.lines:
        name = f"claim_{done.name}_lines.svg"
        out[name] = line_panels(done.lines, alt_of(done, name))
    return out


def alt_of(done: Outcome, name: str) -> str:
    """What a drawing shows, in a line."""
    if name.endswith("_matrix.svg"):
        return f"{', '.join(done.matrix)} for each {next(iter(done.rows[0]))}"
    panels = dict.fromkeys(n.panel for n in done.lines)
    return f"{'; '.join(panels)}: {', '.join(dict.fromkeys(n.label for n in done.lines))}"


def number(cell: Estimate | str) -> float:
    """The mean of an estimate, else NaN."""
    return cell.mean if isinstance(cell, Estimate) else float("nan")


def table(done: Outcome) -> str:
    """Markdown: one line for each row of the outcome."""
    return markdown([list(done.rows[0]), *([str(c) for c in row.values()] for row in done.rows)])


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is the head; bars inside cells are escaped."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def provenance(stored: Mapping[str, Any]) -> str:
    """When, where and how long, in one sentence or two."""
    m, minutes = stored["machine"], stored["seconds"]["processor"] / 60
    spent = f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{60 * minutes:.0f} seconds"
    return (
        f"{repeats(stored)} training seeds; ± is the 95 % t-interval over them. {spent} of processor time, "
        f"{m['threads']} thread(s) on {m['processor']} ({m['cores']} cores), torch {m['torch']}, Python "
        f"{m['python']}, {m['system']}; commit {stored['commit']}. Written by `python -m benchmarks pages` from "
        "the stored result."
    )


def repeats(stored: Mapping[str, Any]) -> str:
    """How many seeds stand behind the cells, fewest and most where rows differ; rows with no training have one."""
    cells = (cell for row in stored["rows"] for cell in row.values() if isinstance(cell, dict))
    found = sorted({cell["seeds"] for cell in cells} - {1} or {stored["seeds"]})
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def environment() -> Environment:
    """Templates with the filters they use; a name that does not exist is an error."""
    known = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=False,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    known.filters |= {"fill": fill, "linked": linked}
    return known


def fill(text: str) -> str:
    """A paragraph in lines of `COLUMNS`."""
    return textwrap.fill(text, COLUMNS, break_long_words=False, break_on_hyphens=False)


def linked(text: str) -> str:
    """arXiv numbers as links."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def tidy(text: str) -> str:
    """At most one blank line in a row, one newline at the end."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
