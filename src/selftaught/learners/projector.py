"""NT-Xent on a projector for several tasks at once: batched matrix products, and the gradient written out.

A projector is so small that what an inner step costs is the number of operations. Under `vmap`, with autograd's
gradient, a step of four tasks is three times as dear (`python -m benchmarks meta_step`, BMSSL's head).
"""

from dataclasses import dataclass
from typing import Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.types import Params
from selftaught.learners.inner import InnerLoss, Written
from selftaught.losses.contrastive import nt_xent, nt_xent_tasks
from selftaught.nets.heads import MLP


class Embedding(Protocol):
    """What level 1 of a contrastive bi-level method adapts."""

    def embed(self, w: Params, x: Tensor) -> Tensor:
        """Embeddings [R E] of rows [R ...]; all may have a leading T axis."""
        ...

    def nt_xent(self, ways: int, temperature: float) -> InnerLoss:
        """`losses.contrastive.nt_xent` of the rows, ordered by view, then picture."""
        ...


@final
@dataclass(frozen=True)
class AnyNet:
    """One task's embedding by any network."""

    net: nn.Module

    def embed(self, w: Params, x: Tensor) -> Tensor:
        """Embeddings [R E] of rows [R ...]."""
        z: Tensor = functional_call(self.net, w, (x,))
        return z

    def nt_xent(self, ways: int, temperature: float) -> InnerLoss:
        """The loss of rows [S*N ...], ordered by view, then picture."""
        return lambda w, outer: nt_xent(self.embed(w, outer[0]).unflatten(0, (-1, ways)), temperature)


@final
@dataclass(frozen=True)
class Projector:
    """Linear layers with ReLU between as a function of weights that stand once per task; `layers` are the names
    of weight [T E D] and bias [T E], first layer first."""

    layers: tuple[tuple[str, str], ...]

    def embed(self, w: Params, x: Float[Tensor, "T R D"]) -> Float[Tensor, "T R E"]:
        """Every task's rows by its own weights."""
        return self._maps(w, x)[-1]

    def nt_xent(self, ways: int, temperature: float) -> Written:
        """The sum over tasks of `losses.contrastive.nt_xent` of support rows [T S*N D], ordered by view, then
        picture: each task's gradient is that of its own loss."""

        def loss(w: Params, outer: tuple[Tensor, ...]) -> Tensor:
            z = self.embed(w, outer[0])
            return len(z) * nt_xent_tasks(z.unflatten(1, (-1, ways)), temperature)

        def slope(w: Params, outer: tuple[Tensor, ...]) -> Params:
            *inputs, z = self._maps(w, outer[0])
            return self._back(w, inputs, nt_xent_slope(z, ways, temperature))

        return Written(loss, slope)

    def _maps(self, w: Params, x: Tensor) -> list[Tensor]:
        """Every layer's input, and the last one's output."""
        maps = [x]
        for i, (weight, bias) in enumerate(self.layers):
            z = torch.baddbmm(w[bias].unsqueeze(1), maps[-1], w[weight].mT)
            maps.append(F.relu(z) if i + 1 < len(self.layers) else z)
        return maps

    def _back(self, w: Params, inputs: list[Tensor], dz: Tensor) -> Params:
        found: Params = {}
        for i in reversed(range(len(self.layers))):
            weight, bias = self.layers[i]
            found |= {weight: dz.mT @ inputs[i], bias: dz.sum(1)}
            if i:
                dz = (dz @ w[weight]) * (inputs[i] > 0)
        return {k: found[k] for k in w}


def nt_xent_slope(z: Float[Tensor, "T R E"], ways: int, temperature: float) -> Float[Tensor, "T R E"]:
    """The gradient of each task's NT-Xent by its embeddings, in operations that autograd can differentiate.

    With f = z / |z|, P = softmax over k != i of f_i . f_k / tau, and y_ik = 1 / (V - 1) for the other views of
    picture i, d loss / d f = (G + G') f / tau with G = (P - y) / R, and d loss / d z is what of it stands
    at right angles to f, over |z|. Raises ValueError for fewer than two views.
    """
    rows = z.shape[1]
    views = rows // ways
    if views < 2:
        raise ValueError(f"nt_xent needs at least two views, got embeddings {tuple(z.shape)} of {ways} pictures")
    itself = torch.eye(rows, dtype=torch.bool, device=z.device)
    other = torch.eye(ways, dtype=z.dtype, device=z.device).repeat(views, views).masked_fill(itself, 0)
    diagonal = torch.zeros_like(other).masked_fill(itself, -torch.inf)
    length = z.norm(dim=-1, keepdim=True).clamp_min(1e-12)  # as in functional.normalize
    f = z / length
    p = torch.baddbmm(diagonal, f, f.mT, alpha=1 / temperature).softmax(-1)
    g = p - other / (views - 1)
    df = (g + g.mT) @ f / (rows * temperature)
    return (df - f * (f * df).sum(-1, keepdim=True)) / length


def projector_of(net: nn.Module) -> Projector | None:
    """The `projector` of a network as linear layers with ReLU between; None where it is anything else (with
    normalisation, other activations, or hooks that want to see every call)."""
    own = net.get_submodule("projector")
    if type(own) is not MLP or any(m._forward_hooks or m._forward_pre_hooks for m in own.modules()):
        return None
    layers = list(own.layers.children())
    linear, between = layers[::2], layers[1::2]
    if not all(type(m) is nn.Linear and m.bias is not None for m in linear):
        return None
    if len(between) != len(linear) - 1 or not all(type(m) is nn.ReLU for m in between):
        return None
    names = (f"projector.layers.{2 * i}" for i in range(len(linear)))
    return Projector(tuple((f"{name}.weight", f"{name}.bias") for name in names))
