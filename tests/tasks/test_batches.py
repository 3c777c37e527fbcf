"""Labelled batches: labels of the whole set, a split that belongs to the set, and draws that belong to the run."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError, DataError, TooFewPicturesError
from selftaught.core.functional import to_float
from selftaught.core.types import Examples, Task
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import Views
from selftaught.tasks.batches import LabelledBatches

PLAIN = Views()


def pictures() -> Pictures:
    return draw_strokes(classes=5, per_class=8, size=12, seed=3)


def drawn(source: LabelledBatches, seed: int = 7) -> Task:
    return source(torch.Generator().manual_seed(seed))


def labels(examples: Examples) -> Tensor:
    assert examples.y is not None
    return examples.y[0]


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_labels_and_pictures_are_those_of_the_set(held_out: float) -> None:
    known = pictures()
    task = drawn(LabelledBatches(known, PLAIN, 10, held_out))
    assert task.index is not None and known.y is not None and task.ways == 5
    sides = [task.support, task.query] if held_out else [task.support]
    for side, where in zip(sides, task.index[0].split(10), strict=True):
        assert torch.equal(labels(side), known.y[where])
        assert torch.allclose(side.x[0], to_float(known.x[where]))
        assert len(where.unique()) == 10


def test_without_a_held_out_part_the_query_is_the_support() -> None:
    task = drawn(LabelledBatches(pictures(), Views(rotate=20), 10))
    assert torch.equal(task.query.x, task.support.x) and torch.equal(labels(task.query), labels(task.support))
    assert task.index is not None and task.index.shape == (1, 10)


def test_held_out_pictures_are_of_every_class_and_never_trained_on() -> None:
    known = pictures()
    source = LabelledBatches(known, PLAIN, 16, 0.25)
    train, held = source.sides
    assert known.y is not None
    assert known.y[held].bincount().tolist() == [2] * 5 and sorted([*train.tolist(), *held.tolist()]) == [
        *range(40)
    ]
    seen = {int(i) for seed in range(30) for i in drawn(source, seed).index[0, :16]}  # type: ignore[index]
    assert seen == set(train.tolist())
    again = LabelledBatches(replace(known), PLAIN, 4, 0.25).sides[1]
    assert torch.equal(held, again), "the split depends on the set alone"


def test_a_class_keeps_a_picture_to_train_on_and_gives_one() -> None:
    known = pictures().take(torch.tensor([0, 8, 9, 16, 17, 18]))
    train, held = LabelledBatches(known, PLAIN, 4, 0.01).sides
    assert known.y is not None
    assert known.y[held].tolist() == [1, 2] and 0 in known.y[train]


def test_draws_are_pure_in_the_generator() -> None:
    source = LabelledBatches(pictures(), Views(rotate=20), 6, 0.5)
    one, same, other = drawn(source, 1), drawn(source, 1), drawn(source, 2)
    assert torch.equal(one.support.x, same.support.x) and torch.equal(one.query.x, same.query.x)
    assert not torch.equal(one.support.x, other.support.x)


def test_what_it_refuses() -> None:
    known = pictures()
    with pytest.raises(DataError, match="labelled"):
        LabelledBatches(replace(known, y=None), PLAIN)
    with pytest.raises(ConfigError, match=r"held_out=1\.5"):
        LabelledBatches(known, PLAIN, held_out=1.5)
    with pytest.raises(TooFewPicturesError, match="1 of 2 picture"):
        LabelledBatches(known.take(torch.tensor([0, 1])), PLAIN, held_out=0.5)
    with pytest.raises(TooFewPicturesError, match="to train on"):
        LabelledBatches(known.take(torch.tensor([], dtype=torch.int64)), PLAIN)
