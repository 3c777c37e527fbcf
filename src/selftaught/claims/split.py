"""The train-validation split finds the few directions that tasks share; training on all of both halves does not.

Paper: Saunshi, Gupta, Hu, "A Representation Learning Perspective on the Importance of Train-Validation Splitting
in Meta-Learning", ICML 2021, arXiv 2106.15615. Its linear instance: x ~ N(0, I_d), a task is v ~ N(0, P_k / k) in
a subspace of k directions, y = v.x + sigma noise, features A^T x.

    inner     W = argmin  mean (y - W.A^T x)^2 + lambda |W|^2                     on the inner samples, exact
    outer     A <- A - Adam( grad mean (y - W.A^T x)^2 on the outer samples )     W differentiated through
    tr-val    inner and outer are the two halves;  tr-tr: both are the union

The paper's: the instance and the two variants. Our choice: sizes, Adam's rate, that the gradient passes through
the solution, lambda at test chosen on validation tasks of the same subspace, the measure |A W - v|^2.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from selftaught.claims import split_centroid, split_pictures
from selftaught.claims.outcome import Estimate, Outcome, estimate
from selftaught.tasks.split import Split

_SPLITS: tuple[Split, ...] = ("tr-val", "tr-tr")
_SAMPLES = (5, 10, 20, 50)
_PENALTIES = (1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Instance:
    """d `inputs`, k `directions`, noise sigma, `samples` of a training task (both halves together)."""

    inputs: int = 50
    directions: int = 5
    noise: float = 0.5
    samples: int = 20
    tasks: int = 64
    steps: int = 3000
    rate: float = 1e-2
    test_tasks: int = 500


def draw(i: Instance, basis: Tensor, tasks: int, samples: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """v [T d], x [T n d], y [T n]."""
    v = torch.randn(tasks, i.directions, generator=generator) @ basis.T / math.sqrt(i.directions)
    x = torch.randn(tasks, samples, i.inputs, generator=generator)
    y = (x @ v[..., None]).squeeze(-1) + i.noise * torch.randn(tasks, samples, generator=generator)
    return v, x, y


def ridge_weights(z: Tensor, y: Tensor, penalty: float) -> Tensor:
    """W [T D] of features z [T n D], through the smaller of the n x n and D x D systems."""
    n, width = z.shape[1:]
    zt, target = z.transpose(1, 2), y[..., None]
    damped = n * penalty * torch.eye(min(n, width))
    if n <= width:
        return (zt @ torch.linalg.solve(z @ zt + damped, target)).squeeze(-1)
    return torch.linalg.solve(zt @ z + damped, zt @ target).squeeze(-1)


def train(i: Instance, split: Split, penalty: float, basis: Tensor, seed: int) -> Tensor:
    """The representation A [d d] after all steps, from the identity."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.eye(i.inputs, requires_grad=True)
    adam = torch.optim.Adam([a], i.rate)
    half = i.samples // 2
    for _ in range(i.steps):
        _, x, y = draw(i, basis, i.tasks, i.samples, generator)
        z = x @ a
        inner, outer = (slice(None, half), slice(half, None)) if split == "tr-val" else (slice(None),) * 2
        w = ridge_weights(z[:, inner], y[:, inner], penalty)
        loss = ((z[:, outer] @ w[..., None]).squeeze(-1) - y[:, outer]).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return a.detach()


def effective_rank(a: Tensor) -> float:
    """exp of the entropy of the squared singular values' shares."""
    share = torch.linalg.svdvals(a).square()
    share = share / share.sum()
    return math.exp(float(-(share * share.clamp_min(1e-12).log()).sum()))


def excess_risk(i: Instance, a: Tensor, basis: Tensor, samples: int, seed: int) -> float:
    """Mean |A W - v|^2 over test tasks; lambda is the best of the list on as many validation tasks."""

    def risks(seed: int) -> dict[float, float]:
        generator = torch.Generator().manual_seed(seed)
        v, x, y = draw(i, basis, i.test_tasks, samples, generator)
        found = {p: ridge_weights(x @ a, y, p) @ a.T - v for p in _PENALTIES}
        return {p: float(gap.square().sum(-1).mean()) for p, gap in found.items()}

    chosen = risks(seed + 10_000)
    return risks(seed + 20_000)[min(chosen, key=lambda p: chosen[p])]


def show(quick: bool = False) -> Outcome:
    """The linear instance at three penalties, the arm on pictures, and the instance where the split loses."""
    few = Instance(inputs=20, directions=3, samples=12, steps=300, test_tasks=200)
    usual = few if quick else Instance()
    seeds, penalties = ((0, 1), (1.0,)) if quick else ((0, 1, 2), (0.01, 0.1, 1.0))
    rows = table(usual, penalties, seeds)
    rich = Instance(**{**vars(usual), "samples": 4 * usual.inputs, "tasks": usual.tasks // 4})
    rows += [{**r, "representation": f"{r['representation']}, {rich.samples} samples a task"}
             for r in table(rich, penalties[-1:], seeds)[:2]]  # fmt: skip
    ranks = {str(r["representation"]): r["effective rank"] for r in rows}
    found = verdict(ranks, penalties[-1], usual.inputs)
    arm = split_pictures.Arm(steps=4, classes=(20, 8, 8), episodes=10, looks=2) if quick else split_pictures.Arm()
    given = split_pictures.sets(arm)
    pictures = split_pictures.shown(arm, given, seeds)
    centroid = split_centroid.Centroid(draws=5, test_tasks=50) if quick else split_centroid.Centroid()
    around = split_centroid.rows(centroid, _SAMPLES)
    return Outcome(
        "split",
        "Saunshi, Gupta, Hu, ICML 2021, arXiv 2106.15615",
        "Split training finds a low-rank representation that holds the tasks' subspace, so a new task needs few "
        "samples; without the split it stays of high rank.",
        f"{usual}; penalties in training as named, at test chosen on validation tasks; {len(seeds)} seeds, each "
        "with its own subspace; 95 % intervals by Student's t over seeds. The paper's own table was not read. "
        f"Pictures: {given.source}, {arm}; R2D2's encoder; risk is the share of wrong answers on new classes, "
        f"{split_pictures.WAYS}-way, so 5 samples are one shot; same seeds and one episode list. "
        f"Centroid: {centroid}, no noise; risk is |w - w_t|^2; intervals over draws of all tasks.",
        [*rows, *pictures.rows, *around],
        f"{found} {split_pictures.verdict(pictures)}",
        f"{losing(rows[-2], rows[-1], rich.samples)} {around_a_centroid(around[0], around[1])}",
        lines=pictures.lines,
    )


def subspace(i: Instance, seed: int) -> Tensor:
    """An orthonormal basis [d k] in uniformly random position."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(i.inputs, i.directions, generator=generator))[0]


def table(i: Instance, penalties: tuple[float, ...], seeds: tuple[int, ...]) -> list[Mapping[str, Estimate | str]]:
    """A row for each representation: effective rank, and excess risk from few samples to many."""
    spaces = {s: subspace(i, s) for s in seeds}
    wanted = [(f"{split}, lambda {p:g}", split, p, s) for p in penalties for split in _SPLITS for s in seeds]
    made: dict[str, dict[int, Tensor]] = {name: {} for name, *_ in wanted}
    for name, split, p, s in track(wanted, "training", console=Console(stderr=True), transient=True):
        made[name][s] = train(i, split, p, spaces[s], s)
    made["raw inputs"] = {s: torch.eye(i.inputs) for s in seeds}
    made["the subspace itself"] = {s: spaces[s] for s in seeds}
    rows: list[Mapping[str, Estimate | str]] = []
    for name, each in made.items():
        row: dict[str, Estimate | str] = {"representation": name}
        row["effective rank"] = estimate([effective_rank(a) for a in each.values()])
        for n in _SAMPLES:
            row[f"risk, {n} samples"] = estimate([excess_risk(i, a, spaces[s], n, s) for s, a in each.items()])
        rows.append(row)
    return rows


def verdict(ranks: Mapping[str, Estimate | str], penalty: float, inputs: int) -> str:
    """Shown where the split's rank lies clearly below the other's, by the intervals of both."""
    split, union = (ranks[f"{v}, lambda {penalty:g}"] for v in ("tr-val", "tr-tr"))
    assert isinstance(split, Estimate) and isinstance(union, Estimate)
    clear = split.mean + split.half_width < union.mean - union.half_width
    word = "Shown" if clear else "Not shown"
    return f"{word}: effective rank {split} with the split against {union} without it, of {inputs}."


def losing(split: Mapping[str, Estimate | str], union: Mapping[str, Estimate | str], samples: int) -> str:
    """What many samples in every training task do to the split's lead, at 20 samples of a new task."""
    ours, theirs = split["risk, 20 samples"], union["risk, 20 samples"]
    assert isinstance(ours, Estimate) and isinstance(theirs, Estimate)
    found = (
        f"risk from 20 samples {ours} with the split, {theirs} without, when training tasks have {samples} samples"
    )
    if ours.mean >= theirs.mean:
        return f"With many samples in every training task the split no longer helps: {found}."
    return f"Many samples a task do not make it lose: {found}."


def around_a_centroid(split: Mapping[str, Estimate | str], union: Mapping[str, Estimate | str]) -> str:
    """Whether the split loses on tasks around a centroid, by the intervals of both."""
    ours, theirs = split["risk, 5 samples"], union["risk, 5 samples"]
    assert isinstance(ours, Estimate) and isinstance(theirs, Estimate)
    loses = theirs.mean + theirs.half_width < ours.mean - ours.half_width
    return (
        f"It {'loses' if loses else 'does not clearly lose'} where tasks lie around a centroid, without noise "
        "(Bai et al., ICML 2021, arXiv 2010.05843), with penalty and halves tuned for each: risk from 5 samples "
        f"{ours} with the split, {theirs} without."
    )
