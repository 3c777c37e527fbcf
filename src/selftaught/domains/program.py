"""The weights z of a combination of sources, by a difference-of-convex program.

Papers: Mansour, Mohri, Rostamizadeh, "Domain adaptation with multiple sources", NeurIPS 2008; Hoffman, Mohri,
Zhang, "Algorithms and theory for multiple-source adaptation", NeurIPS 2018, arXiv 1805.08727 (densities);
Cortes, Mohri, Suresh, Zhang, "A discriminative technique for multiple-source adaptation", ICML 2021, arXiv
2008.11036.

    h_z(x) = sum_k z_k q_k(x) h_k(x) / K_z(x),     K_z(x) = sum_k z_k q_k(x),     z on the simplex
    min over z, gamma of gamma     such that     L(D_k, h_z) - L(D_z, h_z) <= gamma  for every source k

D_z = sum_k z_k D_k, so L(D_z, h_z) = sum_k z_k L(D_k, h_z). With l the loss of a point and s log K_z added to and
taken from both terms,

    L(D_k, h_z) - L(D_z, h_z) = u_k(z) - v_k(z),
    u_k(z) = E_k[ l - s log K_z ],     v_k(z) = L(D_z, h_z) - E_k[ s log K_z ],

both convex where s = 1 for the cross-entropy (then u_k is the mean of - log sum_j z_j q_j p_j(x, y)) and s = 2 M
for the squared loss, M a bound of it. The convex-concave procedure puts v_k's tangent at z_t in its place,
solves the convex program that results for z and gamma, and begins again from there.

The papers': program, decomposition, procedure. Our choice: M is the largest squared error of any predictor at
that point, which bounds the combination's loss there and keeps the convex problem closer to the true one than a
bound for all points; expectations are means over held-out points; v_k is convex for the true q_k but only nearly
so for means, so of several lengths of a step the one with the smallest gamma is taken, and none that raises it;
starts near the vertices if need be; z_k >= 1e-6; SLSQP of scipy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from selftaught.core.errors import ConfigError

Floats = NDArray[np.float64]
Loss = Literal["squared", "cross-entropy"]

LEAST = 1e-6
"""Smallest entry of z: at 0 a logarithm would have no bound."""
LEAST_PROBABILITY = 1e-6
"""Of the right class, in the cross-entropy."""
_FACTORS = (*(2.0**n for n in range(6, 0, -1)), *(0.5**n for n in range(12)))
"""Of a step, tried in turn: the tangent of v makes whole steps short."""


@final
@dataclass(frozen=True)
class Evidence:
    """What the program needs to know of n held-out labelled points; a site can send it instead of data and labels.

    `log_weights` [n K] is log q_k(x), up to a number for each point; `predictions` [n K] is h_k(x) for
    the squared loss and the probability that h_k gives to the point's label for the cross-entropy; `source` [n]
    counts sources from 0; `y` [n] is needed for the squared loss only. Raises ConfigError where these do not fit.
    """

    log_weights: Floats
    predictions: Floats
    source: NDArray[np.int64]
    loss: Loss
    y: Floats | None = None

    def __post_init__(self) -> None:
        shape = self.predictions.shape
        if len(shape) != 2 or self.log_weights.shape != shape or self.source.shape != shape[:1]:
            raise ConfigError(
                f"log_weights {self.log_weights.shape} and predictions {shape} must be [n K], source "
                f"{self.source.shape} must be [n]"
            )
        if self.loss == "squared" and (self.y is None or self.y.shape != shape[:1]):
            raise ConfigError(f"the squared loss needs y [n] with n = {shape[0]}")
        missing = sorted(set(range(shape[1])) - set(self.source.tolist()))
        if missing:
            raise ConfigError(f"source {missing[0]} (from 0) has no held-out point: every source needs some")
        known = [self.log_weights, self.predictions, *([] if self.y is None else [self.y])]
        if not all(np.isfinite(a).all() for a in known):
            raise ConfigError("log_weights, predictions and y must be finite numbers")

    @property
    def sources(self) -> int:
        """K."""
        return self.predictions.shape[1]


@final
@dataclass(frozen=True)
class Terms:
    """At one z: losses [K] of the sources, their mixture's, u and v [K] and gradients [K K] (row k: of k)."""

    losses: Floats
    mixture: float
    u: Floats
    v: Floats
    du: Floats
    dv: Floats

    @property
    def gamma(self) -> float:
        """The smallest gamma that z permits: at least 0, and 0 where all losses are equal."""
        return float((self.losses - self.mixture).max())


@final
@dataclass(frozen=True)
class Solution:
    """`z` [K] and the way to it: `gammas` [R] never rises, `path` [R K] from its start; `losses` [K] under z."""

    z: Floats
    losses: Floats
    gammas: Floats
    path: Floats


@final
class Program:
    """The functions of the program on one set of evidence; what does not depend on z is computed once."""

    def __init__(self, evidence: Evidence) -> None:
        e = self.evidence = evidence
        # A factor for each point changes neither h_z nor u - v; this one keeps K_z between min(z) and 1.
        self.q = np.exp(e.log_weights - e.log_weights.max(1, keepdims=True))
        entropy = e.loss == "cross-entropy"
        known = np.maximum(e.predictions, LEAST_PROBABILITY) if entropy else e.predictions
        self.a = self.q * known
        self.y = np.zeros(len(known)) if e.y is None else e.y
        self.s = np.ones(len(known)) if entropy else 2 * np.square(known - self.y[:, None]).max(1)
        of_source = np.eye(e.sources)[e.source]
        self.mean = np.ascontiguousarray((of_source / of_source.sum(0)).T)
        """[K n]: means over the points of each source."""

    def at(self, z: Floats) -> Terms:
        """Everything asked of z [K], all entries above 0."""
        k, j = self.q @ z, self.a @ z
        share, value = self.q / k[:, None], j / k
        if self.evidence.loss == "cross-entropy":
            loss, slope = -np.log(value), share - self.a / j[:, None]
        else:
            gap = value - self.y
            loss, slope = gap * gap, (2 * gap / k)[:, None] * (self.a - value[:, None] * self.q)
        losses, slopes = self.mean @ loss, self.mean @ slope
        added, added_slopes = self.mean @ (self.s * np.log(k)), self.mean @ (self.s[:, None] * share)
        mixture = float(z @ losses)
        dv = losses + z @ slopes - added_slopes
        return Terms(losses, mixture, losses - added, mixture - added, slopes - added_slopes, dv)


def solve(evidence: Evidence, *, rounds: int = 50, tolerance: float = 1e-4) -> Solution:
    """The convex-concave procedure from uniform z; where gamma does not vanish, also from near each vertex.

    `tolerance` is relative to the mean loss under uniform z: gamma below it counts as 0, and so does a round that
    lowers gamma by less. The end with the smallest gamma is kept. Raises ConfigError for fewer than one round.
    """
    if rounds < 1:
        raise ConfigError(f"the program needs at least one round, got {rounds}")
    count = evidence.sources
    uniform, program = np.full(count, 1 / count), Program(evidence)
    if count == 1:
        return Solution(uniform, program.at(uniform).losses, np.zeros(1), uniform[None])
    allowed = tolerance * max(float(program.at(uniform).losses.mean()), 1e-12)
    found = _procedure(program, uniform, rounds, allowed)
    for vertex in np.eye(count):
        if found.gammas[-1] > allowed:
            other = _procedure(program, on_simplex(0.2 * uniform + 0.8 * vertex), rounds, allowed)
            found = min(found, other, key=lambda end: float(end.gammas[-1]))
    return found


def _procedure(program: Program, z: Floats, rounds: int, allowed: float) -> Solution:
    here = program.at(z)
    path, gammas = [z], [here.gamma]
    for _ in range(rounds):
        if gammas[-1] < allowed:
            break
        wanted = _convex_step(program, z, here)
        tried = [(c, program.at(c)) for c in _along(z, wanted)]
        better, there = min(tried, key=lambda t: t[1].gamma)
        if there.gamma >= gammas[-1]:
            break
        z, here = better, there
        path.append(z)
        gammas.append(here.gamma)
        if gammas[-2] - gammas[-1] < allowed:
            break
    return Solution(z, here.losses, np.array(gammas), np.stack(path))


def _along(z: Floats, wanted: Floats) -> Iterator[Floats]:
    """Points of the simplex on the ray from z through `wanted`, which is one of them: beyond it and before it."""
    for factor in _FACTORS:
        point = z + factor * (wanted - z)
        if factor <= 1 or point.min() >= LEAST:
            # A long step multiplies what rounding left off the sum, round after round.
            yield on_simplex(point)


def _convex_step(program: Program, z: Floats, here: Terms) -> Floats:
    """The z that solves the program with v's tangent at the present z in place of v."""
    count, known = len(z), {z.tobytes(): here}

    def at(point: Floats) -> Terms:
        """SLSQP asks for value and slope of a point one after the other."""
        key = point[:count].tobytes()
        if key not in known:
            known.clear()
            known[key] = program.at(np.maximum(point[:count], LEAST))
        return known[key]

    def room(point: Floats) -> Floats:
        return point[count] - (at(point).u - here.v - here.dv @ (point[:count] - z))

    def room_slope(point: Floats) -> Floats:
        return np.hstack([here.dv - at(point).du, np.ones((count, 1))])

    last = np.append(np.zeros(count), 1.0)
    constraints: list[dict[str, Any]] = [
        {"type": "ineq", "fun": room, "jac": room_slope},
        {"type": "eq", "fun": lambda p: p[:count].sum() - 1, "jac": lambda p: 1 - last},
    ]
    found = minimize(
        lambda p: p[count],
        np.append(z, here.gamma),
        jac=lambda p: last,
        method="SLSQP",
        bounds=[(LEAST, 1.0)] * count + [(None, None)],
        constraints=constraints,
        options={"maxiter": 60, "ftol": 1e-9},
    )
    return on_simplex(found.x[:count]) if np.isfinite(found.x).all() else z


def on_simplex(z: Floats) -> Floats:
    """`z` with entries of at least `LEAST` and sum 1 up to rounding: what a solver leaves off is put back."""
    z = np.maximum(z, LEAST)
    return z / z.sum()


def checked_z(z: Any, sources: int) -> Floats:
    """A given z [K] as numbers. Raises ConfigError where it is not on the simplex or of another length."""
    try:
        given = np.asarray(z, dtype=np.float64)
    except (TypeError, ValueError):
        given = np.empty(0)
    if given.shape != (sources,):
        raise ConfigError(f"z must be {sources} numbers, one a source in order of their numbers, got {z!r}")
    if not np.isfinite(given).all() or (given < 0).any() or abs(given.sum() - 1) > 1e-6:
        raise ConfigError(f"z must be on the simplex: no entry below 0 and sum 1, got {given.tolist()}")
    return given / given.sum()
