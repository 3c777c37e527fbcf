"""What a trained gradient learner is for: classes that it has never seen, one query at a time."""

import pytest
import torch

from selftaught.core.train import start, train
from selftaught.core.types import merged
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import GLYPH
from selftaught.evaluate.fewshot import few_shot_learner
from selftaught.methods import METHODS
from selftaught.nets import build_encoder
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.episodes import EpisodePlan

STEPS = 40


@pytest.mark.parametrize("name", ["maml", "bmg", "reptile", "imaml", "neuronml"])
def test_above_chance_by_far_on_new_classes(name: str) -> None:
    """With statistics of training around weights that have moved on it would be 20 to 25 percent: chance."""
    sizes = {"tasks": 2, "ways": 5, "queries": 5, "inner_steps": 3, "test_steps": 3}
    fields = METHODS[name].__dataclass_fields__  # type: ignore[attr-defined]
    method = METHODS[name](**{k: v for k, v in sizes.items() if k in fields})
    torch.manual_seed(0)
    net = method.network(build_encoder("conv4", 1, 16, 0, width=16))
    optimizer = Gradient(3e-3, STEPS)
    state = start(method, net, optimizer, 0)
    source = method.source(draw_strokes(60, 10, size=16, seed=1), GLYPH)
    for state, _ in train(method, net, source, optimizer, state, STEPS):  # noqa: B007, B020
        pass
    plan = EpisodePlan(ways=5, shots=1, queries=5, episodes=30)
    new = draw_strokes(30, 10, size=16, seed=2)
    assert few_shot_learner(method.learner(net), merged(state.params, state.slow), new, plan).mean > 36
