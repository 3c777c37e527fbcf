"""Work shared by the processes of a run, so that values and gradients are those of one process with all of it.

Every process holds the same parameters and draws the same tasks. Two kinds of work are divided: pictures that go
through a network in one pass (`in_shares`, which `core.functional` uses), each process taking a part of the rows;
and the tasks of a meta-batch (`core.over_tasks`). All else, the loss on everybody's embeddings above all, is
computed by each process for itself (or, a sum over many rows, by `sum_in_shares`). So no method knows of
processes, and no gradient has to be averaged.

What makes this exact are two pairs of functions, each the other's derivative, so that derivatives of any order are
right (the pairs are those of Shoeybi et al. 2019, "Megatron-LM", arXiv 1909.08053, section 3, where they divide
matrices):

    copied: identity, backwards a sum over processes      summed: a sum over processes, backwards the identity
    own rows: a part of the rows, backwards all of them   all rows: everybody's parts, backwards the own part

Batch normalisation takes its statistics over the rows of all processes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from selftaught.core import distributed
from selftaught.core.distributed import Ranks
from selftaught.core.errors import ConfigError
from selftaught.core.types import Params

_CURRENT: ContextVar[Ranks | None] = ContextVar("selftaught-ranks", default=None)


def current() -> Ranks | None:
    """The processes that share the work of this thread at the moment; None: it does all itself."""
    return _CURRENT.get()


@contextmanager
def shared_by(ranks: Ranks | None) -> Iterator[None]:
    """Meanwhile work of this thread is shared by `ranks`; None ends sharing within."""
    before = _CURRENT.set(ranks)
    try:
        yield
    finally:
        _CURRENT.reset(before)


def in_shares(f: Callable[[Params, Tensor], Tensor], params: Params, x: Tensor) -> Tensor:
    """`f(params, x)` [B ...] of rows `x` [B ...], each process computing its part and all having the result.

    `f` must treat rows apart from each other, but for batch normalisation. Fewer rows than processes are computed
    by each. Raises ConfigError where what comes out is not one row for each that went in.
    """
    ranks = current()
    if ranks is None or len(x) < ranks.count or torch._C._are_functorch_transforms_active():
        return f(params, x)
    own = ranks.own(len(x))
    rows = _OwnRows.apply(ranks, x) if x.requires_grad else x[own]
    with SharedNorms(ranks):
        z = f(_copied(ranks, params), rows)
    if not isinstance(z, Tensor) or len(z) != own.stop - own.start:
        raise ConfigError(
            "this network does not give one row for each row: several processes cannot share it; train it in one"
        )
    return _AllRows.apply(ranks, len(x), z)


def sum_in_shares(f: Callable[..., Tensor], total: int, *tensors: Tensor) -> Tensor:
    """`f(rows, *tensors)`, a sum over `total` rows, of which each process adds up its own slice `rows`."""
    ranks = current()
    if ranks is None or total < ranks.count or torch._C._are_functorch_transforms_active():
        return f(slice(0, total), *tensors)
    return _Summed.apply(ranks, f(ranks.own(total), *_Copied.apply(ranks, *tensors)))


@final
class SharedNorms(TorchFunctionMode):
    """While it is entered, on this thread, `F.batch_norm` takes the statistics of everybody's rows together."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return _batch_norm(self._ranks, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    ranks: Ranks,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As torch's of this name; the names of the arguments are torch's."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
    axes, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
    count = torch.full((1,), float(x.numel() // x.shape[1]), dtype=x.dtype, device=x.device)
    total = _everyones(ranks, torch.cat([x.sum(axes), count]))
    mean, n = total[:-1] / total[-1], total[-1]
    centred = x - mean.view(shape)
    # Twice through the rows: a sum of squares alone would lose digits where the mean is far from 0.
    variance = _everyones(ranks, centred.square().sum(axes)) / n
    out = centred * (variance + eps).rsqrt().view(shape)
    out = out if weight is None else out * weight.view(shape)
    out = out if bias is None else out + bias.view(shape)
    with torch.no_grad():
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((variance * n / (n - 1)).to(running_var), momentum)
    return out.to(input.dtype)


def _everyones(ranks: Ranks, x: Tensor) -> Tensor:
    """The sum over processes, to be used by each for its own rows."""
    return _Copied.apply(ranks, _Summed.apply(ranks, x))[0]


def _copied(ranks: Ranks, params: Params) -> Params:
    moving = [k for k, v in params.items() if v.requires_grad]
    if not moving or not torch.is_grad_enabled():
        return params
    return params | dict(zip(moving, _Copied.apply(ranks, *(params[k] for k in moving)), strict=True))


class _Copied(torch.autograd.Function):
    """The tensors themselves; backwards the sum over processes of what each found."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *tensors: Tensor) -> Any:
        ctx.ranks = ranks
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        found = _Summed.apply(ctx.ranks, *grads)
        return (None, *(found if isinstance(found, tuple) else (found,)))


class _Summed(torch.autograd.Function):
    """The sums over processes (a tensor for one, else a tuple); backwards, all having it, the gradient itself."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *tensors: Tensor) -> Any:
        ctx.ranks = ranks
        found = distributed.summed(ranks, tensors)
        return found[0] if len(found) == 1 else tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (None, *_Copied.apply(ctx.ranks, *grads))


class _OwnRows(torch.autograd.Function):
    """This process's part of the rows; backwards everybody's."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, x: Tensor) -> Tensor:
        ctx.ranks, ctx.total = ranks, len(x)
        return x[ranks.own(len(x))]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, _AllRows.apply(ctx.ranks, ctx.total, grads[0])


class _AllRows(torch.autograd.Function):
    """Everybody's rows; backwards, all having the whole gradient, this process's part of it."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, total: int, own: Tensor) -> Tensor:
        ctx.ranks = ranks
        return distributed.gathered_rows(ranks, own.detach(), total)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, _OwnRows.apply(ctx.ranks, grads[0])
