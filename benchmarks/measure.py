"""How time and memory are measured: paired rounds, and the high-water mark of a process of its own."""

import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.meters import Reading, Seconds, Timed, peak_growth, timed
from selftaught.core.over_tasks import available_cores

__all__ = [
    "Reading", "Seconds", "Timed", "environment", "in_fork", "in_fresh_process", "paired_rounds", "peak_growth",
    "summary", "timed",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[1]


def paired_rounds(
    calls: Mapping[str, Callable[[], object]], rounds: int, limit: float = float("inf")
) -> dict[str, list[Seconds]]:
    """Every call once a round, starting at another one each time, so that slow spells hit all alike.

    After `limit` seconds of processor time no further round starts; there is always one.
    """
    names = list(calls)
    out: dict[str, list[Seconds]] = {name: [] for name in names}
    begun = time.process_time()
    for turn in range(rounds):
        if turn and time.process_time() - begun > limit:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            out[name].append(timed(calls[name]))
    return out


def summary(own: Sequence[Timed], baseline: Sequence[Timed]) -> dict[str, Any]:
    """Medians in seconds, and the median over rounds of the ratio to the baseline's time in that round."""
    out: dict[str, Any] = {"rounds": len(own)}
    for kind in ("cpu", "wall"):
        mine = [getattr(s, kind) for s in own]
        ratios = [a / getattr(b, kind) for a, b in zip(mine, baseline, strict=True)]
        out |= {f"{kind}_s": statistics.median(mine), f"{kind}_ratio": statistics.median(ratios)}
        out[f"{kind}_ratio_range"] = [min(ratios), max(ratios)]
    return {k: _rounded(v) for k, v in out.items()}


def in_fork(call: Callable[[], float]) -> float:
    """`call()` in a copy of this process, which must not have used autograd or several threads yet.

    A copy of a process that has only loaded its modules is as good as a fresh one, and starts at once.
    Raises RuntimeError when the copy dies, of too little memory for example.
    """
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=lambda: send.send(call()))
    process.start()
    send.close()
    try:
        return float(receive.recv())
    except EOFError as error:
        raise RuntimeError("a measurement died; its own words stand above. Try smaller sizes.") from error
    finally:
        process.join()


def in_fresh_process(arguments: Sequence[str]) -> Any:
    """What `python -m benchmarks._one ARGUMENTS` prints as JSON, on one thread.

    Raises RuntimeError with the process's own words when it fails.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks._one", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"benchmarks._one {' '.join(arguments)} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout)


def environment() -> dict[str, Any]:
    """What a reader needs to place the numbers."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": available_cores(),
        "threads": 1,
        "busy": _load(),
    }


def _load() -> float | None:
    """Programs that wanted a core in the last minute; above `cores` the clock says little."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def _rounded(value: Any) -> Any:
    return [_rounded(v) for v in value] if isinstance(value, list) else round(value, 4)
