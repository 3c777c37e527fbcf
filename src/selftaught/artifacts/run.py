"""The folder of one training run: configuration, log, checkpoints, model, report."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from selftaught.artifacts.checkpoint import load_state, save_state
from selftaught.artifacts.files import (
    TEMPORARY_SUFFIX,
    read_json,
    save_error,
    sync_folder,
    write_json,
    writer,
)
from selftaught.artifacts.lock import LOCK, OWNER, locked
from selftaught.artifacts.metrics import append_metrics, cut_metrics, read_metrics
from selftaught.core.errors import RunError, SaveError
from selftaught.core.types import State

RUN_FORMAT = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """A checkpoint, and what was wrong with a newer one where an older one had to serve (else None)."""

    state: State
    warning: str | None = None


@final
@dataclass(frozen=True)
class Run:
    """A run folder, made by `Run.create` or `Run.open`.

    It holds `config.json`, `metrics.jsonl`, `train.log`, `checkpoints/`, and at the end `model/`,
    `report.html` and `finished.json`. Whoever writes holds `lock()`; reading needs no lock.
    """

    path: Path
    config: dict[str, Any]

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any]) -> "Run":
        """Make a run folder, with its parents, for the JSON-like `config`.

        Raises RunError when the folder holds anything already, SaveError when it cannot be written.
        """
        folder = Path(path)
        _refuse_occupied(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise save_error(folder, error) from error
        with locked(folder):
            # Another process may have been faster.
            _refuse_occupied(folder)
            content = {"format": RUN_FORMAT, "writer": writer(), "config": dict(config)}
            write_json(folder / "config.json", content)
        return cls.open(folder)

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """The run in an existing folder; changes nothing there.

        Raises RunError when it is missing, half made, broken or of another format.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise RunError(f"{folder} is not a folder. Check the name, or start a new run there.")
        file = folder / "config.json"
        if not file.is_file():
            raise RunError(
                f"{file} is missing: {folder} is no run folder, or its making was cut short. "
                "Check the name, or start again in a new or empty folder."
            )
        return cls(folder, _checked_config(file))

    @property
    def model_path(self) -> Path:
        """The folder of the finished model."""
        return self.path / "model"

    @property
    def report_path(self) -> Path:
        """The report, one HTML file; write it by `files.write_text`."""
        return self.path / "report.html"

    @property
    def finished(self) -> bool:
        """Whether training went to its end."""
        return (self.path / "finished.json").is_file()

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Mark the run as finished, with a JSON-like `summary`; raises SaveError."""
        write_json(self.path / "finished.json", {"writer": writer(), "summary": dict(summary or {})})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line of figures to `metrics.jsonl`; raises SaveError."""
        append_metrics(self._metrics, step, metrics)

    def metrics(self) -> list[dict[str, Any]]:
        """The log, oldest first: `step` and figures. Raises RunError when a line is broken."""
        return read_metrics(self._metrics)

    def save_checkpoint(self, state: State) -> None:
        """Keep `state` as the last checkpoint, and the one before it as `previous`; raises SaveError.

        At every moment at least one whole checkpoint is there.
        """
        save_state(self._next, state)
        try:
            if self._last.exists():
                self._last.replace(self._previous)
            self._next.replace(self._last)
        except OSError as error:
            raise save_error(self._last, error) from error
        sync_folder(self._last.parent)

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return any(file.is_file() for file in (self._next, self._last, self._previous))

    def restore(self) -> Restored:
        """The newest whole checkpoint, with a warning when it is not the last; changes nothing.

        Raises RunError when there is none.
        """
        if not self.has_checkpoint:
            raise RunError(f"{self._last} is missing: nothing was saved yet. Train this run from its start.")
        faults: list[str] = []
        # Only a process that died between writing and renaming `next` leaves it: whole, and newest.
        for file in (self._next, self._last, self._previous):
            if not file.is_file() and file != self._last:
                continue
            try:
                return Restored(load_state(file), _warning(file, faults))
            except RunError as error:
                faults.append(str(error))
        raise RunError(f"No checkpoint of {self.path} can be used. " + " ".join(faults))

    def load_checkpoint(self) -> State:
        """The state of `restore()`; its warning goes to the log of the program. Raises RunError."""
        restored = self.restore()
        if restored.warning:
            _log.warning(restored.warning)
        return restored.state

    def resume(self) -> Restored | None:
        """`restore()` for going on training: the lines logged after the checkpoint are dropped.

        Without a checkpoint the log is emptied and None is returned. Call it while holding `lock()`.
        Raises RunError when no checkpoint can be used.
        """
        restored = self.restore() if self.has_checkpoint else None
        cut_metrics(self._metrics, -1 if restored is None else restored.state.step)
        return restored

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the right to write this run; the system takes it back from a process that died.

        Raises RunError when another process (or another `lock()` of this one) holds it.
        """
        with locked(self.path, self._last.parent.name):
            yield

    @contextmanager
    def logging(self, level: int = logging.INFO) -> Iterator[None]:
        """Append what the library logs meanwhile to `train.log`; raises SaveError."""
        try:
            handler = logging.FileHandler(self.path / "train.log", encoding="utf-8")
        except OSError as error:
            raise save_error(self.path / "train.log", error) from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handler.setLevel(level)
        logger = logging.getLogger("selftaught")
        before = logger.level
        logger.addHandler(handler)
        logger.setLevel(min(level, before or level))
        try:
            yield
        finally:
            logger.setLevel(before)
            logger.removeHandler(handler)
            handler.close()

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _next(self) -> Path:
        return self.path / "checkpoints" / "next.safetensors"

    @property
    def _last(self) -> Path:
        return self.path / "checkpoints" / "last.safetensors"

    @property
    def _previous(self) -> Path:
        return self.path / "checkpoints" / "previous.safetensors"


def _refuse_occupied(folder: Path) -> None:
    """RunError unless `folder` is absent, empty, or holds only what a cut-short `create` left."""
    try:
        if not folder.exists():
            return
        if not folder.is_dir():
            raise RunError(f"{folder} is a file. Choose another name for the run's folder.")
        names = sorted({p.name for p in folder.iterdir() if p.suffix != TEMPORARY_SUFFIX} - {LOCK, OWNER})
    except OSError as error:
        raise SaveError(f"{folder} cannot be used: {error.strerror}. Choose another folder.") from error
    if not names:
        return
    if "config.json" not in names:
        raise RunError(f"{folder} holds other files ({names[0]}, ...). Choose a new or empty folder.")
    state = "a finished run" if "finished.json" in names else "an unfinished run"
    raise RunError(f"{folder} holds {state} already. Resume it, choose another folder, or delete it.")


def _checked_config(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if content.get("format") != RUN_FORMAT:
        raise RunError(
            f"{file} was written by {content.get('writer', 'an unknown program')} in run format "
            f"{content.get('format', 'unknown')}; {writer()} reads format {RUN_FORMAT}. "
            "Install the version that wrote it, or start a new run in another folder."
        )
    config = content.get("config")
    if not isinstance(config, dict):
        raise RunError(f"{file} holds no configuration. Restore it from a copy, or start a new run elsewhere.")
    return config


def _warning(used: Path, faults: list[str]) -> str | None:
    if not faults:
        return None
    return f"{used} is used instead of a newer checkpoint, and the steps since are lost. " + " ".join(faults)
