"""Conv4's forward and backward pass put together from the closed-form blocks of `conv4_calculus.py`.

`train_step_features` is what Conv4 runs in a plain training step on pictures of one channel on a CPU: the same
function, the same gradient and the same moved averages, faster than operation by operation. Where that gradient is
differentiated again, autograd gets the operations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core import sharing
from selftaught.core.types import Params
from selftaught.nets.conv4_calculus import (
    Block,
    Maps,
    Normed,
    Patches,
    Slope,
    Stem,
    block,
    block_back,
    patches,
    stem,
    stem_back,
    total,
)

DEPTH = 4


@dataclass(frozen=True)
class Encoded:
    """What the encoder's forward pass leaves: features [B D], the stem of every part, and every block."""

    features: Tensor
    stem: list[Stem]
    blocks: list[Block]
    signs: dict[int, Tensor]


@dataclass(frozen=True)
class Slopes:
    """What the way back leaves for a Hessian-vector product; each part has a slope of the stem; blocks have dz."""

    stem: list[Slope]
    blocks: list[Slope]
    dz: list[Maps]


@dataclass(frozen=True)
class ClosedEncoder:
    """Features of pictures as a function of named weights, normalised by their own batch."""

    patches: tuple[Patches, ...]
    eps: tuple[float, ...]
    mean_readout: bool

    def forward(self, weights: Params) -> Encoded:
        """Names as in `WithClassifier`; a head is passed over."""
        signs = signs_of(weights)
        w = laid_out(flipped(weights, signs))
        first = [stem(p, *block_of(w, 0), self.eps[0]) for p in self.patches]
        blocks: list[Block] = []
        out = tuple(k.normed.out for k in first)
        for i in range(1, DEPTH):
            blocks.append(block(out, *block_of(w, i), self.eps[i]))
            out = (blocks[-1].normed.out,)
        return Encoded(self.read(out[0]), first, blocks, signs)

    def backward(self, e: Encoded, df: Tensor, keep: bool) -> tuple[Params, Slopes]:
        """From df [B D]: the gradient by name, and the slopes; maps are left out unless they are to be kept."""
        found: Params = {}
        slopes: list[Slope] = []
        dz: list[Maps] = []
        back: Maps = (self.unread(df, e.blocks[-1].normed.out),)
        for i in reversed(range(1, DEPTH)):
            s, z, dw, back = block_back(e.blocks[i - 1], back[0], keep)
            slopes, dz = [s, *slopes], [z, *dz]
            found |= named(i, dw, s)
        first: list[Slope] = []
        parts: list[Params] = []
        for k, d in zip(e.stem, back, strict=True):
            s, dw = stem_back(k, d)
            parts.append(named(0, dw, s))
            first += [s] if keep else []
        return flipped(found | added(parts), e.signs), Slopes(first, slopes, dz)

    def read(self, out: Tensor) -> Tensor:
        """Features [B D] of the last map."""
        return out.mean((2, 3)) if self.mean_readout else out.flatten(1)

    def unread(self, df: Tensor, out: Tensor) -> Tensor:
        """The gradient of the last map, shaped as `out`."""
        if self.mean_readout:
            df = (df / (out.shape[2] * out.shape[3]))[..., None, None].expand_as(out)
        return df.reshape(out.shape).contiguous(memory_format=torch.channels_last)


def conv_name(i: int) -> str:
    return f"encoder.blocks.{i}.conv.weight"


def block_of(w: Params, i: int) -> tuple[Tensor, Tensor, Tensor]:
    return w[conv_name(i)], w[f"encoder.blocks.{i}.norm.weight"], w[f"encoder.blocks.{i}.norm.bias"]


def named(i: int, dw: Tensor, s: Any) -> Params:
    norm = f"encoder.blocks.{i}.norm"
    return {conv_name(i): dw, f"{norm}.weight": s.d_gamma.flatten(), f"{norm}.bias": s.d_beta.flatten()}


def added(parts: list[Params]) -> Params:
    """Gradients of parts of a batch, summed name by name."""
    return {k: total([p[k] for p in parts]) for k in parts[0]}


def signs_of(w: Params) -> dict[int, Tensor]:
    """+1 and -1 for the blocks with a negative gamma. There the smallest of the convolution survives pooling;
    with the signs of its filters and of gamma turned, the same function has it the largest."""
    gammas = [block_of(w, i)[1] for i in range(DEPTH)]
    return {i: torch.where(g < 0, -1.0, 1.0).to(g) for i, g in enumerate(gammas) if bool((g < 0).any())}


def flipped(w: Params, signs: dict[int, Tensor]) -> Params:
    """Weights, directions or gradients with the marked channels turned; its own inverse."""
    turned: Params = {}
    for i, sign in signs.items():
        norm = f"encoder.blocks.{i}.norm.weight"
        turned |= {conv_name(i): w[conv_name(i)] * sign[:, None, None, None], norm: w[norm] * sign}
    return w | turned


def laid_out(weights: Params) -> Params:
    """Convolutions beyond the stem in channels-last memory; no copy where they are already. Weights that start
    so stay so from step to step."""
    later = {conv_name(i) for i in range(1, DEPTH)}
    last = torch.channels_last
    return {k: v.contiguous(memory_format=last) if k in later else v for k, v in weights.items()}


_NAMES = tuple(
    f"encoder.blocks.{i}.{k}" for i in range(DEPTH) for k in ("conv.weight", "norm.weight", "norm.bias")
)


class _Features(torch.autograd.Function):
    """Features [B D] of the pictures in `encoder`, and what the pass left, put into `made`."""

    @staticmethod
    def forward(ctx: Any, encoder: ClosedEncoder, x: Tensor, made: list[Encoded], *weights: Tensor) -> Tensor:
        made.append(encoder.forward(dict(zip(_NAMES, weights, strict=True))))
        ctx.encoder, ctx.encoded = encoder, made[0]
        ctx.save_for_backward(x, *weights)
        return made[0].features.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        if torch.is_grad_enabled():  # this gradient will itself be differentiated: hand autograd its operations
            features = _step_by_step(ctx.encoder, x, dict(zip(_NAMES, weights, strict=True)))
            found = torch.autograd.grad(features, weights, grads[0], create_graph=True)
        else:
            by_name, _ = ctx.encoder.backward(ctx.encoded, grads[0], keep=False)
            found = tuple(by_name[k] for k in _NAMES)
        return (None, None, None, *found)


def _step_by_step(encoder: ClosedEncoder, x: Tensor, weights: Params) -> Tensor:
    for i, eps in enumerate(encoder.eps):
        weight, gamma, beta = block_of(weights, i)
        z = F.batch_norm(F.conv2d(x, weight, padding=1), None, None, gamma, beta, training=True, eps=eps)
        x = F.relu(F.max_pool2d(z, 2))
    return encoder.read(x)


def features_in_closed_form(
    x: Tensor, weights: Params, eps: tuple[float, ...], mean_readout: bool
) -> tuple[Tensor, Encoded]:
    """Features [B D] of pictures [B C H W], differentiable in the encoder's `weights`; others are passed over."""
    made: list[Encoded] = []
    encoder = ClosedEncoder(patches(x), eps, mean_readout)
    out: Tensor = _Features.apply(encoder, x, made, *(weights[k] for k in _NAMES))
    return out, made[0]


def serves(blocks: nn.ModuleList, x: Tensor) -> bool:
    """Whether this pass is a plain training step on a CPU: normalised by its batch with averages that move, with a
    gradient for weights and none for pictures, nothing that watches or transforms the operations in between.

    Pictures have one channel: for colour it is the faster only where freed memory goes back to the system, and
    the slower in the command line, which keeps it (`core.memory`).
    """
    return (
        x.device.type == "cpu"
        and x.shape[1] == 1
        and torch.is_grad_enabled()
        and not x.requires_grad
        and not torch._C._are_functorch_transforms_active()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and sharing.current() is None  # its statistics are of this process's rows alone
        and all(_is_usual(m, x.dtype) for m in blocks)
    )


def _is_usual(m: nn.Module, dtype: torch.dtype) -> bool:
    conv, norm = m.conv, m.norm
    if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
        return False
    watched = any(each._forward_hooks or each._forward_pre_hooks for each in (m, conv, norm))
    moving = norm.training and norm.track_running_stats and norm.affine and norm.momentum is not None
    fits = bool(m.channels_last) and conv.weight.requires_grad and conv.weight.dtype == dtype
    return fits and moving and not watched


def train_step_features(blocks: nn.ModuleList, x: Tensor, mean_readout: bool) -> Tensor:
    """Features [B D] of pictures [B C H W]; the running averages of `blocks` move as batch normalisation's do."""
    weights: Params = {}
    norms: list[nn.BatchNorm2d] = []
    for i, m in enumerate(blocks):
        assert isinstance(m.conv, nn.Conv2d) and isinstance(m.norm, nn.BatchNorm2d)
        norms.append(m.norm)
        norm = f"encoder.blocks.{i}.norm"
        weights |= {conv_name(i): m.conv.weight, f"{norm}.weight": m.norm.weight, f"{norm}.bias": m.norm.bias}
    out, e = features_in_closed_form(x, weights, tuple(n.eps for n in norms), mean_readout)
    _move(norms, e, weights)
    return out


@torch.no_grad()
def _move(norms: Sequence[nn.BatchNorm2d], e: Encoded, weights: Params) -> None:
    for i, norm in enumerate(norms):
        n: Normed = e.stem[0].normed if i == 0 else e.blocks[i - 1].normed
        mean, variance = n.mean.flatten(), n.rstd.flatten().pow(-2) - norm.eps
        if i in e.signs:
            mean = mean * e.signs[i]
        if i == 0:  # its pictures were moved by a constant
            mean = mean + e.stem[0].patches.shift * weights[conv_name(0)].sum((1, 2, 3))
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (n.count / (n.count - 1)), norm.momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
