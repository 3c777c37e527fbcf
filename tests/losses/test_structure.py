"""NeuronML's three measures against loops and values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from selftaught.losses.structure import frugality, overlap, plasticity, relative_sensitivity, sensitivity


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_frugality_is_the_open_share_and_presses_on_every_gate_alike() -> None:
    gates = tensor([1, 0, 1, 0], [1, 0, 0, 0]).requires_grad_()
    value = frugality(gates)
    (slope,) = torch.autograd.grad(value, gates)
    assert value == 3 / 8 and torch.equal(slope, torch.full_like(slope, 1 / 8))


def test_plasticity_and_its_gradient_by_hand() -> None:
    # p = softmax(0, log 3) = (1/4, 3/4). Unit 0 is open in tasks 0 and 1, unit 1 in all three.
    gates = tensor([1, 1], [1, 1], [0, 1]).requires_grad_()
    importance = torch.tensor([0, math.log(3)], dtype=torch.float64)
    value = plasticity(gates, importance)
    assert value.detach() == pytest.approx((2 * 0.25 + 6 * 0.75) / 6)
    (slope,) = torch.autograd.grad(value, gates)
    # d / dM_i[u] = 2 p_u sum_{j != i} M_j[u] / 6; the closed gate of task 2 feels that others are open.
    by_hand = tensor([1 / 12, 1 / 2], [1 / 12, 1 / 2], [1 / 6, 1 / 2])
    assert torch.allclose(slope, by_hand, rtol=1e-12) and slope.all()


def test_plasticity_is_the_loop_over_pairs() -> None:
    g = torch.Generator().manual_seed(0)
    gates = torch.rand(4, 5, generator=g, dtype=torch.float64)
    importance = torch.randn(5, generator=g, dtype=torch.float64)
    p = (importance.exp() / importance.exp().sum()).tolist()
    rows = gates.tolist()
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    slow = sum(p[u] * rows[i][u] * rows[j][u] for i, j in pairs for u in range(5)) / len(pairs)
    assert plasticity(gates, importance) == pytest.approx(slow, rel=1e-12)


def test_one_task_shares_with_nobody() -> None:
    assert plasticity(tensor([1, 1]), torch.zeros(2, dtype=torch.float64)) == 0
    assert overlap(tensor([1, 0])) == 1


def test_sensitivity_by_hand_does_not_see_signs() -> None:
    slopes = tensor([3, -1])
    relative = relative_sensitivity(slopes)
    assert torch.equal(relative, relative_sensitivity(slopes.abs()))
    assert torch.allclose(relative, tensor([1.5, 0.5]), rtol=1e-3)
    value = sensitivity(tensor([1, 1]), tensor([1.5, 0.5]))
    assert value == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert sensitivity(tensor([0, 1]), tensor([1.5, 0.5])) == pytest.approx(-math.log(0.25) / 2)


@pytest.mark.parametrize("slopes", [[-1.0, -2.0, 3.0], [0.0, 0.0, 0.0], [0.0, 1e-30, 1e30], [-5.0, 5.0, 0.0]])
def test_sensitivity_is_finite_where_the_printed_formula_is_not(slopes: list[float]) -> None:
    s = torch.tensor(slopes)
    assert not torch.log(s / s.sum()).isfinite().all()
    gates = torch.ones(3, requires_grad=True)
    value = sensitivity(gates, relative_sensitivity(s))
    (slope,) = torch.autograd.grad(value, gates)
    assert value.isfinite() and slope.isfinite().all() and (slope >= 0).all()


def test_the_more_sensitive_unit_is_the_cheaper_one() -> None:
    gates = torch.ones(3, requires_grad=True)
    (slope,) = torch.autograd.grad(sensitivity(gates, relative_sensitivity(torch.tensor([-9.0, 1.0, 3.0]))), gates)
    assert slope[0] < slope[2] < slope[1]


def test_overlap_is_intersection_over_union() -> None:
    assert overlap(tensor([1, 1, 0, 0], [0, 1, 1, 0])) == pytest.approx(1 / 3)
    three = tensor([1, 1, 0], [1, 1, 0], [0, 0, 1])
    assert overlap(three) == pytest.approx(1 / 3)  # pairs: 1, 0, 0
