"""Multiple-source adaptation: one predictor from many sources, for any mixture of them (DMSA)."""

from selftaught.domains.combining import worst_and_mean
from selftaught.domains.estimators import DMSAClassifier, DMSARegressor
from selftaught.domains.program import Evidence, Solution, solve
from selftaught.domains.rows import DomainDataError
from selftaught.domains.sets import Domains, digit_domains, picture_domains
from selftaught.domains.texts import Texts, read_texts

__all__ = [
    "DMSAClassifier",
    "DMSARegressor",
    "DomainDataError",
    "Domains",
    "Evidence",
    "Solution",
    "Texts",
    "digit_domains",
    "picture_domains",
    "read_texts",
    "solve",
    "worst_and_mean",
]
