"""Tasks are pytrees: they pass through torch.func, and what is not a tensor rides along."""

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from selftaught.core.types import Encoder, Examples, Task, merged
from selftaught.nets.conv4 import Conv4


def meta_batch(labels: bool = True, index: bool = True) -> Task:
    y = torch.arange(3).repeat(4, 2)
    return Task(
        Examples(torch.rand(4, 6, 1, 2, 2), y if labels else None),
        Examples(torch.rand(4, 6, 1, 2, 2), y if labels else None),
        ways=3,
        index=torch.arange(12).view(4, 3) if index else None,
    )


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("index", [True, False])
def test_tasks_pass_through_vmap_and_back(labels: bool, index: bool) -> None:
    tasks = meta_batch(labels, index)
    shapes: list[tuple[int, ...]] = []

    def flip(task: Task) -> tuple[Task, Tensor]:
        shapes.append(tuple(task.support.x.shape))
        assert task.ways == 3 and (task.support.y is not None) == labels and (task.index is not None) == index
        return tree_map(lambda x: x.flip(0), task), task.query.x.sum()

    flipped, sums = torch.func.vmap(flip)(tasks)
    assert shapes == [(6, 1, 2, 2)]
    assert isinstance(flipped, Task) and flipped.ways == 3
    assert torch.equal(flipped.support.x, tasks.support.x.flip(1))
    assert torch.allclose(sums, tasks.query.x.sum((1, 2, 3, 4)))
    if labels and tasks.support.y is not None and flipped.support.y is not None:
        assert torch.equal(flipped.support.y, tasks.support.y.flip(1))
    assert (flipped.index is None) == (not index)


def test_a_task_can_ask_for_axes_of_its_own() -> None:
    """`in_dims` puts numbers in place of tensors."""
    tasks = meta_batch(index=False)
    examples = Examples(0, 0)  # type: ignore[arg-type]
    found = torch.func.vmap(lambda t, k: t.query.x.sum() * k, in_dims=(Task(examples, examples, 3), None))(
        tasks, 2
    )
    assert torch.allclose(found, 2 * tasks.query.x.sum((1, 2, 3, 4)))


def test_leaves_are_tensors_only_and_go_back_to_their_places() -> None:
    tasks = meta_batch()
    leaves, spec = tree_flatten(tasks)
    assert len(leaves) == 5 and all(isinstance(leaf, Tensor) for leaf in leaves)
    again = tree_unflatten(leaves, spec)
    assert again.index is tasks.index and again.support.x is tasks.support.x and again.ways == 3
    assert len(tree_flatten(meta_batch(labels=False, index=False))[0]) == 2


def test_gradients_flow_through_a_task() -> None:
    tasks = meta_batch(labels=False, index=False)
    found = torch.func.grad(lambda t: t.support.x.square().sum() + t.query.x.sum())(tasks)
    assert torch.equal(found.support.x, 2 * tasks.support.x)
    assert torch.equal(found.query.x, torch.ones_like(tasks.query.x))


def test_merged_keeps_order_and_lets_later_parts_win() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    first = {"a": one, "b": one}
    both = merged(first, {"b": two, "c": two})
    assert list(both) == ["a", "b", "c"] and both["b"] is two and first["b"] is one


def test_an_encoder_says_how_wide_it_is() -> None:
    assert isinstance(Conv4(), Encoder)
    assert not isinstance(torch.nn.Linear(2, 2), Encoder)
