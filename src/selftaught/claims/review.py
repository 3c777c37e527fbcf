"""The matrix of Peng's review: every self-supervised objective with every base learner, on one set.

Paper: Peng, arXiv 2103.00845, an essay without experiments (its full text was not at hand): it names two ways to
combine, self-supervision guided by a meta-learner, and meta-learning under self-supervision.

The experiment is all ours. Every method of METHODS that takes pictures without labels is trained as it stands;
those that ask for labelled episodes get tasks made of views, with single pictures as classes. Each encoder is then
given to four base learners. A new method enters by its line in METHODS.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.claims.outcome import Estimate, Outcome, estimate
from selftaught.core.errors import SelftaughtError
from selftaught.core.functional import buffers_of, in_batches, params_of, part
from selftaught.core.train import start, train
from selftaught.core.types import Method, Params, TaskSource, merged
from selftaught.data.emoji import read_emoji
from selftaught.data.pictures import Pictures
from selftaught.data.views import FLAT
from selftaught.evaluate.baselines import estimated_statistics, raw_pixels
from selftaught.evaluate.fewshot import Head, few_shot, few_shot_learner
from selftaught.learners.gradient import GradientLearner
from selftaught.methods import METHODS
from selftaught.nets import build_encoder
from selftaught.nets.heads import WithClassifier
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.episodes import EpisodePlan, EpisodeSource
from selftaught.tasks.views import ViewTasks

HEADS: dict[str, Head] = {"nearest mean": "prototype", "ridge": "ridge", "logistic": "logistic"}
STEPS = "gradient steps"
LEARNERS = (*HEADS, STEPS)
SMALL = {"batch": 32, "ways": 16, "queries": 3}
"""Upper bounds of sizes, so that equal views make enough steps for all; everything else is as by default."""
UNTRAINED, PIXELS = "untrained encoder", "raw pixels"
Scores = dict[str, float]
Cells = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Budget:
    """`views` is the number of pictures each encoder sees in training, `size` their pixels."""

    views: int = 6144
    size: int = 16
    width: int = 32
    rate: float = 1e-3
    episodes: int = 60


def show(quick: bool = False) -> Outcome:
    """Train every method under every seed and ask every base learner."""
    budget, seeds = (Budget(64, width=8, episodes=4), [0, 1]) if quick else (Budget(), [0, 1, 2])
    pictures, unseen = (smaller(read_emoji(split=s), budget.size) for s in ("train", "test"))
    subjects = {name: made for name in METHODS if (made := subject(name, pictures)) is not None}
    cells: Cells = {}
    jobs = [(name, seed) for seed in seeds for name in [*subjects, UNTRAINED]]
    for name, seed in track(jobs, "training", console=Console(stderr=True), transient=True):
        for column, value in measured(subjects.get(name), pictures, unseen, budget, seed).items():
            cells.setdefault(name, {}).setdefault(column, []).append(value)
    cells[PIXELS] = {column: [v] for column, v in fixed(raw_pixels(unseen.x), unseen, budget).items()}
    rows = [row(name, cells[name]) for name in (*ordered(cells), UNTRAINED, PIXELS)]
    return Outcome(
        "review",
        "Peng, arXiv 2103.00845 (an essay without experiments)",
        "Self-supervision and meta-learning combine freely: tasks made without labels train any objective, and "
        "any base learner can use what was learned.",
        protocol(budget, seeds),
        rows,
        verdict(cells),
        losing(cells),
        matrix=LEARNERS,
    )


def smaller(pictures: Pictures, size: int) -> Pictures:
    """The same pictures at `size` pixels, by the mean over areas."""
    x = F.interpolate(pictures.x.float(), size=(size, size), mode="area").round().to(torch.uint8)
    return dataclasses.replace(pictures, x=x)


def unlabelled(name: str) -> Method | None:
    """The method as it takes pictures without labels: by default, else by the first choice that does."""
    return next((m for m in choices(METHODS[name]) if accepts(m)), None)


def choices(kind: type[Method]) -> Iterator[Method]:
    """The method as it is by default, then with one named choice changed at a time."""
    yield kind()
    for name, hint in get_type_hints(kind).items():
        for value in get_args(hint) if get_origin(hint) is Literal else ():
            try:
                yield cast(Any, kind)(**{name: value})
            except SelftaughtError:
                continue  # a choice that goes only with another


def accepts(method: Method) -> bool:
    """Whether `source` takes pictures without labels."""
    x = stand_in()
    try:
        method.source(Pictures(x, tuple(map(str, range(len(x))))), FLAT)
    except SelftaughtError:
        return False
    return True


def asks_for_episodes(method: Method) -> bool:
    """Whether `source` makes few-shot tasks of labelled pictures."""
    x = stand_in()
    labelled = Pictures(x, tuple(map(str, range(len(x)))), torch.arange(len(x)) % 32, tuple(map(str, range(32))))
    try:
        return isinstance(method.source(labelled, FLAT), EpisodeSource)
    except SelftaughtError:
        return False  # it asks for something else again: all classes of a set at once, for example


def stand_in() -> Tensor:
    """Noise that is asked nothing but whether it fits."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (512, 1, 32, 32), generator=generator, dtype=torch.uint8)


def subject(name: str, pictures: Pictures) -> tuple[Method, TaskSource] | None:
    """The method in small with its tasks, none of which uses a label; None where it cannot do without."""
    found = unlabelled(name)
    plain = Pictures(pictures.x, pictures.names)
    if found is not None:
        method = small(found)
        return method, method.source(plain, FLAT)
    method = small(METHODS[name]())
    if not asks_for_episodes(method):
        return None
    sizes: Any = method
    return method, ViewTasks(plain, FLAT, sizes.tasks, sizes.ways, sizes.shots, sizes.queries)


def small(method: Method) -> Method:
    """No size above `SMALL`."""
    sizes = {
        k: min(getattr(method, k), most) for k, most in SMALL.items() if isinstance(getattr(method, k, None), int)
    }
    return dataclasses.replace(cast(Any, method), **sizes)


def measured(
    given: tuple[Method, TaskSource] | None, pictures: Pictures, unseen: Pictures, budget: Budget, seed: int
) -> Scores:
    """Accuracy (fractions) by each base learner, steps and processor seconds of training; NaN where it failed."""
    encoder = build_encoder("conv4", 3, budget.size, seed, width=budget.width)
    if given is None:
        weights = merged(params_of(encoder), buffers_of(encoder))
        weights = merged(weights, estimated_statistics(encoder, weights, pictures.x))
        return scores(encoder, weights, unseen, budget)
    began = time.process_time()
    try:
        encoder, weights, steps = fit(*given, encoder, budget, seed)
    except SelftaughtError:
        return dict.fromkeys((*LEARNERS, "steps", "seconds"), math.nan)
    spent = {"steps": float(steps), "seconds": time.process_time() - began}
    return scores(encoder, weights, unseen, budget) | spent


def fit(
    method: Method, source: TaskSource, encoder: nn.Module, budget: Budget, seed: int
) -> tuple[nn.Module, Params, int]:
    """The encoder, its weights and the number of steps after about `budget.views` views."""
    task = source(torch.Generator().manual_seed(seed))
    step = sum(math.prod(e.x.shape[:2]) for e in (task.support, task.query))
    steps = max(1, round(budget.views / step))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = method.network(encoder)
    optimizer = Gradient(budget.rate, steps)
    state = start(method, net, optimizer, seed)
    for state, _ in train(method, net, source, optimizer, state, steps):  # noqa: B007, B020
        pass
    return net.get_submodule("encoder"), part(merged(state.params, state.slow), "encoder"), steps


def scores(encoder: nn.Module, weights: Params, unseen: Pictures, budget: Budget) -> Scores:
    """Accuracy by every base learner, on one list of episodes."""
    found = fixed(in_batches(encoder, weights, unseen.x), unseen, budget)
    width = cast(int, encoder.width)
    net = WithClassifier(encoder, width)
    start_of = {f"encoder.{k}": v for k, v in weights.items()}
    start_of |= {"head.weight": torch.zeros(1, width), "head.bias": torch.zeros(1)}
    # Of the head alone: from a head of zeros and under running statistics, steps of all weights fall to chance.
    learner = GradientLearner(net, 10, 0.1, "head")
    return found | {STEPS: few_shot_learner(learner, start_of, unseen, plan(budget)).mean / 100}


def fixed(z: Tensor, unseen: Pictures, budget: Budget) -> Scores:
    """Accuracy by the base learners that leave features [B D] as they are."""
    assert unseen.y is not None
    return {name: few_shot(z, unseen.y, plan(budget), head).mean / 100 for name, head in HEADS.items()}


def plan(budget: Budget) -> EpisodePlan:
    """One drawing each to learn from, the two of other hands to name."""
    return EpisodePlan(5, 1, 2, budget.episodes, 0)


def ordered(cells: Cells) -> list[str]:
    """Trained methods, the best mean over base learners first; failed ones last."""

    def mean(name: str) -> float:
        found = [v for c in LEARNERS for v in cells[name][c]]
        return statistics.mean(found) if all(map(math.isfinite, found)) else -1.0

    return sorted((n for n in cells if n not in (UNTRAINED, PIXELS)), key=mean, reverse=True)


def row(name: str, found: Mapping[str, Sequence[float]]) -> dict[str, Estimate | str]:
    """One line of the matrix, with steps and seconds of training."""
    out: dict[str, Estimate | str] = {"objective": name}
    for column in (*LEARNERS, "seconds"):
        good = [v for v in found.get(column, ()) if math.isfinite(v)]
        out[column] = estimate(good) if good else ("failed" if column in found else "-")
    steps = found.get("steps", [])
    out["steps"] = f"{steps[0]:.0f}" if steps and math.isfinite(steps[0]) else "-"
    return out


def leads(cells: Cells, rival: str) -> dict[tuple[str, str], Estimate]:
    """Each objective and base learner minus the rival with the same base learner, paired by seed."""
    out = {}
    for name in ordered(cells):
        for column in LEARNERS:
            own, other = cells[name][column], cells[rival].get(column, [])
            if other and all(map(math.isfinite, own)):
                others = other * len(own) if len(other) == 1 else other
                out[name, column] = estimate([a - b for a, b in zip(own, others, strict=True)])
    return out


def verdict(cells: Cells) -> str:
    """Shown where most pairs lie above the untrained encoder; the best pair is named with its lead."""
    found = leads(cells, UNTRAINED)
    above = [k for k, lead in found.items() if lead.mean - lead.half_width > 0]
    best = max(found, key=lambda k: estimate(cells[k[0]][k[1]]).mean)
    word = "Shown" if 2 * len(above) > len(found) else "Not shown"
    return (
        f"{word}: {len(above)} of {len(found)} pairs are clearly above the untrained encoder with the same base "
        f"learner. Best pair: {best[0]} with {best[1]}, {estimate(cells[best[0]][best[1]])}."
    )


def losing(cells: Cells) -> str:
    """What is clearly below the untrained encoder, what does not pass raw pixels, and what failed."""
    below = [f"{n} with {c}" for (n, c), d in leads(cells, UNTRAINED).items() if d.mean + d.half_width < 0]
    pixels = leads(cells, PIXELS)
    level = sorted(
        {n for n, _ in pixels if all(d.mean - d.half_width <= 0 for (m, _), d in pixels.items() if m == n)}
    )
    failed = [n for n in ordered(cells) if not all(map(math.isfinite, cells[n][STEPS]))]
    return (
        f"Clearly below the untrained encoder: {'; '.join(below) or 'none'}. Never clearly above raw pixels: "
        f"{', '.join(level) or 'none'}." + (f" Training failed: {', '.join(failed)}." if failed else "")
    )


def protocol(budget: Budget, seeds: Sequence[int]) -> str:
    """In words."""
    return (
        f"Packaged emoji at {budget.size}x{budget.size}: 2,880 unlabelled drawings of 960 emoji to train on, 316 "
        f"other emoji to ask; Conv4-{budget.width}; every encoder sees about {budget.views:,} views, Adam with a "
        f"cosine from {budget.rate:g}; batches of at most {SMALL['batch']}, {SMALL['ways']} ways; the rest as "
        "by default, nothing tuned. Meta-learners that ask for labels get tasks of views whose classes are single "
        f"pictures. 5-way 1-shot across drawing styles, one list of {budget.episodes} episodes, inductive; "
        f"gradient steps: 10 of 0.1 of a linear head. {len(seeds)} seeds. Seconds: processor time of training. "
        "This is early training: it compares beginnings, not ends."
    )
