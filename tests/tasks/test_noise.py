"""Noise beside pictures comes from the task's own generator and leaves the pictures as they are."""

import pytest
import torch

from selftaught.core.errors import ConfigError
from selftaught.core.types import Task
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import GLYPH
from selftaught.tasks.noise import NoiseBeside, without_noise
from selftaught.tasks.views import ViewTasks

SOURCE = ViewTasks(draw_strokes(4, 4, size=16), GLYPH, 2, 5, 1, 2)


def drawn(seed: int = 0, channels: int = 3) -> Task:
    return NoiseBeside(SOURCE, channels)(torch.Generator().manual_seed(seed))


def test_pictures_stay_and_noise_is_uniform() -> None:
    plain, task = SOURCE(torch.Generator().manual_seed(0)), drawn()
    x, noise = without_noise(task.support.x, 3)
    assert torch.equal(x, plain.support.x) and torch.equal(task.query.x, plain.query.x)
    assert task.ways == plain.ways and task.support.y is not None and plain.support.y is not None
    assert torch.equal(task.support.y, plain.support.y)
    assert noise.shape == (2, 5, 3, 16, 16) and noise.min() >= 0 and noise.max() < 1
    # 7,680 numbers: three standard errors of mean and variance.
    assert abs(float(noise.mean()) - 1 / 2) < 0.01 and abs(float(noise.var()) - 1 / 12) < 0.003


def test_it_is_pure_in_the_generator() -> None:
    before = torch.get_rng_state()
    assert torch.equal(drawn().support.x, drawn().support.x)
    assert not torch.equal(drawn(1).support.x[:, :, 1:], drawn().support.x[:, :, 1:])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_task_of_one_has_no_leading_axis() -> None:
    plain = SOURCE(torch.Generator().manual_seed(0))
    one = Task(type(plain.support)(plain.support.x[0]), type(plain.query)(plain.query.x[0]), plain.ways)
    assert NoiseBeside(lambda generator: one, 2)(torch.Generator()).support.x.shape == (5, 3, 16, 16)


def test_no_channel_is_refused() -> None:
    with pytest.raises(ConfigError, match="one channel or more"):
        NoiseBeside(SOURCE, 0)
