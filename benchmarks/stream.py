"""Training from a mapped set: does the process's own memory grow with the number of pictures?

Pictures are generated (coarse noise, magnified), written once to an .npy file and mapped as the library maps
decoded sets. SimCLR then trains from the whole set, from a tenth and from a hundredth of it, each in a process of
its own. With `--shards N` such pictures are written as PNG and JPEG files into WebDataset shards instead, and the
library's reader decodes them into its mapped cache before training, once a twentieth of them and once all.

Own memory is RssAnon of Linux: what the process holds itself, without pages of the mapped file, which the system
may drop at any time. What does grow is a name for every picture.
"""

import shlex
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from selftaught.app import provenance
from selftaught.artifacts.files import read_json, write_json
from selftaught.core.train import start, train
from selftaught.data.pictures import Pictures
from selftaught.data.views import GLYPH
from selftaught.methods import SimCLR
from selftaught.nets import build_encoder
from selftaught.optimizers.gradient import Gradient

CHUNK = 10_000


@dataclass(frozen=True)
class Stream:
    """Write a set, train from all of it and from parts, and print each process's own memory."""

    pictures: int = 1_000_000
    shards: int = 0
    """Decode and train from this many pictures in tar files, instead of from a mapped file; the outcomes of both
    stand beside each other in `out`."""
    size: int = 32
    """Pictures are grey, so many pixels square."""
    steps: int = 200
    batch: int = 64
    threads: int = 1
    out: Path = Path("benchmarks/results/stream.json")

    def run(self) -> None:
        from benchmarks.stream_shards import from_shards

        kept = read_json(self.out) if self.out.exists() else {}
        asked, other = ("shards", "pictures") if self.shards else ("pictures", "shards")
        rows = from_shards(self) if self.shards else self.from_map()
        print("\n".join(lines(rows)))
        options = {k: v for k, v in asdict(self).items() if k not in ("out", other)}
        usual = asdict(Stream())
        said = [w for k, v in options.items() if k == asked or v != usual[k] for w in (f"--{k}", str(v))]
        command = shlex.join(["python", "-m", "benchmarks", "stream", *said])
        facts = {"command": command, "commit": provenance.commit(), "machine": provenance.machine()}
        done = {**facts, "options": options, "rows": rows}
        write_json(self.out, {**kept, "shards": done} if self.shards else {"shards": None, **kept, **done})

    def from_map(self) -> list[dict[str, Any]]:
        """A row for a hundredth, a tenth, and all of the pictures in a mapped file."""
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "pictures.npy"
            write(place, self.pictures, self.size)
            return [
                alone(trained, place, n, self) for n in (self.pictures // 100, self.pictures // 10, self.pictures)
            ]


def alone(measure: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """In a fresh process: memory that an earlier one has freed would hide what this one takes."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, *given).result()


def coarse_noise(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Pictures uint8 [count 1 size size]: noise of 8 x 8 points, magnified."""
    coarse = torch.rand(count, 1, 8, 8, generator=generator)
    fine = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    return (fine * 255).to(torch.uint8)


def write(place: Path, count: int, size: int) -> None:
    """An .npy file of uint8 [count 1 size size]: noise of 8 x 8 points, magnified; the same for the same sizes."""
    stored = np.lib.format.open_memmap(place, mode="w+", dtype=np.uint8, shape=(count, 1, size, size))
    generator = torch.Generator().manual_seed(0)
    for first in track(range(0, count, CHUNK), "writing pictures", transient=True):
        some = coarse_noise(min(CHUNK, count - first), size, generator)
        stored[first : first + len(some)] = some.numpy()
    stored.flush()


def trained(place: Path, count: int, asked: Stream) -> dict[str, Any]:
    """Own memory in MB before the set is opened and at most while training, and steps a second."""
    torch.set_num_threads(asked.threads)
    before = own_memory()
    x = torch.from_numpy(np.load(place, mmap_mode="c")[:count])
    began = time.perf_counter()
    highest = steps(Pictures(x, tuple(f"{i:07d}" for i in range(count))), asked)
    seconds = time.perf_counter() - began
    return {
        "pictures": count,
        "set, MB": count * asked.size**2 / 1e6,
        "own memory before, MB": before,
        "own memory at most, MB": highest,
        "steps a second": asked.steps / seconds,
    }


def steps(pictures: Pictures, asked: Stream) -> float:
    """Train, and give own memory at most in MB."""
    method = SimCLR(batch=asked.batch)
    net = method.network(build_encoder("conv4", 1, asked.size, 0))
    optimizer = Gradient(steps=asked.steps)
    source = method.source(pictures, GLYPH)
    with watched() as seen:
        for _ in train(method, net, source, optimizer, start(method, net, optimizer, 0), asked.steps):
            pass
    return max(seen)


@contextmanager
def watched(seconds: float = 0.05) -> Iterator[list[float]]:
    """A list that fills with this process's own memory in MB, looked at so often."""
    seen, done = [own_memory()], threading.Event()

    def look() -> None:
        while not done.wait(seconds):
            seen.append(own_memory())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        seen.append(own_memory())


def own_memory() -> float:
    """RssAnon of this process in MB; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    found = [line for line in status.read_text().splitlines() if line.startswith("RssAnon:")]
    return float(found[0].split()[1]) * 1024 / 1e6 if found else float("nan")


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table; the last column is the growth over the smallest set."""
    at_most = [key for key in rows[0] if "at most" in key]
    highest = [max(r[key] for key in at_most) for r in rows]
    grown = [r | {"more than the smallest, MB": h - highest[0]} for r, h in zip(rows, highest, strict=True)]
    body = [[f"{v:,.0f}" if abs(v) >= 30 else f"{v:.1f}" for v in r.values()] for r in grown]
    return ["| " + " | ".join(cells) + " |" for cells in [list(grown[0]), ["---"] * len(grown[0]), *body]]
