"""A run's figures in TensorBoard, Weights & Biases, MLflow or trackio, beside the `metrics.jsonl` of every run.

A tracker is any callable `(step, figures)`; `selftaught.pretrain(..., track=print)` is one. The four here have
names on the command line. They are opened at the first figure, log into a run that a resumed one finds again, and
import their library only then. What a tracker does wrong never stops training.
"""

import importlib.util
import logging
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selftaught.artifacts.files import read_json, write_json
from selftaught.core.errors import ConfigError, SelftaughtError

Figures = Mapping[str, float]
Track = Callable[[int, Figures], Any]
"""Takes the step (from 1) and the figures of that step. Where it has a `close()`, that is called at the end."""

MARK = "tracked.json"
"""In the run folder: the last step that was handed to a tracker, and the name of the run there."""

PROJECT = "selftaught"

_log = logging.getLogger("selftaught")


def check_tracker(track: "Track | str | None") -> None:
    """Raises ConfigError for a name that is not in `OPEN` or whose library is missing, before a run is made."""
    if not isinstance(track, str):
        return
    if track not in OPEN:
        raise ConfigError(f"no tracker is called {track!r}; there are: {', '.join(OPEN)}, or any callable")
    if track not in sys.modules and importlib.util.find_spec(track) is None:
        raise ConfigError(f"tracking by {track} needs a library that is not installed: pip install {track}")


def _tensorboard(folder: Path, key: str) -> tuple[Track, Callable[[], Any]]:
    """Event files in the run folder, under tensorboard/."""
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(step: int, figures: Figures) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log, writer.close


def _wandb(folder: Path, key: str) -> tuple[Track, Callable[[], Any]]:
    """A Weights & Biases run whose id is `key`; where it goes is set by that library's own variables."""
    wandb: Any = importlib.import_module("wandb")
    run = wandb.init(project=PROJECT, name=folder.name, id=key, resume="allow", dir=str(folder))
    return lambda step, figures: run.log(dict(figures), step=step), run.finish


def _mlflow(folder: Path, key: str) -> tuple[Track, Callable[[], Any]]:
    """An MLflow run with the tag `selftaught` = `key`, at $MLFLOW_TRACKING_URI."""
    mlflow: Any = importlib.import_module("mlflow")
    mlflow.set_experiment(PROJECT)
    found = mlflow.search_runs(filter_string=f"tags.{PROJECT} = '{key}'", output_format="list")
    same = {"run_id": found[0].info.run_id} if found else {"run_name": folder.name, "tags": {PROJECT: key}}
    mlflow.start_run(**same)
    return lambda step, figures: mlflow.log_metrics(dict(figures), step=step), mlflow.end_run


def _trackio(folder: Path, key: str) -> tuple[Track, Callable[[], Any]]:
    """A trackio run whose name ends in `key`."""
    trackio: Any = importlib.import_module("trackio")
    trackio.init(project=PROJECT, name=f"{folder.name}-{key}", resume="allow")
    return lambda step, figures: trackio.log(dict(figures), step=step), trackio.finish


OPEN: dict[str, Callable[[Path, str], tuple[Track, Callable[[], Any]]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
"""From the run folder and a name to what logs one step and what ends the run."""


@contextmanager
def told(track: "Track | str | None", folder: Path) -> Iterator[Track]:
    """What hands figures to `track` (a callable, a name of `OPEN`, or nothing), closing it at the end.

    A step is handed over once, also where a killed run takes it again: the last one is kept in the run folder.
    The first exception of a tracker is logged as a warning with its name, and this process calls it no more.
    """
    if track is None:
        yield lambda step, figures: None
        return
    called = track if isinstance(track, str) else getattr(track, "__name__", type(track).__name__)
    mark = _mark(folder)
    log: Track | None = None
    close: Callable[[], Any] = getattr(track, "close", lambda: None)
    failed = False

    def tell(step: int, figures: Figures) -> None:
        nonlocal log, close, failed
        if failed or step <= mark["step"]:
            return
        try:
            if log is None:
                log, close = OPEN[track](folder, mark["key"]) if isinstance(track, str) else (track, close)
            # Before the call: a step missing there stands in metrics.jsonl, one that is there twice misleads.
            mark["step"] = step
            write_json(folder / MARK, mark)
            log(step, figures)
        except Exception as error:
            failed = True
            _warn(called, error)

    try:
        yield tell
    finally:
        if log is not None:
            try:
                close()
            except Exception as error:
                _warn(called, error)


def _mark(folder: Path) -> dict[str, Any]:
    """What an earlier process of this run left, else a new name. A spoilt file is as good as none."""
    try:
        left = read_json(folder / MARK)
        return {"step": int(left["step"]), "key": str(left["key"])}
    except (SelftaughtError, KeyError, ValueError, TypeError):
        return {"step": 0, "key": secrets.token_hex(4)}


def _warn(called: str, error: Exception) -> None:
    _log.warning(
        "tracker %s failed and is not called again: %s: %s (figures go on in metrics.jsonl)",
        called, type(error).__name__, error,
    )  # fmt: skip
