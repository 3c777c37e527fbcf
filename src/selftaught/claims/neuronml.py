"""Tasks of different kinds want different units: NeuronML against MAML on drawn characters and emoji together.

Paper: Wang, Guo, Qiang, Li, Zheng, Xiong, Hua, "Neuromodulated Meta-Learning", 2024, arXiv 2411.06746. Claimed
there: no fixed structure is best for all tasks, and MAML with a structure for each is the better few-shot learner.

Ours: a small network on pixels, so that three seeds of every row take minutes of one core; half of the training
tasks are generated characters, half emoji, whose classes have one picture in each of three drawing styles. All
rows share steps, tasks, inner loop and episode lists. What is chosen is chosen on validation classes, with another
seed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.claims.outcome import Estimate, Outcome, estimate
from selftaught.core.train import start, train
from selftaught.core.types import Examples, Params, Task, TaskSource
from selftaught.data.emoji import Split, read_emoji
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.evaluate.baselines import raw_pixels
from selftaught.evaluate.fewshot import few_shot, few_shot_learner
from selftaught.learners.gated import GatedLearner
from selftaught.losses.structure import overlap
from selftaught.methods.maml import MAML
from selftaught.methods.neuronml import NeuronML
from selftaught.nets.gates import Layer
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.episodes import EpisodePlan, EpisodeSource

_SIDE = 16
_KINDS = ("strokes", "emoji")
_TUNING_SEED = 100
EMOJI_QUERIES = 2
"""Of three pictures a class, one is support."""


@dataclass(frozen=True)
class Setting:
    """The budget of every row; accuracies are over `episodes` 5-way 1-shot episodes of each kind."""

    width: int = 64
    steps: int = 120
    tasks: int = 8
    inner_steps: int = 3
    test_steps: int = 5
    rate: float = 3e-3
    episodes: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)
    inner_rates: tuple[float, ...] = (0.1, 0.2)
    weights: tuple[float, ...] = (0.1, 1.0)
    budgets: tuple[float, ...] = (0.5, 0.75)


class PixelNetwork(nn.Module):
    """Two hidden layers on pixels: [B C H W] -> [B width]; the units of both have gates."""

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(pixels, width)
        self.second = nn.Linear(width, width)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x.flatten(1)))))

    def gated_layers(self) -> tuple[Layer, ...]:
        return Layer(self.width, "encoder.second.weight"), Layer(self.width, "head.weight")

    def gated(self, x: Tensor, gates: Tensor) -> Tensor:
        below, above = gates.split(self.width, -1)
        return F.relu(self.second(F.relu(self.first(x.flatten(1))) * below)) * above


@dataclass(frozen=True)
class Mixed:
    """Half of the tasks from each source, in this order."""

    sources: tuple[TaskSource, ...]

    def __call__(self, generator: torch.Generator) -> Task:
        tasks = [source(generator) for source in self.sources]
        support, query = ([getattr(t, side) for t in tasks] for side in ("support", "query"))
        return Task(_joined(support), _joined(query), tasks[0].ways)


def _joined(parts: Sequence[Examples]) -> Examples:
    return Examples(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts if p.y is not None]))


@lru_cache
def pictures(split: Split) -> dict[str, Pictures]:
    """Both kinds in grey, uint8 [B 1 16 16]; no class is in two splits, no alphabet either."""
    seed, classes = {"train": (0, 200), "validation": (1, 60), "test": (2, 60)}[split]
    drawn, emoji = draw_strokes(classes, 20, size=_SIDE, seed=seed), read_emoji(split=split)
    small = F.avg_pool2d(emoji.x.float().mean(1, keepdim=True), emoji.x.shape[-1] // _SIDE).round().to(torch.uint8)
    return {"strokes": drawn, "emoji": replace(emoji, x=small)}


@dataclass(frozen=True)
class Trained:
    """Percent correct of each kind, share of open units, overlap of two tasks in a kind and across, CPU time."""

    accuracy: dict[str, float]
    open: float
    within: float
    across: float
    seconds: float


def run(s: Setting, method: Any, width: int, seed: int, split: Split) -> Trained:
    """Train with one seed and measure the last step on classes of `split`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = method.network(PixelNetwork(_SIDE**2, width))
    own = pictures("train")
    source = Mixed(tuple(EpisodeSource(own[k], 5, 1, EMOJI_QUERIES, s.tasks // 2) for k in _KINDS))
    optimizer = Gradient(s.rate, s.steps)
    state = start(method, net, optimizer, seed)
    began = time.process_time()
    *_, (state, _) = train(method, net, source, optimizer, state, s.steps)
    seconds = time.process_time() - began
    learner, weights, plan = (
        method.learner(net),
        state.params | state.slow,
        EpisodePlan(5, 1, EMOJI_QUERIES, s.episodes),
    )
    asked = pictures(split)
    accuracy = {k: few_shot_learner(learner, weights, asked[k], plan).mean for k in _KINDS}
    share = structure(learner, weights, asked) if isinstance(method, NeuronML) else (1.0, 1.0, 1.0)
    return Trained(accuracy, *share, seconds)


def structure(learner: GatedLearner, weights: Params, asked: Mapping[str, Pictures]) -> tuple[float, float, float]:
    """Open share, and overlap of two tasks of one kind and of two kinds, over twenty tasks of each."""
    gates = []
    for k in _KINDS:
        tasks = EpisodeSource(asked[k], 5, 1, EMOJI_QUERIES, 20)(torch.Generator().manual_seed(0))
        gates.append(torch.stack([learner.gates(weights, x) for x in tasks.support.x]))
    own, every = [float(overlap(g)) for g in gates], float(overlap(torch.cat(gates)))
    # Of the 40 * 39 ordered pairs of all tasks, 2 * 20 * 19 are of one kind.
    within = sum(own) / 2
    return float(torch.cat(gates).mean()), within, (every * 39 - within * 19) / 20


def candidates(s: Setting) -> list[NeuronML]:
    """What validation chooses from, at MAML's inner rate."""
    pairs = product(s.weights, s.budgets)
    return [NeuronML(frugality=w, plasticity=w, sensitivity=w, budget=b) for w, b in pairs]


def show(quick: bool = False) -> Outcome:
    """Five rows over the seeds, after choosing on validation classes."""
    small = Setting(16, 8, 4, 1, 1, episodes=5, seeds=(0, 1), inner_rates=(0.1,), weights=(0.1,), budgets=(0.5,))
    s = small if quick else Setting()
    say = Console(stderr=True)
    common: dict[str, Any] = {"inner_steps": s.inner_steps, "test_steps": s.test_steps, "path": "batched"}

    def chosen(options: Sequence[Any], what: str) -> Any:
        found = [mean(run(s, m, s.width, _TUNING_SEED, "validation"))
                 for m in track(options, f"choosing {what}", console=say, transient=True)]  # fmt: skip
        return options[found.index(max(found))]

    plain = chosen([MAML(inner_rate=r, **common) for r in s.inner_rates], "MAML's inner rate")
    given = {"inner_rate": plain.inner_rate, **common}
    ours = chosen([replace(m, **given) for m in candidates(s)], "weights and budget")
    half = max(1, int(s.width * ours.budget))
    wanted: dict[str, tuple[Any, int]] = {
        "MAML": (plain, s.width),
        f"MAML, {half} units a layer": (plain, half),
        "a random set of units, the same for all": (replace(ours, gates="fixed"), s.width),
        "NeuronML, one learned set for all": (replace(ours, gates="shared"), s.width),
        "NeuronML": (ours, s.width),
    }
    each = [(name, seed) for name in wanted for seed in s.seeds]
    made: dict[str, list[Trained]] = {name: [] for name in wanted}
    for name, seed in track(each, "training", console=say, transient=True):
        made[name].append(run(s, *wanted[name], seed, "test"))
    return Outcome(
        "neuronml",
        "Wang, Guo, Qiang, Li, Zheng, Xiong, Hua, 2024, arXiv 2411.06746",
        "A network structure of its own for each task makes MAML the better few-shot learner.",
        protocol(s, plain, ours),
        [*(row(name, found) for name, found in made.items()), pixels(s)],
        verdict(made, f"MAML, {half} units a layer"),
        losing(made),
    )


def mean(found: Trained) -> float:
    """Of both kinds."""
    return sum(found.accuracy.values()) / len(found.accuracy)


def row(name: str, found: Sequence[Trained]) -> dict[str, Estimate | str]:
    """Means over seeds."""
    cells: dict[str, Estimate | str] = {"learner": name}
    cells |= {f"{k}, %": estimate([t.accuracy[k] for t in found]) for k in _KINDS}
    cells["both, %"] = estimate([mean(t) for t in found])
    cells["units open"] = estimate([t.open for t in found])
    cells["overlap in a kind"] = estimate([t.within for t in found])
    cells["across"] = estimate([t.across for t in found])
    cells["CPU s"] = estimate([t.seconds for t in found])
    return cells


def pixels(s: Setting) -> dict[str, Estimate | str]:
    """Nearest class mean of the pixels themselves on the same episodes."""
    nothing = Trained(dict.fromkeys(_KINDS, 0.0), 1.0, 1.0, 1.0, 0.0)
    cells: dict[str, Estimate | str] = dict.fromkeys(row("", [nothing]), "")
    plan, found = EpisodePlan(5, 1, EMOJI_QUERIES, s.episodes), {}
    for k, own in pictures("test").items():
        assert own.y is not None
        found[k] = few_shot(raw_pixels(own.x), own.y, plan).mean
    cells |= {f"{k}, %": estimate([v]) for k, v in found.items()}
    return cells | {"learner": "raw pixels, nearest class mean", "both, %": estimate([sum(found.values()) / 2])}


def gain(a: Sequence[Trained], b: Sequence[Trained], kind: str | None = None) -> Estimate:
    """a - b in points, seed by seed."""
    pairs = zip(a, b, strict=True)
    return estimate(
        [(mean(x) - mean(y)) if kind is None else x.accuracy[kind] - y.accuracy[kind] for x, y in pairs]
    )


def verdict(made: Mapping[str, Sequence[Trained]], narrow: str) -> str:
    """Shown where the gain over MAML, and that over MAML of the same active width, lie above zero."""
    over = {name: gain(made["NeuronML"], made[name]) for name in ("MAML", narrow)}
    clear = all(g.mean - g.half_width > 0 for g in over.values())
    said = "; ".join(f"{g} points over {name}" for name, g in over.items())
    return f"{'Shown' if clear else 'Not shown'}: {said} (both kinds, paired by seed)."


def losing(made: Mapping[str, Sequence[Trained]]) -> str:
    """The kind where NeuronML gains least over MAML, and what it costs."""
    by_kind = {k: gain(made["NeuronML"], made["MAML"], k) for k in _KINDS}
    worst = min(by_kind, key=lambda k: by_kind[k].mean)
    ours, plain = (sum(t.seconds for t in made[name]) for name in ("NeuronML", "MAML"))
    word = "Behind MAML" if by_kind[worst].mean < 0 else "Least ahead"
    cost = f"The same steps took {ours / plain:.2f} times MAML's CPU time."
    return f"{word} on {worst}: {by_kind[worst]} points. {cost}"


def protocol(s: Setting, plain: MAML, ours: NeuronML) -> str:
    """What every row shares and what was chosen."""
    return (
        f"5-way 1-shot, {s.steps} steps of {s.tasks} tasks, half generated characters, half emoji, in grey, "
        f"{_SIDE} x {_SIDE} pixels; two hidden layers of {s.width}, no normalisation; {s.inner_steps} inner "
        f"steps, {s.test_steps} at test, Adam {s.rate:g}. Chosen on validation classes with seed {_TUNING_SEED}: "
        f"inner rate {plain.inner_rate:g} of {s.inner_rates} for MAML, taken over by all; weights "
        f"{ours.frugality:g} of {s.weights} and budget {ours.budget:g} of {s.budgets} for NeuronML. Last step, "
        f"{s.episodes} episodes of each kind, the same for all rows; {len(s.seeds)} seeds, 95 % intervals by "
        "Student's t over them. The "
        "paper's own tables were not read."
    )
