"""Weak support and strong query views of the same pictures, and the recipe between nothing and all."""

import dataclasses

import pytest
import torch

from selftaught.core.errors import ConfigError, TooFewPicturesError
from selftaught.core.types import Task
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import GLYPH, PHOTO, Views
from selftaught.tasks.strong_weak import StrongWeakTasks, weakened

PICTURES = draw_strokes(5, 4, size=16)


def drawn(strong: Views, weak: Views, ways: int = 6, seed: int = 0) -> Task:
    return StrongWeakTasks(PICTURES, strong, weak, ways)(torch.Generator().manual_seed(seed))


def test_support_is_weak_and_query_is_strong() -> None:
    task = drawn(Views(rotate=40), Views())
    assert task.index is not None and task.support.y is not None
    raw = PICTURES.x[task.index].float() / 255
    assert task.support.x.shape == task.query.x.shape == (1, 6, 1, 16, 16) and task.ways == 6
    assert torch.allclose(task.support.x, raw, atol=1e-6)
    assert ((task.query.x - raw).flatten(2).abs().amax(-1) > 0.05).all()
    assert task.support.y.tolist() == [[*range(6)]] and len(set(task.index[0].tolist())) == 6


def test_it_is_pure_in_the_generator() -> None:
    one, two, other = drawn(GLYPH, GLYPH), drawn(GLYPH, GLYPH), drawn(GLYPH, GLYPH, seed=1)
    assert torch.equal(one.support.x, two.support.x) and torch.equal(one.query.x, two.query.x)
    assert not torch.equal(one.query.x, other.query.x) and not torch.equal(one.query.x, one.support.x)


def test_few_pictures() -> None:
    assert drawn(GLYPH, GLYPH, ways=99).support.x.shape[1] == 20
    with pytest.raises(TooFewPicturesError, match=r"1 picture\(s\)"):
        StrongWeakTasks(PICTURES.take(torch.tensor([0])), GLYPH, GLYPH)


@pytest.mark.parametrize("views", [GLYPH, PHOTO])
def test_the_ends_of_a_recipes_strength(views: Views) -> None:
    assert weakened(views, 1.0) == views
    assert weakened(views, 0.0) == Views(
        flip=views.flip, jitter=0.0, erase_area=views.erase_area, exact_colour=views.exact_colour
    )


def test_half_a_recipe_lies_between() -> None:
    half = weakened(Views(crop=(0.2, 1.0), scale=(0.8, 1.4), rotate=20, flip=0.5, grey=0.2), 0.5)
    assert half.crop == pytest.approx((0.6, 1.0)) and half.scale == pytest.approx((0.9, 1.2))
    assert half.rotate == 10 and half.grey == pytest.approx(0.1) and half.flip == 0.5


def test_no_field_of_a_recipe_is_forgotten() -> None:
    """A new field of Views must be weakened or named here."""
    kept = {"flip", "erase_area", "exact_colour"}
    full = Views(*[(0.5, 1.5) if isinstance(f.default, tuple) else 0.8 for f in dataclasses.fields(Views)])  # type: ignore[arg-type]
    half = weakened(full, 0.5)
    same = {f.name for f in dataclasses.fields(Views) if getattr(half, f.name) == getattr(full, f.name)}
    assert same == kept


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ConfigError, match="use a number from 0 to 1"):
        weakened(GLYPH, share)
