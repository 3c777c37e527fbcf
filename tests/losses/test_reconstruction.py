"""The loss of masked pictures against loops over patches and pixels."""

import math
import warnings
from collections.abc import Iterator
from statistics import fmean, pvariance

import pytest
import torch
from torch import Tensor

from selftaught.losses.reconstruction import hidden_square_error, patches_of, standardised


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_patches_are_cut_row_by_row_channel_first() -> None:
    x = normal(2, 3, 8, 12)
    found = patches_of(x, 4)
    assert found.shape == (2, 6, 48)
    for n in range(6):
        r, c = 4 * (n // 3), 4 * (n % 3)
        assert torch.equal(found[:, n], x[:, :, r : r + 4, c : c + 4].flatten(1))


def slow_loss(prediction: Tensor, target: Tensor, hidden: Tensor, normalise: bool) -> float:
    """Every hidden patch and every pixel of it, one at a time."""
    errors = []
    for b in range(len(target)):
        for n in range(target.shape[1]):
            if hidden[b, n]:
                cell = target[b, n].tolist()
                if normalise:
                    mean, scale = fmean(cell), math.sqrt(pvariance(cell) + 1e-6)
                    cell = [(v - mean) / scale for v in cell]
                errors.append(fmean((p - v) ** 2 for p, v in zip(prediction[b, n].tolist(), cell, strict=True)))
    return fmean(errors)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_equals_the_loop(normalise: bool) -> None:
    prediction, target = normal(3, 6, 5), 0.2 * normal(3, 6, 5, seed=1) + 0.4
    hidden = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 1]]).bool()
    asked = standardised(target) if normalise else target
    found = float(hidden_square_error(prediction, asked, hidden))
    assert found == pytest.approx(slow_loss(prediction, target, hidden, normalise), rel=1e-12)


def test_what_was_seen_counts_nothing() -> None:
    prediction, target = normal(2, 4, 3).requires_grad_(), normal(2, 4, 3, seed=1).requires_grad_()
    hidden = torch.tensor([[True, False, False, True], [False, True, True, False]])
    (slope,) = torch.autograd.grad(hidden_square_error(prediction, target, hidden), [prediction])
    assert (slope[~hidden] == 0).all() and (slope[hidden] != 0).all()
    loss = hidden_square_error(prediction.detach(), target, hidden)
    assert not loss.requires_grad  # a target teaches nothing to itself


def test_a_patch_of_one_colour_is_zeros_and_scale_is_taken_away() -> None:
    flat = torch.full((1, 2, 9), 0.7, dtype=torch.float64)
    assert standardised(flat).abs().max() < 1e-9
    x = normal(2, 3, 16)
    assert torch.allclose(standardised(5 * x + 3), standardised(x), atol=1e-5)
    assert torch.allclose(standardised(x).square().mean(-1), torch.ones(2, 3, dtype=torch.float64), atol=1e-5)


def test_nothing_hidden_is_refused() -> None:
    with pytest.raises(ValueError, match="no patch is hidden"):
        hidden_square_error(normal(1, 2, 3), normal(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool))


@pytest.fixture
def torchvision_schemas() -> Iterator[None]:
    """torchvision's wheel registers kernels for two operators that a CPU torch does not know."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield
    library._destroy()


@pytest.mark.oracle
def test_targets_are_lightlys_but_for_the_divisor(torchvision_schemas: None) -> None:
    """Numbers of a patch in another order, and a variance divided by E - 1 instead of E."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils = pytest.importorskip("lightly.models.utils")
    x = normal(2, 3, 12, 12)
    theirs = utils.patchify(x, 4).unflatten(-1, (16, 3)).mT.flatten(-2)
    assert torch.equal(patches_of(x, 4), theirs)
    scaled = standardised(patches_of(x, 4), eps=0.0) * math.sqrt(47 / 48)
    torch.testing.assert_close(scaled, utils.normalize_mean_var(theirs, eps=0.0))
