"""Conv4 as the few-shot literature's code writes it, in torch alone: conv3x3, batch statistics, ReLU, max-pooling.

The convolutions have no bias, for normalisation takes it away again; the users of most peers have one, so their
own networks are a little slower than this.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.work import Work

PREFIX = "weight:"
"""Names of starting weights in a `Work`."""


class Block(nn.Module):
    """[B C H W] -> [B width H/2 W/2]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)


class Encoder(nn.Module):
    """[B C H W] -> [B D], positions kept. Further arguments are those of one peer and mean nothing here."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(channels if i == 0 else width, width) for i in range(4)])

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.flatten(1)


class Head(nn.Linear):
    """A linear layer that takes the same further arguments."""

    def forward(self, input: Tensor, **_: Any) -> Tensor:
        return super().forward(input)


class Network(nn.Module):
    """Encoder and head."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def network(work: Work) -> Network:
    """With the starting weights of `work`; its one head row is that of every class."""
    weights = {k.removeprefix(PREFIX): v for k, v in work.tensors.items() if k.startswith(PREFIX)}
    ways = int(work.options["ways"])
    weights |= {k: v.repeat(ways, *[1] * (v.ndim - 1)) for k, v in weights.items() if k.startswith("head.")}
    first = weights["encoder.blocks.0.conv.weight"]
    net = Network(Encoder(first.shape[1], first.shape[0]), Head(weights["head.weight"].shape[1], ways))
    net.to(first.dtype).load_state_dict(weights)
    return net


def episodes(work: Work) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Support pictures and labels, query pictures and labels of every task."""
    names = ("support_x", "support_y", "query_x", "query_y")
    return list(zip(*(work.tensors[name].unbind() for name in names), strict=True))


def clear(net: nn.Module) -> None:
    """Forget the gradients of the last step."""
    for p in net.parameters():
        p.grad = None


def gradients(net: nn.Module) -> Mapping[str, Tensor]:
    """What a step has left in the parameters, by name."""
    return {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in net.named_parameters()}
