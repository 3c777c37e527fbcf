"""Fuzz every reader of files with mutated inputs: only the library's own errors, nothing dropped in silence."""

import random
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, final

import torch

from benchmarks.fuzz_targets import TARGETS, Target
from benchmarks.measure import environment
from benchmarks.mutations import mutated
from selftaught.artifacts.files import write_json
from selftaught.core.errors import SelftaughtError

Verdict = Literal["read", "refused", "crashed", "dropped"]


@dataclass
class Outcome:
    """What became of the inputs of one reader."""

    read: int = 0
    refused: int = 0
    crashed: int = 0
    dropped: int = 0
    slowest: float = 0.0
    examples: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return vars(self) | {"slowest": round(self.slowest, 2), "examples": self.examples[:5]}


@final
@dataclass(frozen=True)
class Fuzz:
    """Mutated inputs for each reader; crashes and silent drops are counted and named."""

    cases: int = 1000
    """Inputs for each reader."""
    seed: int = 0
    """Of the mutations."""
    only: tuple[str, ...] = ()
    """Readers; all where none is named."""
    out: Path = Path("benchmarks/results/fuzz.json")
    """Where the counts go."""

    def run(self) -> None:
        """Feed, print, write; ends with status 1 after a crash or a drop."""
        torch.set_num_threads(1)
        rows = {name: fuzz(name, self.cases, self.seed) for name in self.only or tuple(TARGETS)}
        for name, row in rows.items():
            counts = f"{row.read:5} read, {row.refused:5} refused, {row.crashed} crashed, {row.dropped} dropped"
            print(f"{name:16}{counts}, slowest {row.slowest:.2f} s")
            print("".join(f"    {example}\n" for example in row.examples[:5]), end="")
        options = f"--cases {self.cases} --seed {self.seed}" + "".join(f" --only {name}" for name in self.only)
        content = {
            "command": f"python -m benchmarks fuzz {options}",
            "environment": environment(),
            "readers": {name: row.as_json() for name, row in rows.items()},
        }
        write_json(self.out, content)
        print(f"written to {self.out}")
        if any(row.crashed or row.dropped for row in rows.values()):
            raise SystemExit(1)


def fuzz(name: str, cases: int, seed: int) -> Outcome:
    """`cases` mutated inputs for one reader, the same ones for the same seed."""
    chance = random.Random(f"{name} {seed}")
    outcome = Outcome()
    with TemporaryDirectory() as ground, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target: Target = TARGETS[name](Path(ground))
        for number in range(cases):
            content = target.seeds[0] if number == 0 else mutated(target.seeds, chance)
            begun = time.monotonic()
            verdict, words = judged(target.read, content)
            outcome.slowest = max(outcome.slowest, time.monotonic() - begun)
            setattr(outcome, verdict, getattr(outcome, verdict) + 1)
            if verdict in ("crashed", "dropped") or (number == 0 and verdict != "read" and not target.random):
                outcome.examples.append(f"input {number} ({len(content)} bytes) {verdict}: {words}")
    return outcome


def judged(read: Callable[[bytes], Sequence[str]], content: bytes) -> tuple[Verdict, str]:
    """What a reader makes of an input, and its words where it did wrong."""
    try:
        lost = read(content)
    except SelftaughtError as error:
        return ("refused", "") if str(error) else ("crashed", "an error without words")
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return (
            "crashed",
            f"{type(error).__name__}: {str(error)[:150]} at {Path(where.filename).name}:{where.lineno}",
        )
    return ("dropped", f"not a word on {', '.join(lost)}"[:200]) if lost else ("read", "")
