"""tr-val leaves tasks alone; tr-tr shows all rows of a task in both roles, with labels and index in place."""

import dataclasses

import pytest
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.core.train import outer_step, start
from selftaught.core.types import Examples, Task, TaskSource
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import Views
from selftaught.methods.maml import MAML
from selftaught.nets import build_encoder
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.episodes import EpisodeSource
from selftaught.tasks.split import SplitTasks, united
from selftaught.tasks.views import ViewTasks


def pictures() -> Pictures:
    return draw_strokes(classes=5, per_class=6, size=12, seed=3)


def drawn(source: TaskSource, seed: int = 7) -> Task:
    return source(torch.Generator().manual_seed(seed))


def labels(examples: Examples) -> Tensor:
    assert examples.y is not None
    return examples.y


EPISODES = EpisodeSource(pictures(), ways=3, shots=2, queries=3, tasks=2)
VIEWS = ViewTasks(pictures(), Views(rotate=15), tasks=2, ways=4, support_views=1, query_views=2)


@pytest.mark.parametrize("source", [EPISODES, VIEWS], ids=["episodes", "views"])
def test_tr_val_is_the_source(source: TaskSource) -> None:
    plain, split = drawn(source), drawn(SplitTasks(source))
    assert torch.equal(plain.support.x, split.support.x) and torch.equal(plain.query.x, split.query.x)
    assert not torch.equal(split.support.x[:, :1], split.query.x[:, :1])


@pytest.mark.parametrize("source", [EPISODES, VIEWS], ids=["episodes", "views"])
def test_tr_tr_shows_every_row_twice_in_the_house_order(source: TaskSource) -> None:
    plain, both = drawn(source), drawn(SplitTasks(source, "tr-tr"))
    rows = plain.support.x.shape[1]
    for side in (both.support, both.query):
        assert torch.equal(side.x[:, :rows], plain.support.x) and torch.equal(side.x[:, rows:], plain.query.x)
        assert torch.equal(labels(side), torch.cat([labels(plain.support), labels(plain.query)], 1))
        by_shot = labels(side).unflatten(1, (-1, plain.ways))
        assert torch.equal(by_shot, torch.arange(plain.ways).expand_as(by_shot)), "row k * ways + n is class n"
    assert both.ways == plain.ways and both.index is not None and plain.index is not None
    assert torch.equal(both.index, plain.index)


def test_an_episodes_index_names_the_united_rows() -> None:
    both = drawn(SplitTasks(EPISODES, "tr-tr"))
    assert both.index is not None and both.index.shape == both.support.x.shape[:2]
    assert torch.equal(pictures().x[both.index].float() / 255, both.support.x)
    known = pictures().y
    assert known is not None
    for t in range(2):
        for n in range(3):
            assert len(known[both.index[t][labels(both.support)[t] == n]].unique()) == 1
            assert len(both.index[t].unique()) == 15


def test_both_splits_draw_the_same_and_leave_the_generator_alike() -> None:
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    for split, generator in zip(("tr-val", "tr-tr"), generators, strict=True):
        SplitTasks(EPISODES, split)(generator)  # type: ignore[arg-type]
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_a_single_task_has_no_axis_before_its_rows() -> None:
    task = Task(
        Examples(torch.rand(4, 1, 5, 5), torch.tensor([0, 1, 0, 1])),
        Examples(torch.rand(2, 1, 5, 5), torch.tensor([0, 1])),
        ways=2,
    )
    both = united(task)
    assert both.support.x.shape == (6, 1, 5, 5) and labels(both.query).tolist() == [0, 1, 0, 1, 0, 1]
    assert torch.equal(both.query.x[4:], task.query.x) and both.index is None


def test_labels_on_both_sides_or_on_neither() -> None:
    x = torch.rand(2, 4, 1, 5, 5)
    bare, named = Examples(x), Examples(x, torch.arange(2).repeat(2, 2))
    assert united(Task(bare, bare, 2)).support.y is None
    for task in (Task(bare, named, 2), Task(named, bare, 2)):
        with pytest.raises(ConfigError, match="one side only"):
            united(task)


def test_another_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tr-val' or 'tr-tr'"):
        SplitTasks(EPISODES, "train")  # type: ignore[arg-type]


def test_a_method_takes_a_step_on_either_and_tr_tr_fits_better() -> None:
    """What is asked was adapted to: the same start answers it better."""
    method = MAML(inner_steps=3, inner_rate=0.4)
    net = method.network(build_encoder("conv4", 1, 16, 0, width=8, norm="group"))
    source = EpisodeSource(draw_strokes(classes=5, per_class=6, size=16, seed=3), 3, 1, 1, 3)
    optimizer = Gradient(rate=1e-3)
    state = start(method, net, optimizer, seed=0)
    losses = {}
    for split in ("tr-val", "tr-tr"):
        tasks = drawn(dataclasses.replace(SplitTasks(source), split=split))
        _, aux = outer_step(method, net, optimizer, state, tasks)
        losses[split] = float(aux.metrics["loss"])
    assert losses["tr-tr"] < losses["tr-val"]
