"""Cross-entropy of Conv4 and a linear head, with its gradient and Hessian-vector product in closed form.

The rules of one block are in `nets/conv4_calculus.py`; here they are put together. With f the features, the
head's part is, for p = softmax(f W^T + b) and S pictures,

    backward   dl = (p - onehot(y)) / S,     dW = dl^T f,   db = sum dl,   df = dl W
    its dot    l' = f' W^T + f W'^T + b',   dl' = p (l' - sum_n p_n l'_n) / S,   and the product rule for the rest
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import part
from selftaught.core.types import Params
from selftaught.nets.conv4 import Conv4
from selftaught.nets.conv4_calculus import (
    Block,
    Dot,
    Patches,
    Slope,
    Stem,
    block,
    block_back,
    block_dot,
    block_dot_back,
    patches,
    stem,
    stem_back,
    stem_dot,
    stem_dot_back,
)
from selftaught.nets.heads import WithClassifier

_DEPTH = 4


@dataclass(frozen=True)
class Encoded:
    """What the encoder's forward pass leaves: features [B D] and every block."""

    features: Tensor
    stem: Stem
    blocks: list[Block]
    signs: dict[int, Tensor]


@dataclass(frozen=True)
class Tape:
    """One forward and backward pass: loss, logits [B N] and what the Hessian-vector product needs."""

    loss: Tensor
    logits: Tensor
    encoded: Encoded
    slopes: list[Slope]
    dz: list[Tensor]
    head: Tensor
    p: Tensor
    d_logits: Tensor


@dataclass(frozen=True)
class ClosedEncoder:
    """Features of pictures as a function of named weights, normalised by their own batch."""

    patches: Patches
    eps: tuple[float, ...]
    mean_readout: bool

    def forward(self, weights: Params) -> Encoded:
        """Names as in `WithClassifier`; a head is passed over."""
        signs = _signs(weights)
        w = laid_out(_flipped(weights, signs))
        first = stem(self.patches, *_block(w, 0), self.eps[0])
        blocks: list[Block] = []
        out = first.normed.out
        for i in range(1, _DEPTH):
            blocks.append(block(out, *_block(w, i), self.eps[i]))
            out = blocks[-1].normed.out
        return Encoded(self.read(out), first, blocks, signs)

    def backward(self, e: Encoded, df: Tensor) -> tuple[Params, list[Slope], list[Tensor]]:
        """From df [B D]: the gradient by name, and every block's slope and (but the stem's) dz."""
        found: Params = {}
        slopes: list[Slope] = []
        dz: list[Tensor] = []
        back = self.unread(df, e.blocks[-1].normed.out)
        for i in reversed(range(1, _DEPTH)):
            s, z, dw, back = block_back(e.blocks[i - 1], back)
            slopes, dz = [s, *slopes], [z, *dz]
            found |= _named(i, dw, s)
        s, dw = stem_back(e.stem, back)
        return _flipped(found | _named(0, dw, s), e.signs), [s, *slopes], dz

    def read(self, out: Tensor) -> Tensor:
        """Features [B D] of the last map."""
        return out.mean((2, 3)) if self.mean_readout else out.flatten(1)

    def unread(self, df: Tensor, out: Tensor) -> Tensor:
        """The gradient of the last map, shaped as `out`."""
        if self.mean_readout:
            df = (df / (out.shape[2] * out.shape[3]))[..., None, None].expand_as(out)
        return df.reshape(out.shape).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class ClosedForm:
    """The loss of labelled pictures as a function of named weights.

    Build it with `closed_form`. `slope` and `curvature` are what `descend` asks of its rules.
    """

    encoder: ClosedEncoder
    y: Tensor
    width: int

    @property
    def tape_mib(self) -> float:
        """From the shapes: 20 bytes a pooled position in the stem, 52 in a block (float32)."""
        pictures, high, wide = self.encoder.patches.size
        positions, total = self.width * pictures, 0
        for i in range(_DEPTH):
            high, wide = high // 2, wide // 2
            total += positions * high * wide * (52 if i else 20)
        return total / 2**20

    def slope(self, weights: Params) -> tuple[Params, Tape]:
        """The gradient under the names of `weights`, and the tape of the pass."""
        e = self.encoder.forward(weights)
        f, head = e.features, weights["head.weight"]
        logits = torch.addmm(weights["head.bias"], f, head.t())
        p = logits.softmax(1)
        d_logits = p.clone()
        d_logits[torch.arange(len(p), device=p.device), self.y] -= 1
        d_logits /= len(p)
        found, slopes, dz = self.encoder.backward(e, d_logits @ head)
        found |= {"head.weight": d_logits.t() @ f, "head.bias": d_logits.sum(0)}
        loss = F.cross_entropy(logits, self.y)
        return {k: found[k] for k in weights}, Tape(loss, logits, e, slopes, dz, head, p, d_logits)

    def curvature(self, tape: Tape, along: Params) -> Params:
        """Hessian at the tape's weights times `along`."""
        e = tape.encoded
        w = laid_out(_flipped(along, e.signs))
        dots = [stem_dot(e.stem, *_block(w, 0))]
        directions: list[tuple[Tensor, Tensor, Tensor]] = []
        for i in range(1, _DEPTH):
            x, own = dots[-1].out, _block(w, i)
            z, dot = block_dot(e.blocks[i - 1], x, *own)
            dots.append(dot)
            directions.append((x, own[0], z))
        back, found = self._head_dot(tape, w, dots[-1])
        for i in reversed(range(1, _DEPTH)):
            here, slope, dz = e.blocks[i - 1], tape.slopes[i], tape.dz[i - 1]
            s, dw, back = block_dot_back(here, slope, dz, directions[i - 1], dots[i], back)
            found |= _named(i, dw, s)
        s, dw = stem_dot_back(e.stem, tape.slopes[0], w[_conv(0)], dots[0], back)
        found = _flipped(found | _named(0, dw, s), e.signs)
        return {k: found[k] for k in along}

    def _head_dot(self, tape: Tape, w: Params, dot: Dot) -> tuple[Tensor, Params]:
        f, p, features = self.encoder.read(dot.out), tape.p, tape.encoded.features
        moved = torch.addmm(w["head.bias"], f, tape.head.t()).addmm_(features, w["head.weight"].t())
        d_logits = p * (moved - (p * moved).sum(1, keepdim=True)) / len(p)
        found = {
            "head.weight": torch.addmm(d_logits.t() @ features, tape.d_logits.t(), f),
            "head.bias": d_logits.sum(0),
        }
        back = torch.addmm(d_logits @ tape.head, tape.d_logits, w["head.weight"])
        return self.encoder.unread(back, dot.out), found


def closed_form(net: nn.Module, x: Tensor, y: Tensor) -> ClosedForm:
    """The loss of pictures [B C H W] with labels [B]. Raises ConfigError where `why_not` gives a reason."""
    encoder = _encoder(net, x)
    width = len(net.get_parameter("encoder.blocks.0.conv.weight"))
    return ClosedForm(encoder, y, width)


def _encoder(net: nn.Module, x: Tensor) -> ClosedEncoder:
    reason = why_not(net)
    if reason:
        raise ConfigError(f"the closed form is for Conv4 with a linear head: {reason}. Use graph='auto'.")
    assert isinstance(net.encoder, Conv4)
    eps = tuple(n.eps for n in _norms(net.encoder))
    return ClosedEncoder(patches(x), eps, net.encoder.readout == "mean")


def rules_for(graph: str, net: nn.Module, x: Tensor, y: Tensor) -> ClosedForm | None:
    """Closed-form rules where `graph` asks for them, and under "auto" where there are any on this device.

    Raises ConfigError where `graph` is "fused" or "fused-remat" and the network has none, or under `vmap`.
    """
    batched = torch._C._are_functorch_transforms_active()
    if graph.startswith("fused"):
        if batched:
            raise ConfigError(f"graph={graph!r} runs one task at a time: use path='threads' or 'loop'")
        return closed_form(net, x, y)
    wanted = graph == "auto" and x.device.type == "cpu" and not batched
    return closed_form(net, x, y) if wanted and why_not(net) is None else None


def why_not(net: nn.Module) -> str | None:
    """What keeps `net` from having rules here; None if nothing does."""
    if not isinstance(net, WithClassifier):
        return f"{type(net).__name__} is not an encoder with a linear classifier"
    if not isinstance(net.encoder, Conv4):
        return f"the encoder is {type(net.encoder).__name__}"
    norms = _norms(net.encoder)
    if len(norms) != _DEPTH or not all(n.affine for n in norms):
        return "a block has no affine batch normalisation"
    return None


def _norms(encoder: Conv4) -> list[nn.BatchNorm2d]:
    return [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]


class _Loss(torch.autograd.Function):
    """Loss and logits at given weights; the gradient is made on the way forward."""

    @staticmethod
    def forward(ctx: Any, form: ClosedForm, names: list[str], *weights: Tensor) -> Any:
        found, tape = form.slope(dict(zip(names, weights, strict=True)))
        ctx.save_for_backward(*found.values())
        ctx.mark_non_differentiable(tape.logits)
        return tape.loss, tape.logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:
        return (None, None, *(grad * g for g in ctx.saved_tensors))


class _Features(torch.autograd.Function):
    """Features at given weights."""

    @staticmethod
    def forward(ctx: Any, encoder: ClosedEncoder, names: list[str], *weights: Tensor) -> Tensor:
        ctx.encoder, ctx.names = encoder, names
        ctx.encoded = encoder.forward(dict(zip(names, weights, strict=True)))
        return ctx.encoded.features.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, df: Tensor) -> Any:
        found, _, _ = ctx.encoder.backward(ctx.encoded, df)
        return (None, None, *(found[k] for k in ctx.names))


def features(net: nn.Module, weights: Params, x: Tensor) -> Tensor:
    """Features [B D] of pictures [B C H W], differentiable once in the encoder's `weights` (a head's are passed
    over). Raises ConfigError where `why_not` gives a reason."""
    own = {k: v for k, v in weights.items() if k.startswith("encoder.")}
    out: Tensor = _Features.apply(_encoder(net, x), list(own), *own.values())
    return out


def features_of(net: nn.Module, weights: Params, x: Tensor) -> Tensor:
    """Features [B D] of an encoder with a head: `features` on a CPU where the network allows it, else its own."""
    if x.device.type == "cpu" and why_not(net) is None and not torch._C._are_functorch_transforms_active():
        return features(net, weights, x)
    return functional_call(net.get_submodule("encoder"), part(weights, "encoder"), (x,))


def loss_and_logits(form: ClosedForm, weights: Params) -> tuple[Tensor, Tensor]:
    """The loss, differentiable once in `weights`, and the logits [B N], which are not."""
    loss, logits = _Loss.apply(form, list(weights), *weights.values())
    return loss, logits


def _conv(i: int) -> str:
    return f"encoder.blocks.{i}.conv.weight"


def _block(w: Params, i: int) -> tuple[Tensor, Tensor, Tensor]:
    return w[_conv(i)], w[f"encoder.blocks.{i}.norm.weight"], w[f"encoder.blocks.{i}.norm.bias"]


def _named(i: int, dw: Tensor, s: Any) -> Params:
    norm = f"encoder.blocks.{i}.norm"
    return {_conv(i): dw, f"{norm}.weight": s.d_gamma.flatten(), f"{norm}.bias": s.d_beta.flatten()}


def _signs(w: Params) -> dict[int, Tensor]:
    """+1 and -1 for the blocks with a negative gamma. There the smallest of the convolution survives pooling;
    with the signs of its filters and of gamma turned, the same function has it the largest."""
    gammas = [_block(w, i)[1] for i in range(_DEPTH)]
    return {i: torch.where(g < 0, -1.0, 1.0).to(g) for i, g in enumerate(gammas) if bool((g < 0).any())}


def _flipped(w: Params, signs: dict[int, Tensor]) -> Params:
    """Weights, directions or gradients with the marked channels turned; its own inverse."""
    turned: Params = {}
    for i, sign in signs.items():
        norm = f"encoder.blocks.{i}.norm.weight"
        turned |= {_conv(i): w[_conv(i)] * sign[:, None, None, None], norm: w[norm] * sign}
    return w | turned


def laid_out(weights: Params) -> Params:
    """Convolutions beyond the stem in channels-last memory; no copy where they are already. Weights that start
    so stay so from step to step."""
    later = {_conv(i) for i in range(1, _DEPTH)}
    last = torch.channels_last
    return {k: v.contiguous(memory_format=last) if k in later else v for k, v in weights.items()}
