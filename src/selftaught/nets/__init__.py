"""Encoders: modules [B C H W] -> [B D] with `width`, `lower`, `upper` and the name of the `last` part."""

import torch
from torch import nn

from selftaught.core.errors import ConfigError
from selftaught.nets.conv4 import Conv4
from selftaught.nets.hub import build_hub, is_hub
from selftaught.nets.resnet import ResNet12, ResNet18
from selftaught.nets.vit import ViT

ENCODERS: dict[str, type[nn.Module]] = {
    "conv4": Conv4,
    "resnet12": ResNet12,
    "resnet18": ResNet18,
    "vit": ViT,
}
"""Name on the command line -> module class."""

_SIZED = ("conv4", "vit")


def build_encoder(name: str, channels: int, size: int, seed: int, **options: object) -> nn.Module:
    """A freshly initialised encoder for [B channels size size]; the global RNG keeps its state.

    `timm:NAME`, `openclip:NAME` and `hf:NAME` are built by those libraries (`nets.hub`), without their weights.
    Raises ConfigError for an unknown name or options the encoder does not take.
    """
    if is_hub(name):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_hub(name, channels, **options)
    if name not in ENCODERS:
        raise ConfigError(
            f"unknown encoder {name!r}; known: {', '.join(ENCODERS)}, timm:NAME, openclip:NAME, hf:NAME"
        )
    sized = {"size": size} if name in _SIZED else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return ENCODERS[name](channels=channels, **sized, **options)
        except TypeError as error:
            raise ConfigError(f"encoder {name}: {error}") from error


__all__ = ["ENCODERS", "Conv4", "ResNet12", "ResNet18", "ViT", "build_encoder"]
