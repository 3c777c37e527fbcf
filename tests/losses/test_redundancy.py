"""The terms of VICReg and Barlow Twins against loops over entries, and what they do not see."""

import math
from collections.abc import Callable
from statistics import fmean, variance

import pytest
import torch
from torch import Tensor

from selftaught.losses.redundancy import barlow_twins_terms, off_diagonal_squares, vicreg_terms


def normal(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def decorrelated(rows: int, features: int) -> Tensor:
    """[rows features] with mean 0, variance 1 (divided by the rows) and no correlation."""
    z = normal(rows, features)
    basis = torch.linalg.qr(z - z.mean(0))[0]  # the span of centred columns: their combinations stay centred
    return basis * math.sqrt(rows)


def columns(z: Tensor) -> list[list[float]]:
    return z.T.tolist()


def pairs(views: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(views) for b in range(views) if a < b]


# ------------------------------------------------------------------------------------------------ VICReg


def slow_vicreg(z: Tensor) -> tuple[float, float, float]:
    """Every pair of views, every row, every feature and every pair of features, one at a time."""
    views, rows, features = z.shape
    apart = [
        float((z[a] - z[b])[i, j]) ** 2 for a, b in pairs(views) for i in range(rows) for j in range(features)
    ]
    spread, shared = [], []
    for v in range(views):
        cols = columns(z[v])
        spread += [max(0.0, 1 - math.sqrt(variance(c) + 1e-4)) for c in cols]
        total = 0.0
        for i in range(features):
            for j in range(features):
                if i != j:
                    mean_i, mean_j = fmean(cols[i]), fmean(cols[j])
                    both = sum((p - mean_i) * (q - mean_j) for p, q in zip(cols[i], cols[j], strict=True))
                    total += (both / (rows - 1)) ** 2
        shared.append(total / features)
    return fmean(apart), fmean(spread), fmean(shared)


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("views", [2, 3])
def test_vicreg_equals_the_loop(views: int, scale: float) -> None:
    z = scale * normal(views, 6, 4) + normal(4, seed=1)
    found = [float(t) for t in vicreg_terms(z)]
    assert found == pytest.approx(slow_vicreg(z), rel=1e-12)
    assert min(found) > 0


def test_a_collapsed_embedding_pays_in_variance_alone() -> None:
    z = normal(5).expand(2, 8, 5)
    found = [float(t) for t in vicreg_terms(z)]
    assert found == pytest.approx([0.0, 1 - math.sqrt(1e-4), 0.0], abs=1e-15)


def test_spread_decorrelated_agreeing_views_cost_nothing() -> None:
    z = decorrelated(8, 4).expand(2, 8, 4)  # variance 8 / 7 with the divisor B - 1: above the floor
    assert [float(t) for t in vicreg_terms(z)] == pytest.approx([0.0, 0.0, 0.0], abs=1e-15)


def test_what_vicreg_sees_of_scale_and_offset() -> None:
    z = normal(2, 8, 4)
    invariance, spread, shared = vicreg_terms(z)
    moved = vicreg_terms(z + normal(4, seed=1))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(moved, (invariance, spread, shared), strict=True))
    apart = vicreg_terms(z + normal(2, 1, 4, seed=1))  # an offset of one view alone
    assert apart[0] > invariance and torch.allclose(apart[1], spread) and torch.allclose(apart[2], shared)
    larger = vicreg_terms(3 * z)
    assert torch.allclose(larger[0], 9 * invariance) and torch.allclose(larger[2], 81 * shared)
    assert larger[1] < spread and vicreg_terms(100 * z)[1] == 0


def test_a_small_variance_is_pushed_up_and_a_large_one_left_alone() -> None:
    z = normal(2, 8, 3) * torch.tensor([0.1, 5.0, 0.2], dtype=torch.float64)
    z.requires_grad_()
    (slope,) = torch.autograd.grad(vicreg_terms(z)[1], z)
    assert slope[..., 1].eq(0).all()
    stepped = (z - 0.1 * slope).detach()
    assert (stepped.var(1)[:, [0, 2]] > z.detach().var(1)[:, [0, 2]]).all()


# ------------------------------------------------------------------------------------------ Barlow Twins


def slow_barlow(z: Tensor, eps: float) -> tuple[float, float]:
    """Correlations entry by entry, for every pair of views."""
    on, off = [], []
    for a, b in pairs(len(z)):
        left, right = ([standardised(c, eps) for c in columns(z[v])] for v in (a, b))
        c = [[fmean(p * q for p, q in zip(x, y, strict=True)) for y in right] for x in left]
        size = range(len(c))
        on.append(sum((1 - c[i][i]) ** 2 for i in size))
        off.append(sum(c[i][j] ** 2 for i in size for j in size if i != j))
    return fmean(on), fmean(off)


def standardised(column: list[float], eps: float) -> list[float]:
    mean = fmean(column)
    deviation = math.sqrt(fmean((v - mean) ** 2 for v in column) + eps)
    return [(v - mean) / deviation for v in column]


@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize("views", [2, 3, 4])
def test_barlow_twins_equals_the_loop(views: int, eps: float) -> None:
    z = normal(views, 6, 4) + normal(4, seed=1)
    found = [float(t) for t in barlow_twins_terms(z, eps)]
    assert found == pytest.approx(slow_barlow(z, eps), rel=1e-10)


def test_barlow_twins_standardises_as_batch_normalisation_does() -> None:
    z = normal(2, 6, 4) * 0.01  # so small that the term inside the root counts
    norm = torch.nn.BatchNorm1d(4, affine=False).double()
    c = norm(z[0]).T @ norm(z[1]) / 6
    expected = (1 - c.diagonal()).square().sum(), c.square().sum() - c.diagonal().square().sum()
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(barlow_twins_terms(z), expected, strict=True))


def test_equal_decorrelated_views_cost_nothing() -> None:
    z = decorrelated(8, 4).expand(2, 8, 4)
    assert [float(t) for t in barlow_twins_terms(z, eps=0)] == pytest.approx([0.0, 0.0], abs=1e-14)
    opposed = torch.stack([z[0], -z[0]])
    assert [float(t) for t in barlow_twins_terms(opposed, eps=0)] == pytest.approx([16.0, 0.0], abs=1e-14)


def test_a_repeated_feature_costs_one_entry_on_each_side() -> None:
    z = decorrelated(8, 3)[:, [0, 1, 2, 2]].expand(2, 8, 4)
    assert [float(t) for t in barlow_twins_terms(z, eps=0)] == pytest.approx([0.0, 2.0], abs=1e-13)


def test_a_collapsed_embedding_pays_one_for_every_feature() -> None:
    z = normal(5).expand(2, 8, 5).clone().requires_grad_()
    on, off = barlow_twins_terms(z)
    assert (float(on.detach()), float(off.detach())) == pytest.approx((5.0, 0.0), abs=1e-12)
    assert torch.autograd.grad(on + off, z)[0].isfinite().all()


def test_barlow_twins_sees_neither_scale_nor_offset_of_a_feature() -> None:
    z = normal(2, 8, 4)
    expected = barlow_twins_terms(z, eps=0)
    scale, offset = normal(2, 1, 4, seed=1).abs() + 0.1, normal(2, 1, 4, seed=2)
    for found in (barlow_twins_terms(z * scale + offset, eps=0), barlow_twins_terms(z.flip(0), eps=0)):
        assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(found, expected, strict=True))
    turned = z @ torch.linalg.qr(normal(4, 4, seed=3))[0]  # but a rotation of the features it does see
    assert not torch.allclose(barlow_twins_terms(turned, eps=0)[1], expected[1], rtol=0.01)


# ---------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("terms", [vicreg_terms, barlow_twins_terms])
def test_the_order_of_pictures_does_not_count_but_their_pairing_does(
    terms: Callable[[Tensor], tuple[Tensor, ...]],
) -> None:
    z, order = normal(2, 8, 4), torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    both, one = terms(z[:, order]), terms(torch.stack([z[0], z[1][order]]))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(both, terms(z), strict=True))
    assert not torch.allclose(one[0], terms(z)[0], rtol=0.01)


@pytest.mark.parametrize("terms", [vicreg_terms, barlow_twins_terms])
def test_gradients_agree_with_finite_differences(terms: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
    z = (0.5 * normal(3, 5, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: torch.stack(terms(x)), z)


@pytest.mark.parametrize("terms", [vicreg_terms, barlow_twins_terms])
@pytest.mark.parametrize("shape", [(1, 8, 4), (2, 1, 4)])
def test_too_little_for_a_variance_is_refused(
    terms: Callable[[Tensor], tuple[Tensor, ...]], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"two views and two pictures or more, got embeddings \(\d, \d, 4\)"):
        terms(normal(*shape))


def test_off_diagonal_squares_by_hand() -> None:
    assert off_diagonal_squares(torch.tensor([[[5.0, 1.0], [2.0, 7.0]], [[0.0, 0.0], [3.0, 1.0]]])).tolist() == [
        5,
        9,
    ]
