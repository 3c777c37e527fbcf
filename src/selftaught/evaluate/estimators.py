"""scikit-learn estimators: pictures to embeddings, and few-shot classification of embeddings.

Both follow scikit-learn's own rules (constructor keeps its arguments, fitted attributes end in `_`), so they
work with Pipeline, clone, cross-validation and grid search.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import softmax
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from selftaught.core.errors import ConfigError
from selftaught.learners import heads

Floats = NDArray[np.floating[Any]]
_HEADS = ("prototype", "ridge", "logistic")


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Classifies embeddings [n D] from a few labelled rows, by direction (rows are scaled to length one).

    `head`: "prototype" (nearest class mean by cosine), "ridge" (`penalty`) or "logistic" (`C`). Probabilities
    are softmax(score / temperature); `temperature=None` means 1 for "logistic" and 0.1 for the others.
    They are not calibrated. After `fit`: `classes_` [M], `coef_` [M D], `intercept_` [M], `temperature_`,
    `n_features_in_`.
    """

    def __init__(
        self,
        head: str = "prototype",
        *,
        temperature: float | None = None,
        penalty: float = 1.0,
        C: float = 1.0,
    ) -> None:
        self.head = head
        self.temperature = temperature
        self.penalty = penalty
        self.C = C

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learns from rows `X` [n D] with labels `y` [n]. Raises ConfigError for an unknown option."""
        if self.head not in _HEADS:
            raise ConfigError(f"head must be one of {', '.join(_HEADS)}, got {self.head!r}")
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}")
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, local = np.unique(y, return_inverse=True)
        unit = normalize(X)
        self.coef_, self.intercept_ = self._solve(unit, local)
        self.temperature_ = self.temperature or (1.0 if self.head == "logistic" else 0.1)
        self._neighbors = NearestNeighbors(metric="cosine", algorithm="brute").fit(unit)
        return self

    def _solve(self, unit: Floats, local: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Every head is linear in the normalised row: weights [M D] and intercepts [M]."""
        many = len(self.classes_)
        z, y = torch.from_numpy(unit).double(), torch.from_numpy(local)
        if self.head == "prototype":
            centres = heads.normalise(heads.prototypes(z, many, y))
            return centres.numpy(), np.zeros(many)
        if self.head == "ridge":
            weight, bias = heads.ridge(z, heads.one_hot(len(z), many, y, z), self.penalty)
            return weight.T.numpy(), bias.numpy()
        if many == 1:  # nothing to separate; scikit-learn would refuse
            return np.zeros((1, z.shape[1])), np.zeros(1)
        model = LogisticRegression(C=self.C, max_iter=1000).fit(unit, local)
        if many == 2:
            return np.vstack([-model.coef_, model.coef_]) / 2, np.hstack([-model.intercept_, model.intercept_]) / 2
        return model.coef_, model.intercept_

    def _scores(self, X: ArrayLike) -> Floats:
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return normalize(rows).astype(np.float64) @ self.coef_.T + self.intercept_

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The class [n] of each row."""
        best = self._scores(X).argmax(1)
        return self.classes_[best]

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Probabilities [n M], columns in the order of `classes_`."""
        return softmax(self._scores(X) / self.temperature_)

    def neighbors(self, X: ArrayLike, k: int = 5) -> tuple[Floats, NDArray[np.int64]]:
        """Cosine distances [n k] (0 .. 2) and positions [n k] of the nearest rows given to `fit`.

        Raises ConfigError where `k` is not between 1 and the number of those rows.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        most = self._neighbors.n_samples_fit_
        if not 1 <= k <= most:
            raise ConfigError(f"k must be between 1 and {most} (the labelled rows), got {k}")
        distance, index = self._neighbors.kneighbors(normalize(rows), n_neighbors=k)
        return distance, index


class Embedder(Protocol):
    """Anything that turns n pictures into an array [n D]."""

    def embed(self, X: Any) -> Floats: ...


class EncoderTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Pictures to embeddings with a trained `model`; `fit` learns nothing but the width of its output.

    X is a list of paths, or uint8 [n H W C] or [n C H W], and goes to `model.embed` as it is. A 2-D array of
    flat pictures [n C*H*W] is folded to `model.shape` = (C, H, W) if the model has it, else passed on.
    scikit-learn's `check_estimator` knows 2-D arrays only and therefore tests only that form.
    `clone` copies the model deeply.
    """

    def __init__(self, model: Embedder | None = None) -> None:
        self.model = model

    def fit(self, X: Any, y: object = None) -> Self:
        """Embeds one picture to learn the width. Raises ConfigError without a model, ValueError for bad X."""
        if self.model is None:
            raise ConfigError("EncoderTransformer needs model=..., an object with embed(pictures) -> [n D]")
        pictures = self._checked(X, first=True)
        self._n_features_out = self._embed(pictures[:1]).shape[1]
        return self

    def transform(self, X: Any) -> Floats:
        """Embeddings [n D]."""
        check_is_fitted(self, "_n_features_out")
        return self._embed(self._checked(X, first=False))

    def _checked(self, X: Any, first: bool) -> Any:
        if _is_paths(X):
            if len(X) == 0:
                raise ValueError("no pictures: the list of paths is empty")
            return list(X)
        if getattr(X, "ndim", 2) == 4:
            if X.dtype != np.uint8:
                raise ValueError(f"pictures must be uint8 (0 to 255), got {X.dtype}; convert them first")
            if len(X) == 0:
                raise ValueError(f"no pictures: X has shape {X.shape}")
            return X
        rows = validate_data(self, X, reset=first)
        shape = getattr(self.model, "shape", None)
        if shape is None:
            return rows
        if rows.shape[1] != int(np.prod(shape)):
            raise ValueError(f"rows of {rows.shape[1]} numbers do not fold to pictures {tuple(shape)} (C H W)")
        return rows.reshape(-1, *shape)

    def _embed(self, pictures: Any) -> Floats:
        assert self.model is not None
        out = np.asarray(self.model.embed(pictures))
        if out.ndim != 2 or len(out) != len(pictures):
            raise ConfigError(f"model.embed gave shape {out.shape} for {len(pictures)} pictures; need [n D]")
        return out


def _is_paths(X: Any) -> bool:
    return isinstance(X, Sequence) and all(isinstance(one, str | PathLike) for one in X)
