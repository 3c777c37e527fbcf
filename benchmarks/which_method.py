"""The table of `docs/which-method.md`: for each method a reason for, a reason against, and what it costs.

Reasons are the first points of "When" and "When not" on the method's own page, costs those of the review claim.
"""

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT
from selftaught.app.choices import TasksFrom
from selftaught.app.listing import matrix
from selftaught.app.task_sources import options_for, takes_any_tasks
from selftaught.artifacts.files import read_json
from selftaught.claims.review import LEARNERS
from selftaught.methods import METHODS

REVIEW = ROOT / "benchmarks/results/claim_review.json"
LEARNS = {"pictures": "pictures", "labels": "labels", "both": "either"}


def table() -> str:
    """Markdown, a line for each of METHODS: dearest last within those that learn from the same."""
    cost = costs()
    rows = sorted(matrix(tuple(METHODS)), key=lambda r: (list(LEARNS).index(r.learns_from), cost.get(r.name, 1e9)))
    lines = ["| method | learns from | for | against | cost, SimCLR = 1 |", "|---|---|---|---|---|"]
    for r in rows:
        page = (ROOT / "docs/methods" / f"{r.name}.md").read_text(encoding="utf-8")
        price = f"{cost[r.name]:.1f}" if r.name in cost else "not measured"
        cells = [f"[{r.name}](methods/{r.name}.md)", LEARNS[r.learns_from], point(page, "When")]
        lines.append("| " + " | ".join([*cells, point(page, "When not"), price]) + " |")
    return "\n".join(lines)


def costs() -> dict[str, float]:
    """Processor seconds for equal views over SimCLR's, mean over seeds; empty before the claim was run."""
    rows = _review()
    seconds = {r["objective"]: r["seconds"]["mean"] for r in rows if isinstance(r["seconds"], Mapping)}
    return {name: value / seconds["simclr"] for name, value in seconds.items()}


def best(learner: str) -> str:
    """The objective that came out first with a base learner in the review claim, and its accuracy."""
    found = [(r[learner]["mean"], r["objective"]) for r in _review() if isinstance(r[learner], Mapping)]
    trained = [f for f in found if f[1] in METHODS]
    return "{1} ({0:.3f})".format(*max(trained)) if trained else "not measured"


def winners() -> str:
    """The best objective for every base learner, in words."""
    return "; ".join(f"{learner}: {best(learner)}" for learner in LEARNERS)


def takers() -> str:
    """The methods that learn few-shot tasks of any source, in words."""
    *most, last = (f"`{name}`" for name, kind in METHODS.items() if takes_any_tasks(kind))
    return f"{', '.join(most)} and {last}"


def told(tasks: TasksFrom) -> str:
    """What a task source can be told, as code."""
    return ", ".join(f"`{name}`" for name in options_for(tasks))


def point(page: str, heading: str) -> str:
    """The first point under a heading, up to its first full stop or semicolon, links as seen from `docs/`."""
    section = re.search(rf"^## {heading}$(.*?)^## ", page, re.DOTALL | re.MULTILINE)
    first = re.search(r"^- (.*?)(?=^- |\Z)", section.group(1), re.DOTALL | re.MULTILINE) if section else None
    if first is None:
        raise ValueError(
            f'a page has no point under "## {heading}"; give it one, it stands in docs/which-method.md'
        )
    text = re.split(r"(?<=[a-z)`])[.;](?:\s|$)", " ".join(first.group(1).split()))[0].rstrip(".")
    return re.sub(r"\]\(([^)]+)\)", _from_docs, text).replace("|", "\\|")


def _from_docs(link: re.Match[str]) -> str:
    place = link.group(1)
    return link.group(0) if "://" in place else f"]({posixpath.normpath(posixpath.join('methods', place))})"


def _review() -> list[dict[str, Any]]:
    return read_json(Path(REVIEW))["rows"] if REVIEW.is_file() else []
