"""Neighbours in feature space, and tasks whose classes are made of them."""

import pytest
import torch

from selftaught.core.errors import ConfigError, TooFewPicturesError
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.tasks.neighbours import Neighbours, NeighbourTasks, mutual_neighbours


def test_neighbours_agree_with_a_search_pair_by_pair() -> None:
    z = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    k = 4
    cosine = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=-1)
    nearest = [sorted((j for j in range(40) if j != i), key=lambda j: -cosine[i, j])[:k] for i in range(40)]
    found = mutual_neighbours(z, k)
    for i in range(40):
        expected = [j for j in nearest[i] if i in nearest[j]]
        assert found.index[i, : found.count[i]].tolist() == expected
    assert 0 < found.share <= 1 and not (found.index == torch.arange(40)[:, None]).any()


def test_length_does_not_matter_and_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    whole = mutual_neighbours(z, 3)
    monkeypatch.setattr("selftaught.tasks.neighbours._ROWS_AT_ONCE", 7)
    in_blocks = mutual_neighbours(z * torch.rand(30, 1) * 9 + 1e-9, 3)
    assert torch.equal(whole.count, in_blocks.count)
    assert all(torch.equal(whole.index[i, :n], in_blocks.index[i, :n]) for i, n in enumerate(whole.count.tolist()))


@pytest.mark.parametrize("k", [0, 5])
def test_impossible_numbers_of_neighbours_are_refused(k: int) -> None:
    with pytest.raises(ConfigError, match="use 1 to 4"):
        mutual_neighbours(torch.randn(5, 2), k)


def shades(count: int) -> Pictures:
    """Pictures that say in every pixel which one they are."""
    x = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return Pictures(x, tuple(map(str, range(count))))


def seen(x: torch.Tensor) -> torch.Tensor:
    """Positions of the pictures shown, without augmentation: [T rows]."""
    return (x.mean((2, 3, 4)) * 255).round().long()


def pairs(count: int) -> Neighbours:
    """2n and 2n + 1 are neighbours, except that the last picture has none."""
    of = torch.arange(count) ^ 1
    n = torch.ones(count, dtype=torch.int64)
    n[-1] = 0
    return Neighbours(of[:, None].clamp(max=count - 1), n)


def test_views_show_the_picture_or_its_neighbour_in_order() -> None:
    source = NeighbourTasks(
        shades(41), Views(), pairs(41), tasks=3, ways=9, support_views=2, query_views=3, own=0.5
    )
    again = other = 0
    for seed in range(30):
        task = source(torch.Generator().manual_seed(seed))
        assert task.index is not None and task.ways == 9
        assert task.support.x.shape == (3, 18, 1, 4, 4) and task.query.x.shape == (3, 27, 1, 4, 4)
        shown = torch.cat([seen(task.support.x), seen(task.query.x)], 1).unflatten(1, (5, 9))
        first = task.index[:, None].expand(-1, 4, -1)
        assert torch.equal(shown[:, 0], task.index)
        alike, next_to = shown[:, 1:] == first, shown[:, 1:] == (first ^ 1)
        assert (alike | next_to).all() and alike[first == 40].all()
        again, other = again + int(alike[first != 40].sum()), other + int(next_to.sum())
        assert task.query.y is not None and torch.equal(task.query.y, torch.arange(9).repeat(3, 3))
    assert abs(again / (again + other) - 0.5) < 0.05


def test_own_one_shows_only_the_picture_itself() -> None:
    task = NeighbourTasks(shades(20), Views(), pairs(20), ways=8, own=1.0)(torch.Generator().manual_seed(0))
    assert task.index is not None
    assert torch.equal(seen(task.query.x), task.index) and torch.equal(seen(task.support.x), task.index)


def test_all_accepted_neighbours_occur_and_no_other() -> None:
    index = torch.tensor([[1, 2, 3, 4]]).repeat(6, 1)
    count = torch.full((6,), 3)
    source = NeighbourTasks(shades(6), Views(), Neighbours(index, count), ways=6, own=0.0)
    found = {int(v) for s in range(40) for v in seen(source(torch.Generator().manual_seed(s)).query.x).flatten()}
    assert found == {1, 2, 3}


def test_the_generator_is_all_the_randomness_and_views_are_drawn_each() -> None:
    source = NeighbourTasks(shades(20), Views(translate=0.3, erase=1.0), pairs(20), ways=8)
    a, b, c = (source(torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(a.support.x, b.support.x) and torch.equal(a.query.x, b.query.x)
    assert not torch.equal(a.query.x, c.query.x)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TooFewPicturesError):
        NeighbourTasks(shades(1), Views(), pairs(1))
    with pytest.raises(ConfigError, match="find them in this set"):
        NeighbourTasks(shades(6), Views(), pairs(8))
    with pytest.raises(ConfigError, match="at least one support"):
        NeighbourTasks(shades(6), Views(), pairs(6), query_views=0)
