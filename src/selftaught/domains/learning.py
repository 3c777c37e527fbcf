"""From labelled rows of several sources, or from predictors, to a combination: what both estimators share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from selftaught.core.errors import ConfigError
from selftaught.domains.combining import combine, cross_entropy, squared_error
from selftaught.domains.program import Evidence, Floats, Program, Solution, checked_z, on_simplex, solve
from selftaught.domains.rows import split_rows
from selftaught.domains.weighting import Fitted, Fold, Integers, Weighting, fit_weights

Predictor = Callable[[Any], Any]
"""Rows [n D] to values [n], or to probabilities [n M] in the order of the classes."""
Make = Callable[[Any, Any], Predictor]
"""A new predictor from rows and labels."""


@final
@dataclass(frozen=True)
class Settings:
    """Both estimators' options, see there."""

    weighting: Weighting
    z: Any
    domain_classifier: Any
    components: int | None
    cv: int
    seed: int

    @property
    def asks_labels(self) -> bool:
        """Whether z is found from losses."""
        return isinstance(self.z, str) and self.z in ("dc", "best")


@final
@dataclass(frozen=True)
class Combination:
    """`predictors` and `fitted` weights joined by `z` [K]; `solution` and `evidence` where z came from losses."""

    predictors: tuple[Predictor, ...]
    fitted: Fitted
    z: Floats
    evidence: Evidence | None
    solution: Solution | None

    @property
    def losses(self) -> Floats | None:
        """Held-out losses [K] of the sources under h_z, where labels were asked for."""
        if self.evidence is None:
            return None
        # A vertex of the simplex is moved by 1e-6: the program's logarithms need it.
        return Program(self.evidence).at(on_simplex(self.z)).losses

    def predict(self, X: Any, classes: int | None) -> Floats:
        """h_z [n], or [n M] for so many classes."""
        stacked = predictions(self.predictors, X, classes)
        return combine(stacked, self.fitted.weights.log_weights(X), self.z)


@final
@dataclass(frozen=True)
class Values:
    """A fitted regressor as a predictor."""

    model: Any

    def __call__(self, X: Any) -> Any:
        """Values [n]."""
        return self.model.predict(X)


@final
@dataclass(frozen=True)
class Probabilities:
    """A fitted classifier as a predictor over `classes`, of which it may have seen some only."""

    model: Any
    columns: Integers
    """Where its own classes stand among all."""
    classes: int

    def __call__(self, X: Any) -> Any:
        """Probabilities [n M]; 0 for classes the model has not seen. Without a model its one class is certain."""
        out = np.zeros((X.shape[0], self.classes))
        out[:, self.columns] = 1.0 if self.model is None else self.model.predict_proba(X)
        return out


def regressor(estimator: Any) -> Make:
    """Fits copies of a scikit-learn regressor; None is ridge regression with a penalty by cross-validation."""

    def make(X: Any, y: Any) -> Predictor:
        chosen = RidgeCV(np.geomspace(1e-3, 1e3, 13)) if estimator is None else clone(estimator)
        return Values(chosen.fit(X, y))

    return make


def classifier(estimator: Any, classes: int) -> Make:
    """Fits copies of a scikit-learn classifier on label numbers; None is logistic regression, standardised.

    Raises ConfigError for one without `predict_proba`.
    """
    if estimator is not None and not hasattr(estimator, "predict_proba"):
        raise ConfigError(f"{type(estimator).__name__} has no predict_proba: choose one that gives probabilities")

    def make(X: Any, y: Any) -> Predictor:
        known = np.unique(y)
        if len(known) == 1:
            return Probabilities(None, known, classes)
        plain = make_pipeline(
            StandardScaler(with_mean=isinstance(X, np.ndarray)), LogisticRegression(max_iter=2000)
        )
        model = (plain if estimator is None else clone(estimator)).fit(X, y)
        return Probabilities(model, np.asarray(model.classes_, dtype=np.int64), classes)

    return make


def predictions(predictors: Sequence[Predictor], X: Any, classes: int | None) -> Floats:
    """Of all predictors: values [n K], or probabilities [n K M]. Raises ConfigError for other outputs."""
    wanted = (X.shape[0],) if classes is None else (X.shape[0], classes)
    out = []
    for number, predictor in enumerate(predictors, 1):
        given = np.asarray(predictor(X), dtype=np.float64)
        if given.shape != wanted:
            raise ConfigError(f"predictor {number} gave shape {given.shape} for {X.shape[0]} rows: need {wanted}")
        if not np.isfinite(given).all():
            raise ConfigError(f"predictor {number} gave numbers that are not finite")
        if classes is not None and ((given < -1e-6).any() or (np.abs(given.sum(1) - 1) > 1e-3).any()):
            raise ConfigError(f"predictor {number} must give probabilities that sum to 1, as predict_proba does")
        out.append(given)
    return np.stack(out, 1)


def learn(make: Make, X: Any, y: NDArray[Any], source: Integers, classes: int | None, s: Settings) -> Combination:
    """A predictor for each source and their combination from rows [n D], labels [n] and sources [n] (from 0).

    The losses that z is found from are of predictors and weights that have not seen the point (`s.cv` folds).
    """
    given_z(s, int(source.max()) + 1)  # what cannot be is refused before anything is fitted
    strata = source if classes is None else source * classes + y
    folds = split_rows(strata, s.cv, s.seed)
    fitted = _weights(X, source, folds, s)
    predictors = tuple(make(X[source == k], y[source == k]) for k in range(int(source.max()) + 1))
    if not s.asks_labels:
        return joined(predictors, fitted, None, s)
    stacked = predictions(predictors, X, classes)
    for learned, held in folds:
        for k in range(len(predictors)):
            rows, own = learned[source[learned] == k], held[source[held] == k]
            if len(own):
                # Only its own rows are known to source k's predictor.
                stacked[own, k] = predictions([make(X[rows], y[rows])], X[own], classes)[:, 0]
    return joined(predictors, fitted, evidence_of(stacked, fitted, y, source, classes), s)


def adopt(
    predictors: Sequence[Predictor],
    X: Any,
    y: NDArray[Any] | None,
    source: Integers,
    classes: int | None,
    s: Settings,
) -> Combination:
    """A combination of given predictors; rows [n D] with labels must be others than theirs.

    Raises ConfigError where the predictors are not one callable a source, or z needs labels and there are none.
    """
    count = int(source.max()) + 1
    if len(predictors) != count:
        raise ConfigError(f"{len(predictors)} predictors for {count} sources: give one each, in growing order")
    wrong = [n for n, p in enumerate(predictors, 1) if not callable(p)]
    if wrong:
        raise ConfigError(f"predictor {wrong[0]} cannot be called: give functions such as model.predict_proba")
    if s.asks_labels and y is None:
        raise ConfigError(
            f"z={s.z!r} is found from losses and needs y; without labels give z='uniform' or {count} numbers"
        )
    given_z(s, count)
    fitted = _weights(X, source, split_rows(source, s.cv, s.seed), s)
    stacked = predictions(predictors, X, classes)
    known = None if y is None else evidence_of(stacked, fitted, y, source, classes)
    return joined(tuple(predictors), fitted, known, s)


def evidence_of(
    stacked: Floats, fitted: Fitted, y: NDArray[Any], source: Integers, classes: int | None
) -> Evidence:
    """What the program is told of held-out points; `stacked` is [n K] or [n K M]."""
    if classes is None:
        return Evidence(fitted.held_out, stacked, source, "squared", y)
    return Evidence(fitted.held_out, stacked[np.arange(len(y)), :, y], source, "cross-entropy")


def joined(
    predictors: tuple[Predictor, ...], fitted: Fitted, evidence: Evidence | None, s: Settings
) -> Combination:
    """With z as asked for. Raises ConfigError for a z that is neither a known word nor on the simplex."""
    count = len(predictors)
    given = given_z(s, count)
    if given is not None:
        return Combination(predictors, fitted, given, evidence, None)
    assert evidence is not None
    if s.z == "best":
        return Combination(predictors, fitted, np.eye(count)[best_single(evidence)], evidence, None)
    found = solve(evidence)
    return Combination(predictors, fitted, found.z, evidence, found)


def given_z(s: Settings, sources: int) -> Floats | None:
    """z [K] where it does not depend on losses, else None. Raises ConfigError for what cannot be a z."""
    if s.asks_labels:
        return None
    if not isinstance(s.z, str):
        return checked_z(s.z, sources)
    if s.z != "uniform":
        raise ConfigError(f"z must be dc, uniform, best or {sources} numbers, got {s.z!r}")
    return np.full(sources, 1 / sources)


def best_single(evidence: Evidence) -> int:
    """The source whose predictor alone has the smallest loss on its worst source."""
    if evidence.loss == "squared":
        assert evidence.y is not None
        loss = squared_error(evidence.predictions, evidence.y[:, None])
    else:
        sure = evidence.predictions
        loss = np.stack([cross_entropy(p[:, None], np.zeros(len(p), dtype=np.int64)) for p in sure.T], 1)
    each = [loss[evidence.source == k].mean(0) for k in range(evidence.sources)]
    return int(np.max(each, axis=0).argmin())


def _weights(X: Any, source: Integers, folds: Sequence[Fold], s: Settings) -> Fitted:
    # A single predictor is heard everywhere, whatever the weights.
    alone = isinstance(s.z, str) and s.z == "best"
    return fit_weights(
        "constant" if alone else s.weighting,
        X,
        source,
        folds,
        classifier=s.domain_classifier,
        components=s.components,
        seed=s.seed,
    )
