"""Tasks out of unlabelled pictures: which pictures, which views, which randomness."""

import pytest
import torch

from selftaught.core.errors import TooFewPicturesError
from selftaught.core.types import Task
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import Views
from selftaught.tasks.views import ViewTasks, distinct

TURN = Views(rotate=30, translate=0.1)


def drawn(seed: int = 0, views: Views = TURN, **changes: int) -> Task:
    source = ViewTasks(draw_strokes(5, 4, size=16), views, **({"tasks": 3, "ways": 6} | changes))
    return source(torch.Generator().manual_seed(seed))


def test_shapes_and_labels() -> None:
    task = drawn(support_views=2, query_views=3)
    assert task.support.x.shape == (3, 12, 1, 16, 16) and task.query.x.shape == (3, 18, 1, 16, 16)
    assert task.support.x.dtype == torch.float32 and task.support.x.min() >= 0 and task.support.x.max() <= 1
    assert task.support.y is not None and task.query.y is not None and task.index is not None
    assert task.support.y.tolist() == [[*range(6)] * 2] * 3 and task.query.y.tolist() == [[*range(6)] * 3] * 3
    assert task.index.shape == (3, 6) and task.ways == 6


def test_pictures_of_a_task_are_distinct() -> None:
    for seed in range(20):
        index = drawn(seed).index
        assert index is not None and all(len(set(row)) == 6 for row in index.tolist())
        assert index.min() >= 0 and index.max() < 20


def test_rows_are_views_of_the_pictures_they_name() -> None:
    """Without changes a view is its picture, so rows can be checked."""
    task = drawn(views=Views(), support_views=2, query_views=1)
    assert task.index is not None
    raw = draw_strokes(5, 4, size=16).x[task.index].float() / 255
    assert torch.allclose(
        task.support.x.unflatten(1, (2, 6)), raw[:, None].expand(-1, 2, *raw.shape[1:]), atol=1e-6
    )
    assert torch.allclose(task.query.x, raw, atol=1e-6)


def test_all_views_of_a_picture_differ() -> None:
    task = drawn(support_views=2, query_views=2)
    x = torch.cat([task.support.x, task.query.x], 1).unflatten(1, (4, 6))
    for a in range(4):
        for b in range(a):
            same = (x[:, a] == x[:, b]).flatten(2).all(-1)
            assert not same.any(), f"views {a} and {b} are one"


def test_raw_support_is_the_set_itself() -> None:
    source = ViewTasks(draw_strokes(5, 4, size=16), TURN, 2, 4, 1, 1, raw_support=True)
    task = source(torch.Generator().manual_seed(0))
    assert task.index is not None
    assert torch.equal(task.support.x, source.pictures.x[task.index].float() / 255)
    assert not torch.equal(task.query.x, task.support.x)


def test_pure_in_the_generator() -> None:
    one, again, other = drawn(3), drawn(3), drawn(4)
    assert torch.equal(one.support.x, again.support.x) and torch.equal(one.query.x, again.query.x)
    assert not torch.equal(one.support.x, other.support.x)
    before = torch.get_rng_state()
    drawn()
    assert torch.equal(before, torch.get_rng_state())
    source = ViewTasks(draw_strokes(5, 4, size=16), TURN, 2, 4)
    generator = torch.Generator().manual_seed(0)
    source(generator)
    state = generator.get_state()
    second = source(generator)
    resumed = torch.Generator()
    resumed.set_state(state)
    assert torch.equal(second.query.x, source(resumed).query.x)


def test_both_sides_are_drawn_afresh_every_time() -> None:
    """The same twenty pictures twice, put in the order of the set: no view comes back."""
    source = ViewTasks(draw_strokes(5, 4, size=16), TURN, 1, 20, 1, 1)
    generator = torch.Generator().manual_seed(0)
    once, again = source(generator), source(generator)
    assert once.index is not None and again.index is not None
    a, b = once.index[0].argsort(), again.index[0].argsort()
    assert not (once.support.x[0, a] == again.support.x[0, b]).flatten(1).all(-1).any()
    assert not (once.query.x[0, a] == again.query.x[0, b]).flatten(1).all(-1).any()


def test_the_set_is_not_written_to() -> None:
    pictures = draw_strokes(5, 4, size=16)
    before = pictures.x.clone()
    ViewTasks(pictures, TURN, raw_support=True)(torch.Generator().manual_seed(0))
    assert torch.equal(pictures.x, before)


def test_small_sets_give_small_tasks_and_one_picture_none() -> None:
    assert drawn(ways=500).ways == 20
    pictures = draw_strokes(1, 2, size=16)
    assert ViewTasks(pictures, TURN)(torch.Generator()).ways == 2
    one = Pictures(pictures.x[:1], pictures.names[:1])
    with pytest.raises(TooFewPicturesError, match="at least 2"):
        ViewTasks(one, TURN)


@pytest.mark.parametrize(("population", "count"), [(5, 5), (20, 6), (1000, 6), (10**9, 50)])
def test_distinct_numbers_in_range(population: int, count: int) -> None:
    """The last without a permutation of a billion."""
    for seed in range(20):
        found = distinct(population, count, torch.Generator().manual_seed(seed)).tolist()
        assert len(set(found)) == count == len(found) and min(found) >= 0 and max(found) < population


def test_distinct_is_uniform_in_every_place() -> None:
    generator = torch.Generator().manual_seed(0)
    for population, count in ((6, 3), (16, 4)):
        draws = torch.stack([distinct(population, count, generator) for _ in range(4000)])
        for place in draws.T:
            share = torch.bincount(place, minlength=population) / len(place)
            sigma = (1 / population * (1 - 1 / population) / len(place)) ** 0.5
            assert (share - 1 / population).abs().max() < 4.5 * sigma
