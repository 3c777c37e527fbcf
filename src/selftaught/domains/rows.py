"""Rows, labels and domains as they are handed in: checked, and refused by name."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data

from selftaught.core.errors import ConfigError, DataError
from selftaught.domains.program import Floats
from selftaught.domains.weighting import Fold, Integers


class DomainDataError(DataError, ValueError):
    """Rows, labels or domains that cannot be used; a ValueError too, because scikit-learn looks for that."""


def checked_rows(estimator: Any, X: Any, *, first: bool) -> Any:
    """X [n D] as float64, dense or CSR. Raises DomainDataError (NaN, another number of features, not 2-D).

    The `first` rows are those to learn from: a single one is refused, too.
    """
    least = 2 if first else 1
    try:
        return validate_data(
            estimator, X, reset=first, accept_sparse="csr", dtype=np.float64, ensure_min_samples=least
        )
    except ValueError as error:
        raise DomainDataError(str(error)) from error


def checked_domains(sample_domain: Any, rows: int) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """Numbers of the sources in growing order, and the domain of each row.

    Raises DomainDataError unless `sample_domain` is [rows] whole numbers, none 0, at least two of them positive.
    """
    given = np.asarray(sample_domain)
    if given.shape != (rows,):
        raise DomainDataError(f"sample_domain must be a number for each of {rows} rows, got shape {given.shape}")
    if given.dtype.kind not in "iuf" or not np.isfinite(given).all() or (given != np.floor(given)).any():
        raise DomainDataError("sample_domain must be whole numbers: positive for sources, negative for targets")
    domain = given.astype(np.int64)
    if (domain == 0).any():
        raise DomainDataError("sample_domain holds 0: number sources from 1, targets from -1 downwards")
    numbers = tuple(int(k) for k in np.unique(domain[domain > 0]))
    if len(numbers) < 2:
        raise DomainDataError(
            f"{len(numbers)} source(s) in sample_domain: at least two domains with positive numbers are needed; "
            "with one there is nothing to combine, fit its predictor alone"
        )
    return numbers, domain


def counted(domain: Integers, numbers: Sequence[int]) -> Integers:
    """Sources counted from 0, for rows of sources only. Raises DomainDataError for a source with a single row."""
    source = np.searchsorted(np.array(numbers), domain)
    few = [numbers[k] for k, n in enumerate(np.bincount(source)) if n < 2]
    if few:
        raise DomainDataError(f"source {few[0]} has a single row: two are needed, one of them to be held out")
    return source.astype(np.int64)


def source_labels(y: Any, domain: Integers, numbers: Sequence[int]) -> NDArray[Any]:
    """Labels of the sources' rows; those of targets are not looked at.

    A column [n 1] is taken as [n], with scikit-learn's warning. Raises DomainDataError where there are none, not
    as many as rows, or a source's are missing (None or NaN).
    """
    if y is None:
        raise DomainDataError("fitting requires y to be passed, but the target y is None")
    given = np.asarray(y)
    if given.shape == (len(domain), 1):
        given = column_or_1d(given, warn=True)
    if given.shape != domain.shape:
        raise DomainDataError(f"y must be a label for each of {len(domain)} rows, got shape {given.shape}")
    for k in numbers:
        own = given[domain == k]
        absent = sum(v is None or v != v for v in own.tolist())
        if absent:
            raise DomainDataError(
                f"source {k} has no label for {absent} of its {len(own)} rows: leave those rows out, or, if the "
                "source has no labels at all, use from_predictors"
            )
    return given[domain > 0]


def numeric(y: NDArray[Any]) -> Floats:
    """Values to regress. Raises DomainDataError where they are not finite numbers."""
    try:
        values = y.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DomainDataError(f"regression needs numbers in y, got {y.dtype}: {error}") from error
    if not np.isfinite(values).all():
        raise DomainDataError("y of the sources must be finite numbers")
    return values


def classes_of(y: NDArray[Any], source: Integers, numbers: Sequence[int]) -> NDArray[Any]:
    """All labels of all sources in order. Raises DomainDataError for a continuous y or a source with one label."""
    if y.dtype.kind == "f" and np.isinf(y).any():
        raise DomainDataError("y cannot be classes: Input y contains infinity")
    try:
        check_classification_targets(y)
        found = np.unique(y)
    except (TypeError, ValueError) as error:
        raise DomainDataError(f"y cannot be classes: {error}") from error
    for k, number in enumerate(numbers):
        own = np.unique(y[source == k])
        if len(own) < 2:
            raise DomainDataError(
                f"source {number} has one label only ({own[0]!r}): a predictor needs two. If labels are masked, "
                "the domain is a target and its number must be negative"
            )
    return found


def label_numbers(y: NDArray[Any], classes: NDArray[Any]) -> Integers:
    """Positions of labels among `classes`. Raises DomainDataError for a label that is not there."""
    place = {label: n for n, label in enumerate(classes.tolist())}
    strange = [label for label in y.tolist() if label not in place]
    if strange:
        raise DomainDataError(
            f"label {strange[0]!r} is none that the predictors can give ({', '.join(map(repr, list(place)[:8]))}"
            f"{', ...' if len(place) > 8 else ''}): leave its rows out, or name all classes"
        )
    return np.array([place[label] for label in y.tolist()], dtype=np.int64)


def split_rows(strata: NDArray[Any], parts: int, seed: int) -> list[Fold]:
    """Folds in which every stratum is spread as evenly as it goes, also those with fewer rows than parts.

    scikit-learn's StratifiedKFold warns of such strata. Raises ConfigError for fewer than two parts.
    """
    if parts < 2:
        raise ConfigError(f"cv must be at least 2, got {parts}")
    order = np.random.default_rng(seed).permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    fold = np.empty(len(strata), dtype=np.int64)
    fold[order] = np.arange(len(strata)) % parts
    return [(np.flatnonzero(fold != n), np.flatnonzero(fold == n)) for n in range(parts) if (fold == n).any()]
