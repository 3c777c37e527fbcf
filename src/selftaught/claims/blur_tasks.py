"""The tasks and the gradient descent that BLUR's claim is measured against."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from selftaught.core.types import Params, Task
from selftaught.learners.bidirectional import Genome, predict, started, step
from selftaught.tasks.lessons import Draw, from_rows
from selftaught.tasks.planes import planes

Sets = Mapping[str, tuple[Draw, Draw]]
KNOWN = ("xor", "and", "two-moon", "circle")
UNSEEN = ("or", "nxor", "pie slice", "triangle", "cross", "quadrant")


@dataclass(frozen=True)
class Domain:
    """Tasks to meta-train on, and unseen ones; `other` are unseen ones of another number of classes."""

    name: str
    ways: int
    known: Sets
    unseen: Sets
    hidden: tuple[int, ...]
    other: Sets | None = None
    other_ways: int = 0


def plane_domain() -> Domain:
    """Ten shapes of the plane."""
    return Domain("shapes", 2, planes(*KNOWN), planes(*UNSEEN), (20,))


def digit_domain() -> Domain:
    """UCI digits of 8 x 8, packaged with scikit-learn: three of 0 to 4 to meta-train on, three of 5 to 9 unseen.

    In every task half of the pictures are learned from, the others asked about.
    """
    x, y = load_digits(return_X_y=True)
    pictures, labels = torch.from_numpy(x).float() / 8 - 1, torch.from_numpy(y)
    known = _subsets(pictures, labels, range(5), 3)
    unseen = _subsets(pictures, labels, range(5, 10), 3)
    five = _subsets(pictures, labels, range(5, 10), 5)
    return Domain("digits", 3, known, unseen, (32,), five, 5)


def _subsets(x: Tensor, y: Tensor, digits: Sequence[int], ways: int) -> dict[str, tuple[Draw, Draw]]:
    half = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)) < len(x) // 2
    out = {}
    for chosen in combinations(digits, ways):
        mine = torch.isin(y, torch.tensor(chosen))
        local = torch.searchsorted(torch.tensor(chosen), y.clamp(max=chosen[-1]))
        to_learn, to_ask = (from_rows(x[mine & part], local[mine & part]) for part in (half, ~half))
        out["".join(map(str, chosen))] = (to_learn, to_ask)
    return out


@torch.no_grad()
def learned_by_rule(genome: Genome, task: Task, raw: Params, looks: Sequence[int], batch: int) -> Tensor:
    """Query accuracy [T looks] after so many steps."""

    def one(task: Task, raw: Params) -> Tensor:
        state, found = started(raw, genome), []
        assert task.support.y is not None and task.query.y is not None
        for t in range(max(looks)):
            rows = slice(t * batch, (t + 1) * batch)
            state = step(state, genome, task.support.x[rows], task.support.y[rows])
            if t + 1 in looks:
                right = predict(state, genome, task.query.x).argmax(-1) == task.query.y
                found.append(right.float().mean())
        return torch.stack(found)

    return vmap(one)(task, raw)


@dataclass(frozen=True)
class Descent:
    """SGD with momentum 0.9, or Adam; `norm`: hidden neurons are normalised over the batch, as BLUR's are."""

    algorithm: str
    rate: float
    norm: bool

    def __str__(self) -> str:
        return f"rate {self.rate:g}{', normalised' if self.norm else ''}"


def learned_by_descent(
    how: Descent, task: Task, sizes: Sequence[int], looks: Sequence[int], batch: int, generator: torch.Generator
) -> Tensor:
    """The same for a tanh network of the same sizes on cross-entropy, all tasks side by side: [T looks]."""
    tasks = len(task.support.x)
    weights = [torch.randn(tasks, a, b, generator=generator) / math.sqrt(a) for a, b in _pairs(sizes)]
    biases = [torch.zeros(tasks, 1, b) for _, b in _pairs(sizes)]
    leaves = [p.requires_grad_() for p in (*weights, *biases)]
    algorithm = torch.optim.Adam(leaves, how.rate) if how.algorithm == "Adam" else torch.optim.SGD(
        leaves, how.rate, momentum=0.9
    )  # fmt: skip

    def network(x: Tensor, seen: int) -> Tensor:
        for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
            z, last = x @ w, layer == len(weights) - 1
            if how.norm and not last:
                z = (z - z[:, :seen].mean(1, keepdim=True)) / (
                    z[:, :seen].var(1, False, keepdim=True) + 1e-5
                ).sqrt()
            x = z + b if last else torch.tanh(z + b)
        return x

    found: list[Tensor] = []
    assert task.support.y is not None and task.query.y is not None
    for t in range(max(looks)):
        rows = slice(t * batch, (t + 1) * batch)
        x, y = task.support.x[:, rows], task.support.y[:, rows]
        # A sum over tasks: neither algorithm mixes the numbers of one with those of another.
        loss = F.cross_entropy(network(x, batch).flatten(0, 1), y.flatten()) * tasks
        algorithm.zero_grad()
        loss.backward()
        algorithm.step()
        if t + 1 in looks:
            with torch.no_grad():
                logits = network(torch.cat([x, task.query.x], 1), batch)[:, batch:]
            found.append((logits.argmax(-1) == task.query.y).float().mean(-1))
    return torch.stack(found, -1)


def _pairs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise(sizes))
