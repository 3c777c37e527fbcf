"""Sinkhorn codes, centred targets and swapped prediction against loops and hand-computed values."""

import math

import pytest
import torch
from torch import Tensor

from selftaught.losses.clustering import centred_targets, entropy, sinkhorn_codes, swapped_prediction


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_codes(scores: Tensor, epsilon: float, steps: int) -> list[list[float]]:
    """Scale columns to 1 / K and rows to 1 / B of a matrix of exponentials in turn, then rows to one."""
    rows, columns = range(scores.shape[0]), range(scores.shape[1])
    q = [[math.exp(s / epsilon) for s in row] for row in scores.tolist()]
    for _ in range(steps):
        for k in columns:
            total = sum(q[b][k] for b in rows)
            for b in rows:
                q[b][k] /= total * len(columns)
        for b in rows:
            total = sum(q[b])
            q[b] = [value / (total * len(rows)) for value in q[b]]
    return [[value * len(rows) for value in row] for row in q]


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (5, 5)])
def test_codes_equal_the_loop(shape: tuple[int, int], steps: int, epsilon: float) -> None:
    scores = normal(*shape).tanh()
    expected = torch.tensor(slow_codes(scores, epsilon, steps), dtype=torch.float64)
    torch.testing.assert_close(sinkhorn_codes(scores, epsilon, steps), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("shape", [(8, 4), (4, 8), (2, 6, 3)])
def test_rows_sum_to_one_and_columns_to_an_even_share(shape: tuple[int, ...]) -> None:
    scores = normal(*shape)
    pictures, prototypes = shape[-2:]
    for steps in (1, 2, 200):
        codes = sinkhorn_codes(scores, 0.5, steps)
        assert bool((codes > 0).all())
        torch.testing.assert_close(codes.sum(-1), torch.ones(shape[:-1], dtype=torch.float64))
    even = torch.full_like(codes.sum(-2), pictures / prototypes)
    torch.testing.assert_close(codes.sum(-2), even, rtol=1e-9, atol=0)


def test_codes_in_the_limit_are_the_optimum() -> None:
    """log q = s / epsilon + u_b + v_k, and no exchange that keeps the sums does better."""
    scores, epsilon = normal(6, 4), 1.0
    codes = sinkhorn_codes(scores, epsilon, 500)
    left = codes.log() - scores / epsilon
    torch.testing.assert_close(left - left[:1] - left[:, :1] + left[0, 0], torch.zeros(6, 4, dtype=torch.float64))

    def objective(q: Tensor) -> float:
        return float((q * scores).sum() + epsilon * entropy(q).sum())

    for seed in range(5):
        b, k = torch.randperm(6, generator=torch.Generator().manual_seed(seed))[:2], [seed % 3, 3]
        for amount in (1e-4, -1e-4):
            other = codes.clone()
            other[b[0], k[0]] += amount
            other[b[1], k[1]] += amount
            other[b[0], k[1]] -= amount
            other[b[1], k[0]] -= amount
            assert bool((other > 0).all()) and objective(other) < objective(codes)


def test_codes_of_known_scores() -> None:
    """Equal scores: uniform. One prototype preferred by all: no code may follow. Two against two: sharp."""
    torch.testing.assert_close(sinkhorn_codes(torch.zeros(6, 3), 0.05, 3), torch.full((6, 3), 1 / 3))
    favourite = torch.tensor([[0.9, 0.1, 0.1]]).expand(6, 3)
    torch.testing.assert_close(sinkhorn_codes(favourite, 0.05, 3), torch.full((6, 3), 1 / 3))
    pair = torch.tensor([[1.0, -1], [1, -1], [-1, 1], [-1, 1]], dtype=torch.float64)
    share = 1 / (1 + math.exp(-2 / 0.5))
    expected = torch.tensor([[share, 1 - share]] * 2 + [[1 - share, share]] * 2, dtype=torch.float64)
    torch.testing.assert_close(sinkhorn_codes(pair, 0.5, 1), expected)


def test_codes_without_overflow_and_without_gradient() -> None:
    scores = torch.tensor([[1.0, -1], [-1, 1]], requires_grad=True)
    codes = sinkhorn_codes(scores, 1e-4, 3)  # exp(10000) is infinite
    torch.testing.assert_close(codes, torch.eye(2))
    assert not codes.requires_grad


def test_views_get_codes_of_their_own() -> None:
    scores = normal(3, 6, 4)
    alone = torch.stack([sinkhorn_codes(view, 0.2, 3) for view in scores])
    torch.testing.assert_close(sinkhorn_codes(scores, 0.2, 3), alone)


@pytest.mark.parametrize(("epsilon", "steps"), [(0.0, 3), (-1.0, 3), (0.1, 0)])
def test_codes_refuse_what_has_no_meaning(epsilon: float, steps: int) -> None:
    with pytest.raises(ValueError, match="epsilon > 0 and steps >= 1"):
        sinkhorn_codes(torch.zeros(2, 2), epsilon, steps)


# --- swapped prediction ---------------------------------------------------------------------------------


def slow_swapped(scores: Tensor, targets: Tensor, temperature: float) -> float:
    views, pictures, _ = scores.shape
    total, terms = 0.0, 0
    for a in range(views):
        for b in range(views):
            if a == b:
                continue
            for i in range(pictures):
                raised = [math.exp(s / temperature) for s in scores[b, i].tolist()]
                share = [r / sum(raised) for r in raised]
                total -= sum(q * math.log(p) for q, p in zip(targets[a, i].tolist(), share, strict=True))
                terms += 1
    return total / terms


@pytest.mark.parametrize("views", [2, 3, 4])
def test_swapped_prediction_equals_the_loop(views: int) -> None:
    scores, targets = normal(views, 5, 3), normal(views, 5, 3, seed=1).softmax(-1)
    found = float(swapped_prediction(scores, targets, 0.3))
    assert found == pytest.approx(slow_swapped(scores, targets, 0.3), rel=1e-12)


def test_swapped_prediction_by_hand_for_two_prototypes() -> None:
    """One picture; logits (log 3, 0) and (0, 0) are shares (3/4, 1/4) and (1/2, 1/2)."""
    scores = torch.tensor([[[math.log(3), 0.0]], [[0.0, 0.0]]], dtype=torch.float64)
    targets = torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]], dtype=torch.float64)
    first = -(0.2 * math.log(3 / 4) + 0.8 * math.log(1 / 4))  # view 0 predicts the target of view 1
    second = math.log(2)
    found = float(swapped_prediction(scores, targets, 1.0))
    assert found == pytest.approx((first + second) / 2, rel=1e-12)
    assert float(swapped_prediction(2 * scores, targets, 2.0)) == pytest.approx(found, rel=1e-12)


def test_swapped_predictions_gradient_is_share_minus_target_of_the_other_view() -> None:
    scores = normal(2, 4, 3).requires_grad_()
    targets = normal(2, 4, 3, seed=1).softmax(-1).requires_grad_()
    loss = swapped_prediction(scores, targets, 0.5)
    to_scores, to_targets = torch.autograd.grad(loss, [scores, targets], allow_unused=True)
    expected = ((scores / 0.5).softmax(-1) - targets.flip(0)).detach() / 0.5 / 8
    torch.testing.assert_close(to_scores, expected)
    assert to_targets is None


def test_swapped_prediction_of_uniform_shares_is_log_k() -> None:
    for targets in (normal(2, 4, 5).softmax(-1), torch.eye(5, dtype=torch.float64)[None, :4].expand(2, 4, 5)):
        found = swapped_prediction(torch.full((2, 4, 5), 0.7, dtype=torch.float64), targets, 0.1)
        assert float(found) == pytest.approx(math.log(5), rel=1e-12)


def test_one_view_cannot_be_swapped() -> None:
    with pytest.raises(ValueError, match="at least two views"):
        swapped_prediction(torch.zeros(1, 4, 3), torch.zeros(1, 4, 3), 0.1)


# --- centred targets and entropy ------------------------------------------------------------------------


def test_centred_targets_are_the_softmax_of_what_is_left() -> None:
    scores, centre = normal(2, 3, 4).requires_grad_(), normal(4, seed=1)
    found = centred_targets(scores, centre, 0.2)
    assert not found.requires_grad
    for row, out in zip(scores.detach().flatten(0, 1).tolist(), found.flatten(0, 1).tolist(), strict=True):
        raised = [math.exp((s - c) / 0.2) for s, c in zip(row, centre.tolist(), strict=True)]
        assert out == pytest.approx([r / sum(raised) for r in raised], rel=1e-12)
    own = centred_targets(centre.expand(5, 4), centre, 0.01)
    torch.testing.assert_close(own, torch.full((5, 4), 0.25, dtype=torch.float64))


def test_a_low_temperature_sharpens() -> None:
    scores = normal(6, 4)
    entropies = [float(entropy(centred_targets(scores, torch.zeros(4), t)).mean()) for t in (0.01, 0.1, 1, 1e6)]
    assert entropies == sorted(entropies) and entropies[-1] == pytest.approx(math.log(4), rel=1e-9)


def test_entropy_at_known_places() -> None:
    p = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    torch.testing.assert_close(entropy(p), torch.tensor([math.log(4), 0.0, math.log(2)]))
