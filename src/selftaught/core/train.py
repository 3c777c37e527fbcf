"""The one training loop. Logging, saving and stopping live outside, around the iterator."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor, nn

from selftaught.core.distributed import Ranks, check_together
from selftaught.core.prefetch import draws
from selftaught.core.sharing import shared_by
from selftaught.core.types import Aux, Method, Optimizer, Params, State, Task, TaskSource


def start(method: Method, net: nn.Module, optimizer: Optimizer, seed: int) -> State:
    """The state before the first step. `net` holds the starting numbers."""
    params, slow = method.init(net)
    generator = torch.Generator().manual_seed(seed)
    return State(params, slow, optimizer.init(params), generator, 0)


def train(
    method: Method,
    net: nn.Module,
    source: TaskSource,
    optimizer: Optimizer,
    state: State,
    steps: int,
    prefetch: int = 0,
    ranks: Ranks | None = None,
) -> Iterator[tuple[State, dict[str, float]]]:
    """Yield the state and the log figures after every outer step, until `state.step` reaches `steps`.

    Continuing from a saved state gives the same bits as never having stopped: all randomness is in
    `state.generator`, which after step t is as the draw for step t left it, however many batches (`prefetch`) are
    drawn ahead in a thread meanwhile. Should a step fail, the state before it is still whole.

    Drawing ahead pays where a core is idle during a step. It is off by default, for on two cores with two task
    threads there is none: see `draws`.

    With `ranks` (of `core.distributed.joined`) the work of a step is shared with other processes that call this
    in the same way; all of them yield the same. Raises LostProcessError when one of them is gone, and RunError
    where they no longer agree.
    """
    with closing(draws(source, state.generator, max(0, steps - state.step), prefetch)) as batches:
        for tasks, generator in batches:
            with shared_by(ranks):
                state, aux = outer_step(method, net, optimizer, replace(state, generator=generator), tasks)
            if ranks is not None:
                check_together(ranks, state.step, aux.metrics["loss"])
            yield state, {k: float(v) for k, v in aux.metrics.items()}


def outer_step(
    method: Method, net: nn.Module, optimizer: Optimizer, state: State, tasks: Task
) -> tuple[State, Aux]:
    """One step of the outer loop on one meta-batch."""

    def loss(params: Params) -> tuple[Tensor, Aux]:
        return method.loss(net, params, state.slow, tasks)

    params, opt, aux = optimizer.step(loss, state.params, state.opt)
    slow = method.refresh(net, state.slow, params, tasks, aux)
    return State(params, slow, opt, state.generator, state.step + 1), aux
