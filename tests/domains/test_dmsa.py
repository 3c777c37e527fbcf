"""The estimators: passports of the method, scikit-learn's conventions, predictors without data, bad inputs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from domains.worlds import Array, classification, regression
from selftaught.core.errors import ConfigError, DataError
from selftaught.domains import DMSAClassifier, DMSARegressor, DomainDataError, worst_and_mean
from selftaught.domains.combining import combine, shares


def test_it_beats_what_cannot_tell_sources_apart() -> None:
    X, y, domain = regression()
    new, truth, where = regression(draw=2)
    losses = {
        name: worst_and_mean(DMSARegressor(**options).fit(X, y, domain).domain_losses(new, truth, where))[0]
        for name, options in dict[str, dict[str, Any]](
            {
                "dmsa": {},
                "gmsa": {"weighting": "generative"},
                "best": {"z": "best"},
                "uniform": {"weighting": "constant", "z": "uniform"},
            }
        ).items()
    }
    assert losses["dmsa"] < 0.3 * min(losses["best"], losses["uniform"])
    assert losses["gmsa"] < 0.3 * min(losses["best"], losses["uniform"])


def test_what_is_kept_of_the_program() -> None:
    X, y, domain = regression(shift=1.0)
    model = DMSARegressor().fit(X, y, domain)
    assert (np.diff(model.gamma_history_) < 0).all() and np.allclose(model.z_history_[0], 1 / 3)
    assert np.allclose(model.z_history_[-1], model.z_) and abs(model.z_.sum() - 1) < 1e-9
    assert model.z_history_.shape == (len(model.gamma_history_), 3) and (model.z_ > 0).all()
    spread = model.source_losses_ - model.z_ @ model.source_losses_
    assert spread.max() == pytest.approx(model.gamma_history_[-1])
    assert model.domains_ == (1, 2, 3) and 0.4 < model.domain_accuracy_ < 1
    model.set_params(z="uniform").fit(X, y, domain)
    assert not hasattr(model, "gamma_history_") and not hasattr(model, "source_losses_")


def test_another_z_without_fitting_again() -> None:
    X, y, domain = regression(shift=1.0)
    model, plain = DMSARegressor().fit(X, y, domain), DMSARegressor(z="uniform").fit(X, y, domain)
    other = model.with_z("uniform")
    assert np.allclose(other.predict(X), plain.predict(X)) and other.get_params()["z"] == "uniform"
    assert not hasattr(other, "gamma_history_") and np.array_equal(other.with_z("dc").z_, model.z_)
    assert other.with_z([0, 0, 1]).z_.tolist() == [0, 0, 1] and model.z == "dc"
    with pytest.raises(ConfigError, match="fit with 'dc' first"):
        plain.with_z("best")


def test_one_source_alone_and_equal_predictors() -> None:
    rng = np.random.default_rng(0)
    h, q = rng.normal(size=(7, 4)), rng.normal(size=(7, 4))
    assert np.allclose(combine(h[:, :1], q[:, :1], np.ones(1)), h[:, 0])
    z = rng.dirichlet(np.ones(4))
    assert np.allclose(combine(np.repeat(h[:, :1], 4, 1), q, z), h[:, 0])
    assert np.allclose(combine(h, q, np.eye(4)[2]), h[:, 2])
    # By hand: 0.5 * 2 * 10 + 0.5 * 1 * 40 over 0.5 * 2 + 0.5 * 1.
    assert combine(np.array([[10.0, 40.0]]), np.log([[2.0, 1.0]]), np.array([0.5, 0.5])) == pytest.approx([20.0])
    assert shares(q, z).sum(1) == pytest.approx(np.ones(7))


def test_twice_the_points_of_a_source_do_not_make_it_louder() -> None:
    X, y, domain = regression(each=400, shift=1.0)
    more = np.concatenate([np.arange(len(X)), np.flatnonzero(domain == 2)])
    plain = DMSARegressor(z="uniform").fit(X, y, domain)
    doubled = DMSARegressor(z="uniform").fit(X[more], y[more], domain[more])
    gap = np.abs(plain.source_shares(X) - doubled.source_shares(X)).mean()
    wrong = plain.source_shares(X) * np.array([1, 2, 1])
    without = np.abs(wrong / wrong.sum(1, keepdims=True) - plain.source_shares(X)).mean()
    assert gap < 0.02 < without / 2


@pytest.mark.parametrize("weighting", ["discriminative", "generative", "constant"])
def test_a_row_does_not_depend_on_the_others(weighting: Any) -> None:
    X, y, domain = classification()
    model = DMSAClassifier(weighting=weighting).fit(X, y, domain)
    proba = model.predict_proba(X)
    assert np.allclose(proba[3:5], model.predict_proba(X[3:5])) and np.allclose(proba.sum(1), 1)
    assert (model.classes_[proba.argmax(1)] == model.predict(X)).all()
    assert np.allclose(model.source_shares(X).sum(1), 1)


def test_classes_that_contradict_each_other_between_sources() -> None:
    X, y, domain = classification()
    assert DMSAClassifier().fit(X, y, domain).score(X, y) > 0.9
    assert DMSAClassifier(weighting="constant", z="uniform").fit(X, y, domain).score(X, y) < 0.75
    losses = DMSAClassifier().fit(X, y, domain).domain_losses(X, y, domain)
    assert set(losses) == {1, 2} and max(losses.values()) < 0.4


def test_targets_are_never_looked_at() -> None:
    X, y, domain = regression()
    plain = DMSARegressor().fit(X, y, domain)
    far = np.concatenate([X, 100 + X[:20]])
    told = DMSARegressor().fit(far, np.append(y, np.full(20, np.nan)), np.append(domain, np.full(20, -4)))
    assert np.array_equal(told.predict(X), plain.predict(X)) and told.domains_ == (1, 2, 3)


def test_numbers_of_domains_are_only_names() -> None:
    X, y, domain = regression()
    plain = DMSARegressor().fit(X, y, domain)
    renamed = DMSARegressor().fit(X, y, domain * 10 + 3.0)
    assert renamed.domains_ == (13, 23, 33) and np.array_equal(renamed.predict(X), plain.predict(X))


def test_sources_may_know_different_classes() -> None:
    X, y, domain = classification(sources=2)
    third = np.where((domain == 2) & (X[:, 2] > 0.3), "middle", y)
    model = DMSAClassifier().fit(X, third, domain)
    first = model.predictors_[0](X)
    assert model.classes_.tolist() == ["left", "middle", "right"] and (first[:, 1] == 0).all()
    assert "middle" in model.predict(X[domain == 2])


@pytest.mark.parametrize("options", [{}, {"z": "uniform"}])
def test_sparse_rows(options: dict[str, Any]) -> None:
    X, y, domain = classification()
    sparse = DMSAClassifier(**options).fit(csr_matrix(X), y, domain)
    assert sparse.score(csr_matrix(X), y) > 0.9
    with pytest.raises(ConfigError, match="dense"):
        DMSAClassifier(weighting="generative").fit(csr_matrix(X), y, domain)


# ------------------------------------------------------------------------------------------- scikit-learn


def test_it_is_an_estimator() -> None:
    model = DMSAClassifier(Ridge(), z=[0.5, 0.5], cv=3)
    assert clone(model).get_params()["z"] == [0.5, 0.5] and is_classifier(model)
    assert is_regressor(DMSARegressor()) and clone(model).set_params(cv=4).cv == 4
    assert set(DMSARegressor().get_params()) == set(DMSAClassifier().get_params())
    with pytest.raises(Exception, match="not fitted"):
        DMSARegressor().predict(np.zeros((2, 3)))


def test_pipeline_and_grid_search() -> None:
    X, y, domain = classification(each=40)
    order = np.random.default_rng(0).permutation(len(X))
    X, y, domain = X[order], y[order], domain[order]
    pipeline = make_pipeline(StandardScaler(), DMSAClassifier(z="uniform"))
    pipeline.fit(X, y, dmsaclassifier__sample_domain=domain)
    assert pipeline.score(X, y) > 0.9
    search = GridSearchCV(DMSAClassifier(z="uniform"), {"weighting": ["constant", "discriminative"]}, cv=2)
    assert search.fit(X, y, sample_domain=domain).best_params_ == {"weighting": "discriminative"}


def test_the_same_seed_gives_the_same_numbers() -> None:
    X, y, domain = regression()
    one, two, other = (DMSARegressor(random_state=s).fit(X, y, domain) for s in (1, 1, 2))
    assert np.array_equal(one.predict(X), two.predict(X)) and not np.array_equal(one.z_, other.z_)


# ------------------------------------------------------------------------------- predictors without their data


def test_predictors_of_sites_without_labels() -> None:
    X, y, domain = regression()
    models = [Ridge().fit(X[domain == k], y[domain == k]) for k in (1, 2, 3)]
    shared = [m.predict for m in models]
    model = DMSARegressor.from_predictors(shared, X, domain, z="uniform")
    assert model.score(X, y) > 0.9 and model.predictors_ == tuple(shared)
    rows = DMSARegressor(Ridge(), z="uniform").fit(X, y, domain)
    assert np.allclose(rows.predict(X), model.predict(X))
    solved = DMSARegressor.from_predictors(shared, X, domain, y)
    assert len(solved.gamma_history_) >= 1 and abs(solved.z_.sum() - 1) < 1e-9
    for z in ("dc", "best"):
        with pytest.raises(ConfigError, match="needs y"):
            DMSARegressor.from_predictors(shared, X, domain, z=z)


def test_classifiers_of_sites() -> None:
    X, y, domain = classification()
    models = [LogisticRegression().fit(X[domain == k], y[domain == k]) for k in (1, 2)]
    shared = [m.predict_proba for m in models]
    classes = models[0].classes_
    model = DMSAClassifier.from_predictors(shared, X, domain, y, classes=classes)
    assert model.score(X, y) > 0.9
    with pytest.raises(DomainDataError, match="label 'up' is none that the predictors can give"):
        DMSAClassifier.from_predictors(shared, X, domain, np.where(X[:, 0] > 2, "up", y), classes=classes)
    with pytest.raises(ConfigError, match="different labels"):
        DMSAClassifier.from_predictors(shared, X, domain, y, classes=["left", "left"])
    with pytest.raises(ConfigError, match=r"shape \(120, 2\) .* need \(120, 3\)"):
        DMSAClassifier.from_predictors(shared, X, domain, y, classes=["left", "right", "up"])
    with pytest.raises(ConfigError, match="sum to 1"):
        DMSAClassifier.from_predictors([lambda X: X[:, :2]] * 2, X, domain, y, classes=classes)


@pytest.mark.parametrize(
    ("predictors", "message"),
    [
        ([np.sum], "1 predictors for 3 sources"),
        ([np.sum, np.sum, 3], "predictor 3 cannot be called"),
        ([np.sum] * 3, "predictor 1 gave shape"),
        ([lambda X: X[:, 0]] * 2 + [lambda X: X[:, 0] * np.nan], "predictor 3 .* not finite"),
    ],
)
def test_predictors_that_do_not_fit(predictors: list[Callable[[Array], Array]], message: str) -> None:
    X, y, domain = regression()
    with pytest.raises(ConfigError, match=message):
        DMSARegressor.from_predictors(predictors, X, domain, y)


# ------------------------------------------------------------------------------------------------ bad inputs


def broken(**change: Any) -> tuple[Any, Any, Any]:
    X, y, domain = regression()
    given: dict[str, Any] = {"X": X, "y": y, "domain": domain}
    for name, alter in change.items():
        given[name] = alter(given[name].copy())
    return given["X"], given["y"], given["domain"]


def put(where: Any, value: Any) -> Callable[[Array], Array]:
    def alter(array: Array) -> Array:
        array[where] = value
        return array

    return alter


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": lambda d: d * 0 + 1}, "at least two domains"),
        ({"domain": lambda d: -d}, "0 source"),
        ({"domain": put(3, 0)}, "number sources from 1"),
        ({"domain": lambda d: d + 0.5}, "whole numbers"),
        ({"domain": lambda d: d.astype(str)}, "whole numbers"),
        ({"domain": lambda d: d[:-1]}, "for each of 120 rows"),
        ({"domain": put(5, 9)}, "source 9 has a single row"),
        ({"X": put((0, 0), np.nan)}, "NaN"),
        ({"X": lambda x: x[:, 0]}, "2D"),
        ({"y": put(slice(0, 40), np.nan)}, "source 1 has no label for 40 of its 40 rows"),
        ({"y": put(50, np.inf)}, "finite"),
        ({"y": lambda y: y[:-1]}, "y must be a label for each of 120"),
        ({"y": lambda y: np.array(["a"] * len(y))}, "needs numbers"),
    ],
)
def test_data_that_cannot_be_used_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DomainDataError, match=message) as found:
        DMSARegressor().fit(*broken(**change))
    assert isinstance(found.value, DataError) and isinstance(found.value, ValueError)


def test_labels_that_are_no_classes() -> None:
    X, y, domain = classification()
    for wrong, message in (
        (np.where(domain == 2, "left", y), "source 2 has one label only .*'left'"),
        (np.where(domain == 2, None, y), "source 2 has no label for 60 of its 60"),
        (X[:, 0], "cannot be classes"),
    ):
        with pytest.raises(DomainDataError, match=message):
            DMSAClassifier().fit(X, wrong, domain)


def test_what_does_not_fit_the_fitted() -> None:
    X, y, domain = classification()
    model = DMSAClassifier(z="uniform").fit(X, y, domain)
    with pytest.raises(DomainDataError, match="3 features, but DMSAClassifier is expecting 4"):
        model.predict(X[:, :3])
    with pytest.raises(DomainDataError, match="label 'up'"):
        model.domain_losses(X, np.where(X[:, 0] > 2, "up", y), domain)
    with pytest.raises(DomainDataError, match="each of 120"):
        model.domain_losses(X, y, domain[:-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "svm"}, "'svm'"),
        ({"z": "dca"}, "'dca'"),
        ({"z": [0.7, 0.7]}, "on the simplex"),
        ({"z": [1.0]}, "2 numbers"),
        ({"cv": 1}, "cv must be"),
        ({"estimator": LinearSVC()}, "LinearSVC has no predict_proba"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    X, y, domain = classification()
    with pytest.raises(ConfigError, match=message):
        DMSAClassifier(**options).fit(X, y, domain)
