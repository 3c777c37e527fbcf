"""The scikit-learn estimators: its own checks, and what pictures add."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import make_blobs
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from selftaught.core.errors import ConfigError
from selftaught.evaluate.estimators import EncoderTransformer, FewShotClassifier


class FlatModel:
    """Stands in for an encoder: a fixed map from whatever arrives to four numbers a picture."""

    def __repr__(self) -> str:
        # Test names are made of it, and parallel workers must agree on them.
        return f"{type(self).__name__}()"

    def embed(self, X: Any) -> NDArray[np.float64]:
        rows = np.asarray(X, dtype=float).reshape(len(X), -1)
        return np.stack([rows.mean(1) - 100, rows.std(1), rows.max(1), rows.min(1)], axis=1)


class ShapedModel(FlatModel):
    shape = (1, 2, 3)

    def embed(self, X: Any) -> NDArray[np.float64]:
        assert X.shape[1:] == self.shape
        return super().embed(X)


class PathModel:
    def embed(self, X: Any) -> NDArray[np.float64]:
        return np.array([[len(Path(one).stem), 1.0] for one in X])


@parametrize_with_checks(
    [
        FewShotClassifier(),
        FewShotClassifier("ridge"),
        FewShotClassifier("logistic", temperature=0.5),
        EncoderTransformer(FlatModel()),
    ]
)
def test_scikit_learns_own_checks(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


def blobs() -> tuple[NDArray[np.float64], NDArray[Any]]:
    X, y = make_blobs(60, n_features=5, centers=3, cluster_std=2.0, random_state=0)
    return X, np.array(["ant", "bee", "cat"])[y]


@pytest.mark.parametrize("head", ["prototype", "ridge", "logistic"])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_probabilities_and_predictions_agree(head: str, classes: int) -> None:
    X, y = blobs()
    keep = np.isin(y, ["cat", "ant", "bee"][:classes])
    model = FewShotClassifier(head).fit(X[keep], y[keep])
    proba = model.predict_proba(X)
    assert proba.shape == (60, classes) and np.allclose(proba.sum(1), 1)
    assert (model.classes_[proba.argmax(1)] == model.predict(X)).all()
    assert model.score(X[keep], y[keep]) > 0.9
    sharper = FewShotClassifier(head, temperature=0.01).fit(X[keep], y[keep])
    assert (sharper.predict(X) == model.predict(X)).all()
    assert sharper.predict_proba(X).max(1).mean() >= proba.max(1).mean()


def test_neighbors_are_the_nearest_support_rows() -> None:
    X, y = blobs()
    model = FewShotClassifier().fit(X[:20], y[:20])
    distance, index = model.neighbors(X[20:], k=4)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    slow = 1 - unit[20:] @ unit[:20].T
    assert (index == slow.argsort(1)[:, :4]).all()
    assert np.allclose(distance, np.sort(slow, 1)[:, :4])
    assert np.allclose(model.neighbors(X[:20], k=1)[0], 0, atol=1e-9)
    with pytest.raises(ConfigError, match="between 1 and 20"):
        model.neighbors(X, k=21)


def test_wrong_options_are_named() -> None:
    X, y = blobs()
    with pytest.raises(ConfigError, match="'svm'"):
        FewShotClassifier("svm").fit(X, y)
    with pytest.raises(ConfigError, match="temperature"):
        FewShotClassifier(temperature=0.0).fit(X, y)
    with pytest.raises(ConfigError, match="needs model"):
        EncoderTransformer().fit(np.zeros((2, 3)))


@pytest.mark.parametrize("layout", [(10, 6, 5, 3), (10, 3, 6, 5)])
def test_pictures_through_a_pipeline(layout: tuple[int, ...]) -> None:
    X = np.random.default_rng(0).integers(0, 100, layout, dtype=np.uint8)
    X[5:] += 100
    y = np.repeat(["dark", "light"], 5)
    pipeline = make_pipeline(EncoderTransformer(FlatModel()), FewShotClassifier("ridge"))
    fitted = clone(pipeline).fit(X[::2], y[::2])
    assert fitted.score(X, y) == 1
    assert fitted[:-1].get_feature_names_out().tolist() == [f"encodertransformer{i}" for i in range(4)]
    assert fitted[-1].n_features_in_ == 4
    search = GridSearchCV(pipeline, {"fewshotclassifier__head": ["prototype", "ridge"]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.5


def test_paths_flat_rows_and_what_is_refused() -> None:
    paths: list[Any] = ["a.png", Path("longer.png")]
    encoder = EncoderTransformer(PathModel()).fit(paths)
    assert encoder.transform(paths).tolist() == [[1, 1], [6, 1]]
    with pytest.raises(ValueError, match="list of paths is empty"):
        encoder.transform([])
    shaped = EncoderTransformer(ShapedModel()).fit(np.zeros((2, 6)))
    assert shaped.transform(np.ones((3, 6))).shape == (3, 4)
    with pytest.raises(ValueError, match="do not fold"):
        EncoderTransformer(ShapedModel()).fit(np.zeros((2, 7)))
    with pytest.raises(ValueError, match="uint8"):
        EncoderTransformer(FlatModel()).fit(np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match="no pictures"):
        EncoderTransformer(FlatModel()).fit(np.zeros((0, 4, 4, 3), dtype=np.uint8))


def test_a_model_of_the_wrong_shape_is_named() -> None:
    class Wrong:
        def embed(self, X: Any) -> NDArray[np.float64]:
            return np.zeros((len(X), 2, 2))

    with pytest.raises(ConfigError, match=r"\(1, 2, 2\) for 1 pictures"):
        EncoderTransformer(Wrong()).fit(np.zeros((2, 4)))
