"""Clock, processor and memory of one call. Only the standard library: this runs in every peer's environment."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final


class Timed(Protocol):
    """Seconds of one call by the clock and of the processor."""

    @property
    def wall(self) -> float: ...
    @property
    def cpu(self) -> float: ...


@final
@dataclass(frozen=True)
class Seconds:
    """What one call took: by the clock, and of the processor (which other programs disturb less)."""

    wall: float
    cpu: float


@final
@dataclass(frozen=True)
class Reading:
    """Seconds of one call, and by how many MiB the resident high-water mark exceeded the level before it."""

    wall: float
    cpu: float
    peak_mib: float


def timed(call: Callable[[], object]) -> Seconds:
    """One call of `call`."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def peak_growth(call: Callable[[], object]) -> float:
    """By how many MiB the resident high-water mark during `call` exceeds the level before it.

    Right only in a fresh process: memory that was freed before stays resident and would be used again.
    """
    return read(call).peak_mib


def read(call: Callable[[], object]) -> Reading:
    """One call of `call` on all meters; its result lives until the mark has been read."""
    with contextlib.suppress(OSError):
        # Loading torch may have stood higher than it left things: start the mark from here.
        Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    kept = call()
    spent = time.perf_counter() - wall, time.process_time() - cpu
    growth = _resident("VmHWM") - before
    del kept
    return Reading(*spent, round(growth, 1))


def _resident(field: str) -> float:
    """A line of Linux's status file in MiB; elsewhere the high-water mark of the process."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: a spawned process starts with its parent's mark there.
        lines = [line for line in status.read_text().splitlines() if line.startswith(field)]
        return int(lines[0].split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024
