"""How time and memory are measured: paired rounds, and the high-water mark of a process of its own."""

import json
import math
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

__all__ = [
    "Reading", "Seconds", "Timed", "environment", "in_fork", "in_fresh_process", "paired_rounds", "peak_growth",
    "rank_interval", "summary", "timed",
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
    """Medians in seconds, and the median over rounds of the ratio to the baseline's time in that round with its
    `rank_interval`."""
    out: dict[str, Any] = {"rounds": len(own)}
    for kind in ("cpu", "wall"):
        mine = [getattr(s, kind) for s in own]
        ratios = [a / getattr(b, kind) for a, b in zip(mine, baseline, strict=True)]
        out |= {f"{kind}_s": statistics.median(mine), f"{kind}_ratio": statistics.median(ratios)}
        low, high, coverage = rank_interval(ratios)
        out[f"{kind}_ratio_range"] = [min(ratios), max(ratios)]
        out |= {f"{kind}_ratio_interval": [low, high], "interval_coverage": coverage}
    return {k: _rounded(v) for k, v in out.items()}


def rank_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Two of the `values` that enclose the median of what they were drawn from, and with which probability.

    The narrowest pair of equal ranks from either end that does so with probability `level`; with too few values
    (five or fewer for 0.95) the outermost pair, whose probability is lower. It is that of the median lying
    between two order statistics, 1 - 2 P(Binomial(n, 1/2) < rank); no other property of the values is used.
    """
    ordered, n = sorted(values), len(values)
    tails = [2 * sum(math.comb(n, i) for i in range(rank)) / 2**n for rank in range(1, n // 2 + 1)]
    inside = [rank for rank, tail in enumerate(tails, 1) if 1 - tail >= level]
    rank = max(inside, default=1)
    return ordered[rank - 1], ordered[n - rank], 1 - tails[rank - 1] if tails else 0.0


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


def environment(threads: int = 1) -> dict[str, Any]:
    """What a reader needs to place the numbers."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": _cores(),
        "threads": threads,
        "busy": _load(),
    }


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load() -> float | None:
    """Programs that wanted a core in the last minute; above `cores` the clock says little."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def _rounded(value: Any) -> Any:
    return [_rounded(v) for v in value] if isinstance(value, list) else round(value, 4)
