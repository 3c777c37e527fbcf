"""Small drawings as inline SVG: no scripts, colours from the page's style sheet, every drawing with a text.

Each series is told apart three times (colour, dash, marker), so that grey prints and colour-blind eyes lose
nothing. All text is escaped; coordinates are rounded to a tenth, so equal data give equal bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from markupsafe import Markup

WIDTH, HEIGHT = 460.0, 330.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 14.0, 14.0, 44.0
STYLES = 8
"""How many series styles the style sheet holds; further series start again at the first."""


@final
@dataclass(frozen=True)
class Series:
    """One line: `x`, `y` and, where there are intervals, `half` of the same length, in data units."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    half: tuple[float, ...] = ()
    style: int = 0


@final
@dataclass(frozen=True)
class Axis:
    """A straight map from data to drawing units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) that enclose `low`..`high`."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next((m for m in (1, 2, 5) if m * power >= raw * 0.999), 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def reach(series: Sequence[Series], chance: float) -> tuple[float, float]:
    """Lowest and highest value that an accuracy panel has to show, intervals and chance level among them."""
    ends = [y + sign * h for s in series for y, h in zip(s.y, s.half, strict=True) for sign in (-1, 1)]
    return min([chance, *ends]), max([chance, *ends])


def accuracy_panel(series: Sequence[Series], chance: float, span: tuple[float, float], alt: str) -> Markup:
    """Accuracy (fractions) against shots on a logarithmic axis, with 95 % intervals and the chance level.

    `span` is the range of accuracies, the same for panels that stand side by side.
    """
    shots = sorted({x for s in series for x in s.x})
    low, high = span
    marks = [t for t in ticks(max(0.0, 100 * low), min(100.0, 100 * high)) if 0 <= t <= 100]
    vertical = Axis(marks[0] / 100, marks[-1] / 100, HEIGHT - BOTTOM, TOP)
    inner = 26.0
    across = Axis(math.log2(shots[0]), math.log2(shots[-1]), LEFT + inner, WIDTH - RIGHT - inner)
    middle = (LEFT + WIDTH - RIGHT) / 2
    place = {s: across(math.log2(s)) if len(shots) > 1 else middle for s in shots}
    body = [_grid([(vertical(t / 100), _number(t)) for t in marks])]
    body += [_foot([(place[s], _number(s)) for s in _apart(shots, place)], "shots (labelled pictures a class)")]
    body.append(_level(vertical(chance), f"chance {100 * chance:.1f}"))
    gap = min(7.0, 40.0 / len(series))
    for n, s in reversed(list(enumerate(series))):
        # Side by side, so that intervals at the same number of shots do not hide each other.
        xs = [place[x] + (n - (len(series) - 1) / 2) * gap for x in s.x]
        body.append(_marked_line(s, xs, vertical))
    return _svg(body, WIDTH, HEIGHT, alt, "chart")


def curve_panel(x: Sequence[float], y: Sequence[float], alt: str, below: str = "step") -> Markup:
    """One training curve; values that are not finite leave a gap. Needs at least one finite value."""
    height = 190.0
    good = [v for v in y if math.isfinite(v)]
    marks = ticks(min(good), max(good), 4)
    vertical = Axis(marks[0], marks[-1], height - BOTTOM, TOP)
    across = Axis(min(x), max(x), LEFT + 8, WIDTH - RIGHT)
    spots = [(across(a), vertical(b) if math.isfinite(b) else math.nan) for a, b in zip(x, y, strict=True)]
    slack = 0.02 * (max(x) - min(x))
    ends = [t for t in ticks(min(x), max(x), 4) if min(x) - slack <= t <= max(x) + slack] if slack else [x[0]]
    body = [_grid([(vertical(t), _number(t)) for t in marks])]
    body.append(_foot([(across(t), _number(t)) for t in ends], below, height))
    body.append(Markup('<path class="line s0" d="{}"/>').format(_path(spots)))
    if len(good) == 1:
        body += [_marker(a, b, 0) for a, b in spots if math.isfinite(b)]
    return _svg(body, WIDTH, height, alt, "chart")


def meter(value: float, full: float, alt: str) -> Markup:
    """How much of a whole is used, as one bar."""
    share = 0.0 if full <= 0 else min(1.0, max(0.0, value / full))
    body = [
        Markup('<rect class="track" x="0" y="0" width="400" height="10" rx="5"/>'),
        Markup('<rect class="fill" x="0" y="0" width="{:.1f}" height="10" rx="5"/>').format(
            max(10.0, 400 * share)
        ),
    ]
    return _svg(body, 400.0, 10.0, alt, "meter")


def picture_map(
    points: Sequence[Sequence[float]],
    images: Sequence[str],
    titles: Sequence[str],
    styles: Sequence[int | None],
    alt: str,
) -> Markup:
    """Pictures (data addresses) at their `points` [n 2], framed where `styles` has one.

    Both axes have one scale; the wider of the two lies across.
    """
    width = 1000.0
    side = min(56.0, max(20.0, math.sqrt(0.3 * width * 640 / max(1, len(points)))))
    if _spread(points, 1) > _spread(points, 0):
        points = [(p[1], p[0]) for p in points]
    lows = [min(p[k] for p in points) for k in (0, 1)]
    spans = [max(p[k] for p in points) - lows[k] for k in (0, 1)]
    room = width - 2 * side
    high = min(760.0, max(420.0, room * spans[1] / spans[0] if spans[0] > 0 else 420.0)) - 2 * side
    fits = [r / s for r, s in zip((room, high), spans, strict=True) if s > 0]
    scale = min(fits, default=1.0)
    start = [(w - s * scale) / 2 for w, s in zip((width, high + 2 * side), spans, strict=True)]
    body = []
    for point, image, title, style in zip(points, images, titles, styles, strict=True):
        # Upwards is larger, as in any chart.
        x = start[0] + (point[0] - lows[0]) * scale - side / 2
        y = start[1] + (lows[1] + spans[1] - point[1]) * scale - side / 2
        body.append(_picture(x, y, side, image, title, style))
    return _svg(body, width, high + 2 * side, alt, "map")


def _spread(points: Sequence[Sequence[float]], axis: int) -> float:
    values = [p[axis] for p in points]
    return max(values) - min(values)


def swatch(style: int) -> Markup:
    """The line and marker of a style, for a legend."""
    n = style % STYLES
    line = Markup('<path class="line s{n} d{n}" d="M1 7H31"/>').format(n=n)
    return Markup('<svg class="swatch" viewBox="0 0 32 14" aria-hidden="true">{}{}</svg>').format(
        line, _marker(16, 7, style)
    )


def _picture(x: float, y: float, side: float, image: str, title: str, style: int | None) -> Markup:
    frame = Markup("")
    if style is not None:
        frame = Markup('<rect class="frame s{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            style % STYLES, x, y, side, side
        )
    return Markup(
        '<g><title>{}</title><image x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" href="{}"/>{}</g>'
    ).format(title, x, y, side, side, image, frame)


def _svg(body: Sequence[Markup], width: float, height: float, alt: str, kind: str) -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        kind, width, height, alt, Markup("").join(body)
    )


def _grid(lines: Sequence[tuple[float, str]]) -> Markup:
    rule = Markup(
        '<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/><text class="end" x="{:.1f}" y="{:.1f}">{}</text>'
    )
    return Markup("").join(rule.format(LEFT, y, WIDTH - RIGHT, LEFT - 8, y + 4, text) for y, text in lines)


def _foot(marks: Sequence[tuple[float, str]], name: str, height: float = HEIGHT) -> Markup:
    base = height - BOTTOM
    label = Markup('<text class="mid" x="{:.1f}" y="{:.1f}">{}</text>')
    out = [label.format(x, base + 18, text) for x, text in marks]
    out.append(Markup('<text class="mid name" x="{:.1f}" y="{:.1f}">{}</text>').format(
        (LEFT + WIDTH - RIGHT) / 2, base + 37, name
    ))  # fmt: skip
    return Markup("").join(out)


def _level(y: float, text: str) -> Markup:
    return Markup(
        '<path class="chance" d="M{:.1f} {:.1f}H{:.1f}"/><text class="end name" x="{:.1f}" y="{:.1f}">{}</text>'
    ).format(LEFT, y, WIDTH - RIGHT, WIDTH - RIGHT, y - 5, text)


def _marked_line(series: Series, xs: Sequence[float], vertical: Axis) -> Markup:
    n = series.style % STYLES
    spots = [(x, vertical(y)) for x, y in zip(xs, series.y, strict=True)]
    out = [Markup('<path class="line s{n} d{n}" d="{d}"/>').format(n=n, d=_path(spots))]
    for x, y, half in zip(xs, series.y, series.half, strict=True):
        ends = vertical(max(vertical.low, y - half)), vertical(min(vertical.high, y + half))
        if abs(ends[0] - ends[1]) < 9:
            continue  # the marker is larger
        bar = Markup('<path class="bar s{}" d="M{:.1f} {:.1f}h8m-4 0V{:.1f}m-4 0h8"/>')
        out.append(bar.format(n, x - 4, *ends))
    out += [_marker(x, y, series.style) for x, y in spots]
    return Markup("<g><title>{}</title>{}</g>").format(series.label, Markup("").join(out))


def _marker(x: float, y: float, style: int) -> Markup:
    shapes = (
        "m-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0 -6.8 0z",
        "m-3 -3h6v6h-6z",
        "m0 -4l3.9 6.9h-7.8z",
        "m0 -4.2l4.2 4.2l-4.2 4.2l-4.2 -4.2z",
        "m0 4l3.9 -6.9h-7.8z",
        "m-1.5 -4.6h3v3.1h3.1v3h-3.1v3.1h-3v-3.1h-3.1v-3h3.1z",
        "m-5 -2.4h10v4.8h-10z",
        "m-2.4 -5h4.8v10h-4.8z",
    )
    n = style % STYLES
    return Markup('<path class="dot s{}" d="M{:.1f} {:.1f}{}"/>').format(n, x, y, Markup(shapes[n]))


def _path(spots: Sequence[tuple[float, float]]) -> str:
    """A line through the spots, broken where one is not finite."""
    out, pen = [], "M"
    for x, y in spots:
        if not math.isfinite(y):
            pen = "M"
            continue
        out.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(out)


def _apart(shots: Sequence[float], place: dict[float, float], least: float = 16.0) -> list[float]:
    """Those tick values whose labels do not run into the one before."""
    kept: list[float] = []
    for s in shots:
        if not kept or place[s] - place[kept[-1]] >= least:
            kept.append(s)
    return kept


def _number(value: float) -> str:
    """A tick label as short as it can be."""
    text = f"{value / 1000:.6g}k" if abs(value) >= 10_000 else f"{value:.6g}"
    return text.replace("-", "\N{MINUS SIGN}")
