"""One measurement in a process of its own; prints JSON. Started by the benchmarks, not by hand."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, final

import torch
import torch._dynamo  # else loaded at the first transform, in every copy of this process anew
import tyro

from benchmarks.measure import in_fork, paired_rounds, peak_growth
from benchmarks.variants import GROUPS, TINY, Group, Shape, Variant


@final
@dataclass(frozen=True)
class Steps:
    """Peak growth in MiB and paired times of one step of every variant, for every number of inner steps."""

    steps: tuple[int, ...]
    rounds: int
    limit: float
    shape: Shape = field(default_factory=Shape)

    def run(self) -> dict[str, Any]:
        # Memory first: copies of this process are as good as new ones only while it has computed nothing.
        peaks = {g.name: {str(k): self._peaks(g, k) for k in self.steps} for g in GROUPS.values()}
        times = {g.name: dict(self._times(g)) for g in GROUPS.values()}
        return {"peaks": peaks, "times": times}

    def _peaks(self, group: Group, steps: int) -> dict[str, float]:
        return {v.name: in_fork(partial(self._peak, v, steps)) for v in group.variants}

    def _peak(self, variant: Variant, steps: int) -> float:
        variant.build(TINY, 1)()
        return peak_growth(variant.build(self.shape, steps))

    def _times(self, group: Group) -> Iterator[tuple[str, dict[str, Any]]]:
        for v in group.variants:
            v.build(self.shape, 1)()
        for steps in self.steps:
            calls = {v.name: v.build(self.shape, steps) for v in group.variants}
            found = paired_rounds(calls, self.rounds, self.limit)
            yield str(steps), {name: [asdict(s) for s in each] for name, each in found.items()}


def main() -> None:
    """Measure on one thread and print."""
    torch.set_num_threads(1)
    print(json.dumps(tyro.cli(Steps, prog="python -m benchmarks._one").run()))


if __name__ == "__main__":
    main()
