"""Views of one function share no point, of one picture no pixel."""

import pytest
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError, DataError, TooFewPicturesError
from selftaught.data.functions import Functions, draw_sinusoids
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.tasks.disjoint import DisjointPixels, DisjointSets, disjoint_parts


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int, points: int) -> Functions:
    """The output at each point is a number that no other point of any function has."""
    y = torch.arange(count * points).float().reshape(count, points, 1)
    return Functions(torch.zeros(count, points, 1), y)


@pytest.mark.parametrize(("points", "views", "used"), [(20, 2, 0), (20, 3, 0), (7, 7, 0), (20, 2, 8), (5, 2, 0)])
def test_no_point_is_in_two_views(points: int, views: int, used: int) -> None:
    parts = disjoint_parts(50, points, views, generator(), used)
    assert parts.shape == (50, views, (used or points) // views)
    assert all(len(set(row.flatten().tolist())) == row.numel() for row in parts)
    assert parts.min() >= 0 and parts.max() < points
    assert len({tuple(row.flatten().tolist()) for row in parts}) > 25, "every function has its own draw"


def test_each_set_holds_points_of_its_own_function_and_no_other_set_has_them() -> None:
    source = DisjointSets(numbered(9, 20), views=4, batch=6)
    task = source(generator(3))
    assert task.ways == 6 and task.index is not None
    assert task.support.x.shape == (1, 6, 5, 2) and task.query.x.shape == (1, 18, 5, 2)
    assert task.query.y is not None and torch.equal(task.query.y[0], torch.arange(6).repeat(3))
    sets = torch.cat([task.support.x, task.query.x], 1)[0].unflatten(0, (4, 6))
    for n, k in enumerate(task.index[0].tolist()):
        seen = sets[:, n, :, 1].flatten().tolist()
        assert sorted(seen) == [20 * k + p for p in range(20)], "all points, each once"


def test_fewer_points_are_another_choice_each_time() -> None:
    source = DisjointSets(numbered(4, 20), batch=4, points=6)
    draws = generator()
    seen = {frozenset(source(draws).support.x[..., 1].flatten().tolist()) for _ in range(5)}
    assert len(seen) == 5 and all(len(s) == 12 for s in seen)


def test_the_generator_alone_decides_and_noise_comes_after_the_points() -> None:
    functions = draw_sinusoids(30)
    plain, again = (DisjointSets(functions, batch=8)(generator(1)) for _ in range(2))
    assert torch.equal(plain.support.x, again.support.x) and torch.equal(plain.query.x, again.query.x)
    assert not torch.equal(plain.support.x, DisjointSets(functions, batch=8)(generator(2)).support.x)
    noisy = DisjointSets(functions, batch=8, noise=5)(generator(1))
    assert torch.equal(noisy.support.x[..., :2], plain.support.x) and torch.equal(noisy.query.x, plain.query.x)
    assert noisy.support.x.shape[-1] == 7 and abs(float(noisy.support.x[..., 2:].mean())) < 0.2


def test_views_of_a_picture_are_its_pixels_dealt_out() -> None:
    pictures = draw_strokes(4, 3, size=8)
    task = DisjointPixels(pictures, views=2, batch=5)(generator())
    assert task.support.x.shape == task.query.x.shape == (1, 5, 1, 8, 8) and task.index is not None
    a, b = task.support.x[0], task.query.x[0]
    assert not ((a > 0) & (b > 0)).any()
    assert torch.equal(a + b, pictures.x[task.index[0]].float() / 255)
    three = DisjointPixels(pictures, views=3, batch=5)(generator())
    assert three.query.x.shape[1] == 10 and three.support.x.max() <= 1


def pictures_of(x: Tensor) -> Pictures:
    return Pictures(x, tuple(map(str, range(len(x)))))


def test_sets_that_cannot_be_dealt_out_are_refused() -> None:
    with pytest.raises(DataError, match=r"sets of 1 points.*2 disjoint views.*observe"):
        DisjointSets(draw_sinusoids(5, points=1))
    with pytest.raises(DataError, match="sets of 1 points"):
        DisjointSets(draw_sinusoids(5, points=20), points=1)
    with pytest.raises(DataError, match="1 function"):
        DisjointSets(draw_sinusoids(1))
    with pytest.raises(ConfigError, match="views=1"):
        DisjointSets(draw_sinusoids(5), views=1)
    with pytest.raises(ConfigError, match=r"points=21.*20"):
        DisjointSets(draw_sinusoids(5), points=21)
    with pytest.raises(DataError, match="sets of 1 pixels"):
        DisjointPixels(pictures_of(torch.zeros(3, 1, 1, 1, dtype=torch.uint8)))
    with pytest.raises(TooFewPicturesError, match="1 picture"):
        DisjointPixels(pictures_of(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)))
