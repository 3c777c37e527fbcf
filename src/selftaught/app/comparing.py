"""What `selftaught compare` does: finished runs on one list of episodes, with paired differences and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from selftaught.app.choices import ComparisonHead
from selftaught.app.drawings import Interval, intervals
from selftaught.app.evaluation import fitting_queries
from selftaught.app.model import Model
from selftaught.artifacts.run import Run
from selftaught.core.errors import ConfigError, DataError, RunError
from selftaught.evaluate.fewshot import Accuracy, few_shot_learner, few_shot_on, paired_difference
from selftaught.tasks.episodes import EpisodePlan, draw_episodes


@dataclass(frozen=True)
class Compared:
    """Accuracy in percent of each run, and a - b in points for each pair (a, b); all on the episodes of `plan`."""

    plan: EpisodePlan
    head: ComparisonHead
    accuracy: Mapping[str, Accuracy]
    differences: Mapping[tuple[str, str], Accuracy]


def loaded(runs: Sequence[Path]) -> dict[str, Model]:
    """Each finished run by a short name that tells it apart.

    Raises ConfigError for fewer than two or the same one twice, RunError where a folder is no finished run or
    where sizes or channels of the pictures differ: the runs would then not see the same pictures.
    """
    if len(runs) < 2:
        raise ConfigError(
            f"a comparison needs two or more runs, got {len(runs)}; for one: selftaught evaluate RUN"
        )
    if len({r.resolve() for r in runs}) < len(runs):
        raise ConfigError("the same run is given twice; its difference to itself is nothing")
    for run in runs:
        if not Run.open(run).finished:
            raise RunError(f"{run} is not finished: go on with selftaught pretrain ... --out {run} --resume")
    models = {name: Model.load(run) for name, run in zip(names(runs), runs, strict=True)}
    kinds = {name: (m.config.size, m.config.channels) for name, m in models.items()}
    if len(set(kinds.values())) > 1:
        said = "; ".join(f"{n}: {s} pixels, {c} channel(s)" for n, (s, c) in kinds.items())
        raise RunError(
            f"the runs do not see the same pictures ({said}). Train them with one --size and --channels."
        )
    return models


def names(runs: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many as it takes to tell all apart."""
    parts = [r.resolve().parts for r in runs]
    for count in range(1, max(map(len, parts)) + 1):
        short = ["/".join(p[-count:]) for p in parts]
        if len(set(short)) == len(short):
            break
    return short


def compared(
    models: Mapping[str, Model], data: Any, ways: int, shots: int, queries: int | None, episodes: int, seed: int,
    head: ComparisonHead,
) -> Compared:  # fmt: skip
    """All models on one list. Raises DataError without labels, TooFewPicturesError naming a small class."""
    pictures = next(iter(models.values())).read(data, labelled=True)
    if pictures.y is None:
        raise DataError("a comparison needs labels: a folder with one subfolder per class")
    plan = EpisodePlan(ways, shots, queries or fitting_queries(pictures, shots), episodes, seed)
    drawn = draw_episodes(pictures.y, plan, pictures.classes)
    accuracy = {
        name: few_shot_learner(m.learner, m.weights, pictures, plan)
        if head == "own"
        else few_shot_on(m.features(pictures), drawn, head)
        for name, m in models.items()
    }
    pairs = {(a, b): paired_difference(accuracy[a], accuracy[b]) for a, b in combinations(accuracy, 2)}
    return Compared(plan, head, accuracy, pairs)


def tables(found: Compared) -> list[Table]:
    """Accuracies, then differences with what they allow to be said."""
    task = f"{found.plan.ways}-way {found.plan.shots}-shot"
    first = Table("run", f"{task}, accuracy %")
    for name, own in found.accuracy.items():
        first.add_row(name, f"{own.mean:.1f} ± {own.half_width_95:.1f}")
    second = Table("first", "second", "points (paired 95 %)", "says")
    for (a, b), d in found.differences.items():
        second.add_row(a, b, f"{d.mean:+.1f} ± {d.half_width_95:.1f}", said(d))
    return [first, second]


def said(difference: Accuracy) -> str:
    """Which of a pair is ahead on these episodes."""
    if not difference.half_width_95 < abs(difference.mean):  # also for nan, the half width of one episode
        return "level"
    return "first ahead" if difference.mean > 0 else "second ahead"


def drawing(found: Compared) -> str:
    """Both tables as a picture."""
    p = found.plan
    title = f"accuracy %, {p.ways}-way {p.shots}-shot, {p.episodes} episodes of {p.queries} queries a class"
    gaps = "paired differences, points"
    groups = {
        title: [Interval(n, a.mean, a.half_width_95) for n, a in found.accuracy.items()],
        gaps: [Interval(f"{a} minus {b}", d.mean, d.half_width_95) for (a, b), d in found.differences.items()],
    }
    return intervals(
        groups, (gaps,), f"{title}: " + ", ".join(f"{n} {a.mean:.1f}" for n, a in found.accuracy.items())
    )


def as_json(found: Compared, runs: Sequence[Path]) -> dict[str, Any]:
    """Plain JSON values, in percent; a half width is null where there is one episode only."""
    return {
        "plan": {
            **vars(found.plan),
            "head": found.head,
            "norm": "each learner's own" if found.head == "own" else "running",
        },
        "runs": [
            {"name": name, "folder": run, **_figures(a)}
            for run, (name, a) in zip(runs, found.accuracy.items(), strict=True)
        ],
        "differences": [{"first": a, "second": b, **_figures(d)} for (a, b), d in found.differences.items()],
    }


def _figures(a: Accuracy) -> dict[str, float | None]:
    finite = torch.isfinite(torch.tensor(a.half_width_95))
    return {"mean": a.mean, "half_width": a.half_width_95 if finite else None}
