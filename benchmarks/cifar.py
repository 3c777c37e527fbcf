"""CIFAR-10: nearest neighbours and a linear probe on encoders trained on n of its pictures without labels.

Protocol. A fixed random order of the 50,000 training pictures; training takes the first n of the first 40,000
(all 50,000 with `--pictures 0`), so smaller sets are parts of larger ones. ResNet-18 with the stem for small
pictures, a `width` of its last stage that can be less than 512, batch normalisation, inductive (running
statistics); SimCLR's view recipe. Probes are offline on clean pictures: logistic regression on standardised
features and the vote of 20 neighbours by cosine, both fitted on the same n pictures with their labels and
scored on the first `test` pictures of the official test part (of a fixed random order). Last checkpoint. Every
method sees 2 * `batch` views a step. Rates were chosen with `--split tuning`, which is scored on the last
10,000 of the training pictures and never reads the test part.

`seconds` > 0 gives every method the steps that fit into that time by a calibration at the start: seconds of one
core, or by the clock on a GPU. Pictures, views and network are on `device`; `bf16` is torch's autocast in methods
that offer it (of BMSSL the encoder alone: both levels, and what is differentiated through, stay in float32);
`compile` is torch.compile on the encoder. Channels-last memory is the network's own.
"""

import dataclasses
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from selftaught.app import provenance
from selftaught.artifacts.files import read_json, write_json
from selftaught.claims.outcome import estimate
from selftaught.core.errors import ConfigError
from selftaught.core.functional import in_batches, part
from selftaught.core.train import outer_step, start, train
from selftaught.core.types import Method, Params, State, merged
from selftaught.data.cifar10 import read_cifar10
from selftaught.data.pictures import Pictures
from selftaught.data.views import PHOTO
from selftaught.evaluate.baselines import raw_pixels, untrained_features
from selftaught.evaluate.probes import knn, linear_probe
from selftaught.methods import BMSSL, BYOL, BarlowTwins, SimCLR, VICReg
from selftaught.nets import build_encoder
from selftaught.optimizers.gradient import Gradient

MAKERS: Mapping[str, Callable[[int], Method]] = {
    "simclr": lambda batch: SimCLR(batch=batch),
    "byol": lambda batch: BYOL(batch=batch),
    "vicreg": lambda batch: VICReg(batch=batch),
    "bmssl": lambda batch: BMSSL(ways=batch // 2),
    "barlow": lambda batch: BarlowTwins(batch=batch),
}
"""From a batch size, so that all see as many views: BMSSL has four of each picture, the others two."""

PROBES = ("linear", "knn")
_ORDER_SEED, _TUNING = 10, 10_000
_LOOSE = ("command", "commit", "seeds", "method", "machine")
"""Parts of the protocol that a table may go on under."""


@dataclass(frozen=True)
class Cifar:
    """Train and probe; results already in --out are kept, so a stopped table goes on."""

    data: Path
    """`cifar-10-binary.tar.gz`, its folder, or an .npz of encoded pictures."""
    out: Path = Path("benchmarks/results/cifar_small.json")
    method: tuple[str, ...] = ("simclr", "byol", "vicreg", "bmssl")
    pictures: int = 5000
    """Unlabelled pictures, at most 40,000; 0 stands for all 50,000."""
    test: int = 5000
    """Pictures the probes are scored on."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 1000
    seconds: float = 0.0
    batch: int = 64
    width: int = 128
    """Features of ResNet-18; 512 is the published network, 128 a quarter of its width everywhere."""
    heads: tuple[int, int] = (0, 0)
    """Hidden and output width of the projector; 0 leaves the method's default."""
    algorithm: Literal["adam", "sgd"] = "adam"
    rate: float = 1e-3
    rates: dict[str, float] = field(default_factory=dict)
    """Where a method's rate is another."""
    weight_decay: float = 0.0
    warmup: int = 0
    split: Literal["report", "tuning"] = "report"
    device: str = "cpu"
    bf16: bool = False
    compile: bool = False
    threads: int = 1

    def run(self) -> None:
        """Train what is missing, then print the table."""
        torch.set_num_threads(self.threads)
        if unknown := sorted(set(self.method) - set(MAKERS)):
            raise ConfigError(f"no method here is called {', '.join(unknown)}; there are {', '.join(MAKERS)}")
        table = Table(self.out, protocol(self))
        train_set, held_out = load(self.data, self.pictures, self.split, self.test)
        seconds = table.section("seconds_per_step")
        if self.seconds and (missing := [n for n in self.method if n not in seconds]):
            for name, value in self._seconds_per_step(missing, train_set).items():
                table.keep("seconds_per_step", name, value)
        for seed in self.seeds:
            if self.split == "report":
                self._untrained(table, train_set, held_out, seed)
            for name in self.method:
                if f"{name}|{seed}" in table.section("runs"):
                    continue
                cost = table.section("seconds_per_step").get(name)
                steps = max(1, int(self.seconds / cost)) if self.seconds and cost else self.steps
                row = self._one(name, train_set, held_out, steps, seed)
                table.keep("runs", f"{name}|{seed}", {"name": name, "seed": seed, **row})
                print(name, seed, row, flush=True)
        if self.split == "report":
            _pixels(table, train_set, held_out)
        print("\n".join(as_table(table.section("runs"))))
        print("\n".join(differences(table.section("runs"), "bmssl")))

    def made(self, name: str) -> Method:
        """The named method with this table's batch, head widths and number format."""
        method: Any = MAKERS[name](self.batch)
        has = {f.name for f in dataclasses.fields(method)}
        wanted: dict[str, Any] = {k: v for k, v in zip(("hidden", "out"), self.heads, strict=True) if v}
        if self.bf16 and "precision" in has:
            wanted["precision"] = "bfloat16"
        return cast(Method, dataclasses.replace(method, **wanted))

    def _started(self, name: str, pictures: Pictures, steps: int, seed: int) -> "Run":
        device = torch.device(self.device)
        method = self.made(name)
        encoder = build_encoder("resnet18", pictures.shape[0], pictures.shape[1], 1000 + seed, width=self.width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2000 + seed)
            net = method.network(encoder).to(device)
        if self.compile:
            encoder.compile()
        rate = self.rates.get(name, self.rate)
        optimizer = Gradient(
            rate, steps, self.algorithm, warmup=self.warmup, weight_decay=self.weight_decay
        )  # fmt: skip
        placed = dataclasses.replace(pictures, x=pictures.x.to(device))
        return Run(method, net, optimizer, start(method, net, optimizer, seed), placed)

    def _one(self, name: str, train_set: Pictures, held_out: Pictures, steps: int, seed: int) -> dict[str, Any]:
        run = self._started(name, train_set, steps, seed)
        began = clock(self.device)
        encoder, weights = run.trained(steps)
        spent = clock(self.device) - began
        z, q = (in_batches(encoder, weights, p.x.to(self.device)).cpu() for p in (train_set, held_out))
        used = getattr(run.method, "precision", "float32")
        views = steps * 2 * min(self.batch, len(train_set))
        return {**probed(z, train_set, q, held_out), "steps": steps, "views": views, "seconds": round(spent, 1),
                "precision": used}  # fmt: skip

    def _seconds_per_step(self, names: Sequence[str], pictures: Pictures, rounds: int = 5) -> dict[str, float]:
        """Median over rounds in which the methods take turns, so that a busy machine hits all alike."""
        runs = {name: self._started(name, pictures, 1000, 0) for name in names}
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds + 2):
            for name, run in runs.items():
                source = run.method.source(run.pictures, PHOTO)
                began = clock(self.device)
                outer_step(run.method, run.net, run.optimizer, run.state, source(run.state.generator))
                times[name].append(clock(self.device) - began)
        return {name: statistics.median(spent[2:]) for name, spent in times.items()}

    def _untrained(self, table: "Table", train_set: Pictures, held_out: Pictures, seed: int) -> None:
        if f"untrained encoder|{seed}" in table.section("runs"):
            return
        n, both = len(train_set), torch.cat([train_set.x, held_out.x])
        channels, size = train_set.shape[:2]
        got = untrained_features(
            lambda: build_encoder("resnet18", channels, size, 1000 + seed, width=self.width),
            train_set.x[:2048], both,
        )  # fmt: skip
        row = probed(got.features[:n], train_set, got.features[n:], held_out)
        table.keep("runs", f"untrained encoder|{seed}", {"name": "untrained encoder", "seed": seed, **row})


def _pixels(table: "Table", train_set: Pictures, held_out: Pictures) -> None:
    """Last, because 3,072 features take the linear probe long."""
    if "raw pixels" not in table.section("runs"):
        row = probed(raw_pixels(train_set.x), train_set, raw_pixels(held_out.x), held_out)
        table.keep("runs", "raw pixels", {"name": "raw pixels", **row})


@dataclass(frozen=True)
class Run:
    """One method at its start: everything on one device."""

    method: Method
    net: nn.Module
    optimizer: Gradient
    state: State
    pictures: Pictures

    def trained(self, steps: int) -> tuple[nn.Module, Params]:
        """The encoder's skeleton and its weights after all steps."""
        state, source = self.state, self.method.source(self.pictures, PHOTO)
        for state, _ in train(self.method, self.net, source, self.optimizer, state, steps):  # noqa: B007, B020
            pass
        return self.net.get_submodule("encoder"), part(merged(state.params, state.slow), "encoder")


@dataclass(frozen=True)
class Table:
    """The result file. Raises ConfigError where it was begun under another protocol."""

    out: Path
    protocol: dict[str, Any]

    def __post_init__(self) -> None:
        if not self.out.is_file():
            return
        there = read_json(self.out).get("protocol", {})
        other = [k for k, v in self.protocol.items() if k not in _LOOSE and there.get(k) != v]
        if other:
            raise ConfigError(f"{self.out} was begun with another {', '.join(other)}; name a new file with --out")

    def section(self, name: str) -> dict[str, Any]:
        """What is stored under `name` so far."""
        found: dict[str, Any] = read_json(self.out).get(name, {}) if self.out.is_file() else {}
        return found

    def keep(self, section: str, key: str, value: Any) -> None:
        """Add one value and write the file."""
        content = read_json(self.out) if self.out.is_file() else {"protocol": self.protocol}
        content.setdefault(section, {})[key] = value
        write_json(self.out, content)


def load(data: Path, pictures: int, split: str, test: int) -> tuple[Pictures, Pictures]:
    """Training and scored pictures. Raises ConfigError for sizes that are not there."""
    order = torch.randperm(50_000, generator=torch.Generator().manual_seed(_ORDER_SEED))
    if not 0 <= pictures <= len(order) - _TUNING or (pictures == 0 and split == "tuning"):
        raise ConfigError(f"--pictures must lie between 1 and {len(order) - _TUNING}, or be 0 to report on all")
    known = read_cifar10(data, split="train")
    chosen = known.take(order[: pictures or len(order)])
    if split == "tuning":
        return chosen, known.take(order[-_TUNING:][:test])
    scored = read_cifar10(data, split="test")
    return chosen, scored.take(torch.randperm(len(scored), generator=torch.Generator().manual_seed(11))[:test])


def probed(z: Tensor, train_set: Pictures, q: Tensor, held_out: Pictures) -> dict[str, Any]:
    """Percent correct and the 95 % half width over test pictures, of both probes."""
    assert train_set.y is not None and held_out.y is not None
    found = {
        "linear": linear_probe(z, train_set.y, q, held_out.y),
        "knn": knn(z, train_set.y, q, held_out.y, min(20, len(z))),
    }
    return {name: [round(a.mean, 2), round(a.half_width_95, 2)] for name, a in found.items()}


def protocol(asked: Cifar) -> dict[str, Any]:
    """What must be known to compare and to repeat the figures; the data's folder is left out."""
    fields = {k: v for k, v in vars(asked).items() if k not in ("data", "out")}
    argv = ["python", "-m", "benchmarks", *sys.argv[1:]]
    gpu = {"gpu": torch.cuda.get_device_name()} if asked.device.startswith("cuda") else {}
    return {
        **{k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()},
        "data": asked.data.name,
        "command": shlex.join([a.replace(str(asked.data), asked.data.name) for a in argv]),
        "commit": provenance.commit(),
        # How busy it is differs from call to call.
        "machine": {k: v for k, v in provenance.machine().items() if k != "busy"} | gpu,
    }


def clock(device: str) -> float:
    """Processor seconds so far; on a GPU seconds by the clock, when all work is done."""
    if not device.startswith("cuda"):
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def as_table(runs: Mapping[str, Any]) -> list[str]:
    """Markdown: mean over seeds and its 95 % t-interval; for raw pixels the interval over test pictures."""
    lines = ["| method | linear | 20 neighbours | steps | seconds | seeds |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(r["name"] for r in runs.values()):
        rows = [r for r in runs.values() if r["name"] == name]
        cells = [_cell(rows, probe) for probe in PROBES]
        steps = rows[0].get("steps", "-")
        spent = f"{statistics.mean(r['seconds'] for r in rows):.0f}" if "seconds" in rows[0] else "-"
        lines.append(f"| {name} | {' | '.join(cells)} | {steps} | {spent} | {len(rows)} |")
    return lines


def _cell(rows: Sequence[Mapping[str, Any]], probe: str) -> str:
    if "seed" not in rows[0]:
        return "{:.1f} ± {:.1f}".format(*rows[0][probe])
    found = estimate([r[probe][0] for r in rows])
    return f"{found.mean:.1f}" + (f" ± {found.half_width:.1f}" if math.isfinite(found.half_width) else "")


def differences(runs: Mapping[str, Any], name: str) -> list[str]:
    """`name` minus each other, seed by seed, with the 95 % t-interval."""
    rows: dict[str, dict[int, Any]] = {}
    for r in runs.values():
        if "seed" in r:
            rows.setdefault(r["name"], {})[r["seed"]] = r
    own = rows.get(name, {})
    lines = []
    for other, theirs in rows.items():
        shared = sorted(own.keys() & theirs.keys())
        if other == name or len(shared) < 2:
            continue
        found = []
        for probe in PROBES:
            gap = estimate([own[s][probe][0] - theirs[s][probe][0] for s in shared])
            found.append(f"{probe} {gap.mean:+.1f} ± {gap.half_width:.1f}")
        lines.append(f"{name} minus {other}: {', '.join(found)} ({len(shared)} seeds)")
    return lines
