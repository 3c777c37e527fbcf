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
    Dot,
    Maps,
    block_dot,
    block_dot_back,
    patches,
    stem_dot,
    stem_dot_back,
)
from selftaught.nets.conv4_closed import (
    DEPTH,
    ClosedEncoder,
    Encoded,
    Slopes,
    added,
    block_of,
    conv_name,
    features_in_closed_form,
    flipped,
    laid_out,
    named,
)
from selftaught.nets.heads import WithClassifier


@dataclass(frozen=True)
class Tape:
    """One forward and backward pass: loss, logits [B N] and what the Hessian-vector product needs."""

    loss: Tensor
    logits: Tensor
    encoded: Encoded
    slopes: Slopes
    head: Tensor
    p: Tensor
    d_logits: Tensor


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
        parts = [p.size for p in self.encoder.patches]
        _, high, wide = parts[0]
        positions, total = self.width * sum(pictures for pictures, _, _ in parts), 0
        for i in range(DEPTH):
            high, wide = high // 2, wide // 2
            total += positions * high * wide * (52 if i else 20)
        return total / 2**20

    def slope(self, weights: Params, keep: bool = True) -> tuple[Params, Tape]:
        """The gradient under the names of `weights`, and the tape of the pass; unless it is to be kept, some of it
        is missing and no product can be taken."""
        e = self.encoder.forward(weights)
        f, head = e.features, weights["head.weight"]
        logits = torch.addmm(weights["head.bias"], f, head.t())
        p = logits.softmax(1)
        d_logits = p.clone()
        d_logits[torch.arange(len(p), device=p.device), self.y] -= 1
        d_logits /= len(p)
        found, slopes = self.encoder.backward(e, d_logits @ head, keep)
        found |= {"head.weight": d_logits.t() @ f, "head.bias": d_logits.sum(0)}
        loss = F.cross_entropy(logits, self.y)
        return {k: found[k] for k in weights}, Tape(loss, logits, e, slopes, head, p, d_logits)

    def curvature(self, tape: Tape, along: Params) -> Params:
        """Hessian at the tape's weights times `along`."""
        e, slopes = tape.encoded, tape.slopes
        w = laid_out(flipped(along, e.signs))
        first = [stem_dot(k, *block_of(w, 0)) for k in e.stem]
        dots: list[Dot] = []
        directions: list[tuple[Maps, Tensor, Maps]] = []
        x = tuple(dot.out for dot in first)
        for i, k in enumerate(e.blocks, 1):
            own = block_of(w, i)
            z, dot = block_dot(k, x, *own)
            dots.append(dot)
            directions.append((x, own[0], z))
            x = (dot.out,)
        last, found = self._head_dot(tape, w, dots[-1])
        back: Maps = (last,)
        for i in reversed(range(DEPTH - 1)):
            s, dw, back = block_dot_back(
                e.blocks[i], slopes.blocks[i], slopes.dz[i], directions[i], dots[i], back[0]
            )
            found |= named(i + 1, dw, s)
        parts = zip(e.stem, slopes.stem, first, back, strict=True)
        stems = [stem_dot_back(k, slope, w[conv_name(0)], dot, d) for k, slope, dot, d in parts]
        found = flipped(found | added([named(0, dw, s) for s, dw in stems]), e.signs)
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
    if len(norms) != DEPTH or not all(n.affine for n in norms):
        return "a block has no affine batch normalisation"
    return None


def _norms(encoder: Conv4) -> list[nn.BatchNorm2d]:
    return [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]


class _Loss(torch.autograd.Function):
    """Loss and logits at given weights; the gradient is made on the way forward."""

    @staticmethod
    def forward(ctx: Any, form: ClosedForm, names: list[str], *weights: Tensor) -> Any:
        found, tape = form.slope(dict(zip(names, weights, strict=True)), keep=False)
        ctx.save_for_backward(*found.values())
        ctx.mark_non_differentiable(tape.logits)
        return tape.loss, tape.logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:
        return (None, None, *(grad * g for g in ctx.saved_tensors))


def features(net: nn.Module, weights: Params, x: Tensor) -> Tensor:
    """Features [B D] of pictures [B C H W], differentiable in the encoder's `weights` (a head's are passed over).
    Raises ConfigError where `why_not` gives a reason."""
    encoder = _encoder(net, x)
    return features_in_closed_form(x, weights, encoder.eps, encoder.mean_readout)[0]


def features_of(net: nn.Module, weights: Params, x: Tensor) -> Tensor:
    """Features [B D] of an encoder with a head: `features` on a CPU where the network allows it, else its own."""
    if x.device.type == "cpu" and why_not(net) is None and not torch._C._are_functorch_transforms_active():
        return features(net, weights, x)
    return functional_call(net.get_submodule("encoder"), part(weights, "encoder"), (x,))


def loss_and_logits(form: ClosedForm, weights: Params) -> tuple[Tensor, Tensor]:
    """The loss, differentiable once in `weights`, and the logits [B N], which are not."""
    loss, logits = _Loss.apply(form, list(weights), *weights.values())
    return loss, logits
