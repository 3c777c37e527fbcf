"""The centroid instance against plain descent, and the identities that its closed form owes."""

from typing import Literal

import pytest
import torch

from selftaught.claims.outcome import Estimate
from selftaught.claims.split_centroid import Centroid, Choice, choices, draw, kept, learned, risk, rows, tuned

SMALL = Centroid(inputs=6, tasks=8, samples=4, draws=4, test_tasks=50)


@pytest.mark.parametrize(("split", "inner"), [("tr-val", 2), ("tr-tr", 4)])
def test_the_centroid_minimises_the_outer_loss_written_out(split: Literal["tr-val", "tr-tr"], inner: int) -> None:
    """Inner problem solved by its normal equations, outer gradient by autograd: it must vanish."""
    w, x = draw(SMALL, SMALL.tasks, 3)
    c = learned(SMALL, split, Choice(0.3, inner), 3).requires_grad_()
    total = torch.zeros((), dtype=c.dtype)
    for t in range(SMALL.tasks):
        y = x[t] @ w[t]
        own, asked = (x[t], x[t]) if split == "tr-tr" else (x[t, :inner], x[t, inner:])
        own_y, asked_y = (y, y) if split == "tr-tr" else (y[:inner], y[inner:])
        normal = own.T @ own / len(own) + 0.3 * torch.eye(6, dtype=c.dtype)
        solved = torch.linalg.solve(normal, own.T @ own_y / len(own) + 0.3 * c)
        total = total + (asked @ solved - asked_y).square().mean()
    (slope,) = torch.autograd.grad(total, c)
    assert slope.abs().max() < 1e-8 and total.item() > 1e-6


def test_no_inner_samples_is_least_squares_of_all_tasks_together() -> None:
    w, x = draw(SMALL, SMALL.tasks, 0)
    y = (x @ w[..., None]).flatten()
    pooled = torch.linalg.lstsq(x.flatten(0, 1), y[:, None]).solution.squeeze(-1)
    assert torch.allclose(learned(SMALL, "tr-val", Choice(0.0, 0), 0), pooled)


def test_a_huge_penalty_keeps_everything_and_a_tiny_one_what_was_not_seen() -> None:
    _, x = draw(SMALL, 2, 0)
    assert torch.allclose(kept(x, 1e9), torch.eye(6, dtype=x.dtype), atol=1e-6)
    left = kept(x, 1e-9)
    assert (x @ left).abs().max() < 1e-6 and torch.allclose(
        left.diagonal(dim1=1, dim2=2).sum(1), torch.tensor(2.0).double()
    )


def test_risk_shrinks_with_samples_and_grows_with_a_wrong_centroid() -> None:
    right, wrong = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    assert risk(SMALL, right, 4, 0) < risk(SMALL, right, 2, 0) < risk(SMALL, wrong, 2, 0)
    assert risk(SMALL, wrong, 12, 0) < 1e-6


def test_both_variants_are_tuned_over_their_own_choices_and_the_split_over_more() -> None:
    split, union = choices(SMALL, "tr-val"), choices(SMALL, "tr-tr")
    assert {c.inner for c in union} == {4} and {c.inner for c in split} == {0, 1, 2, 3}
    assert {c.penalty for c in union} < {c.penalty for c in split}
    assert tuned(SMALL, "tr-tr", draws=2) in union


def test_without_the_split_the_centroid_is_nearer() -> None:
    """Bai et al.'s finding, on the claim's own instance with fewer draws."""
    instance = Centroid(draws=6, test_tasks=100)
    gaps = []
    for split in ("tr-val", "tr-tr"):
        best = tuned(instance, split, draws=4)
        gaps.append(sum(float(learned(instance, split, best, s).square().sum()) for s in range(6)) / 6)
    assert gaps[1] < 0.9 * gaps[0]


def test_rows_name_the_choice() -> None:
    made = rows(SMALL, (2, 3))
    assert [list(r) for r in made] == [
        ["representation", "effective rank", "risk, 2 samples", "risk, 3 samples"]
    ] * 2
    assert str(made[0]["representation"]).startswith("centroid, tr-val, lambda")
    assert all(isinstance(r["risk, 2 samples"], Estimate) for r in made)
