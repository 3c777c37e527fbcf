"""Training from a mapped set: does the process's own memory grow with the number of pictures?

Pictures are generated (coarse noise, magnified), written once to an .npy file and mapped as the library maps
decoded sets. SimCLR then trains from the whole set, from a tenth and from a hundredth of it, each in a process of
its own. Own memory is RssAnon of Linux: what the process holds itself, without pages of the mapped file, which the
system may drop at any time. What does grow is a name for every picture.
"""

import shlex
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch.nn import functional as F

from selftaught.app import provenance
from selftaught.artifacts.files import write_json
from selftaught.core.train import start, train
from selftaught.data.pictures import Pictures
from selftaught.data.views import GLYPH
from selftaught.methods import SimCLR
from selftaught.nets import build_encoder
from selftaught.optimizers.gradient import Gradient

_CHUNK = 10_000


@dataclass(frozen=True)
class Stream:
    """Write a set, train from all of it and from parts, and print each process's own memory."""

    pictures: int = 1_000_000
    size: int = 32
    """Pictures are grey, so many pixels square."""
    steps: int = 200
    batch: int = 64
    threads: int = 1
    out: Path = Path("benchmarks/results/stream.json")

    def run(self) -> None:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "pictures.npy"
            write(place, self.pictures, self.size)
            for count in (self.pictures // 100, self.pictures // 10, self.pictures):
                # A fresh process each: memory that an earlier one has freed would hide what this one takes.
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                    rows.append(alone.submit(trained, place, count, self).result())
        print("\n".join(lines(rows)))
        command = shlex.join(["python", "-m", "benchmarks", "stream", "--pictures", str(self.pictures)])
        facts = {"command": command, "commit": provenance.commit(), "machine": provenance.machine()}
        options = {k: v for k, v in asdict(self).items() if k != "out"}
        write_json(self.out, {**facts, "options": options, "rows": rows})


def write(place: Path, count: int, size: int) -> None:
    """An .npy file of uint8 [count 1 size size]: noise of 8 x 8 points, magnified; the same for the same sizes."""
    stored = np.lib.format.open_memmap(place, mode="w+", dtype=np.uint8, shape=(count, 1, size, size))
    generator = torch.Generator().manual_seed(0)
    for first in track(range(0, count, _CHUNK), "writing pictures", transient=True):
        coarse = torch.rand(min(_CHUNK, count - first), 1, 8, 8, generator=generator)
        fine = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
        stored[first : first + len(fine)] = (fine * 255).to(torch.uint8).numpy()
    stored.flush()


def trained(place: Path, count: int, asked: Stream) -> dict[str, Any]:
    """Own memory in MB before the set is opened and at most while training, and steps a second."""
    torch.set_num_threads(asked.threads)
    method = SimCLR(batch=asked.batch)
    net = method.network(build_encoder("conv4", 1, asked.size, 0))
    optimizer = Gradient(steps=asked.steps)
    before = own_memory()
    x = torch.from_numpy(np.load(place, mmap_mode="c")[:count])
    source = method.source(Pictures(x, tuple(f"{i:07d}" for i in range(count))), GLYPH)
    began, highest = time.perf_counter(), 0.0
    for _ in train(method, net, source, optimizer, start(method, net, optimizer, 0), asked.steps):
        highest = max(highest, own_memory())
    seconds = time.perf_counter() - began
    return {
        "pictures": count,
        "set, MB": count * asked.size**2 / 1e6,
        "own memory before, MB": before,
        "own memory at most, MB": highest,
        "steps a second": asked.steps / seconds,
    }


def own_memory() -> float:
    """RssAnon of this process in MB; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    found = [line for line in status.read_text().splitlines() if line.startswith("RssAnon:")]
    return float(found[0].split()[1]) * 1024 / 1e6 if found else float("nan")


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table; the last column is the growth over the smallest set."""
    least = rows[0]["own memory at most, MB"]
    grown = [r | {"more than the smallest, MB": r["own memory at most, MB"] - least} for r in rows]
    body = [[f"{v:,.0f}" if abs(v) >= 30 else f"{v:.1f}" for v in r.values()] for r in grown]
    return ["| " + " | ".join(cells) + " |" for cells in [list(grown[0]), ["---"] * len(grown[0]), *body]]
