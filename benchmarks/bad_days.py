"""Bad days: kill -9, full and read-only disks at every moment of pretrain, adapt and export, then going on."""

import importlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import torch

from benchmarks import faults
from benchmarks.bad_days_jobs import FORMATS, METHODS, Job, jobs, must, often
from benchmarks.faults import KILLED, Count, Fault, Limit, Moment, Operation, Torn
from benchmarks.measure import ROOT, environment
from benchmarks.wholeness import same, temporaries
from selftaught.artifacts.files import write_json
from selftaught.core.errors import SaveError, SelftaughtError

_REFUSED = SaveError.exit_code


@final
@dataclass(frozen=True)
class BadDays:
    """Kill, refuse the disk, go on, compare with an undisturbed run; every deviation is counted and named."""

    kills: int = 100
    """kill -9 at random moments."""
    every: int = 3
    """Each `every`-th of the operations on files of a command is where it is killed or refused (0: none)."""
    steps: int = 2
    """Outer steps of a run; each is saved."""
    methods: tuple[str, ...] = METHODS
    """Whose runs are disturbed; operation by operation only those of the first: all write by the same code."""
    formats: tuple[str, ...] = FORMATS
    """In which a classifier is exported under disturbances."""
    seed: int = 0
    """Of the moments."""
    out: Path = Path("benchmarks/results/bad_days.json")
    """Where the counts go."""

    def run(self) -> None:
        """Do it in a process of its own, print, write."""
        rows = self.rows()
        options = f"--kills {self.kills} --every {self.every} --steps {self.steps} --seed {self.seed}"
        bad = sum(row["deviations"] for row in rows)
        content = {
            "command": f"python -m benchmarks bad_days {options}",
            "environment": environment(),
            "deviations": bad,
            "rows": rows,
        }
        for row in rows:
            print(f"{row['command']:10} {row['fault']:44} {row['times']:5} times, {row['deviations']} deviations")
            print("".join(f"    {line}\n" for line in row["examples"]), end="")
        write_json(self.out, content)
        print(f"written to {self.out}")
        if bad:
            raise SystemExit(1)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each command and fault: how often, and what deviated."""
        variables = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.bad_days", json.dumps(self._asked())]
        done = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)

    def _asked(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "out"}


@dataclass
class Tally:
    """What was done by one command under one fault."""

    command: str
    fault: str
    times: int = 0
    resumed: int = 0
    examples: list[str] = field(default_factory=list)

    def deviate(self, *what: str) -> None:
        """Note deviations."""
        self.examples.extend(what)

    def as_json(self) -> dict[str, Any]:
        """Counts, and the first few deviations."""
        shown = [line[:300] for line in self.examples[:5]]
        counts = {"times": self.times, "resumed": self.resumed, "deviations": len(self.examples)}
        return {"command": self.command, "fault": self.fault, **counts, "examples": shown}


def disturbed(job: Job, work: Path, tally: Tally, draw: Callable[[], Fault | None], goal: dict[str, Any]) -> None:
    """The job in a new folder under one fault after the other until it comes to its end; then compare.

    `draw` gives the next fault, or None for a last undisturbed try.
    """
    with TemporaryDirectory(dir=work) as name:
        root = Path(name) / "root"
        root.mkdir()
        job.begin(root)
        status, fault = -1, draw()
        while status != 0:
            lived = job.give(root, fault)
            status, words = lived.status, lived.words
            tally.times += fault is not None and status != 0
            tally.resumed += fault is None
            if status not in (0, KILLED, _REFUSED) or (fault is None and status != 0):
                tally.deviate(f"{fault}: exit {status}: {words[-250:]}")
                return
            if "Traceback" in words or (status == _REFUSED and str(root) not in words):
                tally.deviate(f"{fault}: {words[-250:]}")
            tally.deviate(*(f"{fault}: {what}" for what in job.check(root)))
            if status == KILLED and job.done(root):
                break
            fault = None if status == _REFUSED else draw()
        _compare(job, root, goal, tally)


def _compare(job: Job, root: Path, goal: dict[str, Any], tally: Tally) -> None:
    try:
        found = job.numbers(root)
    except SelftaughtError as error:
        tally.deviate(f"after all: {error}")
        return
    tally.deviate(*(f"{k} differs from the undisturbed one" for k in goal if not same(found.get(k), goal[k])))
    tally.deviate(*(f"{left} was left behind" for left in temporaries(root)))


# ---------------------------------------------------------------------------------------------------- doing


def measure(
    kills: int, every: int, steps: int, seed: int, methods: Sequence[str], formats: Sequence[str]
) -> list[dict[str, Any]]:
    """All rows. In a process that has not used several threads."""
    torch.set_num_threads(1)
    _warm(formats)
    tallies: list[Tally] = []
    chance = random.Random(seed)
    with TemporaryDirectory() as name:
        work = Path(name)
        every_job = list(jobs(work, steps, methods, formats))
        for turn, job in enumerate(every_job):
            goal, seconds = _undisturbed(job, work)
            share = kills // len(every_job) + (turn < kills % len(every_job))
            tallies.append(_random_kills(job, work, goal, seconds, share, chance))
            if every and job.each:
                tallies += _exhaustively(job, work, goal, every)
    return [tally.as_json() for tally in tallies if tally.times]


def _warm(formats: Sequence[str]) -> None:
    """Load once what every copy would load."""
    import sklearn.linear_model  # noqa: F401
    from PIL import Image

    import selftaught.app.naming
    import selftaught.app.pretrain
    import selftaught.app.reporting  # noqa: F401

    Image.init()
    needed = {"torch": ["torch._dynamo", "torch.export._trace", "torch._export.serde.serialize"]}
    needed["onnx"] = [*needed["torch"], "onnxruntime", "onnxscript", "torch.onnx._internal.exporter._core"]
    for name in {name for format in formats for name in needed.get(format, [])}:
        importlib.import_module(name)


def _undisturbed(job: Job, work: Path) -> tuple[dict[str, Any], float]:
    """What it should come to, and how many seconds it takes."""
    with TemporaryDirectory(dir=work) as name:
        (root := Path(name) / "root").mkdir()
        job.begin(root)
        begun = time.monotonic()
        must(job.give(root))
        return job.numbers(root), time.monotonic() - begun


def _random_kills(
    job: Job, work: Path, goal: dict[str, Any], seconds: float, count: int, chance: random.Random
) -> Tally:
    tally = Tally(job.name, "kill -9 at a random moment")

    def draw() -> Fault | None:
        return Moment(chance.uniform(0, seconds)) if tally.times < count else None

    while tally.times < count:
        disturbed(job, work, tally, draw, goal)
    return tally


def _exhaustively(job: Job, work: Path, goal: dict[str, Any], every: int) -> list[Tally]:
    """Every operation of the command is where it happens once."""
    changes, writes, sizes = _counted(job, work)
    kinds: dict[str, Sequence[Fault]] = {
        "kill -9 before an operation on files": [Operation(n, "kill") for n in range(1, changes + 1, every)],
        "kill -9 in the middle of a file": [Torn(n) for n in range(1, writes + 1, every)],
        "disk full from an operation on": [Operation(n, "full") for n in range(1, changes + 1, every)],
        "read-only from an operation on": [Operation(n, "read-only") for n in range(1, changes + 1, every)],
        "a write cut short by the disk": [Limit(size) for size in sizes[::every]],
    }
    tallies = []
    for name, each in kinds.items():
        tally = Tally(job.name, name)
        for fault in each:
            disturbed(job, work, tally, partial(next, iter([fault]), None), goal)
        tallies.append(tally)
    return tallies


def _counted(job: Job, work: Path) -> tuple[int, int, list[int]]:
    """Operations and whole files of the undisturbed command, and sizes at which a limit would hurt it."""
    with TemporaryDirectory(dir=work) as name:
        (root := Path(name) / "root").mkdir()
        job.begin(root)
        counts = root.parent / "counts.txt"
        faults.run(job.command(root), root, _Counting(counts), often)
        changes, writes = (int(n) for n in counts.read_text().split())
        found = {size for p in root.rglob("*") if p.is_file() and (size := p.stat().st_size)}
        return changes, writes, sorted({0} | {size - 1 for size in found} | {size // 2 for size in found})


@dataclass(frozen=True)
class _Counting:
    """No fault: writes at every operation how many there were."""

    out: Path
    seconds: float = faults.PATIENCE

    def arm(self, root: Path) -> None:
        changes, writes, write = Count(), Count(), Path.write_bytes
        handle = os.open(self.out, os.O_WRONLY | os.O_CREAT)

        def note() -> None:
            os.pwrite(handle, f"{changes.value} {writes.value}".encode(), 0)

        def change(frees: bool, path: str) -> None:
            changes.value += 1
            note()

        def counted(path: Path, content: bytes) -> int:
            writes.value += 1
            return write(path, content)

        Path.write_bytes = counted  # type: ignore[assignment,method-assign]
        faults.listen(root, change)


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
