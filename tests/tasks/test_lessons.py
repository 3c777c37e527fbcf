"""Small data sets as streams of batches, and the shapes of the plane."""

import pytest
import torch

from selftaught.core.errors import ConfigError, TooFewPicturesError
from selftaught.tasks.lessons import Lessons, from_rows
from selftaught.tasks.planes import REGIONS, majority, planes, region, two_moons


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_data_set_in_turn_or_some_by_lot() -> None:
    sets = planes("xor", "and", "two-moon")
    task = Lessons(sets, 2, steps=3, batch=4, queries=5, every=True)(generator())
    assert task.support.x.shape == (3, 12, 2) and task.query.x.shape == (3, 5, 2) and task.ways == 2
    for place, name in enumerate(("xor", "and")):
        for part in (task.support, task.query):
            assert part.y is not None
            assert torch.equal(REGIONS[name](part.x[place]).long(), part.y[place])
    lots = Lessons(sets, 2, 3, 4, 5, tasks=7)
    assert lots(generator()).query.x.shape == (7, 5, 2)
    assert torch.equal(lots(generator()).support.x, lots(generator()).support.x)
    assert not torch.equal(lots(generator()).support.x, lots(generator(1)).support.x)


def test_points_known_by_hand() -> None:
    points = torch.tensor([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5], [0.5, -0.5], [0.0, 0.0]])
    expected = {
        "xor": [0, 1, 0, 1, 0], "and": [1, 0, 0, 0, 0], "circle": [1, 1, 1, 1, 1], "or": [1, 1, 0, 1, 0],
        "pie slice": [1, 0, 0, 0, 1], "cross": [0, 0, 0, 0, 1], "quadrant": [0, 1, 0, 0, 1],
    }  # fmt: skip
    for name, inside in expected.items():
        assert REGIONS[name](points).long().tolist() == inside, name
    assert REGIONS["triangle"](torch.tensor([[0.0, 0.9], [0.8, 0.8], [0.0, -0.9]])).tolist() == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("name", REGIONS)
def test_no_shape_is_nearly_all_or_nothing(name: str) -> None:
    assert 0.5 <= majority(region(REGIONS[name])) < 0.8
    x = region(REGIONS[name])(500, generator()).x
    assert x.shape == (500, 2) and x.abs().max() <= 1


def test_moons_are_balanced_and_not_to_be_cut_by_a_line() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    drawn = two_moons(1000, generator())
    assert drawn.y is not None and 0.45 < drawn.y.float().mean() < 0.55
    x, y = drawn.x.numpy(), drawn.y.numpy()
    assert LogisticRegression().fit(x, y).score(x, y) < 0.95
    assert KNeighborsClassifier(5).fit(x[:500], y[:500]).score(x[500:], y[500:]) > 0.97


def test_rows_are_drawn_with_their_labels() -> None:
    x = torch.arange(10.0)[:, None]
    drawn = from_rows(x, torch.arange(10) % 3)(50, generator())
    assert drawn.y is not None and torch.equal(drawn.x[:, 0].long() % 3, drawn.y)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(TooFewPicturesError):
        from_rows(torch.zeros(0, 2), torch.zeros(0).long())
    with pytest.raises(ConfigError):
        Lessons({}, 2, 1, 1, 1)
    with pytest.raises(ConfigError):
        Lessons(planes("xor"), 2, steps=0, batch=1, queries=1)
    with pytest.raises(KeyError):
        planes("star")
