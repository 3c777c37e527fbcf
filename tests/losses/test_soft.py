"""Cross-entropy of shares against loops, and against torch where the shares are whole."""

import math

import torch
from torch.nn import functional as F

from selftaught.losses.soft import soft_cross_entropy
from shape_checks import check


def test_it_is_the_sum_written_with_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    target = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64).softmax(-1)
    total = 0.0
    for t in range(2):
        for q in range(3):
            bottom = math.log(sum(math.exp(v) for v in logits[t, q].tolist()))
            total -= sum(float(target[t, q, n]) * (float(logits[t, q, n]) - bottom) for n in range(4))
    assert math.isclose(float(check(soft_cross_entropy)(logits, target)), total / 6, rel_tol=1e-12)


def test_whole_shares_are_class_numbers() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.tensor([0, 2, 1, 1, 0])
    assert torch.allclose(soft_cross_entropy(logits, F.one_hot(y).double()), F.cross_entropy(logits, y))


def test_huge_logits_stay_finite_and_shares_get_a_gradient() -> None:
    logits = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    loss = soft_cross_entropy(logits, torch.tensor([[0.25, 0.75]]))
    (slope,) = torch.autograd.grad(loss, logits)
    assert math.isclose(loss.item(), 1500, rel_tol=1e-6) and torch.allclose(slope, torch.tensor([[0.75, -0.75]]))
