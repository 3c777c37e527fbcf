"""DMSA as scikit-learn estimators: one predictor from many sources, for any mixture of them.

Cortes, Mohri, Suresh, Zhang, "A discriminative technique for multiple-source adaptation", ICML 2021, arXiv
2008.11036.

    h_z(x) = sum_k z_k q_k(x) h_k(x) / sum_j z_j q_j(x),     q_k(x) = Q(k | x) / P(k)

`fit(X, y, sample_domain)` follows skada's convention: positive numbers are sources, negative ones targets, whose
labels are not looked at; this method does not need targets at all. The constructor keeps its arguments and
fitted attributes end in `_`, so clone, Pipeline (`fit(X, y, stepname__sample_domain=...)`) and grid search work.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any, Self, TypeVar, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from selftaught.core.errors import ConfigError
from selftaught.domains.combining import by_source, cross_entropy, shares, squared_error
from selftaught.domains.learning import (
    Combination,
    Predictor,
    Settings,
    adopt,
    classifier,
    joined,
    learn,
    regressor,
)
from selftaught.domains.program import Floats
from selftaught.domains.rows import (
    DomainDataError,
    checked_domains,
    checked_rows,
    classes_of,
    counted,
    label_numbers,
    numeric,
    source_labels,
)
from selftaught.domains.weighting import Weighting


@final
class DMSARegressor(RegressorMixin, BaseEstimator):
    """Regression (squared loss) for an unknown mixture of source domains.

    `estimator` is copied for each source (None: ridge regression with cross-validated penalty). `weighting` is
    "discriminative" (DMSA), "generative" (GMSA: kernel densities) or "constant". `z` is "dc" (the
    difference-of-convex program on held-out losses), "uniform", "best" (one source's predictor alone, the best
    by held-out worst loss) or K numbers on the simplex in growing order of the sources' numbers.
    `domain_classifier` is any classifier with `predict_proba` (None: logistic regression, calibrated);
    `components` the principal components before densities (None: all features); `cv` the number of folds;
    `random_state` an int.

    After `fit`: `domains_` (numbers of the sources), `predictors_`, `z_` [K], `domain_log_loss_` and
    `domain_accuracy_` (how well held-out rows' sources are told apart), `n_features_in_`; where z came from
    losses also `source_losses_` [K] (held out, under z), and for "dc" `gamma_history_` [R] and `z_history_` [R
    K].
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        weighting: Weighting = "discriminative",
        z: Any = "dc",
        domain_classifier: Any = None,
        components: int | None = None,
        cv: int = 5,
        random_state: int = 0,
    ) -> None:
        self.estimator = estimator
        self.weighting = weighting
        self.z = z
        self.domain_classifier = domain_classifier
        self.components = components
        self.cv = cv
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        """Rows may be sparse."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: Any, sample_domain: Any) -> Self:
        """Learns from rows X [n D] with values y [n]. Raises DomainDataError for data, ConfigError for options."""
        rows = checked_rows(self, X, first=True)
        self.domains_, domain = checked_domains(sample_domain, rows.shape[0])
        values = numeric(source_labels(y, domain, self.domains_))
        source, own = counted(domain[domain > 0], self.domains_), rows[domain > 0]
        _keep(self, learn(regressor(self.estimator), own, values, source, None, _settings(self)))
        return self

    @classmethod
    def from_predictors(
        cls, predictors: Sequence[Predictor], X: Any, sample_domain: Any, y: Any = None, **options: Any
    ) -> Self:
        """A fitted estimator from functions of rows [n D] to values [n], in growing order of the sources' numbers.

        X [n D] are rows of every source that its predictor was not trained on; they may be without labels if `z`
        is "uniform" or given. `options` are the constructor's. Raises as `fit`, and ConfigError where predictors
        do not fit the data.
        """
        model = cls(**options)
        rows = checked_rows(model, X, first=True)
        model.domains_, domain = checked_domains(sample_domain, rows.shape[0])
        values = None if y is None else numeric(source_labels(y, domain, model.domains_))
        source, own = counted(domain[domain > 0], model.domains_), rows[domain > 0]
        _keep(model, adopt(predictors, own, values, source, None, _settings(model)))
        return model

    def predict(self, X: Any) -> Floats:
        """h_z [n]."""
        check_is_fitted(self, "z_")
        return self._combination.predict(checked_rows(self, X, first=False), None)

    def with_z(self, z: Any) -> Self:
        """A copy with the same predictors and weights under another `z`; nothing is fitted again.

        Raises ConfigError as `fit`, and for "dc" or "best" where this one was fitted without losses.
        """
        return _with_z(self, z)

    def source_shares(self, X: Any) -> Floats:
        """Each source's share [n K] in the combination at rows X."""
        return _shares(self, X)

    def domain_losses(self, X: Any, y: ArrayLike, sample_domain: ArrayLike) -> dict[int, float]:
        """Mean squared error on each domain, sources and targets alike, under its number."""
        loss = squared_error(self.predict(X), np.asarray(y, dtype=np.float64))
        return by_source(loss, _as_many(sample_domain, loss))


@final
class DMSAClassifier(ClassifierMixin, BaseEstimator):
    """Classification (cross-entropy) for an unknown mixture of source domains.

    `estimator` is copied for each source and must have `predict_proba` (None: logistic regression on
    standardised features); sources may know different classes, and what a source has never seen gets probability
    0 from its predictor. The other options and the fitted attributes are those of `DMSARegressor`; `classes_`
    [M] beside them.
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        weighting: Weighting = "discriminative",
        z: Any = "dc",
        domain_classifier: Any = None,
        components: int | None = None,
        cv: int = 5,
        random_state: int = 0,
    ) -> None:
        self.estimator = estimator
        self.weighting = weighting
        self.z = z
        self.domain_classifier = domain_classifier
        self.components = components
        self.cv = cv
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        """Rows may be sparse."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: Any, sample_domain: Any) -> Self:
        """Learns from rows X [n D] with labels y [n]. Raises DomainDataError for data, ConfigError for options."""
        rows = checked_rows(self, X, first=True)
        self.domains_, domain = checked_domains(sample_domain, rows.shape[0])
        labels = source_labels(y, domain, self.domains_)
        source, own = counted(domain[domain > 0], self.domains_), rows[domain > 0]
        self.classes_ = classes_of(labels, source, self.domains_)
        count, numbers = len(self.classes_), label_numbers(labels, self.classes_)
        _keep(self, learn(classifier(self.estimator, count), own, numbers, source, count, _settings(self)))
        return self

    @classmethod
    def from_predictors(
        cls,
        predictors: Sequence[Predictor],
        X: Any,
        sample_domain: Any,
        y: Any = None,
        *,
        classes: ArrayLike,
        **options: Any,
    ) -> Self:
        """A fitted estimator from functions of rows [n D] to probabilities [n M], columns as in `classes`.

        Otherwise as `DMSARegressor.from_predictors`. Raises DomainDataError for a label that is not in `classes`.
        """
        model = cls(**options)
        rows = checked_rows(model, X, first=True)
        model.domains_, domain = checked_domains(sample_domain, rows.shape[0])
        model.classes_ = np.asarray(classes)
        if model.classes_.ndim != 1 or len(np.unique(model.classes_)) != len(model.classes_):
            raise ConfigError("classes must be a list of different labels, one a column of the probabilities")
        source, own = counted(domain[domain > 0], model.domains_), rows[domain > 0]
        labels = None
        if y is not None:
            labels = label_numbers(source_labels(y, domain, model.domains_), model.classes_)
        _keep(model, adopt(predictors, own, labels, source, len(model.classes_), _settings(model)))
        return model

    def predict_proba(self, X: Any) -> Floats:
        """h_z [n M], columns in the order of `classes_`."""
        check_is_fitted(self, "z_")
        return self._combination.predict(checked_rows(self, X, first=False), len(self.classes_))

    def predict(self, X: Any) -> NDArray[Any]:
        """The class [n] of the largest probability."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def with_z(self, z: Any) -> Self:
        """A copy with the same predictors and weights under another `z`; nothing is fitted again.

        Raises ConfigError as `fit`, and for "dc" or "best" where this one was fitted without losses.
        """
        return _with_z(self, z)

    def source_shares(self, X: Any) -> Floats:
        """Each source's share [n K] in the combination at rows X."""
        return _shares(self, X)

    def domain_losses(self, X: Any, y: ArrayLike, sample_domain: ArrayLike) -> dict[int, float]:
        """Mean cross-entropy on each domain, sources and targets alike, under its number."""
        loss = cross_entropy(self.predict_proba(X), label_numbers(np.asarray(y), self.classes_))
        return by_source(loss, _as_many(sample_domain, loss))


Either = TypeVar("Either", DMSARegressor, DMSAClassifier)


def _settings(model: DMSARegressor | DMSAClassifier) -> Settings:
    if not isinstance(model.cv, int) or model.cv < 2:
        raise ConfigError(f"cv must be a whole number of at least 2, got {model.cv!r}")
    return Settings(
        weighting=model.weighting,
        z=model.z,
        domain_classifier=model.domain_classifier,
        components=model.components,
        cv=model.cv,
        seed=model.random_state,
    )


def _keep(model: DMSARegressor | DMSAClassifier, found: Combination) -> None:
    """Fitted attributes; those of an earlier fit that this one does not have are taken away."""
    for name in ("source_losses_", "gamma_history_", "z_history_"):
        if hasattr(model, name):
            delattr(model, name)
    model._combination = found
    model.predictors_, model.z_ = found.predictors, found.z
    model.domain_log_loss_, model.domain_accuracy_ = found.fitted.log_loss, found.fitted.accuracy
    if found.losses is not None:
        model.source_losses_ = found.losses
    if found.solution is not None:
        model.gamma_history_, model.z_history_ = found.solution.gammas, found.solution.path


def _with_z(model: Either, z: Any) -> Either:
    check_is_fitted(model, "z_")
    other = copy(model)
    other.z = z
    known = model._combination
    if _settings(other).asks_labels and known.evidence is None:
        raise ConfigError(f"z={z!r} is found from losses, which z={model.z!r} did not need: fit with 'dc' first")
    _keep(other, joined(known.predictors, known.fitted, known.evidence, _settings(other)))
    return other


def _shares(model: DMSARegressor | DMSAClassifier, X: Any) -> Floats:
    check_is_fitted(model, "z_")
    rows = checked_rows(model, X, first=False)
    return shares(model._combination.fitted.weights.log_weights(rows), model.z_)


def _as_many(sample_domain: ArrayLike, loss: Floats) -> NDArray[Any]:
    domain = np.asarray(sample_domain)
    if domain.shape != loss.shape:
        raise DomainDataError(f"sample_domain must be a number for each of {len(loss)} rows, got {domain.shape}")
    return domain
