"""Functions as sets of points: what they are drawn as, what is refused, and the order of axes."""

import math

import pytest
import torch

from selftaught.core.errors import ConfigError, DataError
from selftaught.data.functions import (
    Functions,
    draw_sinusoids,
    picture_functions,
    with_points_first,
    with_points_last,
)
from selftaught.data.strokes import draw_strokes


def test_sinusoids_are_the_formula_of_their_truth() -> None:
    found = draw_sinusoids(200, points=7, seed=3)
    assert found.x.shape == found.y.shape == (200, 7, 1) and found.truth is not None
    for k in (0, 199):
        a, b = found.truth[k].tolist()
        for p in range(7):
            assert found.y[k, p, 0] == pytest.approx(a * math.sin(found.x[k, p, 0].item() - b), abs=1e-5)
    amplitude, phase = found.truth.T
    assert amplitude.min() >= 0.1 and amplitude.max() <= 5 and amplitude.max() > 4.5
    assert phase.min() >= 0 and phase.max() <= math.pi and phase.max() > 3
    assert found.x.abs().max() <= 5 and found.x.min() < -4 and found.x.max() > 4


def test_noise_leaves_functions_and_points_as_they_are() -> None:
    clear, noisy, twice = (draw_sinusoids(400, noise=n, seed=1) for n in (0.0, 1.5, 3.0))
    assert noisy.truth is not None and clear.truth is not None
    assert torch.equal(clear.x, noisy.x) and torch.equal(clear.truth, noisy.truth)
    assert (noisy.y - clear.y).std() == pytest.approx(1.5, rel=0.03)
    assert torch.allclose(twice.y - clear.y, 2 * (noisy.y - clear.y), atol=1e-5)
    assert not torch.equal(clear.y, draw_sinusoids(400, seed=2).y)


def test_a_picture_is_its_colours_at_its_places() -> None:
    pictures = draw_strokes(3, 2, size=8)
    found = picture_functions(pictures)
    assert found.sets.shape == (6, 64, 3) and found.labels is pictures.y
    assert torch.equal(found.y.mT.unflatten(2, (8, 8)), pictures.x.float() / 255)
    # Pixel (row 2, column 5) of 8 has its centre at 2.5/8 and 5.5/8 of the side.
    assert torch.allclose(found.x[4, 2 * 8 + 5], torch.tensor([2 * 2.5 / 8 - 1, 2 * 5.5 / 8 - 1]))


def test_the_order_of_axes_turns_round_and_back() -> None:
    x = torch.rand(4, 7, 2)
    assert with_points_last(x).shape == (4, 2, 7)
    assert torch.equal(with_points_last(x)[3, 1, 5], x[3, 5, 1])
    assert torch.equal(with_points_first(with_points_last(x)), x)


def test_taking_keeps_everything_together() -> None:
    all_of_them = draw_sinusoids(5)
    some = all_of_them.take(torch.tensor([4, 1]))
    assert len(some) == 2 and some.truth is not None and all_of_them.truth is not None and some.labels is None
    assert torch.equal(some.sets[0], all_of_them.sets[4]) and torch.equal(some.truth[1], all_of_them.truth[1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["inputs", "outputs"])
def test_numbers_that_are_none_are_refused_by_name(part: str, value: float) -> None:
    good = draw_sinusoids(4)
    x, y = good.x.clone(), good.y.clone()
    (x if part == "inputs" else y)[2, 3] = value
    with pytest.raises(DataError, match=rf"1 of 4 functions have {part}.*\[2\].*take"):
        Functions(x, y)


def test_shapes_that_do_not_match_are_refused() -> None:
    x, y = torch.rand(4, 7, 1), torch.rand(4, 7, 2)
    with pytest.raises(DataError, match=r"\(4, 2, 7\).*with_points_first"):
        Functions(x, with_points_last(y))
    with pytest.raises(DataError, match="F P I"):
        Functions(x[0], y[0])
    with pytest.raises(DataError, match="F P I"):
        Functions(x[:, :0], y[:, :0])
    with pytest.raises(DataError, match="3 rows of truth for 4 functions"):
        Functions(x, y, torch.rand(3, 2))
    for wrong in ({"count": 0}, {"count": 3, "points": 0}, {"count": 3, "noise": -1.0}):
        with pytest.raises(ConfigError, match="one or more"):
            draw_sinusoids(**wrong)
