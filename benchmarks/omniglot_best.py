"""Omniglot without labels, as far as a given time goes: views first, then each picture's neighbours too.

Protocol. Conv4-64, 28x28, batch normalisation, inductive (running statistics); head: nearest prototype by cosine;
last checkpoint; 15 queries a class, 2,000 episodes, one list for every run. Training: the first 25 background
alphabets, or the 2,720 pictures of five of them. Reported: the last five alphabets, as they are, and with every
character turned by 90, 180 and 270 degrees as further classes. Embeddings: the encoder's output, as everywhere
else in these benchmarks; the projector's; the projector's whitened by statistics of unlabelled training
pictures; and the last for the mean of a picture and four mild views of it. All of them are inductive. Labels of
training pictures are read for one figure only, which steers nothing: how many neighbours are of the same class.

`seconds` is processor time of a quiet core by a calibration in which the methods take turns, equal for all. Of
their steps the first half shows views of single pictures; then neighbours are found with the encoder so far, and
again after each further part of the rest (`rounds` times in all). One cosine schedule covers everything. The
settings were chosen with training on alphabets 1-20 and measuring on 21-25.
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cifar import Table
from benchmarks.omniglot import SPLITS, TASKS, Split, load, network, seconds_per_step, subset, summary
from selftaught.app import provenance
from selftaught.core.functional import apply, in_batches, part
from selftaught.core.memory import keep_freed_memory
from selftaught.core.train import start, train
from selftaught.core.types import Method, State, TaskSource, merged
from selftaught.data.augment import augment
from selftaught.data.omniglot import read_omniglot
from selftaught.data.pictures import Pictures
from selftaught.data.splits import read_split
from selftaught.data.views import GLYPH, Views
from selftaught.evaluate.baselines import raw_pixels, untrained_features
from selftaught.evaluate.fewshot import few_shot
from selftaught.methods import BMSSL, SimCLR
from selftaught.nets import build_encoder
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.episodes import EpisodePlan
from selftaught.tasks.neighbours import Neighbours, NeighbourTasks, mutual_neighbours

METHODS: Mapping[str, Method] = {
    "simclr": SimCLR(batch=64, temperature=0.1),
    "bmssl": BMSSL(ways=32, temperature=0.1),
}
"""Both feed their encoder 128 views a step."""

RECIPE = GLYPH
MILD = Views(rotate=8, shear=6, scale=(0.9, 1.1), translate=0.04, elastic=0.015, thickness=0.3)
"""Views of a picture that is to be embedded: as different as a careful copy of it."""

SHRINK = 2.0
"""Added to every variance before whitening, in parts of the mean variance."""

COLUMNS = {
    "encoder": "encoder",
    "projector": "projector",
    "whitened": "projector, whitened",
    "views": "projector, whitened, views at test",
    "encoder, turned": "encoder; rotations as classes",
    "whitened, turned": "projector, whitened; rotations as classes",
}
"""What is measured, and how a table calls it."""


@dataclass(frozen=True)
class OmniglotBest:
    """Train and measure; results already in --out are kept, so a stopped table goes on."""

    data: Path
    """The zip or folder of the background set."""
    out: Path = Path("benchmarks/results/omniglot_best.json")
    names: tuple[str, ...] = tuple(METHODS)
    sizes: tuple[int, ...] = (0, 2720)
    """Numbers of unlabelled pictures; 0 stands for all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    seconds: float = 150.0
    rate: float = 2e-3
    rounds: int = 2
    """How often neighbours are found; 0 trains on views alone."""
    nearest: int = 10
    """Two pictures are neighbours if each is among the other's so many nearest."""
    own: float = 0.25
    """Share of further views that show the picture itself."""
    episodes: int = 2000
    split: Split = "report"
    threads: int = 1

    def run(self) -> None:
        """Train what is missing, then print the table."""
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        table = Table(self.out, protocol(self))
        train_set, held_out = load(self.data, self.split)
        turned = read_omniglot(self.data, size=28, classes=read_split(SPLITS[self.split][1]), rotations=True)
        self._baselines(table, train_set, held_out, turned)
        costs = table.section("seconds_per_step")
        if any(k not in costs for k in self.names):
            for name, cost in seconds_per_step(dict(METHODS), train_set).items():
                table.keep("seconds_per_step", name, cost)
        for size in self.sizes:
            for seed in self.seeds:
                for name in self.names:
                    if (key := f"{name}|{size}|{seed}") in table.section("runs"):
                        continue
                    steps = max(1, int(self.seconds / table.section("seconds_per_step")[name]))
                    row = self._one(METHODS[name], subset(train_set, size), steps, seed, held_out, turned)
                    table.keep("runs", key, {"name": name, "size": size, "seed": seed, **row})
                    print(key, row, flush=True)
        print("\n".join(as_table(table.section("runs"), table.section("baselines"))))

    def _one(
        self, method: Method, pictures: Pictures, steps: int, seed: int, held_out: Pictures, turned: Pictures
    ) -> dict[str, Any]:
        began, found = time.process_time(), list[dict[str, float]]()
        net = network(method, seed)
        optimizer = Gradient(self.rate, steps)
        state = start(method, net, optimizer, seed)
        for until, neighbours in self._parts(steps):
            source: TaskSource = method.source(pictures, RECIPE)
            if neighbours:
                near = mutual_neighbours(embedded(net, state, pictures.x)[0], min(self.nearest, len(pictures) - 1))
                source = with_neighbours(source, near, self.own)
                found.append({"share": round(near.share, 3), "right": round(right(near, pictures), 3)})
            for state, _ in train(method, net, source, optimizer, state, until):  # noqa: B007, B020
                pass
        spent = time.process_time() - began
        measured = self._measured(net, state, pictures, held_out, turned)
        where = {"commit": provenance.commit(), "machine": provenance.machine()}
        return {**measured, "steps": steps, "cpu_seconds": round(spent, 1), "neighbours": found, **where}

    def _measured(
        self, net: nn.Module, state: State, pictures: Pictures, held_out: Pictures, turned: Pictures
    ) -> dict[str, Any]:
        """Every column; whitening knows at most 2,720 training pictures."""
        _, known = embedded(net, state, pictures.x[:: max(1, len(pictures) // 2720)])
        white = whitening(known)
        (z, projected), (z_turned, projected_turned) = (embedded(net, state, p.x) for p in (held_out, turned))
        features = {
            "encoder": (z, held_out),
            "projector": (projected, held_out),
            "whitened": (white(projected), held_out),
            "views": (white(embedded(net, state, held_out.x, 4)[1]), held_out),
            "encoder, turned": (z_turned, turned),
            "whitened, turned": (white(projected_turned), turned),
        }
        return {column: measure(z, p, self.episodes) for column, (z, p) in features.items()}

    def _parts(self, steps: int) -> Iterator[tuple[int, bool]]:
        """Up to which step a part goes, and whether it shows neighbours."""
        if self.rounds == 0:
            yield steps, False
            return
        half = steps // 2
        yield half, False
        for turn in range(1, self.rounds + 1):
            yield half + (steps - half) * turn // self.rounds, True

    def _baselines(self, table: Table, train_set: Pictures, held_out: Pictures, turned: Pictures) -> None:
        if "untrained encoder" in table.section("baselines"):
            return
        both = {"encoder": held_out, "encoder, turned": turned}
        fresh = {
            k: untrained_features(lambda: build_encoder("conv4", 1, 28, 0), train_set.x[:2048], p.x).features
            for k, p in both.items()
        }
        pixels = {k: raw_pixels(p.x) for k, p in both.items()}
        for name, z in (("raw pixels", pixels), ("untrained encoder", fresh)):
            table.keep("baselines", name, {k: measure(z[k], p, self.episodes) for k, p in both.items()})


def with_neighbours(source: TaskSource, near: Neighbours, own: float) -> NeighbourTasks:
    """The method's own view tasks, with neighbours among the further views."""
    views: Any = source
    sizes = {k: getattr(views, k) for k in ("tasks", "ways", "support_views", "query_views")}
    return NeighbourTasks(views.pictures, views.views, near, **sizes, own=own)


def right(near: Neighbours, pictures: Pictures) -> float:
    """The part of all neighbours that are of the picture's class: a figure for the reader, no part of training."""
    assert pictures.y is not None
    counted = torch.arange(near.index.shape[1]) < near.count[:, None]
    return float((pictures.y[near.index] == pictures.y[:, None])[counted].float().mean())


@torch.no_grad()
def embedded(net: nn.Module, state: State, x: Tensor, views: int = 0) -> tuple[Tensor, Tensor]:
    """[B D] by the encoder and [B E] by its projector, of length one; `views`: means with mild views."""
    weights = merged(state.params, state.slow)
    encoder, projector = (net.get_submodule(k) for k in ("encoder", "projector"))
    below, above = (part(weights, k) for k in ("encoder", "projector"))

    def both(z: Tensor) -> list[Tensor]:
        return [F.normalize(z, dim=-1), F.normalize(apply(projector, above, z, "running"), dim=-1)]

    sums, generator = both(in_batches(encoder, below, x)), torch.Generator().manual_seed(0)
    for _ in range(views):
        seen = [apply(encoder, below, augment(b, MILD, generator), "running") for b in x.split(256)]
        sums = [a + b for a, b in zip(sums, both(torch.cat(seen)), strict=True)]
    return F.normalize(sums[0], dim=-1), F.normalize(sums[1], dim=-1)


def whitening(z: Tensor, shrink: float = SHRINK) -> Callable[[Tensor], Tensor]:
    """The map [B D] -> [B D] after which rows like `z` have mean 0 and, but for `shrink`, equal variances."""
    variances, axes = torch.linalg.eigh(torch.cov(z.mT))
    mean, scale = z.mean(0), (variances + shrink * variances.mean()).rsqrt()
    return lambda rows: ((rows - mean) @ axes) * scale


def measure(z: Tensor, pictures: Pictures, episodes: int) -> dict[str, Any]:
    """Percent and 95 % half width over episodes for each task."""
    assert pictures.y is not None
    out = {}
    for ways, shots in TASKS:
        got = few_shot(z, pictures.y, EpisodePlan(ways, shots, 15, episodes, 0))
        out[f"{ways}w{shots}s"] = [round(got.mean, 2), round(got.half_width_95, 2)]
    return out


def protocol(asked: OmniglotBest) -> dict[str, Any]:
    """What must be known to compare and to repeat the figures; the data's folder is left out."""
    fields = {
        k: list(v) if isinstance(v, tuple) else v for k, v in vars(asked).items() if k not in ("data", "out")
    }
    argv = ["python", "-m", "benchmarks", *sys.argv[1:]]
    return {
        # Runs of other methods, sizes and seeds may be added to a table.
        **{k: v for k, v in fields.items() if k not in ("names", "sizes", "seeds")},
        "method": {k: repr(m) for k, m in METHODS.items()},
        "recipe": repr(RECIPE),
        "command": shlex.join([a.replace(str(asked.data), asked.data.name) for a in argv]),
    }


def as_table(runs: Mapping[str, Any], baselines: Mapping[str, Any]) -> list[str]:
    """Markdown: a row for each size, method and way of measuring; mean over seeds and its 95 % t-interval."""
    head = ["pictures", "method", "measured", *(f"{w}-way {k}-shot" for w, k in TASKS), "steps", "CPU s", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for size, name in dict.fromkeys((r["size"], r["name"]) for r in runs.values()):
        rows = [r for r in runs.values() if (r["size"], r["name"]) == (size, name)]
        spent = sum(r["cpu_seconds"] for r in rows) / len(rows)
        for column, title in COLUMNS.items():
            cells = [summary([r[column][f"{w}w{k}s"][0] for r in rows]) for w, k in TASKS]
            figures = [f"{m:.1f}" + (f" ± {h:.1f}" if len(rows) > 1 else "") for m, h in cells]
            start = [str(size or "all"), name, title]
            lines.append(_row([*start, *figures, str(rows[0]["steps"]), f"{spent:.0f}", str(len(rows))]))
    for name, base in baselines.items():
        for column, shown in base.items():
            figures = ["{:.1f} ± {:.1f}".format(*shown[f"{w}w{k}s"]) for w, k in TASKS]
            lines.append(_row(["none", name, COLUMNS[column], *figures, "-", "-", "-"]))
    return lines


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
