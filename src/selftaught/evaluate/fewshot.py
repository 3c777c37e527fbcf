"""Few-shot accuracy in percent on a fixed list of episodes, with the interval over episodes.

The interval covers the draw of episodes only. Training seeds differ by as much again: report several.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from selftaught.core.errors import ConfigError, DataError
from selftaught.core.functional import to_float
from selftaught.core.types import Examples, Learner, Params
from selftaught.data.pictures import Pictures
from selftaught.learners import heads
from selftaught.tasks.episodes import EpisodePlan, Episodes, draw_episodes

Head = Literal["prototype", "ridge", "logistic"]
_NUMBERS_AT_ONCE = 1_000_000
"""Feature numbers of one block of episodes: few enough that what was gathered is still in the cache."""


@dataclass(frozen=True)
class Accuracy:
    """Percent correct: the mean over episodes, half the width of its 95 % interval, and each episode's own.

    `half_width_95` = 1.96 * std / sqrt(E); nan for a single episode.
    """

    mean: float
    half_width_95: float
    per_episode: Float64[Tensor, " E"]
    plan: EpisodePlan

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half_width_95:.2f} %"


def summarise(per_episode: Float64[Tensor, " E"], plan: EpisodePlan) -> Accuracy:
    """The mean and interval of figures in percent, one per episode."""
    many = len(per_episode)
    half = 1.96 * per_episode.std().item() / math.sqrt(many) if many > 1 else math.nan
    return Accuracy(per_episode.mean().item(), half, per_episode, plan)


def paired_difference(a: Accuracy, b: Accuracy) -> Accuracy:
    """a - b episode by episode, in points. On one list its interval is much narrower than either's own.

    Raises ConfigError if the two were not measured with the same plan.
    """
    if a.plan != b.plan:
        raise ConfigError(f"paired differences need one episode list, got {a.plan} and {b.plan}")
    return summarise(a.per_episode - b.per_episode, a.plan)


def _correct(logits: Tensor, labels: Tensor) -> Float64[Tensor, " E"]:
    """Percent correct [E] of logits [E Q N]."""
    return (logits.argmax(-1) == labels).double().mean(-1) * 100


def few_shot(
    features: Float[Tensor, "B D"],
    y: Int64[Tensor, " B"],
    plan: EpisodePlan,
    head: Head = "prototype",
    *,
    distance: heads.Distance = "cosine",
    penalty: float = 1.0,
    C: float = 1.0,
) -> Accuracy:
    """Accuracy of `head` on frozen features. Inductive: each query is judged without the others.

    `distance` belongs to "prototype", `penalty` to "ridge", `C` to "logistic". Raises DataError where
    features and labels do not match or features are not finite, TooFewPicturesError where a class is small.
    """
    return few_shot_on(features, draw_episodes(_checked(features, y), plan), head, distance, penalty, C)


def few_shot_on(
    features: Float[Tensor, "B D"],
    episodes: Episodes,
    head: Head = "prototype",
    distance: heads.Distance = "cosine",
    penalty: float = 1.0,
    C: float = 1.0,
) -> Accuracy:
    """As `few_shot`, on episodes already drawn (one list for many feature sets)."""
    ways = episodes.plan.ways
    each: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "prototype": partial(_prototype_each, ways=ways, distance=distance),
        "ridge": partial(_ridge_each, ways=ways, penalty=penalty),
        "logistic": partial(_logistic_each, ways=ways, C=C),
    }
    if head not in each:
        raise ConfigError(f"head must be one of {', '.join(each)}, got {head!r}")
    labels = episodes.query_y.to(features.device)
    pictures = episodes.support.shape[1] + episodes.query.shape[1]
    block = max(1, _NUMBERS_AT_ONCE // (pictures * features.shape[1]))
    correct = []
    with torch.no_grad():
        if head != "prototype" or distance == "cosine":
            # Once for every picture; an episode list meets each of them dozens of times.
            features = heads.normalise(features)
        for support, query in zip(episodes.support.split(block), episodes.query.split(block), strict=True):
            logits = each[head](_rows(features, support), _rows(features, query))
            correct.append(_correct(logits, labels).cpu())
    return summarise(torch.cat(correct), episodes.plan)


def _rows(features: Tensor, index: Tensor) -> Tensor:
    """features [B D] at [E S] -> [E S D]; index_select is several times faster than fancy indexing."""
    flat = features.index_select(0, index.flatten().to(features.device))
    return flat.unflatten(0, index.shape)


def _prototype_each(support: Tensor, query: Tensor, ways: int, distance: heads.Distance) -> Tensor:
    """`heads.prototype_logits` of rows that have length one if `distance` is the cosine."""
    if distance == "cosine":
        return query @ heads.normalise(heads.prototypes(support, ways)).mT
    return heads.prototype_logits(support, query, ways, distance=distance)


def _ridge_each(support: Tensor, query: Tensor, ways: int, penalty: float) -> Tensor:
    """`heads.ridge_logits` of rows of length one."""
    weight, bias = heads.ridge(support, heads.one_hot(support.shape[-2], ways, None, support), penalty)
    return query @ weight + bias.unsqueeze(-2)


def _logistic_each(support: Tensor, query: Tensor, ways: int, C: float) -> Tensor:
    pairs = zip(support, query, strict=True)
    return torch.stack([heads.logistic_logits(s, q, ways, C=C) for s, q in pairs])


def _checked(features: Tensor, y: Tensor) -> Tensor:
    if features.ndim != 2 or y.shape != features.shape[:1]:
        raise DataError(f"need features [B D] and labels [B], got {list(features.shape)} and {list(y.shape)}")
    if not torch.isfinite(features).all():
        raise DataError("features hold nan or infinite numbers: the encoder has diverged; train it again")
    return y


def few_shot_learner(
    learner: Learner,
    weights: Params,
    pictures: Pictures,
    plan: EpisodePlan,
    query_batch: int | None = None,
) -> Accuracy:
    """Accuracy of a learner that adapts to each support set (inner steps, prototypes, a solved head).

    Queries of an episode go in together, or `query_batch` at a time; the figure depends on that only for
    transductive learners. Raises DataError for unlabelled pictures.
    """
    if pictures.y is None:
        raise DataError("few-shot accuracy needs labelled pictures; put them in one folder per class")
    episodes = draw_episodes(pictures.y, plan, pictures.classes)
    labels, size = episodes.query_y, query_batch or len(episodes.query_y)
    correct = []
    for support, query in zip(episodes.support, episodes.query, strict=True):
        examples = Examples(to_float(pictures.x[support]), episodes.support_y)
        adapted = learner.adapt(weights, examples, plan.ways)
        with torch.no_grad():
            parts = [learner.predict(adapted, to_float(pictures.x[q])) for q in query.split(size)]
            correct.append(_correct(torch.cat(parts).cpu(), labels))
    return summarise(torch.stack(correct), plan)
