"""The difference-of-convex program: identity, convexity, gradients, and no grid finds a better z."""

import itertools

import numpy as np
import pytest

from domains.worlds import evidence
from selftaught.core.errors import ConfigError
from selftaught.domains.program import LEAST, Evidence, Floats, Loss, Program, _along, checked_z, on_simplex, solve

LOSSES: tuple[Loss, ...] = ("squared", "cross-entropy")


def slow_losses(e: Evidence, z: Floats) -> list[float]:
    """L(D_k, h_z) with a loop over points, from the definition."""
    found: list[list[float]] = [[] for _ in range(e.sources)]
    for n, k in enumerate(e.source):
        q = np.exp(e.log_weights[n])
        h = sum(z * q * e.predictions[n]) / sum(z * q)
        found[k].append(-np.log(h) if e.loss == "cross-entropy" else (h - e.y[n]) ** 2)  # type: ignore[index]
    return [float(np.mean(one)) for one in found]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_the_identity(loss: Loss) -> None:
    e = evidence(loss, 3)
    for z in np.random.default_rng(1).dirichlet(np.ones(3), size=5):
        t = Program(e).at(z)
        plain = slow_losses(e, z)
        assert np.allclose(t.losses, plain, atol=1e-12)
        assert np.allclose(t.u - t.v, np.array(plain) - z @ plain, atol=1e-12)
        assert t.gamma == pytest.approx(max(plain) - z @ plain, abs=1e-12) and t.gamma >= 0


def test_u_and_v_of_the_cross_entropy_are_those_of_the_formula() -> None:
    """u_k = - E_k log J, v_k = sum_j z_j E_j log(K / J) - E_k log K; the factor for each point is theirs alike."""
    e, z = evidence("cross-entropy", 3), np.array([0.2, 0.5, 0.3])
    q = np.exp(e.log_weights - e.log_weights.max(1, keepdims=True))
    j, k = (q * e.predictions) @ z, q @ z
    of = [e.source == s for s in range(3)]
    t = Program(e).at(z)
    assert np.allclose(t.u, [-np.log(j[m]).mean() for m in of])
    mixture = sum(z[s] * np.log(k[m] / j[m]).mean() for s, m in enumerate(of))
    assert np.allclose(t.v, [mixture - np.log(k[m]).mean() for m in of])


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_the_differences(loss: Loss) -> None:
    p, z, h = Program(evidence(loss, 3)), np.array([0.2, 0.5, 0.3]), 1e-6
    ahead, back = ([p.at(z + s * h * e) for e in np.eye(3)] for s in (1, -1))
    t = p.at(z)
    assert np.allclose(t.du.T, [(a.u - b.u) / 2 / h for a, b in zip(ahead, back, strict=True)], atol=1e-6)
    assert np.allclose(t.dv.T, [(a.v - b.v) / 2 / h for a, b in zip(ahead, back, strict=True)], atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_u_is_convex_and_v_is_for_the_true_weights(loss: Loss) -> None:
    """v's expectations agree with the weights where points are one list that q distributes over the sources."""
    rng = np.random.default_rng(0)
    p = Program(evidence(loss, 3))
    ends = rng.dirichlet(np.ones(3), size=(2, 50))
    for a, b in zip(*ends, strict=True):
        u = (p.at(a).u + p.at(b).u) / 2 - p.at((a + b) / 2).u
        assert (u >= -1e-12).all()
    # Every point stands in each source as often as q says: 12 copies, shared out 1:2:9 or otherwise.
    shares = np.array([[1, 2, 9], [8, 3, 1], [4, 4, 4], [2, 9, 1], [9, 1, 2]])
    each = shares.sum(0)
    where = [(n, k) for n, row in enumerate(shares) for k in range(3) for _ in range(row[k])]
    points, source = np.array(where).T
    guesses = rng.uniform(0.1, 0.9, size=(5, 3))
    y = rng.uniform(size=5)[points] if loss == "squared" else None
    true = Program(Evidence(np.log(shares / each)[points], guesses[points], source, loss, y))
    for a, b in zip(*ends, strict=True):
        v = (true.at(a).v + true.at(b).v) / 2 - true.at((a + b) / 2).v
        assert (v >= -1e-12).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sources", [2, 3, 4])
def test_no_grid_finds_a_smaller_gamma(loss: Loss, sources: int) -> None:
    e = evidence(loss, sources)
    found, program = solve(e), Program(e)
    grid = [c for c in itertools.product(range(13), repeat=sources) if sum(c) == 12]
    best = min(program.at(on_simplex(np.array(c) / 12)).gamma for c in grid)
    assert found.gammas[-1] <= best + 1e-9
    assert abs(found.z.sum() - 1) < 1e-9 and (found.z > 0).all()
    assert program.at(found.z).gamma == pytest.approx(found.gammas[-1])
    assert (np.diff(found.gammas) < 0).all() and len(found.path) == len(found.gammas) > 1
    assert found.gammas[0] > 0.01 and np.allclose(found.path.sum(1), 1, atol=1e-12)


def test_one_source_and_equal_sources_have_nothing_to_solve() -> None:
    alone = evidence("squared", 1)
    found = solve(alone)
    assert found.z.tolist() == [1.0] and found.gammas.tolist() == [0.0]
    assert np.allclose(found.losses, slow_losses(alone, np.ones(1)))
    e = evidence("cross-entropy", 3)
    same = Evidence(e.log_weights, np.full_like(e.predictions, 0.4), e.source, e.loss)
    assert solve(same).z == pytest.approx([1 / 3] * 3)


def test_a_factor_for_each_point_changes_nothing() -> None:
    e = evidence("squared", 3)
    shift = np.random.default_rng(3).normal(size=(len(e.source), 1)) * 300
    moved = Evidence(e.log_weights + shift, e.predictions, e.source, e.loss, e.y)
    assert np.allclose(solve(moved).z, solve(e).z, atol=1e-6)


def test_certainty_and_impossibility_stay_finite() -> None:
    e = evidence("cross-entropy", 2)
    extreme = Evidence(e.log_weights * 500, np.round(e.predictions), e.source, e.loss)
    found = solve(extreme)
    assert np.isfinite(found.losses).all() and (np.diff(found.gammas) <= 0).all()


def test_a_corner_of_the_simplex_does_not_stop_the_way() -> None:
    """At the least entry, or a rounding below it, the points towards another are still there."""
    corner, wanted = np.array([LEAST * (1 - 1e-9), 1 - LEAST]), np.array([LEAST * (1 - 1e-9), 1 - LEAST])
    points = list(_along(corner, wanted))
    assert points and all((p > 0.99 * LEAST).all() and abs(p.sum() - 1) < 1e-12 for p in points)


def test_what_does_not_fit_is_refused() -> None:
    e = evidence("squared", 2)
    with pytest.raises(ConfigError, match=r"must be \[n K\]"):
        Evidence(e.log_weights[:, :1], e.predictions, e.source, "squared", e.y)
    with pytest.raises(ConfigError, match="needs y"):
        Evidence(e.log_weights, e.predictions, e.source, "squared")
    with pytest.raises(ConfigError, match=r"source 1 .* no held-out point"):
        Evidence(e.log_weights, e.predictions, e.source * 0, "squared", e.y)
    with pytest.raises(ConfigError, match="finite"):
        Evidence(e.log_weights, e.predictions * np.nan, e.source, "squared", e.y)
    with pytest.raises(ConfigError, match="at least one round"):
        solve(e, rounds=0)


@pytest.mark.parametrize("z", [[0.5, 0.6], [-0.1, 1.1], [1.0], [np.nan, 1.0], "dc?", [[0.5, 0.5]], None])
def test_a_z_off_the_simplex_is_refused(z: object) -> None:
    with pytest.raises(ConfigError, match="z must be"):
        checked_z(z, 2)
