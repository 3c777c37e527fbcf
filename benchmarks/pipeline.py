"""Views per second of the batched augmentation."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pipeline:
    """Compare the batched augmentation with kornia's."""

    rounds: int = 7
    out: Path = Path("benchmarks/results/pipeline.json")

    def run(self) -> None:
        """Measure, print, write."""
        raise NotImplementedError
