"""A figure for the documentation: rows of small panels with one legend a row, as an SVG file of its own.

The vertical axes are logarithmic, so that equal distances are equal ratios. Curves are told apart by colour,
dash and marker; the paper is always white, so that the figure reads on light and dark pages.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from markupsafe import Markup, escape

from selftaught.app.charts import Axis

WIDTH, LEFT, RIGHT, TOP = 960, 64, 24, 20
HEAD, PLOT, FOOT, GAP = 84, 210, 62, 76
COLOURS = ("#1f2328", "#0b62b8", "#c2410c", "#15803d", "#8a3ffc", "#a16207")
DASHES = ("2 4", "none", "8 4", "10 3 2 3", "5 3", "1 3")
MARKERS = (
    "m-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z",
    "m-3.2 -3.2h6.4v6.4h-6.4z",
    "m0 -4.4l4.2 7.4h-8.4z",
    "m0 -4.5l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
    "m0 4.4l4.2 -7.4h-8.4z",
    "m-1.6 -4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z",
)
STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; font-size: 14px; fill: #1f2328 }
.title { font-size: 17px; font-weight: 600 } .soft { fill: #57606a } .small { font-size: 12px }
.end { text-anchor: end } .mid { text-anchor: middle } .grid { stroke: #d8dee4; fill: none }
.line { fill: none; stroke-width: 2; stroke-linejoin: round }
"""


@final
@dataclass(frozen=True)
class Curve:
    """One line: `x` and `y` of the same length; points that are not positive are left out."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@final
@dataclass(frozen=True)
class Panel:
    """Curves over one axis, `title` with the unit of y."""

    title: str
    curves: tuple[Curve, ...]


@final
@dataclass(frozen=True)
class Row:
    """Panels beside each other that hold the same curves in the same order."""

    title: str
    panels: tuple[Panel, ...]


def draw(rows: Sequence[Row], below: str, note: str) -> str:
    """The SVG text of all rows; `below` names the horizontal axes, `note` is the line at the foot."""
    body, y = Markup(""), TOP
    for row in rows:
        body += _legend(row, y)
        wide = (WIDTH - RIGHT - GAP * (len(row.panels) - 1) - LEFT) / len(row.panels)
        for n, panel in enumerate(row.panels):
            body += _panel(panel, LEFT + n * (wide + GAP), y + HEAD, wide, below)
        y += HEAD + PLOT + FOOT
    height = y + 16
    body += _text(LEFT - 40, y, note, "soft small")
    frame = Markup('<rect width="{}" height="{}" rx="8" fill="#ffffff"/>').format(WIDTH, height)
    alt = "; ".join(f"{row.title}: {', '.join(p.title for p in row.panels)}" for row in rows)
    head = Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    style = Markup("<style>") + Markup(STYLE) + Markup("</style>\n")
    return str(head.format(WIDTH, height, f"Against {below}. {alt}") + style + frame + body + Markup("</svg>\n"))


def level_marks(low: float, high: float) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten, that enclose `low`..`high` (both positive)."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [m * 10.0**p for p in powers for m in (1, 2, 5)]
    below = max(i for i, m in enumerate(marks) if m <= low * (1 + 1e-9))
    above = min((i for i, m in enumerate(marks) if m >= high * (1 - 1e-9)), default=len(marks) - 1)
    return marks[below : max(above, below + 1) + 1]


def _legend(row: Row, y: float) -> Markup:
    out, x = _text(LEFT - 40, y + 14, row.title, "title"), LEFT - 40.0
    for n, curve in enumerate(row.panels[0].curves):
        out += _stroke(n, [(x, y + 36), (x + 34, y + 36)]) + _marker(n, x + 17, y + 36)
        out += _text(x + 42, y + 41, curve.label)
        x += 42 + 7.1 * len(curve.label) + 26
    return out


def _panel(panel: Panel, left: float, top: float, wide: float, below: str) -> Markup:
    values = [y for c in panel.curves for y in c.y if y > 0]
    places = sorted({x for c in panel.curves for x in c.x})
    marks = level_marks(min(values), max(values)) if values else [1.0, 2.0]
    across = Axis(places[0], places[-1], left + 14, left + wide - 14)
    upward = Axis(math.log(marks[0]), math.log(marks[-1]), top + PLOT, top)
    out = _text(left, top - 14, panel.title, "soft")
    for mark in marks:
        y = upward(math.log(mark))
        out += Markup('<path class="grid" d="M{:.1f} {:.1f}h{:.1f}"/>').format(left, y, wide)
        out += _text(left - 8, y + 5, f"{mark:g}", "end soft")
    for place in places:
        out += _text(across(place), top + PLOT + 20, f"{place:g}", "mid soft")
    out += _text(left + wide / 2, top + PLOT + 40, below, "mid soft")
    for n, curve in reversed(list(enumerate(panel.curves))):
        pairs = zip(curve.x, curve.y, strict=True)
        spots = [(across(x), upward(math.log(y))) for x, y in pairs if y > 0]
        drawn = _stroke(n, spots) + Markup("").join(_marker(n, *spot) for spot in spots)
        out += Markup("<g><title>{}</title>{}</g>\n").format(curve.label, drawn)
    return out


def _stroke(n: int, spots: Sequence[tuple[float, float]]) -> Markup:
    line = Markup('<path class="line" stroke="{}" stroke-dasharray="{}" d="{}"/>')
    steps = "".join(_moves(spots))
    return line.format(COLOURS[n % len(COLOURS)], DASHES[n % len(DASHES)], steps)


def _moves(spots: Sequence[tuple[float, float]]) -> Iterator[str]:
    for i, (x, y) in enumerate(spots):
        yield f"{'L' if i else 'M'}{x:.1f} {y:.1f}"


def _marker(n: int, x: float, y: float) -> Markup:
    shape = Markup('<path fill="{}" stroke="#ffffff" d="M{:.1f} {:.1f}{}"/>')
    return shape.format(COLOURS[n % len(COLOURS)], x, y, MARKERS[n % len(MARKERS)])


def _text(x: float, y: float, text: str, style: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}">{}</text>').format(x, y, style, escape(text))
