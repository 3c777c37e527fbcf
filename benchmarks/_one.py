"""One measurement in a process of its own; prints JSON. Started by the benchmarks, not by hand."""

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, Any, final

import torch
import tyro

from benchmarks.measure import in_fork, paired_rounds, peak_growth
from benchmarks.variants import GROUPS, TINY, Shape, Variant


@final
@dataclass(frozen=True)
class Memory:
    """Peak growth in MiB of one step of every variant of a group, for every number of inner steps."""

    group: str
    steps: tuple[int, ...]
    shape: Shape = field(default_factory=Shape)

    def run(self) -> dict[str, dict[str, float]]:
        variants = GROUPS[self.group].variants
        return {str(k): {v.name: in_fork(partial(self._peak, v, k)) for v in variants} for k in self.steps}

    def _peak(self, variant: Variant, steps: int) -> float:
        variant.build(TINY, 1)()
        return peak_growth(variant.build(self.shape, steps))


@final
@dataclass(frozen=True)
class Time:
    """Paired rounds of all variants of a group, for every number of inner steps."""

    group: str
    steps: tuple[int, ...]
    rounds: int
    shape: Shape = field(default_factory=Shape)

    def run(self) -> dict[str, Any]:
        group = GROUPS[self.group]
        for v in group.variants:
            v.build(self.shape, 1)()
        out: dict[str, Any] = {}
        for steps in self.steps:
            calls = {v.name: v.build(self.shape, steps) for v in group.variants}
            found = paired_rounds(calls, self.rounds)
            out[str(steps)] = {name: [asdict(s) for s in each] for name, each in found.items()}
        return out


@final
@dataclass(frozen=True)
class Augmentation:
    """Paired rounds of the augmentations on one batch."""

    rounds: int
    batch: int
    size: int

    def run(self) -> dict[str, Any]:
        # Importing kornia takes seconds that the other measurements do not need.
        from benchmarks.pipeline import pipelines

        calls = pipelines(self.batch, self.size)
        paired_rounds(calls, 1)
        return {name: [asdict(s) for s in each] for name, each in paired_rounds(calls, self.rounds).items()}


One = (
    Annotated[Memory, tyro.conf.subcommand("memory")]
    | Annotated[Time, tyro.conf.subcommand("time")]
    | Annotated[Augmentation, tyro.conf.subcommand("augmentation")]
)


def main() -> None:
    """Measure on one thread and print."""
    torch.set_num_threads(1)
    one: Memory | Time | Augmentation = tyro.cli(One, prog="python -m benchmarks._one")
    print(json.dumps(one.run()))


if __name__ == "__main__":
    main()
