"""Gather what a run left behind into its report."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from selftaught import __version__
from selftaught.app.evaluation import nearest
from selftaught.app.model import Model
from selftaught.app.report import embedding_map, write_report
from selftaught.app.report_data import DataSummary, Gallery, Geometry, Neighbours, ReportData
from selftaught.app.sources import as_pictures
from selftaught.app.thumbnails import evenly
from selftaught.app.verdict import AccuracyRow
from selftaught.artifacts.files import read_json, write_json
from selftaught.artifacts.run import Run
from selftaught.core.errors import SelftaughtError
from selftaught.data.augment import augment
from selftaught.data.pictures import Pictures
from selftaught.evaluate.geometry import alignment, collapse_warning, effective_rank, uniformity

_EVALUATIONS = "evaluations.json"
GALLERY = 400


def keep_rows(run: Path, rows: Sequence[dict[str, Any]], command: str) -> None:
    """Remember evaluation rows (percent) in the run folder, in place of rows of the same conditions."""
    kept = kept_rows(run)
    same = ("name", "ways", "shots", "head", "norm", "queries", "seed", "episodes")
    new = {tuple(r[k] for k in same) for r in rows}
    kept = [r for r in kept if tuple(r.get(k) for k in same) not in new]
    write_json(run / _EVALUATIONS, {"rows": kept + [dict(r) | {"command": command} for r in rows]})


def kept_rows(run: Path) -> list[dict[str, Any]]:
    """The evaluation rows of a run, oldest first."""
    file = run / _EVALUATIONS
    return list(read_json(file)["rows"]) if file.is_file() else []


def write_run_report(run_path: str | Path, pictures: Pictures | None = None, notes: Sequence[str] = ()) -> Path:
    """Write `report.html` of a run and give its path.

    Without `pictures` those the run was trained on are read again; where they are gone, the report says so.
    """
    run = Run.open(run_path)
    model = Model.load(run.path)
    remarks = list(notes)
    if pictures is None:
        try:
            pictures = as_pictures(model.config.data.get("source"), model.config.size, model.config.channels)
        except SelftaughtError as error:
            remarks.append(f"The pictures could not be read again, so none are shown: {error}")
    rows = kept_rows(run.path)
    data = ReportData(
        title=f"{model.config.method} on {model.config.data.get('pictures')} pictures",
        command=model.config.command or "selftaught.pretrain(...) from Python",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        data=_summary(model, pictures),
        config=model.config.as_json(),
        rows=[_row(r) for r in rows],
        model=rows[0]["name"] if rows else "",
        metrics=run.metrics(),
        **(_pictured(model, pictures) if pictures is not None and len(pictures) > 1 else {}),
        notes=remarks,
    )
    write_report(data, run.report_path)
    return run.report_path


def _row(r: dict[str, Any]) -> AccuracyRow:
    return AccuracyRow(
        r["name"], r["ways"], r["shots"], r["mean"] / 100, r["half_width"] / 100, r["head"], r["norm"],
        r["episodes"], r["queries"], r["seed"],
    )  # fmt: skip


def _summary(model: Model, pictures: Pictures | None) -> DataSummary:
    c = model.config
    counts = {"training pictures": int(c.data.get("pictures", 0)), "skipped files": int(c.data.get("skipped", 0))}
    return DataSummary(counts, (c.channels, c.size, c.size), skipped=pictures.skipped if pictures else ())


def _pictured(model: Model, pictures: Pictures) -> dict[str, Any]:
    """Map, neighbours and geometry from an even sample of the pictures."""
    step = max(1, len(pictures) // GALLERY)
    sample = pictures.take(torch.arange(0, len(pictures), step)[:GALLERY])
    z = model.features(sample)
    queries = list(range(0, len(sample), max(1, len(sample) // 10)))[:10]
    similarity, index = nearest(z, queries, min(6, len(sample) - 1))
    generator = torch.Generator().manual_seed(0)
    views = model.config.build_views()
    viewed = sample.take(torch.tensor(evenly(len(sample), _viewed(sample.x.shape[-1]))))
    first, second = (model.features(Pictures(augment(viewed.x, views, generator), viewed.names)) for _ in range(2))
    warning = collapse_warning(z)
    return {
        "gallery": Gallery(sample.x, sample.names, embedding_map(z)),
        "neighbours": [
            Neighbours(q, tuple(i.tolist()), tuple(s.tolist()))
            for q, i, s in zip(queries, index, similarity, strict=True)
        ],
        "geometry": Geometry(
            effective_rank(z), z.shape[1], alignment(first, second), uniformity(z), bool(warning), warning or ""
        ),
    }


def _viewed(size: int) -> int:
    """Pictures seen in two views: all up to 84 pixels, of larger ones as few as take about the same time."""
    return max(64, min(GALLERY, GALLERY * 84**2 // size**2))


def refresh_card(run: str | Path, model: Model) -> None:
    """Write the model card again, with the evaluations kept so far."""
    rows = [r | {"mean": r["mean"] / 100, "half_width": r["half_width"] / 100} for r in kept_rows(Path(run))]
    model.save(Path(run) / "model", rows)
