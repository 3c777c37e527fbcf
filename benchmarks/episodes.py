"""ProtoNet's training step and the evaluation of many episodes from cached embeddings, against other libraries."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch

from benchmarks.measure import environment, summary
from benchmarks.peers import own
from benchmarks.peers.meta import peer_programs
from benchmarks.peers.work import Work
from benchmarks.peers.worker import Comparison, Conditions, Program, compare
from benchmarks.variants import TINY, Shape
from selftaught.artifacts.files import write_json
from selftaught.tasks.episodes import EpisodePlan

OURS = "selftaught"


@final
@dataclass(frozen=True)
class Episodes:
    """Seconds of a ProtoNet step, and of the evaluation of episodes from embeddings for each method. Our step
    embeds an episode's support and query pictures in one pass, so that they share their batch statistics; the
    peers' embed them in two: as many convolutions, another gradient. Episodes are drawn beforehand."""

    peers: tuple[str, ...] = ("easyfsl", "learn2learn")
    """Libraries to compare with; the first one that works is the baseline."""
    rounds: int = 5
    """Times that each program runs, in turns."""
    limit: float = 60.0
    """Seconds for each comparison; later rounds are left out."""
    threads: int = 1
    """Threads of every program."""
    shape: Shape = field(default_factory=lambda: Shape(tasks=8))
    """Sizes of the training step."""
    episodes: int = 2000
    """Episodes of the evaluation, with the ways, shots and queries of the shape."""
    features: int = 64
    """Width of an embedding."""
    out: Path = Path("benchmarks/results/episodes.json")
    """Where the numbers go."""

    def run(self) -> None:
        """Measure, print, write."""
        groups = [self._step(), *(self._evaluation(distance) for distance in ("euclidean", "cosine"))]
        for group in groups:
            print("\n".join(table(group)), flush=True)
        content = {
            "command": f"python -m benchmarks episodes --peers {' '.join(self.peers)} --threads {self.threads}",
            "environment": environment(self.threads),
            "groups": groups,
        }
        write_json(self.out, content)
        print(f"written to {self.out}")

    def _step(self) -> dict[str, Any]:
        peers, failures = peer_programs("protonet", self.peers)
        programs = peers | {OURS: Program(f"{own.HERE}:protonet")}
        work = own.meta_work(self.shape, 0, "protonet")
        tiny = own.meta_work(replace(TINY, channels=self.shape.channels), 0, "protonet")
        found = compare(programs, work, rounds=self.rounds, limit=self.limit, tiny=tiny, at=self._conditions())
        return group_of(f"ProtoNet step, {self.shape.tasks} tasks", programs, found, failures)

    def _evaluation(self, distance: str) -> dict[str, Any]:
        peers, failures = peer_programs("evaluate", self.peers)
        programs = peers | {OURS: Program(f"{own.HERE}:evaluate")}
        if distance == "cosine":
            heads = ("ridge", "logistic")
            programs |= {f"{OURS}, {h}": Program(f"{own.HERE}:evaluate", options={"head": h}) for h in heads}
        found = compare(
            programs,
            self._cached(self.episodes, distance),
            rounds=self.rounds,
            limit=self.limit,
            tiny=self._cached(2, distance),
            check=self._cached(50, distance),
            at=self._conditions(),
        )
        title = f"{self.episodes:,} episodes from embeddings, nearest class mean, {distance}"
        return group_of(title, programs, found, failures)

    def _cached(self, episodes: int, distance: str) -> Work:
        s = self.shape
        plan = EpisodePlan(s.ways, s.shots, s.queries, episodes)
        return own.evaluation_work(plan, self.features, 4 * s.ways, s.shots + s.queries + 4, distance)

    def _conditions(self) -> Conditions:
        return Conditions(threads=self.threads)


def group_of(
    title: str, programs: Mapping[str, Program], found: Comparison, failures: Mapping[str, str]
) -> dict[str, Any]:
    """Rows of one comparison; `percent` is the mean accuracy on a few episodes where the work is an evaluation."""
    baseline = next((name for name in programs if name in found.readings), "")
    rows = []
    for name in found.readings:
        row: dict[str, Any] = {"variant": name}
        row |= summary(found.readings[name], found.readings[baseline])
        row |= {"peak_mib": found.peaks[name], "percent": percent(found.gradients.get(name, {}))}
        rows.append(row)
    return {"title": title, "baseline": baseline, "rows": rows, "failures": dict(failures) | found.failures}


def percent(found: Mapping[str, torch.Tensor]) -> float | None:
    """Mean accuracy of what an evaluation hands back."""
    return round(float(found["percent"].mean()), 3) if "percent" in found else None


def table(group: Mapping[str, Any]) -> list[str]:
    """Lines of text, one for each row."""
    out = [f"{group['title']}; x = ratio to {group['baseline']}, median [interval of the median]"]
    out.append(f"{'':24}{'cpu s':>8}{'x':>7} {'interval':>15}{'wall s':>8}{'x':>7}{'MiB':>7}{'percent':>9}")
    for r in group["rows"]:
        low, high = r["cpu_ratio_interval"]
        share = f"{r['percent']:9.2f}" if r["percent"] is not None else f"{'-':>9}"
        out.append(
            f"{r['variant']:24}{r['cpu_s']:8.3f}{r['cpu_ratio']:7.3f} [{low:6.3f},{high:6.3f}]"
            f"{r['wall_s']:8.3f}{r['wall_ratio']:7.3f}{r['peak_mib']:7.0f}{share}"
        )
    return [*out, *(f"{name}: {why}" for name, why in group["failures"].items()), ""]
