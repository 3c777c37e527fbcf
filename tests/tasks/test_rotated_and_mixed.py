"""Turned classes and mixed queries: rows, labels, shares, and who draws what."""

import dataclasses

import pytest
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.core.types import Examples, Task, TaskSource
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import Views
from selftaught.tasks.episodes import EpisodeSource
from selftaught.tasks.mixed import MixedQueries, cut_and_mix
from selftaught.tasks.rotated import RotatedClasses
from selftaught.tasks.views import ViewTasks

PICTURES = draw_strokes(classes=5, per_class=6, size=12, seed=3)
EPISODES = EpisodeSource(PICTURES, ways=3, shots=2, queries=3, tasks=2)
VIEWS = ViewTasks(PICTURES, Views(rotate=15), tasks=2, ways=4, support_views=2, query_views=3)
both = pytest.mark.parametrize("source", [EPISODES, VIEWS], ids=["episodes", "views"])


def drawn(source: TaskSource, seed: int = 7) -> Task:
    return source(torch.Generator().manual_seed(seed))


def labels(examples: Examples) -> Tensor:
    assert examples.y is not None
    return examples.y


@both
def test_every_row_of_a_turned_class_is_its_picture_turned(source: TaskSource) -> None:
    plain, turned = drawn(source), drawn(RotatedClasses(source))
    n = plain.ways
    assert turned.ways == 4 * n
    for before, after in ((plain.support, turned.support), (plain.query, turned.query)):
        shots = before.x.shape[1] // n
        assert after.x.shape == (2, 4 * shots * n, *before.x.shape[2:])
        assert labels(after).tolist() == [[*range(4 * n)] * shots] * 2
        for k in range(shots):
            for r in range(4):
                for c in range(n):
                    row = after.x[:, k * 4 * n + r * n + c]
                    assert torch.equal(row, torch.rot90(before.x[:, k * n + c], r, (-2, -1)))


def test_a_single_task_without_labels_is_turned_alike() -> None:
    x = torch.rand(6, 1, 4, 4)
    one = RotatedClasses(lambda generator: Task(Examples(x), Examples(x[:3]), 3))(torch.Generator())
    assert one.support.x.shape == (24, 1, 4, 4) and one.query.x.shape == (12, 1, 4, 4) and one.support.y is None
    assert torch.equal(one.support.x[12 + 3 + 2], torch.rot90(x[5], 1, (-2, -1)))


def test_what_cannot_be_turned_is_refused() -> None:
    x = torch.rand(4, 1, 4, 6)
    for rows, word in ((x, "square"), (x[:3, ..., :4], "whole shots")):
        source = RotatedClasses(lambda generator, rows=rows: Task(Examples(rows), Examples(rows), 2))
        with pytest.raises(ConfigError, match=word):
            source(torch.Generator())


@both
def test_a_mixed_query_is_two_pictures_in_the_shares_of_its_label(source: TaskSource) -> None:
    plain, mixed = drawn(source), drawn(MixedQueries(source, 0.7))
    assert torch.equal(plain.support.x, mixed.support.x) and torch.equal(
        labels(plain.support), labels(mixed.support)
    )
    y, numbers = labels(mixed.query), labels(plain.query)
    assert y.shape == (*numbers.shape, plain.ways) and y.dtype == mixed.query.x.dtype
    assert torch.allclose(y.sum(-1), torch.ones(y.shape[:2])) and (y >= 0).all()
    untouched = (mixed.query.x == plain.query.x).flatten(2).all(-1)
    whole = y.gather(-1, numbers[..., None]).squeeze(-1) == 1
    assert 0 < whole.float().mean() < 1 and untouched[whole].float().mean() > 0.5


def test_pixels_come_from_self_and_partner_as_the_share_says() -> None:
    """Pictures of one even tone each, so every pixel tells whose it is."""
    x = torch.arange(24.0).view(2, 12, 1, 1, 1).expand(2, 12, 1, 9, 7)
    out, share, partner = cut_and_mix(x, 1.0, torch.Generator().manual_seed(0))
    assert all(sorted(row) == list(range(12)) for row in partner.tolist())
    for t in range(2):
        for q in range(12):
            own, other = out[t, q] == x[t, q], out[t, q] == x[t, int(partner[t, q])]
            assert (own | other).all()
            if int(partner[t, q]) != q:
                assert float(own.float().mean()) == pytest.approx(float(share[t, q]), abs=1e-6)
                window = other[0].nonzero()
                if len(window):  # one rectangle
                    sides = window.max(0).values - window.min(0).values + 1
                    assert int(sides.prod()) == len(window)


def test_the_share_follows_its_distribution() -> None:
    """Without the border the mean share were a half; the border cuts windows, so it is above."""
    x = torch.zeros(1, 4000, 1, 16, 16)
    _, share, _ = cut_and_mix(x, 1.0, torch.Generator().manual_seed(0))
    side = (torch.arange(2000) + 0.5).div(2000).sqrt()
    place = (torch.arange(2000) + 0.5) / 2000
    ends = (place + side[:, None] / 2).clamp(max=1) - (place - side[:, None] / 2).clamp(min=0)
    assert float(share.mean()) == pytest.approx(1 - float(ends.mean(1).square().mean()), abs=0.02)
    assert float(share.min()) >= 0 and float(share.max()) <= 1


def test_no_chance_leaves_pictures_and_soft_labels_whole() -> None:
    plain, mixed = drawn(VIEWS), drawn(MixedQueries(VIEWS, 0.0))
    assert torch.equal(plain.query.x, mixed.query.x)
    assert torch.equal(labels(mixed.query).argmax(-1), labels(plain.query)) and labels(mixed.query).max() == 1


def test_it_is_pure_in_the_generator() -> None:
    source = MixedQueries(RotatedClasses(VIEWS), 0.5)
    a, b, c = drawn(source), drawn(source), drawn(source, 8)
    assert torch.equal(a.query.x, b.query.x) and torch.equal(labels(a.query), labels(b.query))
    assert not torch.equal(a.query.x, c.query.x)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"0\.\.1"):
        MixedQueries(VIEWS, 1.5)
    task = drawn(VIEWS)
    blind = dataclasses.replace(task, query=Examples(task.query.x))
    with pytest.raises(ConfigError, match="labels"):
        MixedQueries(lambda generator: blind)(torch.Generator())
