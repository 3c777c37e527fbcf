"""Bad days: kill -9, full disks and read-only folders at every moment of pretrain and adapt, then going on."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import torch

from benchmarks import faults
from benchmarks.faults import KILLED, Count, Fault, Limit, Lived, Moment, Operation, Torn
from benchmarks.measure import ROOT, environment
from benchmarks.wholeness import classifier_numbers, faults_in, run_numbers, same, temporaries
from selftaught.artifacts.files import write_json
from selftaught.core.errors import SaveError, SelftaughtError

METHODS = ("simclr", "moco", "bmssl")
"""Whose runs are killed in turn: plain, with a queue and a teacher in `slow`, with an inner loop."""

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


@final
@dataclass(frozen=True)
class Job:
    """A command on a folder of its own that can be disturbed and given again.

    `begin` makes the ground it starts from; `command` gives what to type now, as far as it came; `check` names
    what deviates in the folder after a disturbance; `numbers` is what counts in the end.
    """

    name: str
    begin: Callable[[Path], None]
    command: Callable[[Path], list[str]]
    check: Callable[[Path], list[str]]
    numbers: Callable[[Path], dict[str, Any]]

    def give(self, root: Path, fault: Fault | None = None) -> Lived:
        """One try at it."""
        return faults.run(self.command(root), root, fault, _often)


def _often() -> None:
    """In the copy: every step is logged and saved, so that most moments are moments of writing."""
    from selftaught.app import pretrain

    pretrain.CHECKPOINT_SECONDS, pretrain.LOG_EVERY = 0.0, 1


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


# ---------------------------------------------------------------------------------------------------- jobs


def jobs(work: Path, steps: int, methods: Sequence[str]) -> Iterator[Job]:
    """Runs of several methods, and a classifier made anew and in place of another."""
    data, labelled = _pictures(work / "data", 24), _labelled(work / "labelled")
    for method in methods:
        yield _pretraining(data, method, steps)
    for name, count in (("one", 1), ("two", 2)):
        _must(faults.run(_pretrain(data, "simclr", count, work / name), work / name, prepare=_often))
    known = [_adapted(work, labelled, *how) for how in (("one", "prototype"), ("two", "ridge"))]
    yield _adapting(work, labelled, "adapt", known, replace=False)
    yield _adapting(work, labelled, "adapt over another", known, replace=True)


def _pretrain(data: Path, method: str, steps: int, out: Path) -> list[str]:
    small = {"bmssl": ["tasks=2", "ways=3"], "simclr": ["batch=8"], "moco": ["batch=8", "queue=16"]}[method]
    told = f"--method {method} --size 16 --steps {steps} --views photo".split()
    return ["pretrain", str(data), "--out", str(out), *told, "--no-report", "--set", *small]


def _pretraining(data: Path, method: str, steps: int) -> Job:
    def command(root: Path) -> list[str]:
        begun = (root / "run" / "config.json").is_file()
        return _pretrain(data, method, steps, root / "run") + ["--resume"] * begun

    return Job(f"pretrain ({method})", _nothing, command, faults_in, lambda root: run_numbers(root / "run"))


def _adapt(work: Path, labelled: Path, model: str, head: str, root: Path) -> list[str]:
    return ["adapt", str(work / model), str(labelled), "--out", str(root / "clf"), "--head", head]


def _adapted(work: Path, labelled: Path, model: str, head: str) -> dict[str, Any]:
    with TemporaryDirectory(dir=work) as name:
        (root := Path(name) / "root").mkdir()
        _must(faults.run(_adapt(work, labelled, model, head, root), root))
        return classifier_numbers(root / "clf")


def _adapting(work: Path, labelled: Path, name: str, known: Sequence[dict[str, Any]], *, replace: bool) -> Job:
    def begin(root: Path) -> None:
        if replace:
            _must(faults.run(_adapt(work, labelled, "one", "prototype", root), root))

    def command(root: Path) -> list[str]:
        return _adapt(work, labelled, "two", "ridge", root)

    def check(root: Path) -> list[str]:
        """The old one or the new one, whole; or none where there was none."""
        if not replace and not (root / "clf" / "classifier.json").is_file():
            return faults_in(root)
        try:
            found = classifier_numbers(root / "clf")
        except SelftaughtError as error:
            return [f"neither the old nor the new classifier: {error}"]
        mixed = [] if any(same(found, one) for one in known) else ["a mixture of old and new"]
        return faults_in(root) + mixed

    return Job(name, begin, command, check, lambda root: classifier_numbers(root / "clf"))


def _must(lived: Lived) -> None:
    """Raise RuntimeError for an undisturbed command that failed."""
    if lived.status:
        raise RuntimeError(f"failed undisturbed: {lived.words}")


def _nothing(root: Path) -> None:
    """A command that starts in an empty folder."""


def _pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """Small pictures of noise."""
    from PIL import Image

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for i in range(count):
        x = torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(x.numpy()).save(folder / f"{i:02d}.png")
    return folder


def _labelled(folder: Path) -> Path:
    for seed, name in enumerate(("this", "that")):
        _pictures(folder / name, 2, seed)
    return folder


# ---------------------------------------------------------------------------------------------------- doing


def measure(kills: int, every: int, steps: int, seed: int, methods: Sequence[str]) -> list[dict[str, Any]]:
    """All rows. In a process that has not used several threads."""
    torch.set_num_threads(1)
    _warm()
    tallies: list[Tally] = []
    chance = random.Random(seed)
    with TemporaryDirectory() as name:
        work = Path(name)
        every_job = list(jobs(work, steps, methods))
        for turn, job in enumerate(every_job):
            goal, seconds = _undisturbed(job, work)
            share = kills // len(every_job) + (turn < kills % len(every_job))
            tallies.append(_random_kills(job, work, goal, seconds, share, chance))
            if every and (turn == 0 or turn >= len(methods)):
                tallies += _exhaustively(job, work, goal, every)
    return [tally.as_json() for tally in tallies if tally.times]


def _warm() -> None:
    """Load once what every copy would load."""
    import sklearn.linear_model  # noqa: F401
    from PIL import Image

    import selftaught.app.naming
    import selftaught.app.pretrain
    import selftaught.app.reporting  # noqa: F401

    Image.init()


def _undisturbed(job: Job, work: Path) -> tuple[dict[str, Any], float]:
    """What it should come to, and how many seconds it takes."""
    with TemporaryDirectory(dir=work) as name:
        (root := Path(name) / "root").mkdir()
        job.begin(root)
        begun = time.monotonic()
        _must(job.give(root))
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
        faults.run(job.command(root), root, _Counting(counts), _often)
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
