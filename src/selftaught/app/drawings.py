"""Drawings as SVG files of their own: a heat map, lines with intervals, means with intervals.

The paper is always white, so that they read on light and dark pages. Lines are told apart by colour, dash and
marker. All text is escaped; coordinates are rounded, so equal data give equal bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from markupsafe import Markup, escape

from selftaught.app.charts import Axis, ticks
from selftaught.claims.outcome import Estimate, Line

COLOURS = ("#0b62b8", "#c2410c", "#15803d", "#8a3ffc", "#a16207", "#1f2328", "#be185d", "#0e7490")
DASHES = ("none", "8 4", "2 4", "10 3 2 3", "5 3", "1 3", "12 3", "3 2 8 2")
MARKERS = (
    "m-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z",
    "m-3.2 -3.2h6.4v6.4h-6.4z",
    "m0 -4.4l4.2 7.4h-8.4z",
    "m0 -4.5l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
    "m0 4.4l4.2 -7.4h-8.4z",
)
STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; font-size: 13px; fill: #1f2328 }
.title { font-weight: 600 } .soft { fill: #57606a } .small { font-size: 11px } .light { fill: #ffffff }
.end { text-anchor: end } .mid { text-anchor: middle } .grid { stroke: #d8dee4; fill: none }
.line { fill: none; stroke-width: 2; stroke-linejoin: round } .bar { fill: none; stroke-width: 1.5 }
"""
_LETTER = 7.3
"""About the width of a letter at 13 pixels."""


@final
@dataclass(frozen=True)
class Interval:
    """One row of `intervals`: a value and half the width of its interval, in data units."""

    label: str
    value: float
    half_width: float


def heat_map(rows: Mapping[str, Sequence[float]], columns: Sequence[str], alt: str, digits: int = 3) -> str:
    """A cell for each row and column, darker where the value is higher; NaN leaves a cell empty.

    Every row needs a value for each column. The scale is that of the whole map.
    """
    left = 24 + _LETTER * max(map(len, rows))
    wide, high, top = max(76.0, 16 + _LETTER * max(map(len, columns))), 26.0, 40.0
    known = [v for values in rows.values() for v in values if math.isfinite(v)]
    low, reach = min(known), (max(known) - min(known)) or 1.0
    body = Markup("")
    for c, column in enumerate(columns):
        body += _text(left + (c + 0.5) * wide, top - 12, column, "mid soft")
    for r, (label, values) in enumerate(rows.items()):
        y = top + r * high
        body += _text(left - 10, y + high / 2 + 5, label, "end")
        for c, value in enumerate(values):
            body += _cell(left + c * wide, y, wide, high, value, (value - low) / reach, digits)
    return _svg(body, left + len(columns) * wide + 16, top + len(rows) * high + 16, alt)


def line_panels(lines: Sequence[Line], alt: str) -> str:
    """A panel for each name of `panel` (as "y against x"), side by side, with one legend above."""
    panels = list(dict.fromkeys(n.panel for n in lines))
    labels = list(dict.fromkeys(n.label for n in lines))
    wide, gap, top, high = 400.0, 70.0, 76.0 + 22 * ((len(labels) - 1) // 4), 240.0
    step = max(200.0, 60 + _LETTER * max(map(len, labels)))
    body = Markup("")
    for n, label in enumerate(labels):
        x, y = 24 + (n % 4) * step, 24 + 22.0 * (n // 4)
        body += _stroke(n, [(x, y), (x + 30, y)]) + _marker(n, x + 15, y) + _text(x + 38, y + 5, label)
    for p, panel in enumerate(panels):
        mine = [n for n in lines if n.panel == panel]
        body += _panel(panel, mine, labels, 64 + p * (wide + gap), top, wide, high)
    width = max(64 + len(panels) * (wide + gap) - gap + 24, 24 + step * min(4, len(labels)))
    return _svg(body, width, top + high + 60, alt)


def intervals(groups: Mapping[str, Sequence[Interval]], zero: Sequence[str], alt: str) -> str:
    """Means with intervals, one block for each group with an axis of its own; blocks in `zero` show zero."""
    left = 30 + _LETTER * max(len(i.label) for each in groups.values() for i in each)
    wide, high, y = 460.0, 26.0, 30.0
    body = Markup("")
    for title, each in groups.items():
        body += _text(16, y, title, "title")
        ends = [i.value + s * _finite(i.half_width) for i in each for s in (-1, 1)]
        marks = ticks(min([*ends, 0.0] if title in zero else ends), max([*ends, 0.0] if title in zero else ends))
        across = Axis(marks[0], marks[-1], left, left + wide)
        foot = y + 16 + high * len(each)
        for mark in marks:
            body += Markup('<path class="grid" d="M{:.1f} {:.1f}V{:.1f}"/>').format(across(mark), y + 10, foot)
            body += _text(across(mark), foot + 18, f"{mark:g}", "mid soft")
        if title in zero:
            body += Markup('<path stroke="#57606a" d="M{:.1f} {:.1f}V{:.1f}"/>').format(across(0), y + 10, foot)
        for n, i in enumerate(each):
            body += _text(left - 10, y + 31 + n * high, i.label, "end")
            body += _whisker(n, i, across, y + 26 + n * high)
        y = foot + 52
    return _svg(body, left + wide + 40, y - 20, alt)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _whisker(n: int, row: Interval, across: Axis, y: float) -> Markup:
    low, high = (across(row.value + s * _finite(row.half_width)) for s in (-1, 1))
    bar = Markup('<path class="bar" stroke="{}" d="M{:.1f} {:.1f}v8m0 -4H{:.1f}m0 -4v8"/>')
    return bar.format(COLOURS[n % len(COLOURS)], low, y - 4, high) + _marker(n, across(row.value), y)


def _cell(x: float, y: float, wide: float, high: float, value: float, share: float, digits: int) -> Markup:
    if not math.isfinite(value):
        return _text(x + wide / 2, y + high / 2 + 5, "-", "mid soft")
    # From white to a deep blue, evenly in each channel: it stays ordered in grey print.
    colour = "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in ((244, 11), (248, 70), (252, 140)))
    box = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"/>')
    style = "mid light" if share > 0.55 else "mid"
    return box.format(x + 1, y + 1, wide - 2, high - 2, colour) + _text(
        x + wide / 2, y + high / 2 + 5, f"{value:.{digits}f}", style
    )


def _panel(
    name: str, lines: Sequence[Line], labels: Sequence[str], left: float, top: float, wide: float, high: float
) -> Markup:
    upward_name, _, across_name = name.partition(" against ")
    ends = [e.mean + s * _finite(e.half_width) for n in lines for e in n.y for s in (-1, 1)]
    places = [x for n in lines for x in n.x]
    marks, foot = ticks(min(ends), max(ends)), ticks(min(places), max(places))
    upward = Axis(marks[0], marks[-1], top + high, top)
    across = Axis(foot[0], foot[-1], left, left + wide)
    out = _text(left, top - 12, upward_name, "soft")
    for mark in marks:
        out += Markup('<path class="grid" d="M{:.1f} {:.1f}h{:.1f}"/>').format(left, upward(mark), wide)
        out += _text(left - 8, upward(mark) + 5, f"{mark:g}", "end soft")
    for mark in foot:
        out += _text(across(mark), top + high + 20, f"{mark:g}", "mid soft")
    out += _text(left + wide / 2, top + high + 42, across_name, "mid soft")
    for line in lines:
        n = labels.index(line.label)
        spots = [(across(x), upward(y.mean)) for x, y in zip(line.x, line.y, strict=True)]
        drawn = _stroke(n, spots) + _bars(n, line.y, spots, upward)
        drawn += Markup("").join(_marker(n, *spot) for spot in spots)
        out += Markup("<g><title>{}</title>{}</g>\n").format(line.label, drawn)
    return out


def _bars(n: int, values: Sequence[Estimate], spots: Sequence[tuple[float, float]], upward: Axis) -> Markup:
    bar = Markup('<path class="bar" stroke="{}" d="M{:.1f} {:.1f}h6m-3 0V{:.1f}m-3 0h6"/>')
    out = Markup("")
    for value, (x, _) in zip(values, spots, strict=True):
        half = _finite(value.half_width)
        out += bar.format(COLOURS[n % len(COLOURS)], x - 3, upward(value.mean - half), upward(value.mean + half))
    return out


def _stroke(n: int, spots: Sequence[tuple[float, float]]) -> Markup:
    steps = "".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(spots))
    line = Markup('<path class="line" stroke="{}" stroke-dasharray="{}" d="{}"/>')
    return line.format(COLOURS[n % len(COLOURS)], DASHES[n % len(DASHES)], steps)


def _marker(n: int, x: float, y: float) -> Markup:
    shape = Markup('<path fill="{}" stroke="#ffffff" d="M{:.1f} {:.1f}{}"/>')
    return shape.format(COLOURS[n % len(COLOURS)], x, y, MARKERS[n % len(MARKERS)])


def _text(x: float, y: float, text: str, style: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}">{}</text>').format(x, y, style, escape(text))


def _svg(body: Markup, width: float, height: float, alt: str) -> str:
    space = 'xmlns="http://www.w3.org/2000/svg"'
    head = Markup('<svg {} viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">')
    frame = Markup('<rect width="{:.0f}" height="{:.0f}" rx="8" fill="#ffffff"/>').format(width, height)
    style = Markup("<style>") + Markup(STYLE) + Markup("</style>\n")
    return str(head.format(Markup(space), width, height, alt) + style + frame + body + Markup("</svg>\n"))
