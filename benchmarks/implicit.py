"""Implicit MAML against the loop that people write for it: a plain Conv4, autograd for everything."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
import torch._dynamo  # else loaded at the first transform, in every copy of this process anew
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.measure import ROOT, Seconds, environment, in_fork, paired_rounds, peak_growth, summary
from benchmarks.variants import TINY, Shape, Step, episodes, start
from selftaught.artifacts.files import write_json
from selftaught.core.functional import set_norm
from selftaught.core.types import Task
from selftaught.methods.imaml import IMAML
from selftaught.nets.heads import WithClassifier

BASELINE = "autograd loop, plain Conv4"

STRENGTH, RATE = 30.0, 0.01
"""So strong a pull that no direction bends down (the loop has no rule for that): both then do the same work. The
values change nothing in the number of operations."""


@final
@dataclass(frozen=True)
class Implicit:
    """One meta-step of implicit MAML: the library's, on its Conv4 in closed form and on a plain one by autograd,
    against a hand-written loop; time, peak memory and distance of the gradients in float64."""

    steps: int = 16
    """Gradient steps of the inner problem."""
    cg_steps: int = 5
    """Steps of conjugate gradient."""
    rounds: int = 7
    """Times that each variant runs, in turns."""
    limit: float = 120.0
    """Processor seconds; later rounds are left out."""
    threads: int = 1
    """Of torch; the library runs a task on each, the loop has them inside its operations."""
    shape: Shape = field(default_factory=Shape)
    """Sizes of the work."""
    out: Path = Path("benchmarks/results/implicit.json")
    """Where the numbers go."""

    def run(self) -> None:
        """Measure in a fresh process, print, write."""
        found = self._measured()
        times = {name: [Seconds(**s) for s in each] for name, each in found["times"].items()}
        base = found["peaks"][BASELINE]
        rows = []
        for name, each in times.items():
            peak = found["peaks"][name]
            more = {"peak_mib": peak, "peak_ratio": round(peak / base, 4), "distance": found["distances"][name]}
            rows.append({"variant": name} | summary(each, times[BASELINE]) | more)
        content = {
            "command": " ".join(["python -m benchmarks implicit", *self._options()]),
            "environment": environment(self.threads),
            "shape": asdict(self.shape),
            "baseline": BASELINE,
            "rows": rows,
        }
        print("\n".join(table(self, rows)))
        write_json(self.out, content)
        print(f"written to {self.out}")

    def _options(self) -> list[str]:
        """As for the command line; sizes only where they are not the usual ones."""
        usual = asdict(Shape())
        sizes = [s for k, v in asdict(self.shape).items() if v != usual[k] for s in (f"--shape.{k}", str(v))]
        names = ("steps", "cg_steps", "rounds", "threads")
        own = [s for k in names for s in (f"--{k.replace('_', '-')}", str(getattr(self, k)))]
        return [*own, "--limit", f"{self.limit:g}", *sizes]

    def _measured(self) -> Any:
        asked = {k: v for k, v in asdict(self).items() if k != "out"}
        command = [sys.executable, "-m", "benchmarks.implicit", json.dumps(asked)]
        variables = {k: str(self.threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"benchmarks.implicit failed:\n{done.stderr.strip()}")
        return json.loads(done.stdout)


def table(asked: Implicit, rows: list[dict[str, Any]]) -> list[str]:
    """Lines of text, one for each row."""
    out = [
        f"implicit MAML, K={asked.steps}, {asked.cg_steps} products, {asked.shape.tasks} tasks, "
        f"{asked.threads} thread(s); x = ratio to '{BASELINE}'",
        f"{'variant':36}{'cpu s':>8}{'x':>7}{'wall s':>8}{'x':>7}{'MiB':>8}{'x':>7}{'distance':>10}",
    ]
    for r in rows:
        times = f"{r['cpu_s']:8.2f}{r['cpu_ratio']:7.2f}{r['wall_s']:8.2f}{r['wall_ratio']:7.2f}"
        out.append(f"{r['variant']:36}{times}{r['peak_mib']:8.0f}{r['peak_ratio']:7.2f}{r['distance']:10.0e}")
    return out


def build(asked: Implicit, shape: Shape, dtype: torch.dtype = torch.float32) -> Mapping[str, Callable[[], Step]]:
    """Every variant, not yet prepared; each then takes the step and hands back the same gradients."""
    method = IMAML(
        inner_steps=asked.steps, inner_rate=RATE, strength=STRENGTH, cg_steps=asked.cg_steps,
        path="loop" if asked.threads == 1 else "threads", tasks=shape.tasks, ways=shape.ways,
    )  # fmt: skip
    return {
        BASELINE: lambda: _loop(method, shape, dtype),
        "selftaught, plain Conv4, autograd": lambda: _own(method, shape, dtype, plain=True),
        "selftaught": lambda: _own(method, shape, dtype, plain=False),
    }


def _own(method: IMAML, shape: Shape, dtype: torch.dtype, plain: bool) -> Step:
    net, params, slow = start(method, shape, dtype)
    net = _plain_net(shape, dtype) if plain else net
    tasks = episodes(shape, dtype)

    def step() -> tuple[Tensor, ...]:
        leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
        return torch.autograd.grad(method.loss(net, leaves, slow, tasks)[0], list(leaves.values()))

    return step


def _loop(method: IMAML, shape: Shape, dtype: torch.dtype) -> Step:
    _, params, _ = start(method, shape, dtype)
    net, tasks = _plain_net(shape, dtype), episodes(shape, dtype)
    set_norm(net, "batch")
    return lambda: autograd_loop(net, params, tasks, method)


def autograd_loop(net: nn.Module, params: Mapping[str, Tensor], tasks: Task, method: IMAML) -> tuple[Tensor, ...]:
    """Mean over tasks of (I + H/lambda)^-1 times the query's gradient; the graph of the support's gradient is kept
    for all products.

    `net` is an encoder with a one-row `head`, repeated for every class; tasks have a leading T axis.
    """
    support_y, query_y = tasks.support.y, tasks.query.y
    assert support_y is not None and query_y is not None
    total = [torch.zeros_like(v) for v in params.values()]
    for t in range(len(support_y)):
        theta = [v.expand(tasks.ways, *v.shape[1:]) if k.startswith("head.") else v for k, v in params.items()]

        def loss(weights: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(net, dict(zip(params, weights, strict=True)), (x,)), y)

        support = partial(loss, x=tasks.support.x[t], y=support_y[t])
        phi = [v.detach().clone().requires_grad_() for v in theta]
        for _ in range(method.inner_steps):
            pull = torch.stack([(a - b).square().sum() for a, b in zip(phi, theta, strict=True)]).sum()
            slopes = torch.autograd.grad(support(phi) + method.strength / 2 * pull, phi)
            phi = [(w - method.inner_rate * g).detach().requires_grad_() for w, g in zip(phi, slopes, strict=True)]
        target = torch.autograd.grad(loss(phi, tasks.query.x[t], query_y[t]), phi)
        curved = torch.autograd.grad(support(phi), phi, create_graph=True)
        found = _solved(curved, phi, target, method)
        for sum_, g in zip(total, found, strict=True):
            sum_ += (g.sum(0, keepdim=True) if g.shape != sum_.shape else g) / len(support_y)
    return tuple(total)


def _solved(
    curved: tuple[Tensor, ...], phi: list[Tensor], target: tuple[Tensor, ...], method: IMAML
) -> list[Tensor]:
    """Textbook conjugate gradient, tensor by tensor."""
    x = [torch.zeros_like(v) for v in target]
    residual, along = list(target), list(target)
    size = _dot(residual, residual)
    for _ in range(method.cg_steps):
        products = torch.autograd.grad(curved, phi, along, retain_graph=True)
        image = [p + h / method.strength for p, h in zip(along, products, strict=True)]
        stride = size / _dot(along, image)
        x = [a + stride * p for a, p in zip(x, along, strict=True)]
        residual = [r - stride * q for r, q in zip(residual, image, strict=True)]
        left = _dot(residual, residual)
        along = [r + left / size * p for r, p in zip(residual, along, strict=True)]
        size = left
    return x


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


class PlainBlock(nn.Module):
    """conv3x3, batch norm, ReLU, max-pool, in this order and in torch's usual layout."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)


class PlainConv4(nn.Module):
    """[B C H W] -> [B width]: the textbook network, with the names of the library's weights."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(PlainBlock(shape.width if i else shape.channels, shape.width) for i in range(4))
        )
        self.width = shape.width * (shape.size // 16) ** 2

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).flatten(1)


def _plain_net(shape: Shape, dtype: torch.dtype) -> nn.Module:
    encoder = PlainConv4(shape)
    return WithClassifier(encoder, encoder.width).to(dtype)


def measure(asked: Implicit) -> dict[str, Any]:
    """Peaks in MiB, paired seconds, and the largest relative distance of a float64 gradient to the baseline's."""
    torch.set_num_threads(asked.threads)
    # Memory first: copies of this process are as good as new ones only while it has computed nothing.
    names = list(build(asked, TINY))
    peaks = {name: in_fork(partial(_peak, asked, name)) for name in names}
    distances = _distances(asked)
    calls = {name: prepare() for name, prepare in build(asked, asked.shape).items()}
    paired_rounds(calls, 1)
    times = paired_rounds(calls, asked.rounds, asked.limit)
    return {
        "peaks": peaks,
        "distances": distances,
        "times": {name: [asdict(s) for s in each] for name, each in times.items()},
    }


def _peak(asked: Implicit, name: str) -> float:
    build(asked, TINY)[name]()()
    return peak_growth(build(asked, asked.shape)[name]())


def _distances(asked: Implicit) -> dict[str, float]:
    """Over all parameters together, on one task."""
    shape = Shape(**asdict(asked.shape) | {"tasks": 1})
    flat = {
        name: torch.cat([g.flatten() for g in prepare()()])
        for name, prepare in build(asked, shape, torch.float64).items()
    }
    base = flat[BASELINE]
    return {name: float((v - base).norm() / base.norm()) for name, v in flat.items()}


def main() -> None:
    """Measure what the one argument says, as JSON, and print JSON."""
    asked = json.loads(sys.argv[1])
    print(json.dumps(measure(Implicit(**asked | {"shape": Shape(**asked["shape"])}))))


if __name__ == "__main__":
    main()
