"""The log of a run: one JSON object a line, appended, readable at any moment."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selftaught.artifacts.files import save_error, write_bytes
from selftaught.core.errors import RunError


def append_metrics(path: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Add one line for `step`, after cutting a line that a killed process left torn; raises SaveError."""
    figures = {name: _to_json(float(value)) for name, value in metrics.items()}
    line = json.dumps({"step": step, **figures}) + "\n"
    start = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            start = _end_of_whole_lines(file.seek(0, os.SEEK_END), path)
            file.truncate(start)
            file.write(line.encode())
    except OSError as error:
        if start is not None:
            _cut(path, start)
        raise save_error(path, error) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines, oldest first: `step` int and figures as floats; nothing when there is no log.

    A torn last line is left out. Raises RunError when another line is broken.
    """
    return [line for _, line in _lines(path)]


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a torn last one, so that a resumed run logs nothing twice."""
    if path.exists():
        write_bytes(path, b"".join(raw for raw, line in _lines(path) if line["step"] <= step))


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    whole = [raw for raw in content.splitlines(keepends=True) if raw.endswith(b"\n")]
    return [(raw, _parsed(path, number, raw)) for number, raw in enumerate(whole, start=1)]


def _parsed(path: Path, number: int, raw: bytes) -> dict[str, Any]:
    try:
        line = json.loads(raw)
        figures = {name: float(value) for name, value in line.items() if name != "step"}
        return {"step": int(line["step"]), **figures}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise RunError(f"{path}, line {number} is broken. Delete that line and try again.") from error


def _to_json(value: float) -> float | str:
    """JSON has no infinity and no NaN; their names as text do, and `float` reads them back."""
    return value if math.isfinite(value) else str(value)


def _end_of_whole_lines(size: int, path: Path, block: int = 65536) -> int:
    """The position after the last newline of a file of `size` bytes."""
    with path.open("rb") as file:
        for end in range(size, 0, -block):
            start = max(0, end - block)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
    return 0


def _cut(path: Path, size: int) -> None:
    """Take a half-written line back; should that fail as well, the next reader leaves it out."""
    try:
        os.truncate(path, size)
    except OSError:
        return
