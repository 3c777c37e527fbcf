"""Gates that open and close the units of a network, and the small network that sets them for a task.

A unit is a feature map of a Conv4 block, what a `GatedEncoder` calls so, or a feature of any other encoder. Its
gate stands behind normalisation and ReLU. Before the normalisation a closed unit would say relu(beta) instead of
nothing, and the gate of an open one would have no gradient, since normalisation takes its scale away again.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.sharing import shared_by
from selftaught.core.types import Params
from selftaught.nets.conv4 import Conv4
from selftaught.nets.heads import WithClassifier, width_of
from selftaught.nets.split import statistics_after


@dataclass(frozen=True)
class Layer:
    """`units` whose output is read by the tensor called `weight` [out units*copies ...] and by nothing else."""

    units: int
    weight: str
    copies: int = 1

    def spread(self, gates: Float[Tensor, " U"], weight: Tensor) -> Tensor:
        """Gates [U] shaped to multiply `weight`."""
        row = gates[:, None].expand(-1, self.copies).reshape(-1)
        return row.reshape(1, -1, *(1,) * (weight.ndim - 2))

    def gathered(self, weight: Tensor) -> Float[Tensor, " U"]:
        """The mean of `weight` over all that leaves a unit."""
        return weight.movedim(1, 0).reshape(self.units, -1).mean(1)


@runtime_checkable
class GatedEncoder(Protocol):
    """An encoder that says which of its units have gates."""

    def gated_layers(self) -> tuple[Layer, ...]:
        """From below; names of weights begin with "encoder.", but for the features' own "head.weight"."""
        ...

    def gated(self, x: Tensor, gates: Float[Tensor, "B U"]) -> Float[Tensor, "B D"]:
        """Features of pictures [B C H W] with every unit's output multiplied by its gate."""
        ...


def layers_of(encoder: nn.Module) -> tuple[Layer, ...]:
    """The layers that can be gated, from below: four blocks of Conv4; of other encoders their features."""
    if isinstance(encoder, GatedEncoder):
        return encoder.gated_layers()
    width = width_of(encoder)
    if not isinstance(encoder, Conv4):
        return (Layer(width, "head.weight"),)
    convs = [f"encoder.blocks.{i}.conv.weight" for i in range(1, len(encoder.blocks))]
    units = encoder.get_parameter("blocks.0.conv.weight").shape[0]
    return (*(Layer(units, name) for name in convs), Layer(units, "head.weight", width // units))


def by_layer(gates: Tensor, layers: tuple[Layer, ...]) -> tuple[Tensor, ...]:
    """[... U] over all layers, cut into one [... units] for each."""
    return gates.split([layer.units for layer in layers], -1)


def masks(gates: Float[Tensor, " U"], layers: tuple[Layer, ...], weights: Params) -> Params:
    """What the weights that leave gated units are multiplied with, by name."""
    each = zip(layers, by_layer(gates, layers), strict=True)
    return {layer.weight: layer.spread(own, weights[layer.weight]) for layer, own in each}


def masked(weights: Params, mask: Params) -> Params:
    """The same function as closing the units themselves: their output is multiplied with zeros."""
    return weights | {k: weights[k] * m for k, m in mask.items()}


def opened(scores: Float[Tensor, "*T U"], budget: float) -> Float[Tensor, "*T U"]:
    """1 for units with a score above 0 that are among the best `budget` (a share) of their layer, else 0.

    The best one is open whatever its score, so no layer is ever closed.
    """
    most = max(1, math.floor(budget * scores.shape[-1] + 1e-9))
    order = scores.detach().argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    return ((rank < most) & (scores > 0) | (rank == 0)).to(scores)


class Gates(nn.Module):
    """Scores [T U] of all units from summaries [T D] of tasks: linear in the direction of what is unusual.

    `centre` is the usual summary and `importance` how sensitive each unit has been; both are kept by the method.
    Without `per_task` every task has the scores of the usual one, which are the bias.
    """

    def __init__(self, features: int, units: int, per_task: bool = True) -> None:
        super().__init__()
        self.scores = nn.Linear(features, units)
        with torch.no_grad():
            self.scores.bias.add_(1)  # open to begin with, as far as the budget allows
        self.per_task = per_task
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("importance", torch.ones(units))

    def forward(self, summary: Float[Tensor, "T D"]) -> Float[Tensor, "T U"]:
        centre = self.get_buffer("centre")
        unusual = summary - centre if self.per_task else torch.zeros_like(summary)
        # Of length one: with longer rows Adam moves scores so fast that gates shut for good before weights learn.
        return self.scores(F.normalize(unusual, dim=-1))


def with_gates(encoder: nn.Module, per_task: bool) -> WithClassifier:
    """Encoder, linear head and `gates`, which the forward pass does not use: see `Gated`."""
    net = WithClassifier(encoder, width_of(encoder))
    units = sum(layer.units for layer in layers_of(encoder))
    net.add_module("gates", Gates(width_of(encoder), units, per_task))
    return net


class Gated(nn.Module):
    """The encoder and head of `net` with every unit's output multiplied by the buffer `open`, [U] or [B U]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.encoder = net.get_submodule("encoder")
        self.head = net.get_submodule("head")
        self.layers = layers_of(self.encoder)
        like = next(self.encoder.parameters())
        self.register_buffer("open", torch.ones(sum(layer.units for layer in self.layers)).to(like))

    def own(self, weights: Params) -> Params:
        """Those of `weights` that this module knows."""
        names = {k for k, _ in [*self.named_parameters(), *self.named_buffers()]}
        return {k: v for k, v in weights.items() if k in names}

    def forward(self, x: Tensor) -> Tensor:
        gates = self.get_buffer("open").expand(len(x), -1)
        if isinstance(self.encoder, GatedEncoder):
            return self.head(self.encoder.gated(x, gates))
        if not isinstance(self.encoder, Conv4):
            return self.head(self.encoder(x) * gates)
        for block, own in zip(self.encoder.blocks, by_layer(gates, self.layers), strict=True):
            x = block(x) * own[..., None, None]
        return self.head(x.flatten(1) if self.encoder.readout == "flatten" else x.mean((2, 3)))


def gated_statistics(net: nn.Module, params: Params, slow: Params, x: Tensor, gates: Tensor) -> Params:
    """`slow` with statistics moved by one pass over pictures [T Q C H W], each with its task's gates [T U]."""
    own = Gated(net)
    rows = {"open": gates.repeat_interleave(x.shape[1], 0)}
    with shared_by(None):  # the gates among the buffers stand for all rows
        moved = statistics_after(own, own.own(params), own.own(slow) | rows, x.flatten(0, 1))
    return slow | {k: v for k, v in moved.items() if k != "open"}
