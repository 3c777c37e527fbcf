"""What is exported: pictures as bytes in, an embedding and, for a classifier, probabilities out."""

import copy
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.nets.hub import HubEncoder


@final
@dataclass(frozen=True)
class LinearHead:
    """Classes from directions: probability = softmax((z / |z| @ weight.T + bias) / temperature).

    Every head of a few-shot classifier (class means, ridge, logistic) has this form. Raises ConfigError where
    shapes do not fit each other or the names.
    """

    weight: Float[Tensor, "M D"]
    bias: Float[Tensor, " M"]
    temperature: float
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.weight) == len(self.bias) == len(self.classes):
            raise ConfigError(
                f"a head of {len(self.weight)} rows and {len(self.bias)} biases does not fit "
                f"{len(self.classes)} class names"
            )
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}")


@final
@dataclass(frozen=True)
class Exportable:
    """A trained encoder [B channels size size] in 0..1 -> [B D] with, where there are classes, a head.

    `build` says how `nets.build_encoder` makes the encoder (`encoder`: its name, `options`), which only the
    Hugging Face layout needs; `trained` is what else a reader should know, as plain JSON values.
    """

    encoder: nn.Module
    size: int
    channels: int
    head: LinearHead | None = None
    build: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, Any] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what comes out, in order."""
        return ("embedding",) if self.head is None else ("embedding", "probability")


class Network(nn.Module):
    """uint8 RGB pictures [B S S 3] -> (embedding [B D],) or (embedding [B D], probability [B M]).

    Scaling to 0..1 and, for an encoder of one channel, Pillow's rounded grey are part of it; cropping and resizing
    are not: Pillow's averaging of whole pictures is what training saw, and other resizers differ from it.
    """

    def __init__(self, encoder: nn.Module, channels: int, head: LinearHead | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.channels = channels
        self.temperature = 1.0 if head is None else head.temperature
        self.head = None if head is None else nn.Linear(head.weight.shape[1], len(head.classes))
        if self.head is not None and head is not None:
            self.head.load_state_dict({"weight": head.weight.float(), "bias": head.bias.float()})

    def forward(self, pictures: UInt8[Tensor, "B S S 3"]) -> tuple[Tensor, ...]:
        z = self.encoder(self._planes(pictures.float()) / 255)
        if self.head is None:
            return (z,)
        return z, torch.softmax(self.head(F.normalize(z, dim=-1)) / self.temperature, -1)

    def _planes(self, x: Float[Tensor, "B S S 3"]) -> Float[Tensor, "B C S S"]:
        if self.channels == 1:
            # Pillow's weights in units of 2^-16 with rounding; all sums are whole numbers below 2^24, so exact.
            x = x[..., :1] * 19595 + x[..., 1:2] * 38470 + x[..., 2:] * 7471
            x = torch.floor((x + 32768) / 65536)
        return x.permute(0, 3, 1, 2)


def reference(what: Exportable) -> Network:
    """The network with the encoder as it was trained, in evaluation mode."""
    return Network(what.encoder, what.channels, what.head).eval()


def plain(encoder: nn.Module) -> nn.Module:
    """A copy whose weights hold what low-rank adapters learned, where there are any."""
    made = copy.deepcopy(encoder)
    if isinstance(made, HubEncoder):
        made.merge()
    return made


def traceable(what: Exportable) -> Network:
    """The same on a copy whose operations do not depend on this machine.

    Our encoders choose memory layout and algorithm by the processor (channels-last, Winograd's convolution in
    blocks of pictures); a graph wants the plain operations and any number of pictures. Adapters become part of
    the weights.
    """
    encoder = plain(what.encoder)
    for module in encoder.modules():
        if getattr(module, "channels_last", False) is True:
            module.channels_last = False  # type: ignore[assignment]
    return Network(encoder, what.channels, what.head).eval()
