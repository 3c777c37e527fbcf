"""Few-shot tables: a model beside its baselines, all on the same episodes, every condition in its row."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from selftaught.core.errors import DataError
from selftaught.evaluate.fewshot import Head, few_shot_on
from selftaught.tasks.episodes import EpisodePlan, draw_episodes


@dataclass(frozen=True)
class Features:
    """A named feature set [B D] and which normalisation statistics made it ("running", "none", ...)."""

    name: str
    z: Float[Tensor, "B D"]
    norm: str = "running"


@dataclass(frozen=True)
class Row:
    """One figure of a few-shot table in percent, with all that must be known to compare it."""

    name: str
    ways: int
    shots: int
    mean: float
    half_width: float
    head: str
    norm: str
    episodes: int
    queries: int
    seed: int


def evaluate_features(
    sets: Sequence[Features],
    y: Int64[Tensor, " B"],
    plans: Sequence[EpisodePlan],
    head: Head = "prototype",
    names: Sequence[str] = (),
) -> list[Row]:
    """One row for each plan and feature set, in that order; all sets of a plan see the same episodes.

    `names` are the class names, for messages. Raises DataError where a set does not match the labels.
    """
    for one in sets:
        if one.z.ndim != 2 or len(one.z) != len(y):
            raise DataError(f"features '{one.name}' {list(one.z.shape)} do not match {len(y)} labels")
        if not one.z.isfinite().all():
            raise DataError(f"features '{one.name}' hold nan or infinite numbers: train that encoder again")
    rows = []
    for plan in plans:
        episodes = draw_episodes(y, plan, names)
        for one in sets:
            got = few_shot_on(one.z, episodes, head)
            shown = (plan.ways, plan.shots, got.mean, got.half_width_95, head, one.norm)
            rows.append(Row(one.name, *shown, plan.episodes, plan.queries, plan.seed))
    return rows


def as_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| features | task | accuracy % | head | norm | episodes | queries | seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row.name,
            f"{row.ways}-way {row.shots}-shot",
            f"{row.mean:.2f} ± {row.half_width:.2f}",
            row.head,
            row.norm,
            str(row.episodes),
            str(row.queries),
            str(row.seed),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
