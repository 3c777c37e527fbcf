"""Time and peak memory of one meta-step against the number of inner steps."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MetaStep:
    """Compare ways to take one second-order step."""

    steps: tuple[int, ...] = (1, 5, 10, 20)
    rounds: int = 3
    out: Path = Path("benchmarks/results/meta_step.json")

    def run(self) -> None:
        """Measure, print, write."""
        raise NotImplementedError
