"""What a trained encoder must beat: the pixels themselves, and the same network before any training."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught.core.errors import DataError
from selftaught.core.functional import apply_update, buffers_of, in_batches, params_of, to_float
from selftaught.core.types import Params, merged


def raw_pixels(x: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B CHW"]:
    """The pictures as features, in 0..1."""
    if x.ndim != 4:
        raise DataError(f"need pictures [B C H W], got {list(x.shape)}")
    return to_float(x).flatten(1)


@dataclass(frozen=True)
class Untrained:
    """`features` [B D] of a network with fresh weights; `norm` says where its statistics come from.

    `norm` is "training pictures" where batch normalisation was estimated from them (no label, no gradient),
    "none" where the network has no batch normalisation.
    """

    features: Float[Tensor, "B D"]
    norm: str


def untrained_features(
    build: Callable[[], nn.Module],
    train: UInt8[Tensor, "n C H W"],
    x: UInt8[Tensor, "B C H W"],
    seed: int = 0,
    batch: int = 256,
) -> Untrained:
    """Features of `build()`, started under `seed`; the caller's random state is left as it was.

    It takes the recipe of a network, not a network, so that its own way to start is used. Batch normalisation
    without any statistics would be an unfair baseline: they are estimated from `train`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build()
    weights = merged(params_of(net), buffers_of(net))
    normed = any(isinstance(m, _BatchNorm) for m in net.modules())
    if normed:
        weights = merged(weights, estimated_statistics(net, weights, train, batch))
    return Untrained(in_batches(net, weights, x, batch), "training pictures" if normed else "none")


@torch.no_grad()
def estimated_statistics(net: nn.Module, weights: Params, x: Tensor, batch: int = 256) -> Params:
    """The buffers of `net` with normalisation statistics averaged over batches of pictures [B C H W].

    A last, smaller batch is left out. Raises DataError where there are fewer than two pictures.
    """
    if len(x) < 2:
        raise DataError(f"normalisation statistics need two or more pictures, got {len(x)}")
    names = dict(net.named_buffers())
    params = {k: v for k, v in weights.items() if k not in names}
    whole = len(x) // batch
    parts = [x] if whole == 0 else list(x[: whole * batch].split(batch))
    start = {k: torch.zeros_like(weights[k]) if _is_statistic(k) else weights[k] for k in names}
    kept = [(m, m.momentum) for m in net.modules() if isinstance(m, _BatchNorm)]
    try:
        for module, _ in kept:
            module.momentum = None  # torch then takes the plain average of all batches
        step = partial(apply_update, net, params)
        for pictures in parts:
            _, start = step(start, to_float(pictures))
    finally:
        for module, momentum in kept:
            module.momentum = momentum
    return start


def _is_statistic(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in ("running_mean", "running_var", "num_batches_tracked")
