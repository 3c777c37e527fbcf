"""Few-shot accuracy of a model beside its baselines, on one list of episodes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selftaught.app.choices import EvaluationHead as EvaluationHead
from selftaught.app.model import Model
from selftaught.core.errors import DataError, TooFewPicturesError
from selftaught.core.functional import part
from selftaught.core.types import Learner, Params
from selftaught.data.pictures import Pictures
from selftaught.evaluate.baselines import raw_pixels, untrained_features
from selftaught.evaluate.fewshot import few_shot_learner
from selftaught.evaluate.table import Features, Row, evaluate_features
from selftaught.learners.gradient import GradientLearner, norm_when
from selftaught.learners.prototype import LearnerNorm, PrototypeLearner
from selftaught.nets import build_encoder
from selftaught.nets.heads import EncoderOnly, WithClassifier
from selftaught.nets.hub import is_hub
from selftaught.tasks.episodes import EpisodePlan


def evaluate(
    models: dict[str, Model],
    pictures: Pictures,
    *,
    ways: Sequence[int] = (5,),
    shots: Sequence[int] = (1, 5),
    queries: int | None = None,
    episodes: int = 600,
    seed: int = 0,
    head: EvaluationHead = "prototype",
    norm: LearnerNorm | None = None,
    steps: int = 10,
    rate: float = 0.05,
) -> list[Row]:
    """Rows (percent) for each model, raw pixels and an untrained encoder, ways by shots.

    `queries` None takes 15 a class, or as many as the smallest class leaves. `head` "steps" adapts encoder and
    a linear head by `steps` inner steps from a head of zeros; "own" meets each task as the method itself does
    (`Model.learner`), with the heads it has learned. `norm` None is "support" for "steps" (`norm_when`), else
    "running"; any but "running" needs the head "prototype" or "steps". Beside "steps", "own" and such a `norm` the
    baselines are nearest class means.
    Raises TooFewPicturesError naming the class when a class cannot fill an episode, DataError without labels.
    """
    if pictures.y is None:
        raise DataError("evaluation needs labels: a folder with one subfolder per class")
    plans = [
        EpisodePlan(n, k, queries or fitting_queries(pictures, k), episodes, seed) for n in ways for k in shots
    ]
    norm = norm or (norm_when("all") if head == "steps" else "running")
    if head == "steps" or head == "own" or norm != "running":
        return _by_learner(models, pictures, plans, head, norm, steps, rate)
    sets = [Features(name, model.features(pictures)) for name, model in models.items()]
    first = next(iter(models.values()))
    sets += [Features("raw pixels", raw_pixels(pictures.x), "none"), untrained(first, pictures)]
    return evaluate_features(sets, pictures.y, plans, head, pictures.classes)


def untrained(model: Model, pictures: Pictures) -> Features:
    """The same architecture with fresh numbers; normalisation statistics come from the evaluated pictures."""
    c = model.config
    # Fresh numbers want statistics of pictures, also where a pretrained network keeps those it came with.
    options = {**c.options, "norm": "batch"} if is_hub(c.encoder) else c.options
    found = untrained_features(
        lambda: build_encoder(c.encoder, c.channels, c.size, c.seed, **options), pictures.x[:2048], pictures.x
    )
    return Features("untrained encoder", found.features, "none" if found.norm == "none" else "evaluated pictures")


def fitting_queries(pictures: Pictures, shots: int) -> int:
    """15 queries a class, or as many as the smallest class leaves; TooFewPicturesError, naming it, for none."""
    assert pictures.y is not None
    counts = torch.bincount(pictures.y, minlength=len(pictures.classes))
    smallest = int(counts.argmin())
    left = int(counts[smallest]) - shots
    if left < 1:
        raise TooFewPicturesError(
            f"class {pictures.classes[smallest]!r} has {int(counts[smallest])} picture(s); {shots}-shot needs "
            f"{shots} to learn from and at least 1 to ask about. Use fewer --shots or add {1 - left} picture(s)."
        )
    return min(15, left)


def _by_learner(
    models: dict[str, Model],
    pictures: Pictures,
    plans: Sequence[EpisodePlan],
    head: EvaluationHead,
    norm: LearnerNorm,
    steps: int,
    rate: float,
) -> list[Row]:
    """Heads that need the pictures themselves, episode by episode."""
    rows = []
    if norm != "running" and head not in ("steps", "prototype"):
        raise DataError(f"head {head!r} works under running statistics only; use --norm running")
    for plan in plans:
        for name, model in models.items():
            learner, weights = _learner(model, head, norm, steps, rate)
            got = few_shot_learner(learner, weights, pictures, plan)
            used = getattr(learner, "norm", norm)
            shown = (plan.ways, plan.shots, got.mean, got.half_width_95, head, used)
            rows.append(Row(name, *shown, plan.episodes, plan.queries, plan.seed))
        assert pictures.y is not None
        pixels = Features("raw pixels", raw_pixels(pictures.x), "none")
        rows += evaluate_features([pixels, untrained(next(iter(models.values())), pictures)], pictures.y, [plan])
    return rows


def _learner(
    model: Model, head: EvaluationHead, norm: LearnerNorm, steps: int, rate: float
) -> tuple[Learner, Params]:
    """What meets a task, and the weights it starts from."""
    if head == "own":
        return model.learner, model.weights
    encoder = model.net.get_submodule("encoder")
    weights = {f"encoder.{k}": v for k, v in part(model.weights, "encoder").items()}
    if head == "prototype":
        return PrototypeLearner(EncoderOnly(encoder), norm, "cosine"), weights
    blank = {"head.weight": torch.zeros(1, model.width), "head.bias": torch.zeros(1)}
    return GradientLearner(WithClassifier(encoder, model.width), steps, rate, norm=norm), weights | blank


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain JSON values, in percent."""
    return [vars(row) for row in rows]


def nearest(z: Tensor, queries: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities and positions [q count] of the nearest other pictures."""
    unit = torch.nn.functional.normalize(z, dim=1)
    similarity = unit[list(queries)] @ unit.T
    similarity[torch.arange(len(queries)), list(queries)] = -torch.inf
    values, index = similarity.topk(count)
    return values, index
