"""One HTML file that says what a training run reached, beside its baselines, and what it did not.

The file needs no network and no scripts, works on paper and in the dark, and holds everything needed to
repeat the run. Parts that were not measured are named, with the way to get them.
"""

from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from selftaught.app import report_sections as sections
from selftaught.app.report_data import DataSummary, Gallery, Geometry, Neighbours, ReportData
from selftaught.app.thumbnails import embedding_map
from selftaught.app.verdict import AccuracyRow, verdict
from selftaught.artifacts.files import write_text

__all__ = [
    "AccuracyRow",
    "DataSummary",
    "Gallery",
    "Geometry",
    "Neighbours",
    "ReportData",
    "embedding_map",
    "render",
    "write_report",
]

MOST_SKIPPED = 200
"""Files left out that the page names; of more it gives the number."""


def render(data: ReportData) -> str:
    """The report as the text of one HTML file; equal data give equal text.

    Raises `ConfigError` when rows, thumbnails, names, labels or neighbours do not fit each other.
    """
    folder = FileSystemLoader(Path(__file__).parent)
    env = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters["words"] = lambda n: f"{n:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return env.get_template("report.html.jinja").render(
        d=data,
        created=_plain_time(data.created),
        verdict=verdict(data.rows, data.model),
        accuracy=sections.accuracy_of(data),
        training=sections.training_of(data.metrics),
        map=sections.picture_map_of(data.gallery),
        neighbours=sections.neighbours_of(data),
        collapse=sections.collapse_of(data.geometry),
        config=list(sections.flat(data.config)),
        skipped=data.data.skipped[:MOST_SKIPPED],
    )


def write_report(data: ReportData, path: str | Path) -> None:
    """`render` into `path`, under a temporary name first. Raises `SaveError`; an older file then stays."""
    write_text(path, render(data))


def _plain_time(created: str) -> str:
    """An ISO time to the minute, with its zone if it has one; any other text as it is."""
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return created
    return created if len(created) <= 10 else f"{time:%Y-%m-%d %H:%M} {time.tzname() or ''}".strip()
