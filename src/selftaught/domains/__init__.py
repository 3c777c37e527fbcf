"""Multiple-source adaptation: one predictor from many sources, for any mixture of them (DMSA)."""

from selftaught.domains.combining import worst_and_mean
from selftaught.domains.estimators import DMSAClassifier, DMSARegressor
from selftaught.domains.program import Evidence, Solution, solve
from selftaught.domains.rows import DomainDataError

__all__ = [
    "DMSAClassifier",
    "DMSARegressor",
    "DomainDataError",
    "Evidence",
    "Solution",
    "solve",
    "worst_and_mean",
]
