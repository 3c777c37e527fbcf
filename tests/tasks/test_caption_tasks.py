"""Pairs as tasks: every row a true pair, other true pairs marked, the same draw from the same generator."""

import pytest
import torch

from selftaught.core.errors import DataError, TooFewPicturesError
from selftaught.data.pictures import Pictures
from selftaught.data.tokens import build_tokenizer, vocabulary_of
from selftaught.data.views import Views
from selftaught.tasks.captions import CaptionTasks, captions_of

CLASSES = ("red square\nred thing\nsquare", "red circle\nred thing", "blue square\nsquare")


def captioned(each: int = 2) -> Pictures:
    """Every picture has the brightness of its class."""
    y = torch.arange(3).repeat_interleave(each)
    x = (y * 100)[:, None, None, None].expand(-1, 1, 4, 4).to(torch.uint8)
    return Pictures(x, tuple(map(str, range(len(y)))), y, CLASSES)


def source(pictures: Pictures, batch: int = 6) -> CaptionTasks:
    return CaptionTasks(pictures, Views(), build_tokenizer(vocabulary_of(CLASSES), 6), batch)


def test_rows_are_pairs_and_every_other_true_pair_is_marked() -> None:
    pairs = source(captioned())
    known = {tuple(pairs.tokenizer([t])[0].tolist()): t for c in CLASSES for t in captions_of(c)}
    seen = set()
    for seed in range(20):
        task = pairs(torch.Generator().manual_seed(seed))
        assert task.support.y is not None and task.query.y is not None and task.index is not None
        assert task.support.x.shape == (1, 6, 6) and task.query.x.shape == (1, 6, 1, 4, 4) and task.ways == 6
        texts = [known[tuple(row.tolist())] for row in task.support.x[0]]
        classes = [round(float(x.mean()) * 2.55) for x in task.query.x[0]]
        assert classes == task.query.y[0].tolist()
        for j, text in enumerate(texts):
            said = [int(text in captions_of(CLASSES[n])) for n in classes]
            assert task.support.y[0, j].tolist() == said and said[j]
        seen |= set(texts)
    assert seen == set(known.values())


def test_it_is_pure_in_the_generator() -> None:
    pairs = source(captioned(), batch=4)
    a, b = (pairs(torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(a.support.x, b.support.x) and torch.equal(a.query.x, b.query.x)
    assert len(a.query.x[0]) == 4


def test_pictures_without_captions_are_refused() -> None:
    bare = Pictures(captioned().x, captioned().names)
    with pytest.raises(DataError, match=r"captions\.csv"):
        source(bare)
    with pytest.raises(TooFewPicturesError):
        source(captioned().take(torch.tensor([0])))
    nameless = Pictures(captioned().x, captioned().names, captioned().y, ("a", " \n", "b"))
    with pytest.raises(DataError, match="no caption"):
        CaptionTasks(nameless, Views(), build_tokenizer("", 6))(torch.Generator())
