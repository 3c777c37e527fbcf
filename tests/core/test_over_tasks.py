"""One function, several paths, equal results: values, figures and gradients."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import params_of
from selftaught.core.over_tasks import Path, available_cores, choose_path, first, over_tasks
from selftaught.core.types import Examples, Params, Task
from selftaught.nets.conv4 import Conv4

PATHS: tuple[Path, ...] = ("auto", "loop", "threads", "batched")
each_path = pytest.mark.parametrize("path", PATHS)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Several threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3, "the number of threads was not put back"
    torch.set_num_threads(before)


class Net(nn.Module):
    def __init__(self, norm: str) -> None:
        super().__init__()
        self.encoder = Conv4(1, 16, width=8, norm=norm)  # type: ignore[arg-type]
        self.head = nn.Linear(8, 3)
        self.spare = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def meta_batch(tasks: int = 5) -> tuple[Net, Params, Task]:
    torch.manual_seed(0)
    net = Net("group").double()
    y = torch.arange(3).repeat(tasks, 2)
    x = torch.rand(2, tasks, 6, 1, 16, 16, dtype=torch.float64)
    return net, params_of(net), Task(Examples(x[0], y), Examples(x[1], y), ways=3)


def one_task(net: nn.Module, params: Params, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
    """One second-order step, then the queries."""

    def inner(w: Params) -> Tensor:
        return F.cross_entropy(functional_call(net, w, (task.support.x,)), task.support.y)

    slope = torch.func.grad(inner)(params)
    logits = functional_call(net, {k: v - 0.3 * slope[k] for k, v in params.items()}, (task.query.x,))
    loss = F.cross_entropy(logits, task.query.y)
    return loss, {"largest": logits.max(), "twice": 2 * loss}


def leaves_of(params: Params) -> Params:
    return {k: v.clone().requires_grad_() for k, v in params.items()}


def by_hand(net: nn.Module, params: Params, tasks: Task) -> tuple[Tensor, Tensor, list[Tensor]]:
    leaves = leaves_of(params)
    support = tasks.support.x.clone().requires_grad_()
    done = []
    for t in range(len(support)):
        task = Task(Examples(support[t], tasks.support.y[t]), Examples(tasks.query.x[t], tasks.query.y[t]), 3)
        done.append(one_task(net, leaves, task))
    loss = sum(d[0] for d in done) / len(done)
    largest = sum(d[1]["largest"] for d in done) / len(done)
    return loss, largest, list(torch.autograd.grad(loss, [*leaves.values(), support], materialize_grads=True))


@each_path
def test_every_path_is_the_plain_mean_over_tasks(path: Path) -> None:
    net, params, tasks = meta_batch()
    expected, largest, gradients = by_hand(net, params, tasks)
    leaves, support = leaves_of(params), tasks.support.x.clone().requires_grad_()
    asking = Task(Examples(support, tasks.support.y), tasks.query, ways=3)
    loss, figures = over_tasks(one_task, net, leaves, asking, path=path)
    assert torch.allclose(loss, expected, rtol=1e-12)
    assert torch.allclose(figures["largest"], largest, rtol=1e-12)
    assert torch.allclose(figures["twice"], 2 * expected, rtol=1e-12)
    assert not any(f.requires_grad for f in figures.values())
    found = torch.autograd.grad(3 * loss, [*leaves.values(), support], materialize_grads=True)
    for a, b in zip(found, gradients, strict=True):
        assert torch.allclose(a, 3 * b, rtol=1e-10, atol=1e-12)
    assert gradients[-1].any() and not found[list(leaves).index("spare")].any()


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_bits_do_not_depend_on_the_number_of_workers(tasks: int) -> None:
    net, params, batch = meta_batch(tasks)
    torch.set_num_threads(1)  # one worker alone uses torch's own threads
    found = []
    for workers in (1, 2, 3, 7):
        leaves = leaves_of(params)
        loss, _ = over_tasks(one_task, net, leaves, batch, path="threads", workers=workers)
        found.append([loss.detach(), *torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    torch.set_num_threads(3)


def test_no_graph_of_any_task_is_kept() -> None:
    net, params, tasks = meta_batch()
    loss, _ = over_tasks(one_task, net, leaves_of(params), tasks, path="loop")
    assert loss.grad_fn is not None
    below = [node for node, _ in loss.grad_fn.next_functions if node is not None]
    assert below and all(type(node).__name__ == "AccumulateGrad" for node in below)


def test_a_second_derivative_of_the_outer_loss_is_refused() -> None:
    """It would be wrong in silence: the gradient is finished on the way forward."""
    net, params, tasks = meta_batch(2)
    leaves, scale = leaves_of(params), torch.ones((), dtype=torch.float64, requires_grad=True)
    loss, _ = over_tasks(one_task, net, leaves, tasks, path="loop")
    (slope,) = torch.autograd.grad(scale * loss, leaves["head.bias"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


@each_path
def test_without_anyone_asking_there_is_no_gradient(path: Path) -> None:
    net, params, tasks = meta_batch(2)
    loss, _ = over_tasks(one_task, net, params, tasks, path=path)
    assert not loss.requires_grad


def test_threads_work_side_by_side_each_on_a_net_of_its_own() -> None:
    net, params, tasks = meta_batch(3)
    together = threading.Barrier(3, timeout=20)
    nets: set[int] = set()

    def meets(net: nn.Module, params: Params, task: Any) -> tuple[Tensor, dict[str, Tensor]]:
        nets.add(id(net))
        together.wait()  # breaks unless three run at once
        return one_task(net, params, task)

    over_tasks(meets, net, leaves_of(params), tasks, path="threads")
    assert len(nets) == 3 and id(net) not in nets


@pytest.mark.parametrize("path", ["loop", "threads"])
def test_an_error_inside_a_task_comes_out(path: Path) -> None:
    net, params, tasks = meta_batch(3)

    def fails(net: nn.Module, params: Params, task: Any) -> tuple[Tensor, dict[str, Tensor]]:
        raise ValueError("this task is broken")

    with pytest.raises(ValueError, match="broken"):
        over_tasks(fails, net, leaves_of(params), tasks, path=path)


def test_the_net_and_the_parameters_stay_as_they_are() -> None:
    net, params, tasks = meta_batch(3)
    before = {k: v.clone() for k, v in (net.state_dict() | {f"p.{k}": v for k, v in params.items()}).items()}
    over_tasks(one_task, net, leaves_of(params), tasks, path="threads")
    after = net.state_dict() | {f"p.{k}": v for k, v in params.items()}
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_first_and_cores() -> None:
    _, _, tasks = meta_batch()
    task = first(tasks)
    assert torch.equal(task.query.x, tasks.query.x[0]) and task.ways == 3 and task.index is None
    assert available_cores() >= 1


@pytest.mark.parametrize(
    ("device", "tasks", "workers", "batchable", "path"),
    [
        ("cpu", 4, 2, True, "threads"),
        ("cpu", 4, 2, False, "threads"),
        ("cpu", 4, 1, True, "loop"),
        ("cpu", 1, 8, True, "loop"),
        ("cuda", 4, 1, True, "batched"),
        ("cuda:1", 4, 8, True, "batched"),
        ("cuda", 4, 8, False, "loop"),
        ("cuda", 1, 8, True, "loop"),
        ("mps", 4, 8, True, "loop"),
    ],
)
def test_the_path_chosen(device: str, tasks: int, workers: int, batchable: bool, path: Path) -> None:
    assert choose_path(torch.device(device), tasks, workers, batchable=batchable) == path


def test_auto_takes_the_path_chosen() -> None:
    net, params, tasks = meta_batch(3)
    names: set[str] = set()

    def watched(net: nn.Module, params: Params, task: Any) -> tuple[Tensor, dict[str, Tensor]]:
        names.add(threading.current_thread().name)
        return one_task(net, params, task)

    for workers, side_by_side in ((1, False), (2, True)):
        names.clear()
        over_tasks(watched, net, params, tasks, workers=workers)
        assert (threading.current_thread().name not in names) == side_by_side


@pytest.mark.parametrize("path", ["loop", "threads"])
def test_threads_inherit_mixed_precision(path: Path) -> None:
    net, params, tasks = nn.Linear(3, 3), params_of(nn.Linear(3, 3)), torch.rand(3, 2, 3)
    seen: set[torch.dtype] = set()

    def one_task(net: nn.Module, params: Params, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out = functional_call(net, params, (x,))
        seen.add(out.dtype)
        return out.float().mean(), {}

    with torch.autocast("cpu", dtype=torch.bfloat16):
        over_tasks(one_task, net, params, tasks, path=path)
    assert seen == {torch.bfloat16}


def test_a_workers_threads_are_its_own() -> None:
    """The count set inside a worker holds there alone; the caller's is the fixture's affair."""
    net, params, tasks = meta_batch(3)
    counts: list[int] = []

    def counting(net: nn.Module, params: Params, task: Any) -> tuple[Tensor, dict[str, Tensor]]:
        counts.append(torch.get_num_threads())
        return one_task(net, params, task)

    for path, expected in (("threads", 1), ("loop", 3)):
        counts.clear()
        over_tasks(counting, net, params, tasks, path=path)  # type: ignore[arg-type]
        assert counts == [expected] * 3


def test_parameters_are_shared_among_threads_and_buffers_are_not() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    parameters, buffers = {id(p) for p in net.parameters()}, {id(b) for b in net.buffers()}

    def one_task(net: nn.Module, params: Params, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert {id(p) for p in net.parameters()} == parameters
        assert not {id(b) for b in net.buffers()} & buffers
        return functional_call(net, params, (x,)).mean(), {}

    over_tasks(one_task, net, params_of(net), torch.rand(4, 5, 3), path="threads")
    assert int(net[1].num_batches_tracked) == 0


def test_where_gradients_are_switched_off_none_is_computed() -> None:
    net, params, tasks = meta_batch(2)
    leaves = leaves_of(params)
    seen: list[bool] = []

    def watched(net: nn.Module, params: Params, task: Any) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(any(p.requires_grad for p in params.values()))
        return one_task(net, params, task)

    with torch.no_grad():
        over_tasks(watched, net, leaves, tasks)
    assert seen == [False, False]


def test_an_empty_meta_batch_is_refused() -> None:
    net, params, tasks = meta_batch(2)
    empty = Task(Examples(tasks.support.x[:0], tasks.support.y), tasks.query, 3)
    with pytest.raises(ConfigError, match="at least one task"):
        over_tasks(one_task, net, params, empty)
