"""How to run a per-task objective on a whole meta-batch: one function, several paths, equal results.

Every path takes the gradient on the way forward and keeps only that. `loop` has the graph of one task alive at
a time, `threads` those of as many tasks as there are workers, `batched` those of all tasks, or of
`at_once`, in one `vmap`. On a CPU, `vmap` over convolutions is slower than the loop and needs several times
the memory; it pays on a GPU, and on a CPU where a task is small (a head on features).
"""

import copy
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from selftaught.core import distributed, sharing, vmap_norm
from selftaught.core.errors import ConfigError
from selftaught.core.memory import settle_thresholds
from selftaught.core.peak_bytes import PeakBytes
from selftaught.core.types import Params

Path = Literal["auto", "loop", "threads", "batched"]
OneTask = Callable[[nn.Module, Params, Any], tuple[Tensor, dict[str, Tensor]]]
"""(net, params, task) -> scalar loss and figures (of any shape) for one task, without the T axis."""

# By how much a task may need more in a `vmap` of two than in a `vmap` of one, where nothing is copied to
# stand once per task. Seen: 1.1 to 1.2.
_GROWTH = 1.5


def over_tasks(
    one_task: OneTask,
    net: nn.Module,
    params: Params,
    tasks: Any,
    *,
    path: Path = "auto",
    workers: int = 0,
    batchable: bool = True,
    at_once: int | None = None,
    memory_mib: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss and mean figures over the leading T axis of every tensor in `tasks` (any pytree).

    The gradient flows to `params` and to every floating tensor of `tasks` that asks for one, once: there is no
    second derivative of the mean. Sums are taken in task order. `workers` = 0 takes as many as torch has
    threads; two or more give the same bits, one keeps torch's own threads, whose sums may round otherwise.
    `batchable` = False keeps `path="auto"` from `vmap`.

    `at_once` bounds the number of tasks whose tensors are alive together, on every path. `memory_mib` bounds
    their bytes (MiB): the first task runs alone and is measured, and as many of the others run together
    as fit. The summed gradient, and kernels' own workspaces, come on top. Measuring makes the first
    task (batched: the first three) a few times slower; `at_once` costs nothing.

    Raises ConfigError for limits that cannot be kept (the message names the need of one task) and, on the batched
    path, for normalisation whose second derivative is not known to be right (see `core.vmap_norm`).
    """
    leaves, spec = tree_flatten(tasks)
    count = leaves[0].shape[0]
    if count < 1:
        raise ConfigError("a meta-batch needs at least one task: the leading axis of its tensors is empty")
    if (at_once is not None and at_once < 1) or (memory_mib is not None and memory_mib <= 0):
        raise ConfigError(
            f"at_once={at_once}, memory_mib={memory_mib}: give at least one task, and more than 0 MiB"
        )
    settle_thresholds()
    workers = workers or torch.get_num_threads()
    if path == "auto":
        device = next(iter(params.values()), leaves[0]).device
        path = choose_path(device, count, workers, batchable=batchable)
    if path == "batched":
        # One task alone needs no `vmap`, which would only make it slower.
        path = "loop" if count == 1 else path
        vmap_norm.check_modules(net)
    if vmap_norm.has_weight_norm(net):
        net = _skeleton_of_its_own(net)
        vmap_norm.write_out_weight_norm(net)
    limits = _Limits(min(at_once or count, count), memory_mib)
    run = _Runner(one_task, net, list(params), spec, path, workers, limits, torch.is_grad_enabled())
    loss, *figures = _TaskMean.apply(run, len(params), *params.values(), *leaves)
    return loss, dict(zip(run.figure_names, figures, strict=True))


def choose_path(
    device: torch.device, tasks: int, workers: int, *, batchable: bool = True
) -> Literal["loop", "threads", "batched"]:
    """What `path="auto"` means: CUDA `batched`, a CPU `threads`, and `loop` where there is nothing to share.

    `batchable` = False says that the tasks cannot run under `vmap` (graph="adjoint", for example).
    """
    if device.type == "cuda":
        return "batched" if batchable and tasks > 1 else "loop"
    return "threads" if device.type == "cpu" and min(tasks, workers) > 1 else "loop"


@final
@dataclass(frozen=True)
class _Limits:
    """How many tasks may be alive together, and how many MiB they may need (None: any)."""

    at_once: int
    memory_mib: float | None


@final
@dataclass(frozen=True)
class _Share:
    """What some tasks gave: their losses and figures [c], and the gradients their sum asked for.

    Gradients of parameters are summed over `span`; those of task tensors have its tasks as leading axis.
    """

    span: slice
    losses: Tensor
    figures: dict[str, Tensor]
    grads: Sequence[Tensor | None]


Compute = Callable[[nn.Module, slice], _Share]


@final
@dataclass
class _Runner:
    """Runs every task and hands out losses, figures and gradients in task order."""

    one_task: OneTask
    net: nn.Module
    names: list[str]
    spec: Any
    path: Path
    workers: int
    limits: _Limits
    differentiate: bool

    def __post_init__(self) -> None:
        self.figure_names: list[str] = []
        self.norms = vmap_norm.has_norms(self.net)

    def shares(self, values: Sequence[Tensor], leaves: Sequence[Tensor], want: list[bool]) -> Iterator[_Share]:
        """Every task once, with no more of them alive together than the limits allow."""

        def compute(net: nn.Module, span: slice) -> _Share:
            return self._share(net, values, leaves, want, span)

        count, start, at_once = leaves[0].shape[0], 0, self.limits.at_once
        if self.limits.memory_mib is not None:
            at_once, measured = self._measured(compute, count, self.limits.memory_mib)
            yield from measured
            start = measured[-1].span.stop
        workers = min(self.workers, at_once, count - start)
        if self.path == "threads" and workers > 1:
            yield from _side_by_side(compute, self.net, range(start, count), workers)
            return
        step = at_once if self.path == "batched" else 1
        for i in range(start, count, step):
            yield compute(self.net, slice(i, min(i + step, count)))

    def _measured(self, compute: Compute, count: int, limit: float) -> tuple[int, list[_Share]]:
        """How many tasks may be alive together by what the first ones needed, and what these gave."""
        need, first_share = _peak_mib(compute, self.net, slice(0, 1))
        if need > limit:
            raise ConfigError(
                f"one task needs {need:.2f} MiB, more than memory_mib={limit:g}: raise it, or take smaller "
                "pictures, fewer queries, fewer inner steps or graph='adjoint'"
            )
        if self.path != "batched":
            return self._fitting(limit / need), [first_share]
        fitting = self._fitting(limit / (_GROWTH * need))
        if fitting < 2 or count < 3:
            return fitting, [first_share]
        both, more = _peak_mib(compute, self.net, slice(1, 3))
        return self._fitting(limit / max(need, both / 2)), [first_share, more]

    def _fitting(self, tasks: float) -> int:
        return max(1, min(self.limits.at_once, int(tasks)))

    def _share(
        self, net: nn.Module, values: Sequence[Tensor], leaves: Sequence[Tensor], want: list[bool], span: slice
    ) -> _Share:
        cut = [x[span] if self.path == "batched" else x[span.start] for x in leaves]
        inputs = [v.detach().requires_grad_(w) for v, w in zip([*values, *cut], want, strict=True)]
        params = dict(zip(self.names, inputs[: len(values)], strict=True))
        tasks = tree_unflatten(inputs[len(values) :], self.spec)
        with torch.enable_grad():
            losses, figures = self._call(net, params, tasks)
            total = losses.sum()
        asked = [x for x, w in zip(inputs, want, strict=True) if w] if total.requires_grad else []
        found = iter(torch.autograd.grad(total, asked, allow_unused=True) if asked else ())
        self.figure_names = list(figures)
        grads = [next(found, None) if w else None for w in want]
        return _Share(span, losses.detach(), {k: f.detach() for k, f in figures.items()}, grads)

    def _call(self, net: nn.Module, params: Params, tasks: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses and figures with a leading axis, of one task or of a chunk."""
        if self.path != "batched":
            loss, figures = self.one_task(net, params, tasks)
            return loss[None], {k: f[None] for k, f in figures.items()}
        together = torch.func.vmap(lambda task: self.one_task(net, params, task))
        if not self.norms:
            losses, figures = together(tasks)
            if not vmap_norm.calls_norms(losses):
                return losses, figures
            # A normalisation that is no module of torch's: once more, in the right way.
            del losses, figures
            self.norms = True
        with vmap_norm.BatchedNorms():
            return together(tasks)


def _peak_mib(compute: Compute, net: nn.Module, span: slice) -> tuple[float, _Share]:
    with PeakBytes() as bytes_alive:
        share = compute(net, span)
    return bytes_alive.peak / 2**20, share


def _side_by_side(compute: Compute, net: nn.Module, indices: range, workers: int) -> Iterator[_Share]:
    """One task for each worker thread at a time; results come in task order, so sums do too."""
    threads = torch.get_num_threads()
    nets: SimpleQueue[nn.Module] = SimpleQueue()
    for _ in range(workers):
        nets.put(_skeleton_of_its_own(net))
    entered = _mixed_precision()

    def one(i: int) -> _Share:
        # One intra-op thread per worker: two levels of threads on small convolutions fight for the cores.
        # In effect it counts for this thread alone, but threads that start later take it over.
        torch.set_num_threads(1)
        own = nets.get()
        try:
            with entered():
                return compute(own, slice(i, i + 1))
        finally:
            nets.put(own)

    waiting: deque[Future[_Share]] = deque()
    try:
        with ThreadPoolExecutor(workers) as pool:
            for i in indices:
                # One more than can run, so that nobody idles; finished ones hold gradients only.
                if len(waiting) > workers:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(one, i))
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)


def _skeleton_of_its_own(net: nn.Module) -> nn.Module:
    """A copy for one thread, since `functional_call` swaps tensors on the module while it runs.

    Parameters are shared (they are swapped, never written to), as are tensors computed from them that old
    hooks leave on a module; buffers and everything else are copied.
    """
    left = (
        x for module in net.modules() for x in vars(module).values() if isinstance(x, Tensor) and not x.is_leaf
    )
    return copy.deepcopy(net, {id(x): x for x in [*net.parameters(), *left]})


def _mixed_precision() -> Callable[[], AbstractContextManager[Any]]:
    """Enters the caller's autocast state, which a new thread does not know."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    types = {kind: torch.get_autocast_dtype(kind) for kind in kinds}

    def entered() -> AbstractContextManager[Any]:
        stack = ExitStack()
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, dtype=types[kind]))
        return stack

    return entered


class _TaskMean(torch.autograd.Function):
    """A mean over tasks whose gradient is computed on the way forward."""

    @staticmethod
    def forward(ctx: Any, run: _Runner, n_params: int, *inputs: Tensor) -> Any:
        want = [bool(x) and run.differentiate for x in ctx.needs_input_grad[2:]]
        count, ranks = inputs[n_params].shape[0], sharing.current()
        ranks = None if ranks is None or count < ranks.count else ranks
        own = slice(None) if ranks is None else ranks.own(count)
        inputs = (*inputs[:n_params], *(x[own] for x in inputs[n_params:]))
        sums = [
            _Sum(x, of_params=i < n_params) if w else None
            for i, (x, w) in enumerate(zip(inputs, want, strict=True))
        ]
        losses: list[Tensor] = []
        figures: list[dict[str, Tensor]] = []
        # Within a task nothing is shared: other processes are at other tasks.
        with sharing.shared_by(None):
            for share in run.shares(inputs[:n_params], inputs[n_params:], want):
                losses.append(share.losses)
                figures.append(share.figures)
                for total, grad in zip(sums, share.grads, strict=True):
                    if total is not None and grad is not None:
                        total.add(share.span, grad)
        per_task = [torch.cat(losses), *(torch.cat([f[k] for f in figures]) for k in run.figure_names)]
        grads = [None if s is None else s.over(count) for s in sums]
        if ranks is not None:
            per_task = [distributed.gathered_rows(ranks, x, count) for x in per_task]
            grads = _everybodys(ranks, grads, n_params, count)
        ctx.grads = grads
        loss, *rest = per_task
        means = [x.mean(0) for x in rest]
        ctx.mark_non_differentiable(*means)
        return (loss.mean(), *means)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> Any:
        return (None, None, *(None if g is None else g * grad for g in ctx.grads))


def _everybodys(
    ranks: distributed.Ranks, grads: Sequence[Tensor | None], n_params: int, count: int
) -> list[Tensor | None]:
    """Gradients of parameters summed over processes; those of task tensors with the tasks of all of them."""
    found = list(grads)
    moving = [i for i in range(n_params) if grads[i] is not None]
    for i, total in zip(
        moving, distributed.summed(ranks, [g for g in grads[:n_params] if g is not None]), strict=True
    ):
        found[i] = total
    for i, g in enumerate(grads[n_params:], n_params):
        found[i] = None if g is None else distributed.gathered_rows(ranks, g, count)
    return found


@final
class _Sum:
    """The gradient of one input so far: a running sum for a parameter, row by row for a tensor of the tasks."""

    def __init__(self, x: Tensor, of_params: bool) -> None:
        self._x = x
        self._of_params = of_params
        self._total: Tensor | None = None

    def add(self, span: slice, grad: Tensor) -> None:
        if not self._of_params:
            self._total = torch.zeros_like(self._x) if self._total is None else self._total
            self._total[span] = grad
        elif self._total is None:
            # A copy: gradients can share memory with each other.
            self._total = grad.clone()
        else:
            self._total += grad

    def over(self, count: int) -> Tensor:
        """The gradient of the mean; zeros where no task knew the input."""
        return torch.zeros_like(self._x) if self._total is None else self._total.div_(count)


def first(tasks: Any) -> Any:
    """The first task of a meta-batch."""
    return tree_map(lambda x: x[0], tasks)


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
