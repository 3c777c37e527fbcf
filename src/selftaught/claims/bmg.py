"""Bootstrapped meta-gradients reach MAML's accuracy with less data or in less time.

Paper: Flennerhag, Schroecker, Zahavy, van Hasselt, Silver, Singh, "Bootstrapped Meta-Learning", ICLR 2022,
arXiv 2109.04504. Its own experiment is miniImageNet; its tables are not repeated here.

    MAML   theta <- theta - Adam( grad CE(w_K(theta); query) )
    BMG    theta <- theta - Adam( grad KL(p of w_{K+L} || p of w_K(theta)) ),  the target held constant

Both have the same network, inner loop, tasks and order of tasks. Our choice: generated characters, the sizes,
that inner and outer rate of each are chosen on validation classes from one grid with one budget, and Adam: it
divides by the gradient's size, so that a longer target means no longer steps; the sweep over L is none of rates.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from selftaught.claims.outcome import Estimate, Line, Outcome, estimate
from selftaught.core.functional import buffers_of, params_of
from selftaught.core.train import start, train
from selftaught.core.types import merged
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import GLYPH
from selftaught.evaluate.baselines import estimated_statistics, raw_pixels
from selftaught.evaluate.fewshot import few_shot, few_shot_learner
from selftaught.learners.gradient import GradientLearner
from selftaught.methods.bmg import BMG
from selftaught.methods.maml import MAML
from selftaught.nets import build_encoder
from selftaught.nets.heads import WithClassifier
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.episodes import EpisodePlan

Known = MAML | BMG


@dataclass(frozen=True)
class Instance:
    """Generated characters of `size` pixels, tasks, budgets; L = `longest` is the one compared with MAML."""

    size: int = 16
    width: int = 32
    classes: int = 240
    drawings: int = 10
    ways: int = 5
    tasks: int = 2
    queries: int = 5
    inner_steps: int = 3
    steps: int = 200
    tuning_steps: int = 50
    checks: int = 5
    episodes: int = 80
    longest: int = 5


@dataclass(frozen=True)
class Run:
    """Accuracy (fractions) after `steps` outer steps, and the processor seconds they took."""

    steps: tuple[int, ...]
    seconds: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Sets:
    """Three sets of characters that share none."""

    train: Pictures
    validation: Pictures
    test: Pictures


def show(quick: bool = False) -> Outcome:
    """Choose rates on validation classes, then run MAML and BMG over three seeds, then the sweep over L."""
    few = Instance(width=8, classes=20, steps=6, tuning_steps=2, checks=2, episodes=10, inner_steps=2)
    i, seeds = (few, [0, 1]) if quick else (Instance(), [0, 1, 2])
    grid = [(0.1, 1e-3)] if quick else list(product((0.1, 0.4), (1e-3, 3e-3)))
    sets = Sets(*(draw_strokes(i.classes, i.drawings, size=i.size, seed=s) for s in (1, 2, 3)))
    known, first = methods(i), f"BMG, L = {i.longest}"
    best = {name: tuned(i, known[name], sets, grid) for name in ("MAML", first)}
    # The sweep keeps the rates of the one compared: Adam has taken the gradient's size out already.
    chosen = {
        name: (replace(m, inner_rate=(b := best.get(name, best[first]))[0]), b[1]) for name, m in known.items()
    }
    names = [(name, seed) for seed in seeds for name in chosen]
    runs: dict[str, list[Run]] = {name: [] for name in chosen}
    for name, seed in track(names, "training", console=Console(stderr=True), transient=True):
        runs[name].append(curve(i, *chosen[name], sets.train, sets.test, i.steps, seed))
    gains = {n: ratios(runs["MAML"], runs[n]) for n in runs if n != "MAML"}
    rows = [row(n, r, chosen[n], gains.get(n)) for n, r in runs.items()]
    return Outcome(
        "bmg",
        "Flennerhag, Schroecker, Zahavy, van Hasselt, Silver, Singh, ICLR 2022, arXiv 2109.04504",
        "With a target a few steps ahead, meta-learning reaches MAML's accuracy from less data and in less time.",
        protocol(i, seeds, grid),
        [*rows, *(baseline(n, v, rows[0]) for n, v in baselines(i, sets, seeds).items())],
        verdict(first, *gains[first]),
        losing(runs, gains),
        lines=lines(runs),
    )


def methods(i: Instance) -> dict[str, Known]:
    """MAML, BMG, and BMG with a shorter and a longer target."""
    maml = MAML(inner_steps=i.inner_steps, test_steps=i.inner_steps, ways=i.ways, tasks=i.tasks, queries=i.queries)
    known: dict[str, Known] = {"MAML": maml}
    for ahead in (i.longest, 1, 2 * i.longest):
        known[f"BMG, L = {ahead}"] = BMG(
            inner_steps=i.inner_steps, test_steps=i.inner_steps, ways=i.ways, tasks=i.tasks, queries=i.queries,
            bootstrap_steps=ahead,
        )  # fmt: skip
    return known


def tuned(i: Instance, method: Known, sets: Sets, grid: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Inner and outer rate: the best pair after `tuning_steps` on validation classes, under another seed."""
    found: dict[tuple[float, float], float] = {}
    for inner, outer in grid:
        one = replace(method, inner_rate=inner)
        run = curve(replace(i, checks=1), one, outer, sets.train, sets.validation, i.tuning_steps, 100)
        found[inner, outer] = run.accuracy[-1]
    return max(found, key=lambda k: found[k])


def curve(
    i: Instance, method: Known, rate: float, pictures: Pictures, asked: Pictures, steps: int, seed: int
) -> Run:
    """Train and look `checks` times; only training counts as time."""
    torch.manual_seed(seed)
    net = method.network(build_encoder("conv4", 1, i.size, seed, width=i.width))
    state = start(method, net, Gradient(rate, steps), seed)
    marks = sorted({round(steps * (n + 1) / i.checks) for n in range(i.checks)})
    spent, seconds, accuracy = 0.0, [], []
    for mark in marks:
        began = time.process_time()
        source = method.source(pictures, GLYPH)
        for state, _ in train(method, net, source, Gradient(rate, steps), state, mark):  # noqa: B007, B020
            pass
        spent += time.process_time() - began
        seconds.append(spent)
        weights = merged(state.params, state.slow)
        accuracy.append(few_shot_learner(method.learner(net), weights, asked, plan(i)).mean / 100)
    return Run(tuple(marks), tuple(seconds), tuple(accuracy))


def plan(i: Instance) -> EpisodePlan:
    """One list of episodes for every row and every check."""
    return EpisodePlan(i.ways, 1, i.queries, i.episodes, 0)


def reached(x: Sequence[float], accuracy: Sequence[float], target: float) -> float:
    """Where a curve from the first check on first meets `target`, between checks by a straight line; else inf."""
    if accuracy[0] >= target:
        return x[0]
    for (x0, a0), (x1, a1) in pairwise(zip(x, accuracy, strict=True)):
        if a1 >= target:
            return x0 + (x1 - x0) * (target - a0) / (a1 - a0)
    return float("inf")


def ratios(maml: Sequence[Run], bmg: Sequence[Run]) -> tuple[list[float], list[float]]:
    """For each seed: steps and seconds until BMG meets the goal, over those of MAML (at most its whole run).

    The goal is one point below the mean of MAML's last accuracies: checks are noisy, and with its own curve in the
    denominator a lucky check helps MAML as it helps BMG.
    """
    goal = statistics.mean(m.accuracy[-1] for m in maml) - 0.01
    pairs = list(zip(maml, bmg, strict=True))
    data = [reached(b.steps, b.accuracy, goal) / _own(m.steps, m.accuracy, goal) for m, b in pairs]
    work = [reached(b.seconds, b.accuracy, goal) / _own(m.seconds, m.accuracy, goal) for m, b in pairs]
    return data, work


def _own(x: Sequence[float], accuracy: Sequence[float], goal: float) -> float:
    return min(reached(x, accuracy, goal), x[-1])


def row(
    name: str, runs: Sequence[Run], chosen: tuple[Known, float], gain: tuple[list[float], list[float]] | None
) -> dict[str, Estimate | str]:
    """One line of the table."""
    method, outer = chosen
    middle = len(runs[0].steps) // 2 - 1
    out: dict[str, Estimate | str] = {"method": name, "inner / outer rate": f"{method.inner_rate:g} / {outer:g}"}
    for place in (0, max(middle, 0), -1):
        out[f"accuracy, {runs[0].steps[place]} steps"] = estimate([r.accuracy[place] for r in runs])
    out["ms a step"] = estimate([1000 * r.seconds[-1] / r.steps[-1] for r in runs])
    for title, values in zip(("data to the goal", "time to it"), gain or ((), ()), strict=True):
        out[title] = share(values) if values else "1"
    return out


def share(values: Sequence[float]) -> Estimate | str:
    """The mean over seeds, or in how many of them the accuracy was never reached."""
    missed = sum(v == float("inf") for v in values)
    return f"not reached in {missed} of {len(values)}" if missed else estimate(values)


def baselines(i: Instance, sets: Sets, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Raw pixels, and the untrained network with its statistics from training pictures, by each learner."""
    assert sets.test.y is not None
    pixels = few_shot(raw_pixels(sets.test.x), sets.test.y, plan(i)).mean / 100
    found = []
    for seed in seeds:
        net: nn.Module = WithClassifier(build_encoder("conv4", 1, i.size, seed, width=i.width), i.width)
        weights = merged(params_of(net), buffers_of(net))
        weights = merged(weights, estimated_statistics(net, weights, sets.train.x[:1024]))
        learner = GradientLearner(net, i.inner_steps, 0.4, norm="support")
        found.append(few_shot_learner(learner, weights, sets.test, plan(i)).mean / 100)
    return {"untrained network, same steps at 0.4": found, "raw pixels, nearest class mean": [pixels]}


def baseline(name: str, values: Sequence[float], like: Mapping[str, Estimate | str]) -> dict[str, Estimate | str]:
    """A row with the columns of `like` in which only the accuracy stands, in that of the last check."""
    last = [column for column in like if column.startswith("accuracy")][-1]
    return {**dict.fromkeys(like, "-"), "method": name, last: estimate(values)}


def verdict(name: str, data: Sequence[float], work: Sequence[float]) -> str:
    """Shown where the interval of the ratio lies below 1, for data or for time, in every seed reached."""
    said = []
    for what, values in (("data", data), ("time", work)):
        one = share(values)
        clear = isinstance(one, Estimate) and one.mean + one.half_width < 1
        said.append((clear, f"{one} of MAML's {what}" if isinstance(one, Estimate) else f"{what}: {one} seeds"))
    shown = [text for clear, text in said if clear]
    word = "Shown" if shown else "Not shown"
    both = ", and ".join(text for _, text in said)
    return f"{word}: {name} comes within a point of MAML's last accuracy with {both}."


def losing(runs: Mapping[str, Sequence[Run]], gains: Mapping[str, tuple[list[float], list[float]]]) -> str:
    """The target length with the lowest last accuracy, and where the time is not gained."""
    last = {n: estimate([r.accuracy[-1] for r in each]) for n, each in runs.items()}
    worst = min(gains, key=lambda n: last[n].mean)
    slow = [n for n, (_, work) in gains.items() if statistics.mean(work) >= 1]
    text = f"Weakest target: {worst}, {last[worst]} after the whole budget, MAML {last['MAML']}."
    return text + (f" No time is gained with {'; '.join(slow)}." if slow else " Every L gained time here.")


def lines(runs: Mapping[str, Sequence[Run]]) -> list[Line]:
    """Accuracy against steps and against the mean processor time at each check."""
    out = []
    for panel in ("accuracy against outer steps", "accuracy against processor seconds"):
        for name, each in runs.items():
            x = each[0].steps if "steps" in panel else [
                statistics.mean(r.seconds[n] for r in each) for n in range(len(each[0].steps))
            ]  # fmt: skip
            y = [estimate([r.accuracy[n] for r in each]) for n in range(len(each[0].steps))]
            out.append(Line(panel, name, tuple(x), tuple(y)))
    return out


def protocol(i: Instance, seeds: Sequence[int], grid: Sequence[tuple[float, float]]) -> str:
    """In words."""
    return (
        f"{i.classes} generated characters each for training, validation and test, {i.size}x{i.size}; "
        f"Conv4-{i.width} with batch normalisation; {i.ways}-way 1-shot, {i.tasks} tasks a step, "
        f"K = {i.inner_steps} inner steps in training and at test, all weights move; {i.steps} outer steps of "
        f"Adam with a cosine. Inner and outer rate are chosen for MAML and for L = {i.longest} from {len(grid)} "
        f"pairs each, by {i.tuning_steps} steps under another seed and validation classes; the other L take the "
        f"latter's (Adam divides by the gradient's size). {len(seeds)} seeds; accuracy by "
        f"the support's statistics on one list of {i.episodes} test episodes; time is processor time of training. "
        "The goal is one point below MAML's mean last accuracy; data and time to it are where the curve first "
        "meets it, over where MAML's does."
    )
