"""Named limits on the tasks alive together: kept on every path, without changing a result. Bytes are counted."""

import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from selftaught.core.errors import ConfigError
from selftaught.core.functional import params_of
from selftaught.core.over_tasks import Path, over_tasks
from selftaught.core.peak_bytes import PeakBytes
from selftaught.core.types import Params

PARAMETER_BYTES = 8 * (50 * 40 + 40 + 40 * 3 + 3)


def step(tasks: int, widths: list[int], **how: Any) -> list[Tensor]:
    """Loss, figure and gradients of one second-order step on small tasks; `widths` gets the tasks in each call."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(50, 40), nn.Tanh(), nn.Linear(40, 3)).double()
    leaves = {k: v.requires_grad_() for k, v in params_of(net).items()}
    x = torch.rand(tasks, 60, 50, dtype=torch.float64)
    offset = torch.rand(tasks, 3, dtype=torch.float64, requires_grad=True)

    def one_task(net: nn.Module, params: Params, task: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        def inner(w: Params) -> Tensor:
            return (functional_call(net, w, (task[0],)) - task[1]).square().mean()

        slope = torch.func.grad(inner)(params)
        widths.append(torch._C._functorch.get_unwrapped(task[0]).shape[0] if how["path"] == "batched" else 1)
        loss = inner({k: v - 0.3 * slope[k] for k, v in params.items()})
        return loss, {"twice": 2 * loss}

    loss, figures = over_tasks(one_task, net, leaves, (x, offset), **how)
    return [loss.detach(), figures["twice"], *torch.autograd.grad(loss, [*leaves.values(), offset])]


def peak_and_width(tasks: int, **how: Any) -> tuple[int, int]:
    """Bytes of tensors alive at once in one meta-step, and the largest number of tasks in one call."""
    widths: list[int] = []
    with PeakBytes() as alive:
        step(tasks, widths, **how)
    return alive.peak - 8 * tasks * 60 * 50, max(widths)  # The pictures are made inside.


LIMITS: list[dict[str, Any]] = [
    {"path": "loop", "at_once": 1},
    {"path": "loop", "memory_mib": 100.0},
    {"path": "threads", "at_once": 2},
    {"path": "threads", "memory_mib": 100.0},
    {"path": "batched", "at_once": 1},
    {"path": "batched", "at_once": 2},
    {"path": "batched", "at_once": 4},
    {"path": "batched", "at_once": 99},
    {"path": "batched", "memory_mib": 100.0},
    {"path": "batched", "memory_mib": 100.0, "at_once": 2},
]


@pytest.mark.parametrize("how", LIMITS, ids=str)
def test_limits_do_not_change_results(how: dict[str, Any]) -> None:
    expected, found = step(5, [], path=how["path"], workers=3), step(5, [], **{"workers": 3} | how)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("how", [{"path": "loop"}, {"path": "batched", "at_once": 2}], ids=str)
def test_memory_does_not_grow_with_the_tasks(how: dict[str, Any]) -> None:
    assert peak_and_width(64, **how)[0] < 1.02 * peak_and_width(4, **how)[0]
    assert peak_and_width(64, path="batched")[0] > 10 * peak_and_width(4, path="batched")[0], (
        "or the count sees nothing"
    )


@pytest.mark.parametrize(("tasks", "room"), [(4, 1.2), (4, 9.0), (64, 1.9), (64, 9.0)])
def test_a_memory_limit_is_kept_and_used(tasks: int, room: float) -> None:
    """`room` in tasks; the summed gradient, as large as the parameters, is on top."""
    limit = room * peak_and_width(2, path="batched", at_once=1)[0]
    peak, width = peak_and_width(tasks, path="batched", memory_mib=limit / 2**20)
    assert peak <= limit + 3 * PARAMETER_BYTES
    assert width >= min(tasks - 3, int(0.6 * room)), "much fewer tasks run together than there is room for"


def test_no_more_tasks_are_alive_than_allowed_over_threads() -> None:
    """A task is alive until its graph is gone; none of 64 outlives the call."""
    lock, alive, most = threading.Lock(), 0, 0

    class Lives(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)
            weakref.finalize(ctx, gone)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    def gone() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def one_task(net: nn.Module, params: Params, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return functional_call(net, params, (Lives.apply(x),)).square().mean(), {}

    net = nn.Linear(5, 5)
    x = torch.rand(64, 4, 5, requires_grad=True)
    for at_once, workers in ((2, 7), (7, 3)):
        most = 0
        over_tasks(one_task, net, params_of(net), x, path="threads", workers=workers, at_once=at_once)
        assert 1 <= most <= min(at_once, workers)
        assert alive == 0


@pytest.mark.parametrize("path", ["loop", "threads", "batched"])
def test_a_limit_below_one_task_names_its_need(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one task needs 0\.\d\d MiB, more than memory_mib=0.01") as error:
        peak_and_width(4, path=path, memory_mib=0.01)
    need = float(str(error.value).split()[3])
    assert peak_and_width(4, path=path, memory_mib=need + 0.01)[1] == 1


@pytest.mark.parametrize("limits", [{"at_once": 0}, {"memory_mib": 0.0}, {"memory_mib": -1.0}])
def test_limits_without_sense_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="at least one task"):
        step(2, [], path="loop", **limits)


def test_peak_bytes_counts_storages_while_they_live() -> None:
    before = torch.zeros(1000)
    with PeakBytes() as alive:
        before[1:].add_(1)  # What was there does not count, nor a view of it.
        assert alive.now == 0
        x = torch.ones(1000)
        y = x.view(10, 100) * 2
        assert alive.now == 8000
        z = x.exp().requires_grad_().exp()  # Kept for its own backward pass.
        kept = (z * y.flatten()).sum()
        del x, y
        assert 12000 <= alive.now < 20100
        del z
        assert alive.now >= 8000
        del kept
        assert alive.now == 0
        assert 16000 <= alive.peak < 24100
