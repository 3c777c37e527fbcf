"""Views per second of the batched augmentation against other libraries, in one paired run."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from benchmarks.measure import environment, summary
from benchmarks.peers.environments import Failure, install
from benchmarks.peers.work import Step, Work
from benchmarks.peers.worker import Conditions, Program, Worker, WorkerDied, alternate
from selftaught.artifacts.files import write_json
from selftaught.data.augment import augment
from selftaught.data.views import PHOTO, Views

OWN, KORNIA = "selftaught augment", "kornia AugmentationSequential"
SIMCLR = replace(PHOTO, crop=(0.08, 1.0), blur=0.0)
"""SimCLR's crop, mirror, colours and grey as its paper has them for small pictures: half strength, no blur."""
HERE, THERE = "benchmarks.pipeline", "benchmarks.peers.scripts.lightly_pipeline"
BATCH = 256
"""Pictures at once, where a library takes more than one."""


@final
@dataclass(frozen=True)
class Pipeline:
    """Two SimCLR views (crop, mirror, colour jitter, grey) of small colour pictures, by several libraries.

    lightly and torchvision run in an environment of their own, which is made where it is missing.
    """

    rounds: int = 9
    """Times that each library runs, in turns."""
    limit: float = 150.0
    """Seconds by the clock after which no further round starts."""
    pictures: int = 1024
    """Pictures in memory; a run makes two views of each."""
    size: int = 32
    """Height and width in pixels."""
    peers: bool = True
    """Also lightly and torchvision."""
    out: Path = Path("benchmarks/results/pipeline.json")
    """Where the numbers go."""

    def run(self) -> None:
        """Measure in processes on one thread each, print, write."""
        chosen, failures = programs(self.peers)
        work = Work({"x": noise(self.pictures, self.size)}, recipe(SIMCLR))
        readings, died = measured(chosen, work, self.rounds, self.limit)
        rows = [{"variant": name} | summary(each, readings[OWN]) for name, each in readings.items()]
        for row in rows:
            row |= {
                f"{k}_views_per_s": round(2 * self.pictures / max(row[f"{k}_s"], 1e-9)) for k in ("cpu", "wall")
            }
        rows = [_without_hidden(row) for row in rows]
        options = f"--rounds {self.rounds} --limit {self.limit:g} --pictures {self.pictures} --size {self.size}"
        content = {
            "command": f"python -m benchmarks pipeline {options}" + ("" if self.peers else " --no-peers"),
            "environment": environment(),
            "baseline": OWN,
            "recipe": recipe(SIMCLR),
            "rows": rows,
            "failures": failures | died,
        }
        write_json(self.out, content)
        self._print(rows, failures | died)

    def _print(self, rows: list[dict[str, Any]], failures: Mapping[str, str]) -> None:
        print(f"two views of {self.pictures} pictures {self.size}x{self.size}x3, 1 thread")
        print(f"time as a multiple of {OWN}'s, median over paired rounds (range)")
        print(f"{'':34}{'views/s cpu':>12}{'wall':>9}{'  time cpu':<24}{'  wall':<22}")
        for r in rows:
            line = f"{r['variant']:34}"
            line += f"{r['cpu_views_per_s']:12,}" if "cpu_s" in r else f"{'':12}"
            line += f"{r['wall_views_per_s']:9,}"
            print(line + "".join(_ratio(r, kind) for kind in ("cpu", "wall")))
        for name, words in failures.items():
            print(f"{name}: {words}")
        print(f"written to {self.out}")


def _without_hidden(row: dict[str, Any]) -> dict[str, Any]:
    """Processor time is left out where worker processes spend it, for it is not on the meter."""
    hidden = "workers" in row["variant"] and not row["variant"].endswith("0 workers")
    return {k: v for k, v in row.items() if not (hidden and k.startswith("cpu"))}


def _ratio(row: Mapping[str, Any], kind: str) -> str:
    if f"{kind}_s" not in row:
        return " " * 24
    low, high = row[f"{kind}_ratio_range"]
    return f"{row[f'{kind}_ratio']:8.2f} ({low:.2f}-{high:.2f})".ljust(24)


def noise(count: int, size: int) -> Tensor:
    """uint8 pictures [count 3 size size]; what is on them takes no part in the time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def recipe(views: Views) -> dict[str, float]:
    """What all libraries are told."""
    names = ("flip", "brightness", "contrast", "saturation", "hue", "jitter", "grey")
    return {"crop": views.crop[0]} | {name: getattr(views, name) for name in names}


def programs(peers: bool) -> tuple[dict[str, Program], dict[str, str]]:
    """What is compared, ours first; failures by name."""
    chosen = {
        OWN: Program(f"{HERE}:own"),
        f"{OWN}, exact colour": Program(f"{HERE}:own", options={"exact_colour": True}),
        KORNIA: Program(f"{HERE}:kornia"),
    }
    if not peers:
        return chosen, {}
    found = install("lightly")
    if isinstance(found, Failure):
        return chosen, {"lightly": f"cannot be installed: {found.error}"}
    chosen["torchvision v2, tensors"] = Program(f"{THERE}:torchvision_v2", found.python)
    chosen["lightly, in process"] = Program(f"{THERE}:in_process", found.python)
    for workers in range(3):
        name = f"lightly, DataLoader, {workers} workers"
        chosen[name] = Program(f"{THERE}:loader", found.python, {"workers": workers})
    return chosen, {}


def measured(
    chosen: Mapping[str, Program], work: Work, rounds: int, limit: float
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Readings of every program in paired rounds after one round that is not counted; failures by name."""
    workers: dict[str, Worker] = {}
    failures: dict[str, str] = {}
    try:
        for name, program in chosen.items():
            try:
                workers[name] = Worker(name, program, work, at=Conditions(patience=120.0))
                workers[name].go()
            except WorkerDied as error:
                workers.pop(name, None)
                failures[name] = str(error)
        found = alternate(workers, rounds, limit)
    finally:
        for worker in workers.values():
            worker.close()
    return found.readings, failures | found.failures


def _views(work: Work) -> Views:
    o = dict(work.options)
    exact = bool(o.pop("exact_colour", False))
    return Views(crop=(o.pop("crop"), 1.0), exact_colour=exact, **o)


def own(work: Work) -> Step:
    """Batch by batch."""
    views, generator = _views(work), torch.Generator().manual_seed(0)

    def step() -> None:
        for x in work.tensors["x"].split(BATCH):
            for _ in range(2):
                augment(x, views, generator)

    return step


def kornia(work: Work) -> Step:
    """kornia's batched transforms."""
    transform = _kornia(_views(work), work.tensors["x"].shape[-1])

    def step() -> None:
        for x in work.tensors["x"].split(BATCH):
            for _ in range(2):
                transform(x.float() / 255)

    return step


def _kornia(views: Views, size: int) -> Callable[[Tensor], Tensor]:
    """The operations and ranges of `views`. It clamps and draws an order between colour changes and turns the hue
    in HSV; its 3x3 blur has the standard deviation of our binomial one."""
    # Importing it takes seconds that the other benchmarks do not need.
    import kornia.augmentation as K

    sequence: Callable[[Tensor], Tensor] = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=views.crop, ratio=(3 / 4, 4 / 3)),
        K.RandomHorizontalFlip(p=views.flip),
        *([K.RandomGaussianBlur((3, 3), (0.85, 0.85), p=views.blur)] if views.blur else []),
        K.ColorJitter(views.brightness, views.contrast, views.saturation, views.hue, p=views.jitter),
        K.RandomGrayscale(p=views.grey),
        data_keys=["input"],
        same_on_batch=False,
    )
    return sequence


def pipelines(batch: int, size: int) -> dict[str, Callable[[], Tensor]]:
    """kornia's and ours with the PHOTO recipe (with blur) on the same uint8 pictures, in one process."""
    generator = torch.Generator().manual_seed(0)
    x = noise(batch, size)
    peer = _kornia(PHOTO, size)
    return {
        KORNIA: lambda: peer(x.float() / 255),
        OWN: functools.partial(augment, x, PHOTO, generator),
    }
