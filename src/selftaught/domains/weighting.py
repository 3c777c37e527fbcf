"""How strongly each source speaks at a point: from a domain classifier, from densities, or the same everywhere.

Cortes, Mohri, Suresh, Zhang, ICML 2021, arXiv 2008.11036: by Bayes D_k(x) = Q(k | x) D(x) / P(k), and D(x)
cancels in a combination, so

    discriminative    q_k(x) = Q(k | x) / P(k)      Q: conditional maximum entropy, that is multinomial logistic
                                                    regression on points labelled by their source
    generative        q_k(x) = D_k(x)               a kernel density of each source (Hoffman, Mohri, Zhang, 2018)
    constant          q_k(x) = 1

Without the division by P(k), the share of points that source k has, large sources would speak louder everywhere.

The papers': the three formulas. Our choice: standardised features; strength of the penalty by held-out
likelihood; one temperature (Guo, Pleiss, Sun, Weinberger, ICML 2017, arXiv 1706.04599) on held-out
log-probabilities against over-confidence; bandwidth by held-out likelihood for each source; principal components
before densities on request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from selftaught.core.errors import ConfigError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Fold = tuple[Integers, Integers]
"""Rows to learn from, rows held out."""
Weighting = Literal["discriminative", "generative", "constant"]

PENALTIES = (0.003, 0.03, 0.3, 3.0)
"""Inverse strengths C of the domain classifier's penalty that are tried."""
BANDWIDTHS = tuple(float(b) for b in np.geomspace(0.1, 3, 10))
_SMALLEST = 1e-12
"""A probability of the domain classifier that counts as no smaller."""


class Weights(Protocol):
    """What a combination asks for: log q_k(x) [n K] of rows X [n D], up to a number for each row."""

    def log_weights(self, X: Any) -> Floats: ...


@final
@dataclass(frozen=True)
class Constant:
    """The same weight everywhere: the combination is sum_k z_k h_k(x)."""

    sources: int

    def log_weights(self, X: Any) -> Floats:
        """Zeros [n K]."""
        return np.zeros((X.shape[0], self.sources))


@final
@dataclass(frozen=True)
class Discriminative:
    """`classifier` gives the probabilities of the sources, `prior` [K] is P(k)."""

    classifier: Any
    prior: Floats
    temperature: float

    def log_weights(self, X: Any) -> Floats:
        """log Q(k | x) - log P(k), [n K]."""
        return log_softmax(_log_proba(self.classifier, X) / self.temperature, axis=1) - np.log(self.prior)


@final
@dataclass(frozen=True)
class Generative:
    """`densities` are K fitted kernel densities in the space of `projection`."""

    projection: Any
    densities: Sequence[Any]

    def log_weights(self, X: Any) -> Floats:
        """log D_k(x), [n K]."""
        rows = self.projection.transform(X)
        return np.stack([d.score_samples(rows) for d in self.densities], 1)


@final
@dataclass(frozen=True)
class Fitted:
    """`weights` learned from all rows; `held_out` [n K] are log q_k of rows by weights that had not seen them.

    `log_loss` and `accuracy` are of the sources of held-out rows: how well they can be told apart.
    """

    weights: Weights
    held_out: Floats
    log_loss: float
    accuracy: float


def fit_weights(
    kind: Weighting,
    X: Any,
    source: Integers,
    folds: Sequence[Fold],
    *,
    classifier: Any = None,
    components: int | None = None,
    seed: int = 0,
) -> Fitted:
    """Weights of `kind` from rows X [n D] of the sources [n] (from 0), no labels needed.

    `classifier` is a scikit-learn classifier with `predict_proba` in place of our own; `components` is the
    number of principal components before densities. Raises ConfigError for an unknown kind and for densities of
    sparse rows.
    """
    count = int(source.max()) + 1
    if kind == "constant":
        return Fitted(Constant(count), np.zeros((len(source), count)), float(np.log(count)), 1 / count)
    if kind == "discriminative":
        return _discriminative(X, source, folds, classifier)
    if kind != "generative":
        raise ConfigError(f"weighting must be discriminative, generative or constant, got {kind!r}")
    if not isinstance(X, np.ndarray):
        raise ConfigError("kernel densities need dense rows: reduce them first (TruncatedSVD), or do without")
    return _generative(X, source, folds, components, seed)


def domain_classifier(C: float, sparse: bool) -> Any:
    """Multinomial logistic regression on standardised features; sparse rows are scaled without a shift."""
    return make_pipeline(StandardScaler(with_mean=not sparse), LogisticRegression(C=C, max_iter=2000))


def _discriminative(X: Any, source: Integers, folds: Sequence[Fold], classifier: Any) -> Fitted:
    sparse = not isinstance(X, np.ndarray)
    candidates = [domain_classifier(C, sparse) for C in PENALTIES] if classifier is None else [classifier]
    prior = np.bincount(source) / len(source)
    tried = []
    for candidate in candidates:
        log_proba = _held_out(candidate, X, source, folds)
        temperature = best_temperature(log_proba, source)
        calibrated = log_softmax(log_proba / temperature, axis=1)
        tried.append((_log_loss(calibrated, source), candidate, temperature, calibrated))
    _, best, temperature, calibrated = min(tried, key=lambda t: t[0])
    weights = Discriminative(clone(best).fit(X, source), prior, temperature)
    return _judged(weights, calibrated - np.log(prior), prior, source)


def _held_out(classifier: Any, X: Any, source: Integers, folds: Sequence[Fold]) -> Floats:
    out = np.empty((len(source), int(source.max()) + 1))
    for learned, held in folds:
        out[held] = _log_proba(clone(classifier).fit(X[learned], source[learned]), X[held])
    return out


def _log_proba(classifier: Any, X: Any) -> Floats:
    return np.log(np.maximum(classifier.predict_proba(X), _SMALLEST))


def _log_loss(log_proba: Floats, source: Integers) -> float:
    return -float(log_proba[np.arange(len(source)), source].mean())


def best_temperature(log_proba: Floats, source: Integers) -> float:
    """The T (0.05..20) for which softmax(log_proba / T) [n K] is likeliest for what came out."""
    found = minimize_scalar(
        lambda t: _log_loss(log_softmax(log_proba / np.exp(t), axis=1), source),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    return float(np.exp(found.x))


def _generative(X: Floats, source: Integers, folds: Sequence[Fold], components: int | None, seed: int) -> Fitted:
    # One space for all sources: densities in different ones could not be compared.
    steps = [StandardScaler()] if components is None else [StandardScaler(), PCA(components, random_state=seed)]
    projection = make_pipeline(*steps).fit(X)
    rows = projection.transform(X)
    chosen = [_bandwidth(rows[source == k], seed) for k in range(int(source.max()) + 1)]

    def fitted(keep: NDArray[np.bool_]) -> Generative:
        densities = [KernelDensity(bandwidth=b).fit(rows[keep & (source == k)]) for k, b in enumerate(chosen)]
        return Generative(projection, densities)

    held_out = np.empty((len(source), len(chosen)))
    for learned, held in folds:
        keep = np.zeros(len(source), dtype=bool)
        keep[learned] = True
        held_out[held] = fitted(keep).log_weights(X[held])
    return _judged(fitted(np.ones(len(source), dtype=bool)), held_out, np.bincount(source) / len(source), source)


def _bandwidth(rows: Floats, seed: int) -> float:
    """The one under which held-out rows are likeliest."""
    parts = KFold(min(5, len(rows)), shuffle=True, random_state=seed)
    search = GridSearchCV(KernelDensity(), {"bandwidth": BANDWIDTHS}, cv=parts, refit=False).fit(rows)
    return float(search.best_params_["bandwidth"])


def _judged(weights: Weights, held_out: Floats, prior: Floats, source: Integers) -> Fitted:
    log_proba = log_softmax(held_out + np.log(prior), axis=1)
    correct = float((log_proba.argmax(1) == source).mean())
    return Fitted(weights, held_out, _log_loss(log_proba, source), correct)
