"""What a claim shows: the paper's sentence, our protocol, our table and what it says, for and against."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student


@dataclass(frozen=True)
class Estimate:
    """A mean over training seeds and the half width of its 95 % interval (NaN for a single seed)."""

    mean: float
    half_width: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.seeds == 1 else f"{self.mean:.3f} ± {self.half_width:.3f}"


@dataclass(frozen=True)
class Line:
    """One line of a drawing: `panel` names the axes as "y against x", `label` the line; `x` and `y` of one length.

    Lines of equal `label` in several panels are drawn alike.
    """

    panel: str
    label: str
    x: Sequence[float]
    y: Sequence[Estimate]


@dataclass(frozen=True)
class Outcome:
    """`rows` map column names to what stands there; `losing` names the regime where the claim fails, as found.

    Two optional pictures: `matrix` names columns of estimates to be drawn as a heat map, `lines` are curves.
    """

    name: str
    paper: str
    claim: str
    protocol: str
    rows: Sequence[Mapping[str, Estimate | str]]
    verdict: str
    losing: str
    matrix: Sequence[str] = ()
    lines: Sequence[Line] = ()


def estimate(values: Sequence[float]) -> Estimate:
    """By Student's t over seeds. Raises ValueError for none."""
    if not values:
        raise ValueError("an estimate needs at least one value")
    count = len(values)
    if count == 1:
        return Estimate(values[0], math.nan, 1)
    error = statistics.stdev(values) / math.sqrt(count)
    return Estimate(statistics.mean(values), float(student.ppf(0.975, count - 1)) * error, count)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Plain JSON values; an estimate is an object with `mean`, `half_width` (null for one seed) and `seeds`."""
    return {
        **{k: getattr(outcome, k) for k in ("name", "paper", "claim", "protocol")},
        "rows": [{column: _cell(c) for column, c in row.items()} for row in outcome.rows],
        "verdict": outcome.verdict,
        "losing": outcome.losing,
        "matrix": list(outcome.matrix),
        "lines": [
            {"panel": n.panel, "label": n.label, "x": list(n.x), "y": [_cell(y) for y in n.y]}
            for n in outcome.lines
        ],
    }


def from_json(content: Mapping[str, Any]) -> Outcome:
    """What `as_json` made. Raises KeyError where a part is missing."""
    return Outcome(
        **{k: content[k] for k in ("name", "paper", "claim", "protocol", "verdict", "losing")},
        rows=[{column: _from_cell(c) for column, c in row.items()} for row in content["rows"]],
        matrix=tuple(content["matrix"]),
        lines=tuple(
            Line(n["panel"], n["label"], tuple(n["x"]), tuple(_estimate_of(y) for y in n["y"]))
            for n in content["lines"]
        ),
    )


def _cell(cell: Estimate | str) -> dict[str, Any] | str:
    if not isinstance(cell, Estimate):
        return str(cell)
    return {**vars(cell), "half_width": cell.half_width if math.isfinite(cell.half_width) else None}


def _from_cell(cell: Mapping[str, Any] | str) -> Estimate | str:
    return cell if isinstance(cell, str) else _estimate_of(cell)


def _estimate_of(cell: Mapping[str, Any]) -> Estimate:
    half = cell["half_width"]
    return Estimate(cell["mean"], math.nan if half is None else half, cell["seeds"])
