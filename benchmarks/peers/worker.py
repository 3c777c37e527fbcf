"""Long-lived processes that take one step when asked, in turns, so that all stand in one paired run."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from torch import Tensor

from benchmarks.peers.meters import Reading
from benchmarks.peers.work import Work, load_tensors

ROOT = Path(__file__).resolve().parents[2]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class WorkerDied(RuntimeError):
    """A worker that ended or did not answer; the message is its name and its last words."""


@final
@dataclass(frozen=True)
class Program:
    """`target` is "package.module:function" (see `work.Build`), run by `python`; the usual one is our own.
    `options` come on top of those of the work."""

    target: str
    python: Path = Path(sys.executable)
    options: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Conditions:
    """Under which workers run: threads of each, further environment variables, seconds to wait for one answer."""

    threads: int = 1
    variables: Mapping[str, str] = field(default_factory=dict)
    patience: float = 600.0


@final
class Worker:
    """One process that has built `program` on `work`; `tiny` is work that only loads kernels before, `check` that
    on which gradients are asked for (else `work`).

    Raises WorkerDied, from here and from every call, when the process ends or is silent for too long.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        work: Work,
        tiny: Work | None = None,
        at: Conditions | None = None,
        check: Work | None = None,
    ) -> None:
        self.name = name
        self._at = at or Conditions()
        self._folder = tempfile.TemporaryDirectory(prefix="selftaught-worker-")
        folder = Path(self._folder.name)
        for file, given in (("work", work), ("tiny", tiny), ("check", check)):
            if given is not None:
                replace(given, options={**given.options, **program.options}).save(folder / f"{file}.npz")
        with (folder / "words").open("w") as words:
            self._process = subprocess.Popen(
                [str(program.python), "-m", "benchmarks.peers.serve", program.target, str(folder)],
                cwd=ROOT,
                env=_environment(self._at),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
            )
        self.about = self._answer()

    def go(self) -> Reading:
        """One step. `peak_mib` tells the step's need only the first time: later ones use the same memory again."""
        return Reading(**self._ask("go"))

    def gradient(self) -> dict[str, Tensor]:
        """Gradients by name of one step in float64."""
        file = Path(self._folder.name) / "gradient.npz"
        self._ask(f"gradient {file}")
        return load_tensors(file)

    def close(self) -> None:
        """End the process and remove its files."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                # A dead reader makes the flush inside close() fail; there is nothing left to say to it.
                with suppress(BrokenPipeError):
                    pipe.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise WorkerDied(f"{self.name}: {self._last_words()}") from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        alarm = threading.Timer(self._at.patience, self._process.kill)
        alarm.start()
        began = time.monotonic()
        line = self._process.stdout.readline()
        alarm.cancel()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        self._process.wait()
        silent = time.monotonic() - began >= self._at.patience
        words = f"no answer in {self._at.patience:g} s" if silent else self._last_words()
        self.close()
        raise WorkerDied(f"{self.name}: {words}")

    def _last_words(self) -> str:
        """The last line it printed, which of a Python error is the message."""
        words = Path(self._folder.name) / "words"
        lines = words.read_text(errors="replace").strip().splitlines() if words.exists() else []
        return lines[-1].strip() if lines else f"ended with status {self._process.poll()} and no words"


@final
@dataclass(frozen=True)
class Rounds:
    """Readings of each worker, as many for all; `failures` are those that died, with their words."""

    readings: dict[str, list[Reading]]
    failures: dict[str, str]


def alternate(workers: Mapping[str, Worker], rounds: int, limit: float = float("inf")) -> Rounds:
    """One step of every worker a round, starting at another one each time, so that slow spells hit all alike.

    After `limit` seconds by the clock no further round starts; there is always one. A worker that dies is left
    out from then on, and its readings with it.
    """
    out: dict[str, list[Reading]] = {name: [] for name in workers}
    failures: dict[str, str] = {}
    began = time.monotonic()
    for turn in range(rounds):
        if turn and time.monotonic() - began > limit:
            break
        names = list(workers)
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            if name in failures:
                continue
            try:
                out[name].append(workers[name].go())
            except WorkerDied as error:
                failures[name] = str(error)
    return Rounds({k: v for k, v in out.items() if k not in failures}, failures)


@final
@dataclass(frozen=True)
class Comparison:
    """What `compare` found: readings in paired rounds, peak MiB of the first step in a fresh process, float64
    gradients where asked for, and who failed with which words."""

    readings: dict[str, list[Reading]]
    peaks: dict[str, float]
    gradients: dict[str, dict[str, Tensor]]
    failures: dict[str, str]


def compare(
    programs: Mapping[str, Program],
    work: Work,
    *,
    rounds: int,
    limit: float = float("inf"),
    tiny: Work | None = None,
    check: Work | None = None,
    at: Conditions | None = None,
) -> Comparison:
    """All `programs` on the same `work`; float64 gradients are those of `check`, which should be small; programs
    whose steps hand back none are left out there.

    Memory and gradients come first, one process after the other; then every program has a process and they
    take turns. Whatever fails is reported by name and the others go on.
    """
    peaks: dict[str, float] = {}
    gradients: dict[str, dict[str, Tensor]] = {}
    failures: dict[str, str] = {}
    for name, program in programs.items():
        try:
            with Worker(name, program, work, tiny, at, check) as worker:
                peaks[name] = worker.go().peak_mib
                if check is not None:
                    gradients[name] = worker.gradient()
        except WorkerDied as error:
            failures[name] = str(error)
    with ExitStack() as stack:
        workers = _start(stack, programs, set(programs) - set(failures), work, tiny, at, failures)
        found = alternate(workers, rounds, limit)
    return Comparison(found.readings, peaks, gradients, failures | found.failures)


def _start(
    stack: ExitStack,
    programs: Mapping[str, Program],
    names: Iterable[str],
    work: Work,
    tiny: Work | None,
    at: Conditions | None,
    failures: dict[str, str],
) -> dict[str, Worker]:
    chosen, workers = set(names), {}
    for name, program in programs.items():
        if name not in chosen:
            continue
        try:
            workers[name] = stack.enter_context(Worker(name, program, work, tiny, at))
            workers[name].go()  # the first step allocates what later ones find
        except WorkerDied as error:
            failures[name] = str(error)
            workers.pop(name, None)
    return workers


def _environment(at: Conditions) -> dict[str, str]:
    own = {name: str(at.threads) for name in THREADS}
    return os.environ | own | {"PYTHONPATH": str(ROOT), "PYTHONNOUSERSITE": "1"} | dict(at.variables)
