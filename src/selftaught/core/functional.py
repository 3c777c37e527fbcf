"""Networks as functions of named tensors, with the treatment of normalisation statistics always by name."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught.core.sharing import in_shares
from selftaught.core.types import Params

Norm = Literal["running", "batch", "update"]
"""Which statistics batch normalisation uses in one call.

`running`: those learned in training (inductive). `batch`: those of the batch at hand, and nothing is
remembered. `update`: those of the batch, and the running averages move towards them.
Group and layer normalisation are the same under all three.
"""


def params_of(net: nn.Module) -> Params:
    """A detached copy of the trainable tensors."""
    return {k: v.detach().clone() for k, v in net.named_parameters()}


def buffers_of(net: nn.Module) -> Params:
    """A copy of the buffers (normalisation statistics)."""
    return {k: v.detach().clone() for k, v in net.named_buffers()}


def set_norm(net: nn.Module, norm: Norm) -> None:
    """Put every batch normalisation of `net` into the named mode, and everything else (dropout) to rest."""
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.training = norm != "running"
            # With statistics kept but not tracked, torch normalises by the batch and leaves them alone.
            module.track_running_stats = norm != "batch"
        else:
            module.training = False


def apply(net: nn.Module, weights: Params, x: Tensor, norm: Literal["running", "batch"] = "running") -> Tensor:
    """`net(x)` with `weights` in place of its own numbers; no tensor of `weights` is changed.

    `weights` holds parameters and, for `running`, buffers. Raises ValueError for norm="update", which would
    move the statistics inside `weights`: `apply_update` hands back moved copies.
    """
    if norm not in ("running", "batch"):
        raise ValueError(f"apply takes norm='running' or 'batch', got {norm!r}; use apply_update")
    set_norm(net, norm)
    if norm == "batch":
        return in_shares(lambda w, rows: functional_call(net, w, (rows,)), weights, x)
    return functional_call(net, weights, (x,))


def apply_update(net: nn.Module, params: Params, buffers: Params, x: Tensor) -> tuple[Tensor, Params]:
    """`net(x)` normalised by the batch, and the running statistics after it (the old ones are kept).

    Where several processes share the work, this pass is divided among them (`core.sharing`), as is `apply` by
    the batch's statistics.
    """
    moved = {k: v.detach().clone() for k, v in buffers.items()}
    set_norm(net, "update")
    return in_shares(lambda w, rows: functional_call(net, {**w, **moved}, (rows,)), params, x), moved


def part(weights: Params, prefix: str) -> Params:
    """The tensors below `prefix` + '.', with the prefix taken off."""
    cut = prefix + "."
    return {k[len(cut) :]: v for k, v in weights.items() if k.startswith(cut)}


def prefixed(prefix: str, weights: Params) -> Params:
    """Every name with `prefix` + '.' before it; the inverse of `part`."""
    return {f"{prefix}.{k}": v for k, v in weights.items()}


_PIXELS = 512 * 84 * 84
"""That `in_batches` puts through a network at a time."""


@torch.no_grad()
def in_batches(net: nn.Module, weights: Params, x: Tensor, batch: int | None = None) -> Tensor:
    """`net(x)` [B D] for pictures [B C H W], uint8 (scaled to 0..1) or float, with running statistics.

    `batch` pictures at a time; by default 512 of up to 84 x 84 pixels, fewer of larger ones, as a layer's output
    for 512 of 224 x 224 takes gigabytes.
    """
    if batch is None:
        batch = max(1, min(512, _PIXELS * x.shape[1] // max(1, x[:1].numel()))) if x.ndim == 4 else 512
    out = [apply(net, weights, to_float(x[i : i + batch])) for i in range(0, len(x), batch)]
    return torch.cat(out)


def to_float(x: Tensor) -> Tensor:
    """uint8 pictures as float32 in 0..1; float pictures as they are."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x
