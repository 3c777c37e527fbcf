"""What drawing the next batch beside the step gains: SimCLR by the clock with batches drawn ahead and without."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch

from benchmarks.measure import Timed, environment, paired_rounds, summary
from benchmarks.pipeline import noise
from selftaught.artifacts.files import write_json
from selftaught.core.memory import keep_freed_memory
from selftaught.core.train import start, train
from selftaught.core.types import TaskSource
from selftaught.data.pictures import Pictures
from selftaught.data.views import PHOTO
from selftaught.methods.simclr import SimCLR
from selftaught.nets import build_encoder
from selftaught.optimizers.gradient import Gradient

NONE, DRAWING = "no batch ahead", "drawing alone"


@final
@dataclass(frozen=True)
class Prefetch:
    """Seconds of a few SimCLR steps on random colour pictures; the same numbers come out of every row."""

    ahead: tuple[int, ...] = (1, 2)
    """Batches drawn ahead, each a row beside none."""
    net: str = "conv4"
    """Encoder. The cheaper its step, the more there is to gain."""
    pictures: int = 2048
    """Pictures in memory."""
    size: int = 32
    """Height and width in pixels."""
    batch: int = 64
    """Pictures of a step, in two views each."""
    steps: int = 8
    """Steps of one reading."""
    rounds: int = 7
    """Readings of each row, in turns."""
    limit: float = 120.0
    """Processor seconds after which no further round starts."""
    threads: int = 1
    """Threads of torch. Drawing beside the step needs a core that these leave idle."""
    out: Path = Path("benchmarks/results/prefetch.json")
    """Where the numbers go."""

    def run(self) -> None:
        """Measure, print, write."""
        torch.set_num_threads(self.threads)
        keep_freed_memory()  # as the command line does, for all rows alike
        x = noise(self.pictures, self.size)
        method = SimCLR(batch=self.batch)
        source = method.source(Pictures(x, tuple(str(i) for i in range(len(x)))), PHOTO)
        calls: dict[str, Callable[[], object]] = {
            (f"{n} ahead" if n else NONE): partial(self._train, method, source, n) for n in (0, *self.ahead)
        }
        calls[DRAWING] = partial(self._draw, source)
        for call in calls.values():
            call()
        rows = rows_of(paired_rounds(calls, self.rounds, self.limit))
        print("\n".join(table(rows)))
        options = ["--ahead", *map(str, self.ahead), "--net", self.net, "--pictures", str(self.pictures)]
        options += ["--size", str(self.size), "--batch", str(self.batch), "--steps", str(self.steps)]
        options += ["--rounds", str(self.rounds), "--limit", f"{self.limit:g}", "--threads", str(self.threads)]
        content = {
            "command": f"python -m benchmarks prefetch {shlex.join(options)}",
            "environment": environment(self.threads),
            "baseline": NONE,
            "rows": rows,
        }
        write_json(self.out, content)
        print(f"written to {self.out}")

    def _train(self, method: SimCLR, source: TaskSource, ahead: int) -> list[dict[str, float]]:
        torch.manual_seed(0)  # the projector's start
        net = method.network(build_encoder(self.net, 3, self.size, 0))
        optimizer = Gradient(steps=self.steps)
        state = start(method, net, optimizer, 0)
        return [logged for _, logged in train(method, net, source, optimizer, state, self.steps, ahead)]

    def _draw(self, source: TaskSource) -> None:
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.steps):
            source(generator)


def rows_of(found: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Medians, and ratios to the first row within rounds."""
    base: list[Timed] = found[NONE]
    return [{"variant": name} | summary(each, base) for name, each in found.items()]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of text; x is the ratio to no batch ahead, by the clock."""
    out = [f"{'':18}{'wall s':>8}{'x':>7} {'interval':>15}{'cpu s':>8}{'x':>7}"]
    for r in rows:
        low, high = r["wall_ratio_interval"]
        times = f"{r['wall_s']:8.2f}{r['wall_ratio']:7.2f} [{low:6.2f},{high:6.2f}]"
        out.append(f"{r['variant']:18}{times}{r['cpu_s']:8.2f}{r['cpu_ratio']:7.2f}")
    return out
