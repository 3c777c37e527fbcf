"""How often unlabelled pictures taken for different classes are of the same one: exact counting.

A self-supervised task of N pictures treats each as a class of its own. Where two share their true class, they
are pushed apart wrongly.
"""

import math
from collections.abc import Sequence

import numpy as np

from selftaught.core.errors import DataError, TooFewPicturesError


def probability_all_distinct(counts: Sequence[int], n: int) -> float:
    """The chance that `n` pictures, drawn without replacement, are all of different classes.

    `counts` [M] are the pictures per class. The elementary symmetric polynomial of degree n in the counts,
    over the number of n-subsets; in logarithms, so large sets do not overflow.
    Raises DataError for negative counts or n < 1, TooFewPicturesError for n above their sum.
    """
    total = _total(counts)
    if n < 1:
        raise DataError(f"the number of pictures must be at least 1, got {n}")
    if n > total:
        raise TooFewPicturesError(f"cannot draw {n} pictures out of {total}; draw fewer or add pictures")
    log_e = np.full(n + 1, -np.inf)
    log_e[0] = 0.0
    for count in counts:
        if count:
            log_e[1:] = np.logaddexp(log_e[1:], log_e[:-1] + math.log(count))
    log_subsets = math.lgamma(total + 1) - math.lgamma(n + 1) - math.lgamma(total - n + 1)
    return min(1.0, math.exp(log_e[n] - log_subsets))


def false_negative_rate(counts: Sequence[int]) -> float:
    """The chance that two different pictures, drawn at random, share their class (0 .. 1)."""
    total = _total(counts)
    if total < 2:
        raise TooFewPicturesError(f"a pair needs two pictures, the set has {total}")
    return sum(c * (c - 1) for c in counts) / (total * (total - 1))


def _total(counts: Sequence[int]) -> int:
    if any(c < 0 for c in counts):
        raise DataError("counts of pictures per class must not be negative")
    return int(sum(counts))
