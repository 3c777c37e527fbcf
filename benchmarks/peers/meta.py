"""The meta-step of the library and of its peers on the same pictures and weights, in one paired run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from benchmarks.measure import summary
from benchmarks.peers import own
from benchmarks.peers.environments import PEERS, REFUSED, Failure, install
from benchmarks.peers.flops import meta_step
from benchmarks.peers.scripts.ceiling import CONVOLUTION_FLOP, PRODUCT_FLOP
from benchmarks.peers.work import Work
from benchmarks.peers.worker import Comparison, Conditions, Program, compare
from benchmarks.variants import TINY, Shape

SCRIPTS = "benchmarks.peers.scripts"
PLAIN = "plain loop"
CONVOLUTION, PRODUCT = "convolution peak", "matrix product peak"
CEILINGS = {
    CONVOLUTION: (Program(f"{SCRIPTS}.ceiling:convolution"), CONVOLUTION_FLOP),
    PRODUCT: (Program(f"{SCRIPTS}.ceiling:product"), PRODUCT_FLOP),
}
OFFERS: Mapping[str, tuple[str, ...]] = {
    "maml": ("learn2learn", "higher", "torchopt", "parallel-metalearn"),
    "first-order": ("learn2learn", "parallel-metalearn"),
    "anil": ("learn2learn", "parallel-metalearn"),
    "protonet": ("learn2learn", "easyfsl"),
    "evaluate": ("learn2learn", "easyfsl"),
}
"""Which peers' scripts offer what; `first-order` is `maml` with an option."""


@final
@dataclass(frozen=True)
class Contest:
    """What is compared and how: names of peers, `only` some of our implementations (all where empty)."""

    algorithm: str
    peers: tuple[str, ...]
    shape: Shape
    steps: int
    rounds: int
    limit: float
    threads: int
    only: tuple[str, ...] = ()


def peer_programs(algorithm: str, peers: Sequence[str]) -> tuple[dict[str, Program], dict[str, str]]:
    """A program for each peer that offers `algorithm`, installed now where it was not; failures by name."""
    found: dict[str, Program] = {}
    failures: dict[str, str] = {}
    for name in peers:
        if name not in PEERS and name not in REFUSED:
            failures[name] = f"not a peer; they are {', '.join([*PEERS, *REFUSED])}"
        elif name in PEERS and name not in OFFERS[algorithm]:
            failures[name] = f"has no {algorithm} here"
        else:
            got = install(name)
            if isinstance(got, Failure):
                failures[name] = f"cannot be installed: {got.error}"
                continue
            found[name] = Program(_target(name, algorithm), got.python)
    return found, failures


def _target(name: str, algorithm: str) -> str:
    function = "maml" if algorithm == "first-order" else algorithm
    return f"{SCRIPTS}.{name.replace('-', '_')}:{function}"


def run(contest: Contest) -> dict[str, Any]:
    """Rows, failures and ceilings of one contest, as plain values."""
    peers, failures = peer_programs(contest.algorithm, contest.peers)
    function = "anil" if contest.algorithm == "anil" else "maml"
    plain = {PLAIN: Program(f"{SCRIPTS}.plain:{function}")}
    programs = peers | plain | own.programs(contest.algorithm, contest.only)
    ceilings = {name: program for name, (program, _) in CEILINGS.items()}
    found = compare(
        programs | ceilings,
        own.meta_work(contest.shape, contest.steps, contest.algorithm),
        rounds=contest.rounds,
        limit=contest.limit,
        tiny=own.meta_work(replace(TINY, channels=contest.shape.channels), 1, contest.algorithm),
        check=check_work(contest),
        at=Conditions(threads=contest.threads),
    )
    peaks = {name: rate(found, name, flop) for name, (_, flop) in CEILINGS.items() if name in found.readings}
    baseline = next((name for name in [*peers, *plain] if name in found.readings), PLAIN)
    return {
        **asdict(contest),
        "baseline": baseline,
        "flop": meta_step(contest.shape, contest.steps, contest.algorithm),
        "peaks_gflop_per_s": peaks,
        "rows": list(rows(contest, programs, found, baseline, peaks)),
        "failures": failures | found.failures,
    }


def check_work(contest: Contest) -> Work:
    """For the gradients: few tasks and queries and at most three steps, for they are taken in float64."""
    s = contest.shape
    small = replace(s, tasks=min(s.tasks, 4), queries=min(s.queries, 5), size=min(s.size, 28))
    return own.meta_work(small, min(contest.steps, 3), contest.algorithm)


def rate(found: Comparison, name: str, flop: int) -> float:
    """GFLOP/s of the fastest round."""
    return round(flop / min(r.wall for r in found.readings[name]) / 1e9, 1)


def rows(
    contest: Contest,
    programs: Mapping[str, Program],
    found: Comparison,
    baseline: str,
    peaks: Mapping[str, float],
) -> Iterator[dict[str, Any]]:
    """One row for each program that lived: times, ratios to the baseline, share of the peaks, memory, error."""
    flop = meta_step(contest.shape, contest.steps, contest.algorithm)
    reference = found.gradients.get(PLAIN)
    for name in programs:
        if name not in found.readings or baseline not in found.readings:
            continue
        row: dict[str, Any] = {"variant": name}
        row |= summary(found.readings[name], found.readings[baseline])
        speed = flop / row["wall_s"] / 1e9
        row["gflop_per_s"] = round(speed, 1)
        row["of_convolution_peak"] = round(speed / peaks[CONVOLUTION], 3) if CONVOLUTION in peaks else None
        row["of_product_peak"] = round(speed / peaks[PRODUCT], 3) if PRODUCT in peaks else None
        row["peak_mib"] = found.peaks[name]
        row["peak_ratio"] = round(found.peaks[name] / found.peaks[baseline], 3) if found.peaks[baseline] else None
        mine = found.gradients.get(name)
        row["relative_error"] = relative_error(mine, reference) if mine and reference else None
        yield row


def relative_error(mine: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """|| mine - reference || / || reference || over all gradients together, where head rows are summed.

    The library learns one head row for all classes, whose gradient is the sum over the rows of the others. A
    gradient that is missing counts as zero.
    """
    a, b = _one_row(mine), _one_row(reference)
    apart = sum(float((a[k] - b[k] if k in a else b[k]).square().sum()) for k in b)
    return math.sqrt(apart / sum(float(g.square().sum()) for g in b.values()))


def _one_row(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        k: (g.sum(0, keepdim=True) if k.startswith("head.") else g).to(torch.float64) for k, g in gradients.items()
    }


def table(content: Mapping[str, Any]) -> list[str]:
    """Lines of text: one for each row, then the ceilings and what failed."""
    s, flop = content["shape"], content["flop"]
    threads = f"{content['threads']} thread" + "s" * (content["threads"] > 1)
    out = [
        f"{content['algorithm']}, {s['tasks']} tasks, {s['ways']}-way {s['shots']}-shot {s['queries']} queries, "
        f"{s['size']}x{s['size']}x{s['channels']}, Conv4-{s['width']}, K={content['steps']}, {threads}",
        f"x = ratio to {content['baseline']}: median over rounds [interval of the median] (least-most); "
        f"{flop / 1e9:.1f} GFLOP a step",
        f"{'':24}{'wall s':>7}{'x':>6} {'interval':>13} {'range':>13}{'cpu x':>7}{'GFLOP/s':>9}{'of conv':>8}"
        f"{'of gemm':>8}{'MiB':>6}{'x':>6}{'error':>9}",
    ]
    for r in content["rows"]:
        inside, whole = r["wall_ratio_interval"], r["wall_ratio_range"]
        error = f"{r['relative_error']:9.0e}" if r["relative_error"] is not None else f"{'-':>9}"
        share = "".join(
            f"{r[k]:8.0%}" if r[k] else f"{'-':>8}" for k in ("of_convolution_peak", "of_product_peak")
        )
        memory = f"{r['peak_mib']:6.0f}" + (f"{r['peak_ratio']:6.2f}" if r["peak_ratio"] else f"{'-':>6}")
        out.append(
            f"{r['variant']:24}{r['wall_s']:7.2f}{r['wall_ratio']:6.2f} [{inside[0]:5.2f},{inside[1]:5.2f}] "
            f"({whole[0]:5.2f}-{whole[1]:5.2f}){r['cpu_ratio']:7.2f}{r['gflop_per_s']:9.1f}{share}{memory}{error}"
        )
    if content["rows"]:
        r = content["rows"][0]
        out.append(f"{r['rounds']} rounds; the interval holds the median with {r['interval_coverage']:.1%}")
    out += [f"{name}: {value:.0f} GFLOP/s" for name, value in content["peaks_gflop_per_s"].items()]
    return [*out, *(f"{name}: {why}" for name, why in content["failures"].items()), ""]
