"""Which part of a network the inner loop adapts, and which part runs once for all tasks."""

from typing import Literal

import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply_update
from selftaught.core.types import Params
from selftaught.nets.heads import EncoderOnly

Adapt = Literal["head", "last", "all"]
"""`head`: the projector; `last`: also the encoder's last block; `all`: everything."""


class Lower(nn.Module):
    """The encoder below its last block."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder.lower(x)  # type: ignore[operator]


class Upper(nn.Module):
    """The encoder's last block and the projector."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, h: Tensor) -> Tensor:
        return self.projector(self.encoder.upper(h))  # type: ignore[operator]


class Head(nn.Module):
    """The projector alone."""

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, h: Tensor) -> Tensor:
        return self.projector(h)


def adapted_part(net: nn.Module, params: Params, adapt: Adapt) -> tuple[nn.Module, Params]:
    """The module the inner loop runs, and its parameters under their full names."""
    encoder, projector = net.encoder, net.projector
    assert isinstance(encoder, nn.Module) and isinstance(projector, nn.Module)
    if adapt == "all":
        return net, params
    prefixes = ["projector."]
    if adapt == "last":
        if not hasattr(encoder, "last"):
            raise ConfigError(
                f"adapt='last' needs an encoder with `lower`, `upper` and `last`; {type(encoder).__name__} has "
                "none. Use adapt='head' or adapt='all'."
            )
        prefixes.append(f"encoder.{encoder.last}.")
    own = Head(projector) if adapt == "head" else Upper(encoder, projector)
    return own, {k: v for k, v in params.items() if k.startswith(tuple(prefixes))}


def shared_features(
    net: nn.Module, params: Params, buffers: Params, x: Tensor, adapt: Adapt
) -> tuple[Tensor, Params]:
    """What does not depend on the task, for all pictures [B C H W] in one pass, and the moved statistics."""
    if adapt == "all":
        return x, buffers
    encoder = net.encoder
    assert isinstance(encoder, nn.Module)
    shared = EncoderOnly(encoder) if adapt == "head" else Lower(encoder)
    below = {k: v for k, v in params.items() if k.startswith("encoder.")}
    h, moved = apply_update(shared, below, {k: v for k, v in buffers.items() if k.startswith("encoder.")}, x)
    return h, buffers | moved


@torch.no_grad()
def statistics_after(own: nn.Module, params: Params, buffers: Params, x: Tensor) -> Params:
    """All `buffers`, those of `own` moved by one more batch; free where `own` keeps no statistics."""
    mine = {k: buffers[k] for k, _ in own.named_buffers() if k in buffers}
    if not mine:
        return buffers
    return buffers | apply_update(own, params, mine, x)[1]
