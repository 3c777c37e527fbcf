"""How much a frozen feature says about the labels when many are given: linear probe and nearest neighbours.

Offline, on clean (not augmented) pictures, with scikit-learn. Online probes on augmented views, as some
libraries report, are other numbers.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from selftaught.core.errors import DataError, TooFewPicturesError


@dataclass(frozen=True)
class ProbeAccuracy:
    """Percent correct on `pictures` test pictures; `half_width_95` is 1.96 binomial standard errors."""

    mean: float
    half_width_95: float
    pictures: int


def linear_probe(
    train: Float[Tensor, "B D"],
    train_y: Int64[Tensor, " B"],
    test: Float[Tensor, "Q D"],
    test_y: Int64[Tensor, " Q"],
    C: float = 1.0,
    max_iter: int = 1000,
) -> ProbeAccuracy:
    """Logistic regression (inverse penalty `C`) on features standardised by the training set.

    Raises DataError where shapes do not match or features are not finite.
    """
    _check(train, train_y, test, test_y)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=max_iter))
    model.fit(_array(train), train_y.cpu().numpy())
    return _scored(model.predict(_array(test)), test_y)


def knn(
    train: Float[Tensor, "B D"],
    train_y: Int64[Tensor, " B"],
    test: Float[Tensor, "Q D"],
    test_y: Int64[Tensor, " Q"],
    k: int = 20,
) -> ProbeAccuracy:
    """The plain vote of the `k` (usually 5 and 20) training pictures with the highest cosine.

    Raises TooFewPicturesError where there are fewer than `k`, DataError as `linear_probe`.
    """
    _check(train, train_y, test, test_y)
    if not 1 <= k <= len(train):
        raise TooFewPicturesError(f"{k} neighbours need {k} >= 1 training pictures, there are {len(train)}")
    model = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute")
    model.fit(_array(train), train_y.cpu().numpy())
    return _scored(model.predict(_array(test)), test_y)


def _array(z: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    return z.detach().double().cpu().numpy()


def _scored(predicted: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", y: Tensor) -> ProbeAccuracy:
    share = float(np.mean(predicted == y.cpu().numpy()))
    return ProbeAccuracy(100 * share, 196 * math.sqrt(share * (1 - share) / len(y)), len(y))


def _check(train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor) -> None:
    shapes = [list(t.shape) for t in (train, train_y, test, test_y)]
    ok = train.ndim == test.ndim == 2 and train.shape[1] == test.shape[1]
    if not ok or train_y.shape != train.shape[:1] or test_y.shape != test.shape[:1]:
        raise DataError(f"need features [B D], labels [B], features [Q D], labels [Q]; got {shapes}")
    if not (train.isfinite().all() and test.isfinite().all()):
        raise DataError("features hold nan or infinite numbers: the encoder has diverged; train it again")
