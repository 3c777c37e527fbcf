"""The sections of a report: from measured records to the values, texts and drawings the page shows.

Each function gives None when its part was not measured; the page then says so, and how to get it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from selftaught.app import charts
from selftaught.app.report_data import Gallery, Geometry, Neighbours, ReportData
from selftaught.app.thumbnails import TSNE_FROM, evenly, png_addresses
from selftaught.app.verdict import (
    UNTRAINED,
    AccuracyRow,
    Comparison,
    counterpart,
    is_baseline,
    is_named,
    model_name,
    rivals_of,
)
from selftaught.core.errors import ConfigError

MAP_BUDGET, NEIGHBOUR_BUDGET = 1_900_000, 600_000
MOST_ON_MAP, MOST_QUERIES, MOST_POINTS = 600, 10, 300
FRAMED_CLASSES = charts.STYLES


def accuracy_of(data: ReportData) -> dict[str, Any] | None:
    """Lines, comparison and table of the accuracy rows."""
    if not data.rows:
        return None
    model = model_name(data.rows, data.model)
    names = [model, *rivals_of(data.rows, model)] if model else list(rivals_of(data.rows, model))
    series = _series(data.rows, names)
    order = {n: k for k, n in enumerate(names)}
    mine = sorted((r for r in data.rows if r.name == model), key=lambda r: (r.ways, r.shots))
    return {
        "model": model,
        "legend": [(charts.swatch(s), label) for label, s, _ in series],
        "panels": _panels(series),
        "rows": sorted(data.rows, key=lambda r: (r.ways, r.shots, order[r.name])),
        "settings": [r.setting for r in mine],
        "versus": [(n, _cells(data.rows, mine, n)) for n in names if mine and n != model],
        "protocol": _protocol(data.rows),
    }


def _series(rows: Sequence[AccuracyRow], names: Sequence[str]) -> list[tuple[str, int, list[AccuracyRow]]]:
    """Label, style and rows of every line; a name has several where heads, normalisations or seeds differ."""
    out: list[tuple[str, int, list[AccuracyRow]]] = []
    spare = 3
    for name in names:
        mine = [r for r in rows if r.name == name]
        kinds = list(dict.fromkeys((r.head, r.norm, r.seed) for r in mine))
        varies = [len({k[n] for k in kinds}) > 1 for n in range(3)]
        for n, kind in enumerate(kinds):
            said = (kind[0], kind[1], f"seed {kind[2]}")
            extra = ", ".join(s for s, v in zip(said, varies, strict=True) if v and s)
            style = _first_style(name, names) if n == 0 else None
            if style is None:
                style, spare = spare, spare + 1
            chosen = sorted((r for r in mine if (r.head, r.norm, r.seed) == kind), key=lambda r: r.shots)
            out.append((f"{name} ({extra})" if extra else name, style, chosen))
    return out


def _first_style(name: str, names: Sequence[str]) -> int | None:
    """The model and the two baselines always look the same; the rest takes what is spare."""
    if is_baseline(name):
        return 2 if is_named(name, UNTRAINED) else 1
    return 0 if name == names[0] else None


def _cells(rows: Sequence[AccuracyRow], mine: Sequence[AccuracyRow], rival: str) -> list[Comparison | None]:
    pairs = ((row, counterpart(row, rows, rival)) for row in mine)
    return [Comparison(row, other) if other else None for row, other in pairs]


def _panels(series: Sequence[tuple[str, int, list[AccuracyRow]]]) -> list[tuple[int, Markup]]:
    """One panel for each number of ways, all with the same range of accuracies."""
    lines = {w: _lines(w, series) for w in sorted({r.ways for _, _, rows in series for r in rows})}
    ranges = [charts.reach(some, 1 / w) for w, some in lines.items()]
    span = min(low for low, _ in ranges), max(high for _, high in ranges)
    return [(w, charts.accuracy_panel(some, 1 / w, span, _said(w, some))) for w, some in lines.items()]


def _lines(ways: int, series: Sequence[tuple[str, int, list[AccuracyRow]]]) -> list[charts.Series]:
    lines = []
    for label, style, rows in series:
        mine = [r for r in rows if r.ways == ways]
        if mine:
            x, y = tuple(float(r.shots) for r in mine), tuple(r.mean for r in mine)
            lines.append(charts.Series(label, x, y, tuple(r.half_width for r in mine), style))
    return lines


def _said(ways: int, lines: Sequence[charts.Series]) -> str:
    said = "; ".join(
        f"{s.label}: " + ", ".join(f"{100 * y:.1f} at {x:.0f}" for x, y in zip(s.x, s.y, strict=True))
        for s in lines
    )
    return f"{ways}-way accuracy in per cent against shots. {said}."


def _protocol(rows: Sequence[AccuracyRow]) -> list[tuple[str, str]]:
    def listed(values: Sequence[object]) -> str:
        known = dict.fromkeys(str(v) for v in values if v not in ("", None))
        return ", ".join(known) or "not recorded"

    return [
        ("Episodes a row", listed([r.episodes or None for r in rows])),
        ("Query pictures a class", listed([r.queries or None for r in rows])),
        ("Head on the features", listed([r.head for r in rows])),
        ("Normalisation", listed([r.norm for r in rows])),
        ("Seed of the episodes", listed([r.seed for r in rows])),
    ]


def training_of(metrics: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """One panel for each named value of the log, the loss first, and some lines of it as a table."""
    names = list(dict.fromkeys(k for m in metrics for k in m if k not in ("step", "seconds")))
    names.sort(key=lambda n: n != "loss")
    panels: list[tuple[str, Markup | None, int]] = []
    for name in names:
        pairs = [(float(m.get("step", n)), float(m[name])) for n, m in enumerate(metrics) if name in m]
        bad = sum(not math.isfinite(y) for _, y in pairs)
        good = [y for _, y in pairs if math.isfinite(y)]
        if good:
            spots = _thinned(pairs)
            first, last = pairs[0][0], pairs[-1][0]
            alt = f"{name} from {good[0]:.4g} at step {first:.0f} to {good[-1]:.4g} at step {last:.0f}."
            drawing = charts.curve_panel([x for x, _ in spots], [y for _, y in spots], alt)
            panels.append((name, drawing, bad))
        elif pairs:
            panels.append((name, None, bad))
    if not panels:
        return None
    few = [metrics[i] for i in sorted({*evenly(len(metrics), 20), len(metrics) - 1})]
    seconds = max((float(m["seconds"]) for m in metrics if "seconds" in m), default=None)
    return {
        "panels": panels,
        "names": names,
        "rows": [(m.get("step", ""), m.get("seconds"), [m.get(n) for n in names]) for m in few],
        "all": len(metrics),
        "thinned": len(metrics) > MOST_POINTS,
        "time": None if seconds is None else _duration(seconds),
    }


def _thinned(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` spots, each the mean of neighbouring ones (of those that are finite)."""
    size = math.ceil(len(pairs) / MOST_POINTS)
    if size == 1:
        return list(pairs)
    out = []
    for n in range(0, len(pairs), size):
        some = pairs[n : n + size]
        good = [y for _, y in some if math.isfinite(y)]
        out.append((sum(x for x, _ in some) / len(some), sum(good) / len(good) if good else math.nan))
    return out


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def picture_map_of(gallery: Gallery | None) -> dict[str, Any] | None:
    """The pictures at their places; more than `MOST_ON_MAP` are thinned out evenly."""
    if gallery is None or gallery.points is None or len(gallery.names) == 0:
        return None
    _check(gallery)
    count = len(gallery.names)
    index = list(evenly(count, MOST_ON_MAP))
    framed = gallery.labels is not None and 0 < len(gallery.classes) <= FRAMED_CLASSES
    labels = gallery.labels if framed and gallery.labels is not None else (None,) * count
    points = gallery.points.tolist()
    titles = [_title(gallery, i) for i in index]
    kind = "t-SNE" if count >= TSNE_FROM else "PCA"
    alt = f"Map of {len(index)} pictures by {kind}: pictures that the encoder finds alike lie together."
    images = png_addresses(gallery.thumbnails[index], MAP_BUDGET)
    return {
        "svg": charts.picture_map([points[i] for i in index], images, titles, [labels[i] for i in index], alt),
        "kind": kind,
        "shown": len(index),
        "all": count,
        "legend": [(n % charts.STYLES, c) for n, c in enumerate(gallery.classes)] if framed else [],
        "rows": [(gallery.names[i], _class(gallery, i), points[i]) for i in index],
    }


def _check(gallery: Gallery) -> None:
    n = len(gallery.thumbnails)
    sizes = {"names": len(gallery.names)}
    if gallery.points is not None:
        sizes["points"] = len(gallery.points)
        if not bool(gallery.points.isfinite().all()):
            raise ConfigError("gallery: points are not finite; compute them with embedding_map")
    if gallery.labels is not None:
        sizes["labels"] = len(gallery.labels)
        if gallery.classes and not all(0 <= k < len(gallery.classes) for k in gallery.labels):
            raise ConfigError(f"gallery: labels must count into the {len(gallery.classes)} classes")
    wrong = {k: v for k, v in sizes.items() if v != n}
    if wrong:
        raise ConfigError(f"gallery: {n} thumbnails but {wrong}; give one of each for every picture")


def _class(gallery: Gallery, i: int) -> str:
    if gallery.labels is None:
        return ""
    label = gallery.labels[i]
    return gallery.classes[label] if gallery.classes else str(label)


def _title(gallery: Gallery, i: int) -> str:
    name = _class(gallery, i)
    return f"{gallery.names[i]} ({name})" if name else gallery.names[i]


def neighbours_of(data: ReportData) -> dict[str, Any] | None:
    """The first `MOST_QUERIES` pictures with their neighbours."""
    gallery = data.gallery
    if gallery is None or not data.neighbours:
        return None
    _check(gallery)
    shown = list(data.neighbours)[:MOST_QUERIES]
    used = sorted({i for n in shown for i in (n.query, *n.index)})
    if used[0] < 0 or used[-1] >= len(gallery.names):
        raise ConfigError(f"neighbours: positions {used[0]}..{used[-1]} in a gallery of {len(gallery.names)}")
    # A picture may appear in several rows; the factor keeps the page within the budget all the same.
    times = sum(1 + len(n.index) for n in shown) / len(used)
    address = dict(zip(used, png_addresses(gallery.thumbnails[used], int(NEIGHBOUR_BUDGET / times)), strict=True))

    def seen(i: int) -> dict[str, Any]:
        return {"src": address[i], "name": gallery.names[i], "class": _class(gallery, i)}

    rows = []
    for n in shown:
        pairs = zip(n.index, n.similarity, strict=True)
        rows.append({**seen(n.query), "near": [{**seen(i), "similarity": s} for i, s in pairs]})
    return {"rows": rows, "agree": _agreement(gallery, shown)}


def _agreement(gallery: Gallery, shown: Sequence[Neighbours]) -> tuple[int, int, float] | None:
    """Neighbours of the query's own class, all neighbours, and how many chance would give."""
    if gallery.labels is None or len(gallery.labels) < 2:
        return None
    y = gallery.labels
    same = sum(y[i] == y[n.query] for n in shown for i in n.index)
    chance = sum(len(n.index) * (y.count(y[n.query]) - 1) / (len(y) - 1) for n in shown)
    return same, sum(len(n.index) for n in shown), chance


def collapse_of(geometry: Geometry | None) -> dict[str, Any] | None:
    """The share of directions in use, as a bar."""
    if geometry is None:
        return None
    said = f"Effective rank {geometry.effective_rank:.1f} of {geometry.width}"
    return {"meter": charts.meter(geometry.effective_rank, geometry.width, said), "said": said}


def flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names with dots and values as JSON text (plain text for strings)."""
    out: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            out += flat(value, f"{prefix}{key}.")
        else:
            out.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)))
    return out
