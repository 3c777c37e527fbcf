"""The matrix of objectives and base learners: who is in it, equal views, and what is said of made-up cells."""

import math
from dataclasses import replace

import pytest
import torch

from selftaught.claims import review
from selftaught.claims.review import (
    LEARNERS,
    PIXELS,
    UNTRAINED,
    Budget,
    accepts,
    asks_for_episodes,
    fit,
    leads,
    losing,
    measured,
    ordered,
    row,
    small,
    smaller,
    subject,
    unlabelled,
    verdict,
)
from selftaught.core.errors import ConfigError
from selftaught.data.emoji import read_emoji
from selftaught.methods import MAML, METHODS, SimCLR
from selftaught.nets import build_encoder
from selftaught.tasks.views import ViewTasks

TINY = Budget(views=64, width=4, episodes=3)
PICTURES = smaller(read_emoji(split="train"), 16)
UNSEEN = smaller(read_emoji(split="test"), 16)


def test_every_method_is_in_unless_it_needs_the_labels_of_a_whole_set() -> None:
    out = {name for name in METHODS if unlabelled(name) is None and not asks_for_episodes(METHODS[name]())}
    assert {"simclr", "maml", "bmg"}.isdisjoint(out)
    assert {name for name in METHODS if subject(name, PICTURES) is None} == out


def test_no_label_reaches_training() -> None:
    for name in ("simclr", "maml", "bmg"):
        made = subject(name, PICTURES)
        assert made is not None
        task = made[1](torch.Generator().manual_seed(0))
        assert task.ways <= 32 and task.query.x.shape[0] * task.query.x.shape[1] <= 256
    made = subject("maml", PICTURES)
    assert made is not None and isinstance(made[1], ViewTasks) and made[1].pictures.y is None
    assert accepts(SimCLR()) and not accepts(MAML()) and unlabelled("maml") is None


def test_sizes_are_bounded_and_nothing_else_changes() -> None:
    assert small(SimCLR(batch=256, temperature=0.3)) == SimCLR(batch=32, temperature=0.3)
    assert small(SimCLR(batch=8)) == SimCLR(batch=8)
    assert small(MAML(queries=15, ways=5)) == MAML(queries=3, ways=5)


def test_equal_views_whatever_a_step_takes() -> None:
    for name, views in (("simclr", 64), ("maml", 80)):
        made = subject(name, PICTURES)
        assert made is not None
        method, source = made
        encoder = build_encoder("conv4", 3, 16, 0, width=4)
        steps = fit(method, source, encoder, replace(TINY, views=2 * views), 0)[2]
        assert steps == 2


def test_a_row_has_every_learner_and_repeats_itself() -> None:
    made = subject("simclr", PICTURES)
    first, again = (measured(made, PICTURES, UNSEEN, TINY, 0) for _ in range(2))
    assert set(first) == {*LEARNERS, "steps", "seconds"}
    assert {k: first[k] for k in LEARNERS} == {k: again[k] for k in LEARNERS}
    assert set(measured(None, PICTURES, UNSEEN, TINY, 0)) == set(LEARNERS)


def test_a_training_that_fails_is_a_row_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ConfigError("no")

    monkeypatch.setattr(review, "fit", fail)
    found = measured(subject("simclr", PICTURES), PICTURES, UNSEEN, TINY, 0)
    shown = row("simclr", {k: [v] for k, v in found.items()})
    assert shown["ridge"] == "failed" and shown["steps"] == "-"


def cells(**means: float) -> review.Cells:
    """Three seeds around a mean for each name, the same for all learners."""
    spread = (-0.01, 0.0, 0.01)
    made = {n.replace("_", " "): {c: [m + s for s in spread] for c in LEARNERS} for n, m in means.items()}
    made[PIXELS] = {c: [0.5] for c in LEARNERS[:-1]}
    return made


def test_verdict_and_losing_regime_follow_the_cells() -> None:
    good = cells(a=0.8, b=0.7, untrained_encoder=0.6)
    assert ordered(good) == ["a", "b"]
    assert verdict(good).startswith("Shown: 8 of 8") and "a with nearest mean" in verdict(good)
    assert "encoder: none" in losing(good) and "raw pixels: none" in losing(good)
    bad = cells(a=0.7, b=0.4, c=0.4, untrained_encoder=0.6)
    assert verdict(bad).startswith("Not shown: 4 of 12")
    assert "b with ridge" in losing(bad) and losing(bad).endswith("raw pixels: b, c.")
    assert leads(good, UNTRAINED)["a", "ridge"].mean == pytest.approx(0.2)
    failed = cells(a=0.7, untrained_encoder=0.6) | {"z": dict.fromkeys(LEARNERS, [math.nan] * 3)}
    assert ordered(failed) == ["a", "z"] and "failed: z" in losing(failed)
