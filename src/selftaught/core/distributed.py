"""Several processes of one run, as torchrun starts them: joining, sums in a fixed order, the loss of one of them.

Nothing here is pickled, and every sum is taken in the order of ranks, so that all processes hold the same bits.
Who shares which work is said in `core.sharing`.
"""

import atexit
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from selftaught.core.errors import ConfigError, RunError, SelftaughtError
from selftaught.core.types import Params, State

PATIENCE = 600.0
"""Seconds a process waits for the others, where SELFTAUGHT_PATIENCE does not say otherwise."""

_LOCAL = ("localhost", "127.0.0.1", "::1")


class LostProcessError(SelftaughtError):
    """Another process of the run ended, or does not answer."""

    exit_code = 8


@final
@dataclass(frozen=True)
class Ranks:
    """This process's number, from 0, and how many there are."""

    rank: int
    count: int

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files."""
        return self.rank == 0

    def rows(self, total: int) -> list[slice]:
        """Everybody's share of `total` rows, in the order of ranks; shares differ by one row at most."""
        cuts = [total * k // self.count for k in range(self.count + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(cuts)]

    def own(self, total: int) -> slice:
        """This process's share of `total` rows."""
        return self.rows(total)[self.rank]


@contextmanager
def joined(patience: float | None = None) -> Iterator[Ranks | None]:
    """The processes that torchrun started together with this one; None where this one is alone.

    They talk by gloo, and by NCCL where tensors are on GPUs. `patience` is how many seconds to wait for a process
    that does not answer. Raises ConfigError for an environment that is no number, LostProcessError where they
    do not come together. A process group that is there already is used, and the one made here stays until the
    program ends, so that a script may train several times: processes that leave one by one and meet again under
    the same address may find each other's old door.
    """
    ranks = _by_environment()
    if ranks is None:
        yield None
        return
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if os.environ.get("MASTER_ADDR") in _LOCAL:
        # The name of a machine without a network may lead nowhere.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    seconds = timedelta(seconds=_patience() if patience is None else patience)
    with _answering():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.count, timeout=seconds)
    atexit.register(_leave)
    yield ranks


def gathered(ranks: Ranks, x: Tensor) -> list[Tensor]:
    """`x` of every process, in the order of ranks; all have one shape. Raises LostProcessError."""
    x = x.detach().contiguous()
    found = [torch.empty_like(x) for _ in range(ranks.count)]
    with _answering():
        dist.all_gather(found, x)
    return found


def gathered_rows(ranks: Ranks, own: Tensor, total: int) -> Tensor:
    """[total ...] of everybody's shares `own`, as `Ranks.rows` cuts them. Raises LostProcessError."""
    shares = ranks.rows(total)
    most = max(s.stop - s.start for s in shares)
    padded = torch.cat([own, own.new_zeros((most - len(own), *own.shape[1:]))]) if len(own) < most else own
    parts = gathered(ranks, padded)
    return torch.cat([p[: s.stop - s.start] for p, s in zip(parts, shares, strict=True)])


def summed(ranks: Ranks, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each of `tensors` summed over processes, in the order of ranks. One message for each type of number."""
    found: list[Tensor] = list(tensors)
    for kind in dict.fromkeys((x.dtype, x.device) for x in tensors):
        places = [n for n, x in enumerate(tensors) if (x.dtype, x.device) == kind]
        first, *others = gathered(ranks, torch.cat([tensors[n].detach().flatten() for n in places]))
        for other in others:
            first += other
        parts = first.split([tensors[n].numel() for n in places])
        for n, part in zip(places, parts, strict=True):
            found[n] = part.view(tensors[n].shape)
    return found


def of_the_first(ranks: Ranks, state: State) -> State:
    """`state` as the first process has it. Raises RunError where another's has other tensors or another step."""
    moving = {f"{name}/{k}": v for name in ("params", "slow", "opt") for k, v in vars(state)[name].items()}
    shape = [float(state.step), float(len(moving)), float(sum(v.numel() for v in moving.values()))]
    if not _same(gathered(ranks, torch.tensor(shape, dtype=torch.float64))):
        raise RunError(
            "processes start from different states: let all of them see the same run folder, pictures and options"
        )
    held = {k: v.clone() for k, v in moving.items()} | {"generator": state.generator.get_state()}
    with _answering():
        for x in held.values():
            dist.broadcast(x, 0)
    generator = torch.Generator()
    generator.set_state(held["generator"])

    def part(name: str) -> Params:
        return {k: held[f"{name}/{k}"] for k in vars(state)[name]}

    return State(part("params"), part("slow"), part("opt"), generator, state.step)


def check_together(ranks: Ranks, step: int, loss: Tensor) -> None:
    """Raises RunError where processes are at different steps or losses, LostProcessError where one is gone.

    Losses may differ by rounding, which kernels on a GPU need not repeat.
    """
    found = torch.stack(gathered(ranks, torch.tensor([float(step), float(loss)], dtype=torch.float64)))
    if not torch.allclose(found, found[:1].expand_as(found), rtol=1e-3, atol=1e-6, equal_nan=True):
        raise RunError(
            f"processes have come apart: steps and losses {found.tolist()}. Let all of them have the same "
            "pictures, options, kind of processor and number of threads, and resume."
        )


def any_of(ranks: Ranks | None, flag: bool) -> bool:
    """Whether `flag` is set in any process. Raises LostProcessError."""
    return flag if ranks is None else any(bool(x) for x in gathered(ranks, torch.tensor([float(flag)])))


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _by_environment() -> Ranks | None:
    try:
        ranks = Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError as error:
        raise ConfigError(f"RANK and WORLD_SIZE are not whole numbers ({error}); let torchrun set them") from error
    return ranks if ranks.count > 1 else None


def _patience() -> float:
    text = os.environ.get("SELFTAUGHT_PATIENCE", "")
    try:
        return float(text) if text else PATIENCE
    except ValueError as error:
        raise ConfigError(f"SELFTAUGHT_PATIENCE={text!r} is no number of seconds") from error


def _same(found: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, found[0]) for x in found)


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(
            "another process of this run ended or does not answer; its own message says why. What was saved is "
            "whole: go on with --resume. (SELFTAUGHT_PATIENCE is how many seconds to wait.)"
        ) from error
