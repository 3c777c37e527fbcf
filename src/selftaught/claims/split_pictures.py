"""The split on pictures: R2D2's encoder, adapted on one half of a task and asked the other, or both times on both.

The same two variants as in `claims.split`, with a network for the linear features and a ridge classifier for the
ridge regression. Our choice: everything (the paper trains on Omniglot and miniImageNet with a logistic head; its
tables were not read): generated characters, or Omniglot where SELFTAUGHT_OMNIGLOT names its zip; R2D2 with its
scale and penalty learned in training; at test ridge, its penalty chosen on other classes per number of samples.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from selftaught.claims.outcome import Estimate, Line, estimate
from selftaught.core.functional import buffers_of, in_batches, params_of, part
from selftaught.core.train import start
from selftaught.core.train import train as run
from selftaught.core.types import State, merged
from selftaught.data.omniglot import read_omniglot
from selftaught.data.pictures import Pictures
from selftaught.data.splits import read_split
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import Views
from selftaught.evaluate.baselines import estimated_statistics
from selftaught.learners.heads import one_hot, ridge
from selftaught.methods.r2d2 import R2D2
from selftaught.nets import build_encoder
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.episodes import EpisodePlan, draw_episodes
from selftaught.tasks.split import Split, SplitTasks

SHOTS = (1, 2, 4, 10)
"""Labelled pictures a class of a new task."""
WAYS = 5
SPLITS: tuple[Split, ...] = ("tr-val", "tr-tr")
OMNIGLOT = "SELFTAUGHT_OMNIGLOT"
_PENALTIES = (1e-3, 1e-2, 0.1, 1.0, 10.0)
_QUERIES = 10


@dataclass(frozen=True)
class Arm:
    """Training tasks of `ways` classes with `half` pictures a class in each half, `tasks` of them a step.

    `classes` to train on, to choose the test penalty on, and to report; `size` pixels, `width` features.
    """

    ways: int = 10
    half: int = 1
    tasks: int = 4
    steps: int = 400
    rate: float = 1e-3
    width: int = 32
    size: int = 20
    classes: tuple[int, int, int] = (200, 60, 100)
    episodes: int = 300
    looks: int = 8


@dataclass(frozen=True)
class Sets:
    """Pictures to train on, to choose on and to report; they share no class."""

    known: Pictures
    chosen_on: Pictures
    unseen: Pictures
    source: str


@dataclass(frozen=True)
class Figures:
    """Of the reported classes: effective `rank` of the features, share of `wrong` answers by shots.

    `ranks` are (step, effective rank) along training.
    """

    rank: float
    wrong: tuple[float, ...]
    ranks: tuple[tuple[int, float], ...] = ()


def sets(arm: Arm) -> Sets:
    """Omniglot's tuning lists and validation alphabets where its zip is named, else generated characters."""
    if named := os.environ.get(OMNIGLOT):
        lists = ("omniglot_tuning_train20", "omniglot_tuning_5", "omniglot_validation_last5")
        read = [read_omniglot(Path(named), size=arm.size, classes=read_split(one)) for one in lists]
        return Sets(read[0], read[1], read[2], "Omniglot's background set")
    drawn = draw_strokes(sum(arm.classes), max(SHOTS) + _QUERIES, size=arm.size, seed=0)
    known, other, _ = arm.classes
    edges = (0, known, known + other, sum(arm.classes))
    parts = [drawn.only(set(drawn.classes[a:b])) for a, b in pairwise(edges)]
    return Sets(parts[0], parts[1], parts[2], "generated characters")


def trained(arm: Arm, split: Split, given: Sets, seed: int) -> Figures:
    """An encoder trained from `seed` under `split`, measured at the last step."""
    method = R2D2(tasks=arm.tasks, ways=arm.ways, shots=arm.half, queries=arm.half)
    net = method.network(build_encoder("conv4", 1, arm.size, seed, width=arm.width))
    optimizer = Gradient(arm.rate, arm.steps)
    source = SplitTasks(method.source(given.known, Views()), split)
    encoder, look = net.get_submodule("encoder"), max(1, arm.steps // arm.looks)

    def features(state: State, x: Tensor) -> Tensor:
        return in_batches(encoder, part(merged(state.params, state.slow), "encoder"), x)

    state, ranks = start(method, net, optimizer, seed), []
    for state, _ in run(method, net, source, optimizer, state, arm.steps):  # noqa: B020
        if state.step % look == 0:
            ranks.append((state.step, effective_rank(features(state, given.unseen.x))))
    both = [features(state, p.x) for p in (given.chosen_on, given.unseen)]
    return measured(arm, given, both[0], both[1], tuple(ranks))


def untrained(arm: Arm, given: Sets, seed: int) -> Figures:
    """The encoder that training starts from, its statistics estimated on the training pictures."""
    encoder = build_encoder("conv4", 1, arm.size, seed, width=arm.width)
    weights = merged(params_of(encoder), buffers_of(encoder))
    weights = merged(weights, estimated_statistics(encoder, weights, given.known.x[:2048], 64))
    both = [in_batches(encoder, weights, p.x) for p in (given.chosen_on, given.unseen)]
    return measured(arm, given, both[0], both[1])


def raw_pixels(arm: Arm, given: Sets) -> Figures:
    """The pictures as they are."""
    both = [p.x.flatten(1).float() / 255 for p in (given.chosen_on, given.unseen)]
    return measured(arm, given, both[0], both[1])


@dataclass(frozen=True)
class Shown:
    """Rows of the table, effective rank along training, and split minus no split seed by seed.

    `rank` and `wrong` (5 samples) are those differences: below zero where the split has less of either.
    """

    rows: list[Mapping[str, Estimate | str]]
    lines: list[Line]
    rank: Estimate
    wrong: Estimate


def shown(arm: Arm, given: Sets, seeds: Sequence[int]) -> Shown:
    """Both variants from each seed, beside the untrained encoder and raw pixels, on one episode list."""
    jobs: list[tuple[Split, int]] = [(split, s) for s in seeds for split in SPLITS]
    done = {job: trained(arm, job[0], given, job[1]) for job in _progress(jobs)}
    each = {split: [done[split, s] for s in seeds] for split in SPLITS}
    pairs = list(zip(*each.values(), strict=True))
    named = {f"pictures, {split}": found for split, found in each.items()}
    named["pictures, untrained encoder"] = [untrained(arm, given, s) for s in seeds]
    named["pictures, raw pixels"] = [raw_pixels(arm, given)]
    return Shown(
        [row(name, found) for name, found in named.items()],
        [line(f"pictures, {split}", found) for split, found in each.items()],
        estimate([a.rank - b.rank for a, b in pairs]),
        estimate([a.wrong[0] - b.wrong[0] for a, b in pairs]),
    )


def row(name: str, found: Sequence[Figures]) -> Mapping[str, Estimate | str]:
    """The columns of the claim's table; a sample is one labelled picture of a new task."""
    cells: dict[str, Estimate | str] = {"representation": name}
    cells["effective rank"] = estimate([f.rank for f in found])
    for i, shots in enumerate(SHOTS):
        cells[f"risk, {WAYS * shots} samples"] = estimate([f.wrong[i] for f in found])
    return cells


def line(name: str, found: Sequence[Figures]) -> Line:
    """Effective rank over the steps."""
    steps = [float(step) for step, _ in found[0].ranks]
    ranks = [estimate([f.ranks[i][1] for f in found]) for i in range(len(steps))]
    return Line("effective rank against step", name, steps, ranks)


def verdict(found: Shown) -> str:
    """Whether the split's lower rank and fewer errors are clear, by the intervals of the paired differences."""
    clear = all(e.mean + e.half_width < 0 for e in (found.rank, found.wrong))
    return (
        f"On pictures {'shown too' if clear else 'not shown'}: split minus no split, seed by seed, effective rank "
        f"{found.rank}, share of wrong answers from 5 samples {found.wrong}."
    )


def _progress(jobs: list[tuple[Split, int]]) -> Iterable[tuple[Split, int]]:
    return track(jobs, "training on pictures", console=Console(stderr=True), transient=True)


def measured(
    arm: Arm, given: Sets, chosen_on: Tensor, unseen: Tensor, ranks: Sequence[tuple[int, float]] = ()
) -> Figures:
    """Features [B D] of the two sets -> figures on the second; penalties are chosen on the first."""
    assert given.chosen_on.y is not None and given.unseen.y is not None
    found = []
    for shots in SHOTS:
        plan = EpisodePlan(WAYS, shots, _QUERIES, arm.episodes)
        tried = {p: wrong_share(chosen_on, given.chosen_on.y, plan, p) for p in _PENALTIES}
        found.append(wrong_share(unseen, given.unseen.y, plan, min(tried, key=lambda p: tried[p])))
    return Figures(effective_rank(unseen), tuple(found), tuple(ranks))


def wrong_share(z: Tensor, y: Tensor, plan: EpisodePlan, penalty: float) -> float:
    """Share of wrong answers of ridge classifiers on the episodes of `plan`.

    `penalty` is in units of the features' mean squared distance from their mean, so that their scale, which the
    variants drive apart, does not matter.
    """
    centred = z - z.mean(0)
    centred = centred / centred.square().sum(1).mean().sqrt().clamp_min(1e-12)
    episodes = draw_episodes(y, plan)
    wrong = []
    for support, query in zip(episodes.support.split(50), episodes.query.split(50), strict=True):
        target = one_hot(support.shape[1], plan.ways, None, z)
        weight, bias = ridge(centred[support], target.expand(len(support), -1, -1), penalty)
        answers = (centred[query] @ weight + bias[:, None]).argmax(-1)
        wrong.append((answers != episodes.query_y).float().mean(1))
    return float(torch.cat(wrong).mean())


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the centred features' squared singular values, as shares of their sum."""
    share = torch.linalg.svdvals(z.double() - z.double().mean(0)).square()
    share = share / share.sum().clamp_min(1e-30)
    return float((-(share * share.clamp_min(1e-12).log()).sum()).exp())
