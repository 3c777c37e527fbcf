"""Small made worlds of several sources, for the tests of this folder."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from selftaught.domains.program import Evidence, Loss

Array = NDArray[Any]


def regression(
    draw: int = 1, each: int = 40, width: int = 3, sources: int = 3, shift: float = 4.0
) -> tuple[Array, Array, Array]:
    """X [n D], y [n], sample_domain [n]: Gaussians on the axes, each with its own linear law."""
    rng = np.random.default_rng(0)
    centre = shift * np.eye(sources, width)
    law = rng.normal(size=(sources, width))
    rng = np.random.default_rng(draw)
    source = np.repeat(np.arange(sources), each)
    X = centre[source] + rng.normal(size=(len(source), width))
    return X, (X * law[source]).sum(1) + 0.1 * rng.normal(size=len(source)), source + 1


def classification(seed: int = 0, each: int = 60, width: int = 4, sources: int = 2) -> tuple[Array, Array, Array]:
    """X, y in {"left", "right"}, sample_domain: the first feature decides, the other way round in even domains."""
    rng = np.random.default_rng(seed)
    source = np.repeat(np.arange(sources), each)
    X = rng.normal(size=(len(source), width))
    X[:, 1] += 4 * source
    right = (X[:, 0] > 0) ^ (source % 2 == 1)
    return X, np.where(right, "right", "left"), source + 1


def evidence(loss: Loss, sources: int, seed: int = 0, each: int = 30) -> Evidence:
    """Made held-out points whose later sources are harder."""
    rng = np.random.default_rng(seed)
    source = np.repeat(np.arange(sources), each)
    own = np.eye(sources)[source]
    weights = rng.normal(size=own.shape) + 2 * own
    if loss == "squared":
        y = rng.normal(size=len(source))
        wrong = rng.normal(size=own.shape) * (1.5 - 1.2 * own) * (1 + source[:, None])
        return Evidence(weights, y[:, None] + wrong, source, loss, y)
    sure = rng.normal(size=own.shape) + 2 * own - 0.5 * source[:, None]
    return Evidence(weights, 1 / (1 + np.exp(-sure)), source, loss)
