"""How to run a per-task objective on a whole meta-batch: one function, several paths, equal results.

`loop` and `threads` take one task at a time and keep only its gradient, so memory does not grow with the
number of tasks. `batched` is one `vmap` whose graph stays; it is the fast path where a task is small (a head
on features). On a CPU, `vmap` over convolutions is slower than the loop and needs many times the memory, and
a gradient taken outside `vmap` through training-mode batch normalisation is wrong at second order (torch
2.13), so `batched` refuses batch normalisation.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from selftaught.core.errors import ConfigError
from selftaught.core.functional import private_copy
from selftaught.core.types import Params

Path = Literal["loop", "threads", "batched"]
OneTask = Callable[[nn.Module, Params, Any], tuple[Tensor, dict[str, Tensor]]]
"""(net, params, task) -> scalar loss and scalar figures for one task, without the T axis."""


def over_tasks(
    one_task: OneTask, net: nn.Module, params: Params, tasks: Any, *, path: Path = "threads", workers: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss and mean figures over the leading T axis of every tensor in `tasks` (any pytree).

    The gradient flows to `params` and to every floating tensor of `tasks` that asks for one. `workers` = 0
    takes as many as torch has threads. Results are summed in task order, so two workers or more give the same
    bits; one worker keeps torch's own threads, whose sums may round otherwise.
    """
    if path == "batched":
        return _batched(one_task, net, params, tasks)
    leaves, spec = tree_flatten(tasks)
    count = leaves[0].shape[0]
    workers = 1 if path == "loop" else min(count, workers or torch.get_num_threads())
    names = list(params)
    run = _Runner(one_task, net, names, spec, workers)
    loss, *figures = _TaskMean.apply(run, len(names), *params.values(), *leaves)
    return loss, dict(zip(run.figure_names, figures, strict=True))


def _batched(one_task: OneTask, net: nn.Module, params: Params, tasks: Any) -> tuple[Tensor, dict[str, Tensor]]:
    if any(isinstance(m, _BatchNorm) for m in net.modules()):
        raise ConfigError(
            "batched tasks through batch normalisation give a wrong second-order gradient: "
            "use path='threads', or a network with group normalisation"
        )
    losses, figures = torch.func.vmap(lambda task: one_task(net, params, task))(tasks)
    return losses.mean(), {k: v.detach().mean() for k, v in figures.items()}


class _Runner:
    """Runs every task and returns loss, figures and gradients, on one thread or several."""

    def __init__(self, one_task: OneTask, net: nn.Module, names: list[str], spec: Any, workers: int) -> None:
        self.one_task = one_task
        self.nets = [net] if workers == 1 else [private_copy(net) for _ in range(workers)]
        self.names = names
        self.spec = spec
        self.figure_names: list[str] = []

    def __call__(self, values: Sequence[Tensor], leaves: Sequence[Tensor], want: list[bool]) -> list[Any]:
        count = leaves[0].shape[0]
        if len(self.nets) == 1:
            return [self._one(self.nets[0], values, [x[i] for x in leaves], want) for i in range(count)]
        threads = torch.get_num_threads()

        def share(worker: int) -> list[Any]:
            # One intra-op thread per worker: two levels of threads on small convolutions fight for the cores.
            torch.set_num_threads(1)
            return [
                self._one(self.nets[worker], values, [x[i] for x in leaves], want)
                for i in range(worker, count, len(self.nets))
            ]

        try:
            with ThreadPoolExecutor(len(self.nets)) as pool:
                shares = list(pool.map(share, range(len(self.nets))))
        finally:
            torch.set_num_threads(threads)
        return [shares[i % len(self.nets)][i // len(self.nets)] for i in range(count)]

    def _one(self, net: nn.Module, values: Sequence[Tensor], leaves: Sequence[Tensor], want: list[bool]) -> Any:
        inputs = [v.detach().requires_grad_(w) for v, w in zip([*values, *leaves], want, strict=True)]
        params = dict(zip(self.names, inputs[: len(values)], strict=True))
        task = tree_unflatten(inputs[len(values) :], self.spec)
        with torch.enable_grad():
            loss, figures = self.one_task(net, params, task)
        self.figure_names = list(figures)
        asked = [x for x, w in zip(inputs, want, strict=True) if w]
        grads = list(torch.autograd.grad(loss, asked, allow_unused=True)) if asked else []
        return loss.detach(), [f.detach() for f in figures.values()], grads


class _TaskMean(torch.autograd.Function):
    """A mean over tasks whose gradient is computed on the way forward, task by task."""

    @staticmethod
    def forward(ctx: Any, run: _Runner, n_params: int, *inputs: Tensor) -> Any:
        want = [bool(x) for x in ctx.needs_input_grad[2:]]
        results = run(inputs[:n_params], inputs[n_params:], want)
        count = len(results)
        ctx.grads = _collect([r[2] for r in results], want, n_params, inputs, count)
        losses = torch.stack([r[0] for r in results])
        figures = [torch.stack(f).mean() for f in zip(*(r[1] for r in results), strict=True)]
        ctx.mark_non_differentiable(*figures)
        return (losses.mean(), *figures)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> Any:
        return (None, None, *(None if g is None else g * grad for g in ctx.grads))


def _collect(
    per_task: list[list[Tensor | None]], want: list[bool], n_params: int, inputs: Sequence[Tensor], count: int
) -> list[Tensor | None]:
    """Sum the parameters' gradients in task order; stack those of the task tensors."""
    out: list[Tensor | None] = []
    asked = 0
    for position, wanted in enumerate(want):
        if not wanted:
            out.append(None)
            continue
        own = [torch.zeros_like(_slice(inputs[position], position, n_params)) if g[asked] is None else g[asked]
               for g in per_task]  # fmt: skip
        asked += 1
        total = torch.stack([g for g in own if g is not None])
        out.append((total.sum(0) if position < n_params else total) / count)
    return out


def _slice(x: Tensor, position: int, n_params: int) -> Tensor:
    return x if position < n_params else x[0]


def first(tasks: Any) -> Any:
    """The first task of a meta-batch."""
    return tree_map(lambda x: x[0], tasks)


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
