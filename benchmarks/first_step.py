"""Seconds from starting Python to the first training step, and what a later step takes.

Each reading is a process of its own: it loads torch, the library, builds a Conv4, and takes steps on generated
strokes. Processor seconds count from the process's start, by the clock from just before it.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, final

from benchmarks._first import BEGAN, STAGES
from benchmarks.measure import ROOT, environment
from selftaught.artifacts.files import write_json


@final
@dataclass(frozen=True)
class FirstStep:
    """Time to the first step with generated strokes on Conv4, a fresh process each time."""

    methods: tuple[str, ...] = ("simclr", "bmssl", "protonet", "maml")
    """Names of methods, at their own sizes."""
    size: int = 28
    """Pictures are grey, so many pixels square."""
    rounds: int = 5
    """Processes for each method, in turns."""
    threads: int = 1
    """Threads of torch."""
    out: Path = Path("benchmarks/results/first_step.json")
    """Where the numbers go."""

    def run(self) -> None:
        """Measure, print, write."""
        found: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in self.methods}
        for _ in range(self.rounds):
            for name in self.methods:
                found[name].append(reading(name, self.size, self.threads))
        rows = [row_of(name, each) for name, each in found.items()]
        print("\n".join(table(rows)))
        options = f"--methods {shlex.join(self.methods)} --size {self.size} --rounds {self.rounds}"
        content = {
            "command": f"python -m benchmarks first_step {options} --threads {self.threads}",
            "environment": environment(self.threads),
            "rows": rows,
        }
        write_json(self.out, content)
        print(f"written to {self.out}")


def reading(method: str, size: int, threads: int) -> dict[str, dict[str, float]]:
    """Seconds of every stage in a new process, "wall" and "cpu". Raises RuntimeError with its words."""
    variables = os.environ | {"OMP_NUM_THREADS": str(threads), BEGAN: repr(time.monotonic())}
    command = [sys.executable, "-m", "benchmarks._first", method, str(size), str(threads)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr.strip()}")
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


def row_of(name: str, each: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Medians over processes."""
    kinds = {kind: {s: round(median(e[s][kind] for e in each), 3) for s in STAGES} for kind in ("cpu", "wall")}
    return {"method": name, "rounds": len(each)} | kinds


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of text; seconds of the processor (by the clock)."""
    out = [f"{'method':14}" + "".join(f"{stage:>20}" for stage in STAGES) + "   processor seconds (by the clock)"]
    for r in rows:
        cells = (f"{r['cpu'][s]:.2f} ({r['wall'][s]:.2f})" for s in STAGES)
        out.append(f"{r['method']:14}" + "".join(f"{c:>20}" for c in cells))
    return out
