"""Digits in four renderings and emoji in three drawing styles: the real sets of the claim `dmsa`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from selftaught.claims.outcome import Estimate, estimate
from selftaught.core.functional import in_batches, part
from selftaught.core.train import start, train
from selftaught.data.emoji import emoji_metadata, emoji_styles, read_emoji
from selftaught.data.pictures import Pictures
from selftaught.data.views import FLAT
from selftaught.domains import DMSAClassifier, DMSARegressor, digit_domains, picture_domains
from selftaught.domains.combining import by_source, cross_entropy
from selftaught.domains.program import Floats
from selftaught.domains.rows import label_numbers
from selftaught.domains.sets import Domains
from selftaught.methods.simclr import SimCLR
from selftaught.nets import build_encoder
from selftaught.optimizers.gradient import Gradient

DMSA, DMSA_UNIFORM = "DMSA", "DMSA, z = 1/K"
GMSA, GMSA_UNIFORM, GMSA_REDUCED = "GMSA", "GMSA, z = 1/K", "GMSA, principal components"
BEST, UNIFORM, POOLED, TOLD = "best single source", "same weights everywhere", "pooled", "told its source"
ROWS = (DMSA, DMSA_UNIFORM, GMSA, GMSA_UNIFORM, GMSA_REDUCED, BEST, UNIFORM, POOLED, TOLD)
RENDERED = ("plain", "turned", "mirrored", "noisy")
COMPONENTS = 20
"""That densities of pictures see."""
_SIDE = 16

Losses = list[float]
"""Of each source."""


@dataclass(frozen=True)
class Sets:
    """`each` digits a rendering; the encoder of emoji; `most` emoji a style in training, all if None."""

    each: int = 200
    seeds: tuple[int, ...] = tuple(range(6))
    steps: int = 60
    batch: int = 64
    width: int = 32
    rate: float = 1e-3
    most: int | None = None
    emoji_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Measured:
    """By row: losses under every seed, share of right answers, share of held-out rows whose source was told."""

    losses: Mapping[str, list[Losses]]
    right: Mapping[str, Estimate]
    told_apart: Mapping[str, Estimate]


def told(model: DMSARegressor | DMSAClassifier) -> Callable[[Domains], Floats]:
    """What the predictor of each row's own source says, all of which are told."""

    def predict(rows: Domains) -> Floats:
        outputs = [np.asarray(p(rows.X)) for p in model.predictors_]
        source = np.searchsorted(np.array(model.domains_), rows.sample_domain)
        return np.stack(outputs)[source, np.arange(len(source))]

    return predict


def classifiers(rows: Domains, seed: int) -> dict[str, Any]:
    """Every row's fitted model."""

    def fitted(**options: Any) -> DMSAClassifier:
        return DMSAClassifier(random_state=seed, **options).fit(rows.X, rows.y, rows.sample_domain)

    components = min(COMPONENTS, rows.X.shape[1])
    dmsa, gmsa = fitted(), fitted(weighting="generative", components=components)
    plain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return {
        DMSA: dmsa,
        DMSA_UNIFORM: dmsa.with_z("uniform"),
        GMSA: gmsa,
        GMSA_UNIFORM: gmsa.with_z("uniform"),
        BEST: dmsa.with_z("best"),
        UNIFORM: fitted(weighting="constant", z="uniform"),
        POOLED: plain.fit(rows.X, rows.y),
        TOLD: told(dmsa),
    }


def measured(cases: list[tuple[Domains, Domains, int]]) -> Measured:
    """Of every row in every case: rows to learn from, rows to ask, seed."""
    losses: dict[str, list[Losses]] = {}
    right: dict[str, list[float]] = {}
    apart: dict[str, list[float]] = {DMSA: [], GMSA: []}
    for train_rows, test, seed in track(cases, "sets", console=Console(stderr=True), transient=True):
        models = classifiers(train_rows, seed)
        label = label_numbers(test.y, models[DMSA].classes_)
        for name, model in models.items():
            proba = model(test) if name == TOLD else model.predict_proba(test.X)
            each = by_source(cross_entropy(proba, label), test.sample_domain)
            losses.setdefault(name, []).append(list(each.values()))
            correct = by_source((proba.argmax(1) == label).astype(np.float64), test.sample_domain)
            right.setdefault(name, []).append(float(np.mean(list(correct.values()))))
        for name, shares in apart.items():
            shares.append(models[name].domain_accuracy_)
    return Measured(
        losses,
        {k: estimate(v) for k, v in right.items()},
        {k: estimate(v) for k, v in apart.items()},
    )


def digits(s: Sets) -> Measured:
    """Renderings of which one shows too little to be learned well."""
    return measured(
        [
            (
                digit_domains(RENDERED, each=s.each, seed=seed),
                digit_domains(RENDERED, each=s.each, seed=seed, test=True),
                seed,
            )
            for seed in s.seeds
        ]
    )


def small(pictures: Pictures) -> Pictures:
    """16 x 16."""
    x = F.avg_pool2d(pictures.x.float(), pictures.shape[1] // _SIDE)
    return replace(pictures, x=x.round().to(torch.uint8))


def emoji(s: Sets) -> Measured:
    """Groups of emoji by their embeddings."""
    group = {one.name: one.group for one in emoji_metadata()}
    known = small(without_flags(read_emoji(split="train"), group))
    new = small(without_flags(read_emoji(split="test"), group))
    cases = []
    for seed in track(s.emoji_seeds, "encoders", console=Console(stderr=True), transient=True):
        embed = encoder(s, known, seed)
        own = known.take(shared_out(known, s.most, seed))
        cases.append((picture_domains(own, embed, labels=group), picture_domains(new, embed, labels=group), seed))
    return measured(cases)


def without_flags(pictures: Pictures, group: Mapping[str, str]) -> Pictures:
    """Eight flags are too few to be learned and held out."""
    return pictures.only({name for name in pictures.classes if group[name] != "Flags"})


def shared_out(pictures: Pictures, most: int | None, seed: int) -> torch.Tensor:
    """Positions of every emoji in one style only: no predictor has seen a held-out emoji in another hand."""
    styles, many = emoji_styles(), len(pictures.classes)
    order = torch.randperm(many, generator=torch.Generator().manual_seed(seed))
    parts = [part[:most] for part in order.tensor_split(len(styles))]
    return torch.cat([k * many + part for k, part in enumerate(parts)])


def encoder(s: Sets, pictures: Pictures, seed: int) -> Callable[[Pictures], Floats]:
    """The `embed` of Conv4 after SimCLR on pictures of all styles, without labels; the last step."""
    method = SimCLR(batch=s.batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = method.network(build_encoder("conv4", 3, _SIDE, seed, width=s.width))
    optimizer = Gradient(s.rate, s.steps)
    state = start(method, net, optimizer, seed)
    for after, _ in train(method, net, method.source(pictures, FLAT), optimizer, state, s.steps):
        state = after
    weights = part(state.params | state.slow, "encoder")
    skeleton = net.get_submodule("encoder")
    return lambda asked: in_batches(skeleton, weights, asked.x).numpy().astype(np.float64)
