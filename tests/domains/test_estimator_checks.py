"""scikit-learn's own checks of the DMSA estimators, on two sources."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from selftaught.domains.estimators import DMSAClassifier, DMSARegressor


def two_sources(X: Any, y: Any) -> NDArray[np.int64]:
    """The checks know of no domains: every label goes to both sources in turn."""
    rows = len(np.asarray(y)) if y is not None else len(X)
    order = np.arange(rows) if y is None else np.argsort(np.asarray(y).ravel(), kind="stable")
    domain = np.empty(rows, dtype=np.int64)
    domain[order] = 1 + np.arange(rows) % 2
    return domain


class OnTwoSources(DMSARegressor):  # type: ignore[misc]
    """DMSARegressor for callers that have X and y only."""

    def fit(self, X: Any, y: Any) -> Any:  # type: ignore[override]
        return super().fit(X, y, two_sources(X, y))


class ClassesOnTwoSources(DMSAClassifier):  # type: ignore[misc]
    """DMSAClassifier for callers that have X and y only."""

    def fit(self, X: Any, y: Any) -> Any:  # type: ignore[override]
        return super().fit(X, y, two_sources(X, y))


def expected(estimator: BaseEstimator) -> dict[str, str]:
    """Checks that fail, and why that is meant."""
    if isinstance(estimator, DMSARegressor):
        return {}
    return {"check_classifiers_one_label": "a source that knows one label only is refused: it is taken for masked"}


@parametrize_with_checks(
    [OnTwoSources(cv=2), ClassesOnTwoSources(cv=2)], expected_failed_checks=expected, xfail_strict=True
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scikit_learns_own_checks_of_domains(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("kind", [DMSARegressor, DMSAClassifier])
def test_before_fit_it_says_so(kind: Any) -> None:
    with pytest.raises(NotFittedError):
        kind().predict(np.zeros((2, 3)))
