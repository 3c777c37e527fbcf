"""What a claim shows: the paper's sentence, our protocol, our table and what it says, for and against."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student


@dataclass(frozen=True)
class Estimate:
    """A mean over training seeds and the half width of its 95 % interval (NaN for a single seed)."""

    mean: float
    half_width: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.seeds == 1 else f"{self.mean:.3f} ± {self.half_width:.3f}"


@dataclass(frozen=True)
class Outcome:
    """`rows` map column names to what stands there; `losing` names the regime where the claim fails, as found."""

    name: str
    paper: str
    claim: str
    protocol: str
    rows: Sequence[Mapping[str, Estimate | str]]
    verdict: str
    losing: str


def estimate(values: Sequence[float]) -> Estimate:
    """By Student's t over seeds. Raises ValueError for none."""
    if not values:
        raise ValueError("an estimate needs at least one value")
    count = len(values)
    if count == 1:
        return Estimate(values[0], math.nan, 1)
    error = statistics.stdev(values) / math.sqrt(count)
    return Estimate(statistics.mean(values), float(student.ppf(0.975, count - 1)) * error, count)
