"""The combination itself, and what it loses on each source.

    h_z(x) = sum_k w_k(x) h_k(x),     w_k(x) = z_k q_k(x) / sum_j z_j q_j(x)

The loss on a mixture sum_k lambda_k D_k is linear in lambda: the worst mixture is the worst source, and the mean
over all mixtures (uniform on the simplex) is the mean over sources.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from selftaught.domains.program import LEAST_PROBABILITY, Floats


def shares(log_weights: Floats, z: Floats) -> Floats:
    """w [n K] from log q_k(x) [n K] and z [K]; rows sum to 1."""
    with np.errstate(divide="ignore"):
        return softmax(log_weights + np.log(z), axis=1)


def combine(predictions: Floats, log_weights: Floats, z: Floats) -> Floats:
    """h_z: [n] from predictions [n K], or [n M] from probabilities [n K M]."""
    return np.einsum("nk,nk...->n...", shares(log_weights, z), predictions)


def squared_error(predicted: Floats, y: Floats) -> Floats:
    """Of each point [n]."""
    return np.square(predicted - y)


def cross_entropy(proba: Floats, label: NDArray[np.int64]) -> Floats:
    """- log of the probability [n M] of each point's label, counted from 0 [n]; no probability is below 1e-6."""
    return -np.log(np.maximum(proba[np.arange(len(label)), label], LEAST_PROBABILITY))


def by_source(loss: Floats, sample_domain: NDArray[Any]) -> dict[int, float]:
    """Mean loss of each domain, under its number."""
    return {int(k): float(loss[sample_domain == k].mean()) for k in np.unique(sample_domain)}


def worst_and_mean(losses: Mapping[int, float]) -> tuple[float, float]:
    """Loss on the worst mixture of the domains, and the mean over all their mixtures."""
    values = list(losses.values())
    return max(values), float(np.mean(values))
