"""Made-up classes: what a member is decoded from, what the VAE learned, and what chance decides."""

import dataclasses
import functools
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError, TooFewPicturesError
from selftaught.core.functional import to_float
from selftaught.core.types import Task
from selftaught.data.strokes import draw_strokes
from selftaught.losses.variational import negative_elbo
from selftaught.nets.vae import VAE
from selftaught.tasks.interpolation import InterpolationTasks, VAEPlan, trained_vae

PICTURES = draw_strokes(classes=4, per_class=6, size=12, seed=1)
PLAN = VAEPlan(hidden=16, latent=3, epochs=3, batch=10)


@functools.cache
def small_vae() -> VAE:
    return trained_vae(PICTURES, PLAN)


def source(**changes: Any) -> InterpolationTasks:
    how = {"shift": 0.0, "ways": 4, "shots": 2, "queries": 3, "tasks": 5} | changes
    made = InterpolationTasks(PICTURES, PLAN, **how)
    vars(made)["vae"] = small_vae()  # as after the first draw
    return made


def drawn(seed: int = 0, **changes: Any) -> Task:
    return source(**changes)(torch.Generator().manual_seed(seed))


def decoded(z: Tensor) -> Tensor:
    return torch.sigmoid(small_vae().decode(z))


def anchors_of(task: Task) -> Tensor:
    """[T N Z] posterior means of the pictures that the task names."""
    assert task.index is not None
    means, _ = small_vae().encode(to_float(PICTURES.x[task.index.flatten()]))
    return means.unflatten(0, task.index.shape)


# ---------------------------------------------------------------------------------------------- the tasks


def test_shapes_labels_and_range() -> None:
    task = drawn(shift=0.2)
    assert (
        task.support.x.shape == (5, 8, 1, 12, 12) and task.query.x.shape == (5, 12, 1, 12, 12) and task.ways == 4
    )
    assert task.support.y is not None and task.query.y is not None and task.index is not None
    assert task.support.y.tolist() == [[0, 1, 2, 3] * 2] * 5 and task.query.y.tolist() == [[0, 1, 2, 3] * 3] * 5
    assert task.support.x.min() >= 0 and task.support.x.max() <= 1 and not task.support.x.requires_grad
    assert all(len(set(row)) == 4 for row in task.index.tolist())


def test_without_interpolation_every_member_is_the_anchors_own_picture() -> None:
    task = drawn(amount=0.0)
    own = decoded(anchors_of(task).flatten(0, 1)).unflatten(0, (5, 4))
    assert torch.allclose(task.support.x, own.repeat(1, 2, 1, 1, 1), atol=1e-5)
    assert torch.allclose(task.query.x, own.repeat(1, 3, 1, 1, 1), atol=1e-5)


def test_all_the_way_to_another_class_is_that_classs_picture() -> None:
    """And never its own, and every other one at some time."""
    task = drawn(amount=1.0, towards="classes")
    own = decoded(anchors_of(task).flatten(0, 1)).unflatten(0, (5, 1, 4))  # [T 1 N ...]
    met = set()
    for side in (task.support, task.query):
        assert side.y is not None
        gap = (side.x[:, :, None] - own).flatten(3).abs().amax(-1)  # [T rows N]
        assert (gap.amin(-1) < 1e-5).all()
        nearest = gap.argmin(-1)
        assert (nearest != side.y).all()
        met |= set(zip(side.y.flatten().tolist(), nearest.flatten().tolist(), strict=True))
    assert len(met) == 12


def test_part_of_the_way_lies_on_the_line() -> None:
    whole, none, part = (drawn(amount=a) for a in (1.0, 0.0, 0.25))
    ends, starts = (small_codes(t) for t in (whole, none))
    expected = decoded((0.75 * starts + 0.25 * ends).flatten(0, 1)).unflatten(0, (5, 8))
    assert torch.allclose(part.support.x, expected, atol=1e-4)


def small_codes(task: Task) -> Tensor:
    """The support's codes, found again from its pictures: the decoder's layers are solved for their input."""
    logits = torch.logit(task.support.x.double().flatten(2))
    first, last = small_vae().decoder[0], small_vae().decoder[2]
    assert isinstance(first, torch.nn.Linear) and isinstance(last, torch.nn.Linear)
    hidden = (logits - last.bias) @ torch.linalg.pinv(last.weight.double()).mT
    active = hidden > 1e-6
    z = [
        torch.linalg.lstsq(first.weight[on].double(), (h[on] - first.bias[on].double())[:, None]).solution[:, 0]
        for h, on in zip(hidden.flatten(0, 1), active.flatten(0, 1), strict=True)
    ]
    return torch.stack(z).unflatten(0, task.support.x.shape[:2]).float()


def test_each_member_has_a_draw_of_its_own_from_the_prior() -> None:
    task = drawn(amount=0.2)
    codes = small_codes(task)
    assert not torch.allclose(codes[:, :4], codes[:, 4:])
    n = (codes - 0.8 * anchors_of(task).repeat(1, 2, 1)) / 0.2
    assert 0.7 < float(n.std()) < 1.3 and abs(float(n.mean())) < 0.4


def test_anchors_from_the_prior_name_no_pictures() -> None:
    task = drawn(anchors="prior", amount=0.0)
    assert task.index is None and task.support.x.shape == (5, 8, 1, 12, 12)
    assert torch.equal(task.support.x[:, :4], task.support.x[:, 4:])


def test_shift_moves_each_picture_by_its_own_draw() -> None:
    task = drawn(amount=0.0, shift=0.3)
    x = task.query.x.unflatten(1, (3, 4))
    assert ((x[:, 0] - x[:, 1]).flatten(2).abs().amax(-1) > 1e-3).all()


def test_the_generator_is_all_the_chance_there_is() -> None:
    one, two, other = drawn(shift=0.2), drawn(shift=0.2), drawn(seed=1, shift=0.2)
    assert torch.equal(one.support.x, two.support.x) and torch.equal(one.query.x, two.query.x)
    assert not torch.equal(one.support.x, other.support.x)


def test_impossible_tasks_are_refused_in_words() -> None:
    with pytest.raises(TooFewPicturesError, match="24 pictures give too few anchors for 25 ways"):
        source(ways=25)
    assert source(ways=25, anchors="prior").ways == 25
    for amount in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="use an amount from 0 to 1"):
            source(amount=amount)
    for changes in ({"latent": 0}, {"hidden": 0}, {"batch": 0}, {"epochs": -1}):
        with pytest.raises(ConfigError, match="use at least 1"):
            dataclasses.replace(PLAN, **changes)


# ------------------------------------------------------------------------------------------------ the VAE


def same(a: VAE, b: VAE) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_a_plan_names_the_vae_and_leaves_the_global_generators_alone() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    again = trained_vae(PICTURES, PLAN)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert same(small_vae(), again) and not any(p.requires_grad for p in again.parameters())
    assert not same(again, trained_vae(PICTURES, dataclasses.replace(PLAN, seed=1)))


def test_training_lowers_the_bound() -> None:
    x = to_float(PICTURES.x)

    def bound(epochs: int) -> float:
        vae = trained_vae(PICTURES, dataclasses.replace(PLAN, epochs=epochs, hidden=32))
        logits, mean, log_var = vae(x, torch.zeros(len(x), 3))
        return float(negative_elbo(logits, x, mean, log_var))

    assert bound(60) < bound(0) / 2


def test_a_source_that_is_not_drawn_from_trains_nothing() -> None:
    made = InterpolationTasks(PICTURES, PLAN)
    assert "vae" not in vars(made)
    made(torch.Generator().manual_seed(0))
    assert same(made.vae, small_vae())
