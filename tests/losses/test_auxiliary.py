"""Losses beside an auxiliary task: against loops over pictures, by hand, and at the edges where they break."""

import math

import pytest
import torch
from torch.nn import functional as F

from selftaught.losses.auxiliary import focal_loss, masked_softmax, mean_label_negentropy, subclass_mask


def logits(rows: int = 4, columns: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def test_the_mask_is_the_subclasses_of_each_label() -> None:
    mask = subclass_mask(torch.tensor([2, 0]), classes=3, subclasses=2)
    assert mask.int().tolist() == [[0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0]]


def test_masked_softmax_is_softmax_of_the_kept_entries() -> None:
    z, mask = logits(), subclass_mask(torch.tensor([2, 0, 1, 1]), 3, 2)
    found = masked_softmax(z, mask)
    for row in range(4):
        assert torch.allclose(found[row][mask[row]], z[row][mask[row]].softmax(0))
    assert (found[~mask] == 0).all(), "mass outside the primary class"


def test_the_printed_mask_leaks_and_ours_does_not() -> None:
    z, mask = torch.zeros(1, 100), subclass_mask(torch.tensor([3]), 20, 5)
    printed = (z * mask).exp() / (z * mask).exp().sum()
    assert float(printed[~mask].sum()) == pytest.approx(0.95)
    assert float(masked_softmax(z, mask)[~mask].sum()) == 0


@pytest.mark.parametrize("size", [100.0, 1000.0, -1000.0])
def test_large_logits_stay_finite_with_their_gradients(size: float) -> None:
    z = torch.tensor([[size, 0.0, 2 * size, 1.0]], requires_grad=True)
    labels = masked_softmax(z, torch.tensor([[True, True, False, False]]))
    assert labels.isfinite().all() and labels.sum() == 1
    loss = focal_loss(z, labels.detach()) + focal_loss(z.detach(), labels) + mean_label_negentropy(labels)
    (slope,) = torch.autograd.grad(loss, z)
    assert loss.isfinite() and slope.isfinite().all()


def test_masked_logits_get_no_gradient() -> None:
    z, mask = logits().requires_grad_(), subclass_mask(torch.tensor([2, 0, 1, 1]), 3, 2)
    labels = masked_softmax(z, mask)
    (slope,) = torch.autograd.grad((labels * logits(seed=1)).sum() + mean_label_negentropy(labels), z)
    assert (slope[~mask] == 0).all() and (slope[mask] != 0).all()


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_loss_is_the_loop(gamma: float) -> None:
    z, target = logits(), logits(seed=1).softmax(-1)
    total = 0.0
    for row, wanted in zip(z.softmax(-1).tolist(), target.tolist(), strict=True):
        total += sum(-t * (1 - p) ** gamma * math.log(p) for t, p in zip(wanted, row, strict=True))
    assert float(focal_loss(z, target, gamma)) == pytest.approx(total / 4, rel=1e-12)


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    y = torch.tensor([0, 5, 3, 3])
    assert torch.allclose(focal_loss(logits(), F.one_hot(y, 6).double(), 0), F.cross_entropy(logits(), y))


def test_focal_loss_has_first_and_second_derivatives() -> None:
    z, target = logits(2, 3).requires_grad_(), logits(2, 3, seed=1).softmax(-1).requires_grad_()
    assert torch.autograd.gradcheck(focal_loss, (z, target))
    assert torch.autograd.gradgradcheck(focal_loss, (z, target))


def test_focal_loss_of_a_sure_and_right_row_is_zero_and_flat() -> None:
    z = torch.tensor([[200.0, 0.0]], requires_grad=True)
    loss = focal_loss(z, torch.tensor([[1.0, 0.0]]))
    (slope,) = torch.autograd.grad(loss, z, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), z)
    assert loss == 0 and (slope == 0).all() and (bend == 0).all()


def test_focal_loss_refuses_a_negative_gamma() -> None:
    with pytest.raises(ValueError, match="gamma >= 0"):
        focal_loss(logits(), logits().softmax(-1), -1.0)


def test_negentropy_is_that_of_the_mean_label() -> None:
    sure = torch.eye(4, dtype=torch.float64)
    even = torch.full((4, 4), 0.25, dtype=torch.float64)
    assert float(mean_label_negentropy(sure)) == pytest.approx(-math.log(4))
    assert float(mean_label_negentropy(even)) == pytest.approx(-math.log(4))
    assert float(mean_label_negentropy(sure[:1].expand(4, 4))) == 0
    two = mean_label_negentropy(sure[[0, 0, 0, 1]])
    assert float(two) == pytest.approx(0.75 * math.log(0.75) + 0.25 * math.log(0.25))


def test_a_class_that_is_absent_from_the_batch_does_not_spoil_the_gradient() -> None:
    z = logits().requires_grad_()
    labels = masked_softmax(z, subclass_mask(torch.tensor([0, 0, 1, 1]), 3, 2))
    (slope,) = torch.autograd.grad(mean_label_negentropy(labels), z)
    assert slope.isfinite().all() and slope.any()
