"""One first-order self-supervised step, loss and gradient: our encoders against the same nets in plain memory."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Seconds, environment, in_fork, paired_rounds, peak_growth, summary, timed
from selftaught.artifacts.files import write_json
from selftaught.core.memory import keep_freed_memory
from selftaught.core.precision import Precision, has_bfloat16
from selftaught.core.types import Examples, Method, Task
from selftaught.methods.byol import BYOL
from selftaught.methods.simclr import SimCLR
from selftaught.nets import build_encoder

PLAIN, OURS, LOW = "plain NCHW float32", "selftaught float32", "selftaught bfloat16"
NO_BFLOAT16 = "not measured: this CPU has no bfloat16 instructions and would imitate them ten times as slowly"

METHODS: Mapping[str, Callable[[Precision], Method]] = {
    "simclr": lambda precision: SimCLR(precision=precision),
    "byol": lambda precision: BYOL(precision=precision),
}
"""What is timed: the loss of the method and its gradient, on views that are there already."""

Step = Callable[[], tuple[Tensor, ...]]


@final
@dataclass(frozen=True)
class SslStep:
    """Seconds, FLOP/s and memory of one SimCLR and BYOL step on random pictures of `size` pixels. The batch is
    small so that a step takes seconds; 512 views are usual. FLOPs are those of direct convolutions in all rows."""

    nets: tuple[str, ...] = ("resnet18", "resnet12", "conv4")
    """Encoders."""
    pictures: int = 32
    """Pictures of a step, in two views each."""
    size: int = 32
    """Height and width in pixels, three channels."""
    rounds: int = 7
    """Times that each variant runs, in turns."""
    limit: float = 60.0
    """Processor seconds for each encoder and method; later rounds are left out."""
    threads: int = 1
    """Threads of torch."""
    out: Path = Path("benchmarks/results/ssl_step.json")
    """Where the numbers go."""

    def run(self) -> None:
        """Measure, print, write."""
        torch.set_num_threads(self.threads)
        cells = [(net, method) for net in self.nets for method in METHODS]
        # Memory first: copies of this process are as good as new ones only while it has computed nothing.
        peaks = {cell: {name: in_fork(partial(self._peak, *cell, name)) for name in variants()} for cell in cells}
        keep_freed_memory()  # as the command line does, for all variants alike
        limits = speed_limits()
        groups = []
        for cell in cells:
            groups.append(self._group(*cell, peaks[cell], limits["convolution_gflops"]))
            print("\n".join(table(groups[-1])), flush=True)
        missing = {} if LOW in variants() else {LOW: NO_BFLOAT16}
        content = {
            "command": f"python -m benchmarks ssl_step --nets {' '.join(self.nets)} --pictures {self.pictures} "
            f"--size {self.size} --rounds {self.rounds} --limit {self.limit:g} --threads {self.threads}",
            "environment": environment(self.threads) | {"isa": torch.backends.cpu.get_cpu_capability()},
            "work": {"pictures": self.pictures, "views": 2 * self.pictures, "size": self.size, "channels": 3},
            "peak": limits,
            "not_measured": missing,
            "groups": groups,
        }
        write_json(self.out, content)
        print("\n".join([*(f"{k}: {v}" for k, v in missing.items()), f"written to {self.out}"]))

    def _peak(self, net: str, method: str, variant: str) -> float:
        step(net, method, variant, 2, self.size)()
        return peak_growth(step(net, method, variant, self.pictures, self.size))

    def _group(self, net: str, method: str, peaks: Mapping[str, float], limit: float) -> dict[str, Any]:
        calls = {name: step(net, method, name, self.pictures, self.size) for name in variants()}
        with FlopCounterMode(display=False) as counter:
            # Rounding decides a few ReLUs and maxima: one that flips moves a float32 gradient by 1e-3 and more.
            reference = step(net, method, PLAIN, self.pictures, self.size, torch.float64)()
        errors = {name: relative_error(call(), reference) for name, call in calls.items()}
        found = paired_rounds(calls, self.rounds, self.limit)
        rows = rows_of(found, peaks, errors, counter.get_total_flops() / 1e9, limit)
        return {"net": net, "method": method, "gflop": counter.get_total_flops() / 1e9, "rows": list(rows)}


def variants() -> tuple[str, ...]:
    """The rows that this machine can measure; the first is the baseline."""
    return (PLAIN, OURS, LOW) if has_bfloat16(torch.device("cpu")) else (PLAIN, OURS)


def step(
    net: str, method: str, variant: str, pictures: int, size: int, dtype: torch.dtype = torch.float32
) -> Step:
    """Prepares one step on seeded pictures; every variant has the same starting numbers."""
    chosen = METHODS[method]("bfloat16" if variant == LOW else "float32")
    torch.manual_seed(0)
    skeleton = chosen.network(build_encoder(net, channels=3, size=size, seed=0)).to(dtype)
    if variant == PLAIN:
        in_plain_memory(skeleton)
    params, slow = chosen.init(skeleton)
    x = torch.rand(1, 2 * pictures, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)
    tasks = Task(Examples(x[:, :pictures]), Examples(x[:, pictures:]), pictures)

    def call() -> tuple[Tensor, ...]:
        leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
        loss, _ = chosen.loss(skeleton, leaves, slow, tasks)
        return torch.autograd.grad(loss, list(leaves.values()))

    return call


def in_plain_memory(net: nn.Module) -> None:
    """Takes the layout out of our encoders: what remains is torch's modules as everybody calls them."""
    for module in net.modules():
        if hasattr(module, "channels_last"):
            module.channels_last = False  # type: ignore[assignment]


def relative_error(own: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> float:
    """Norm of the difference of two gradients over the norm of the second."""
    a, b = (torch.cat([g.flatten() for g in each]).double() for each in (own, reference))
    return float((a - b).norm() / b.norm())


def speed_limits() -> dict[str, float]:
    """GFLOP/s of a large matrix product and of a convolution that kernels like, the best of several."""
    a = torch.rand(1024, 1024)
    x = torch.rand(16, 128, 32, 32).contiguous(memory_format=torch.channels_last)
    weight = torch.rand(128, 128, 3, 3)
    calls: dict[str, tuple[Callable[[], Tensor], float]] = {
        "matrix_product_gflops": (lambda: a @ a, 2 * 1024**3),
        "convolution_gflops": (lambda: F.conv2d(x, weight, padding=1), 2 * 9 * 128 * x.numel()),
    }
    best = {name: min(timed(call).wall for _ in range(9)) for name, (call, _) in calls.items()}
    return {name: round(flop / best[name] / 1e9, 1) for name, (_, flop) in calls.items()}


def rows_of(
    found: Mapping[str, list[Seconds]],
    peaks: Mapping[str, float],
    errors: Mapping[str, float],
    gflop: float,
    limit: float,
) -> Iterator[dict[str, Any]]:
    """One row a variant; `speedup` is the median over rounds of the baseline's processor time over its own."""
    for name, each in found.items():
        row: dict[str, Any] = {"variant": name} | summary(each, found[PLAIN])
        row |= {"speedup": round(1 / row["cpu_ratio"], 3), "gflops": round(gflop / row["wall_s"], 1)}
        row |= {"of_convolution_peak": round(gflop / row["wall_s"] / limit, 3)}
        row |= {
            "peak_mib": peaks[name],
            "peak_ratio": round(peaks[name] / peaks[PLAIN], 3) if peaks[PLAIN] else None,
        }
        yield row | {"gradient_error": float(f"{errors[name]:.2g}")}


def table(group: Mapping[str, Any]) -> list[str]:
    """Lines of text, one for each row."""
    out = [f"{group['method']} on {group['net']}, {group['gflop']:.0f} GFLOP; x = '{PLAIN}' over this one"]
    out.append(
        f"{'':20}{'cpu s':>8}{'x':>7}{'wall s':>8}{'GFLOP/s':>9}{'of peak':>9}{'MiB':>7}{'off float64':>14}"
    )
    for r in group["rows"]:
        times = f"{r['cpu_s']:8.2f}{r['speedup']:7.2f}{r['wall_s']:8.2f}{r['gflops']:9.1f}"
        rest = f"{r['of_convolution_peak']:9.2f}{r['peak_mib']:7.0f}{r['gradient_error']:14.1e}"
        out.append(f"{r['variant']:20}{times}{rest}")
    return [*out, ""]
