"""Where the split loses: tasks around a centroid, without noise.

Bai, Chen, Zhou, Zhao, Lee, Kakade, Wang, Xiong, "How Important is the Train-Validation Split in Meta-Learning?",
ICML 2021, arXiv 2010.05843: where tasks are linear models (their realisable case) both variants aim at the
centroid, and without the split it is estimated better, also when penalty and split ratio are tuned for both.

    x ~ N(0, I_d), a task is w_t ~ N(w_0, I_d / d), y = w_t.x
    inner   w(c) = argmin mean (y - w.x)^2 + lambda |w - c|^2      on the inner samples
    outer   c = argmin sum_t mean (y - w_t(c).x)^2                 on the outer samples

Both are least squares, so nothing is trained: w(c) - w_t = (I - M)(c - w_t), M = (S + lambda)^-1 S, S = X^T X / n.
Our choice: sizes; lambda and the inner half's size are tuned on other draws of tasks; w_0 = 0, which costs no
generality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selftaught.claims.outcome import Estimate, estimate
from selftaught.tasks.split import Split

_PENALTIES = (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)


@dataclass(frozen=True)
class Centroid:
    """d `inputs`, `tasks` to learn the centroid from with `samples` each, `draws` of the whole experiment."""

    inputs: int = 50
    tasks: int = 10
    samples: int = 20
    draws: int = 20
    test_tasks: int = 200


@dataclass(frozen=True)
class Choice:
    """lambda, and the number of samples in the inner half (all of them without the split)."""

    penalty: float
    inner: int


def choices(c: Centroid, split: Split) -> list[Choice]:
    """What is tuned. An inner half of none leaves the centroid as it is: then all samples are outer."""
    if split == "tr-tr":
        return [Choice(p, c.samples) for p in _PENALTIES]
    halves = [c.samples * q // 4 for q in (1, 2, 3)]
    return [Choice(0.0, 0), *(Choice(p, n) for p in _PENALTIES for n in halves)]


def draw(c: Centroid, tasks: int, seed: int) -> tuple[Tensor, Tensor]:
    """w [T d] around the origin and x [T n d], float64."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(tasks, c.inputs, generator=generator, dtype=torch.float64) / c.inputs**0.5
    return w, torch.randn(tasks, c.samples, c.inputs, generator=generator, dtype=torch.float64)


def kept(x: Tensor, penalty: float) -> Tensor:
    """I - M [T d d]: what adapting on `x` [T n d] leaves of the distance to the task."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype)
    if x.shape[1] == 0:
        return eye.expand(len(x), -1, -1)
    spread = x.mT @ x / x.shape[1]
    return eye - torch.linalg.solve(spread + penalty * eye, spread)


def learned(c: Centroid, split: Split, choice: Choice, seed: int) -> Tensor:
    """The centroid [d] that the outer problem finds; the nearest to the origin where it leaves a choice."""
    w, x = draw(c, c.tasks, seed)
    inner, outer = (x, x) if split == "tr-tr" else (x[:, : choice.inner], x[:, choice.inner :])
    left = kept(inner, choice.penalty)
    asked = left.mT @ (outer.mT @ outer / outer.shape[1]) @ left
    total = asked.sum(0)
    return torch.linalg.lstsq(total, (asked @ w[..., None]).sum(0), driver="gelsd").solution.squeeze(-1)


def tuned(c: Centroid, split: Split, draws: int = 10) -> Choice:
    """The choice whose centroid is nearest to the true one on average over draws that are not reported."""
    gaps = {
        choice: sum(float(learned(c, split, choice, 10_000 + s).square().sum()) for s in range(draws))
        for choice in choices(c, split)
    }
    return min(gaps, key=lambda choice: gaps[choice])


def risk(c: Centroid, centroid: Tensor, samples: int, seed: int) -> float:
    """Mean |w - w_t|^2 of new tasks solved from `centroid` with so many samples.

    Without noise the least penalty is the best, so nothing is tuned.
    """
    w, x = draw(Centroid(c.inputs, samples=samples), c.test_tasks, 20_000 + seed)
    return float((kept(x, 1e-6) @ (centroid - w)[..., None]).square().sum((1, 2)).mean())


def rows(c: Centroid, samples: Sequence[int]) -> list[Mapping[str, Estimate | str]]:
    """Both variants, each with its own tuned choice, from the same draws."""
    made: list[Mapping[str, Estimate | str]] = []
    for split in ("tr-val", "tr-tr"):
        choice = tuned(c, split)
        found = [learned(c, split, choice, seed) for seed in range(c.draws)]
        of_inner = f"lambda {choice.penalty:g}, {choice.inner} of {c.samples} samples inner"
        row: dict[str, Estimate | str] = {
            "representation": f"centroid, {split}, {of_inner}",
            "effective rank": "-",
        }
        for n in samples:
            row[f"risk, {n} samples"] = estimate([risk(c, w, n, seed) for seed, w in enumerate(found)])
        made.append(row)
    return made
