"""Conv4, the small encoder of the few-shot literature: four conv3x3-norm-ReLU-maxpool blocks.

Widths and depths follow Vinyals et al. 2016 (Matching Networks) and Snell et al. 2017 (ProtoNet). Pooling
floors, so 28x28 pictures give 1x1xwidth features; rounding up would silently give four times as many.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

NormName = Literal["batch", "group", "none"]


def norm_layer(name: NormName, channels: int, groups: int = 8) -> nn.Module:
    """Batch, group or no normalisation over `channels` feature maps."""
    if name == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(groups, channels) if name == "group" else nn.Identity()


class ConvBlock(nn.Module):
    """[B C H W] -> [B width H/2 W/2]. No conv bias: normalisation takes it away again."""

    def __init__(self, channels: int, width: int, norm: NormName) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none")
        self.norm = norm_layer(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)


class Conv4(nn.Module):
    """[B C H W] -> [B D] with D = `self.width`.

    `readout` "flatten" keeps positions (D = width * (size // 16)^2), "mean" averages them (D = width).
    `lower` and `upper` split it before the last block, which is what `adapt="last"` adapts.
    """

    last = "blocks.3"

    def __init__(
        self,
        channels: int = 3,
        size: int = 28,
        width: int = 64,
        norm: NormName = "batch",
        readout: Literal["flatten", "mean"] = "flatten",
    ) -> None:
        super().__init__()
        side = size // 16
        if side < 1:
            raise ValueError(f"Conv4 halves four times: pictures of {size} pixels leave nothing, use 16 or more")
        self.blocks = nn.ModuleList([ConvBlock(channels if i == 0 else width, width, norm) for i in range(4)])
        self.readout = readout
        self.width = width * side * side if readout == "flatten" else width

    def lower(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        """All blocks but the last."""
        # Channels-last max-pooling is ten times faster on CPU; one-channel input does not carry the format.
        x = self.blocks[0](x).contiguous(memory_format=torch.channels_last)
        return self.blocks[2](self.blocks[1](x))

    def upper(self, h: Float[Tensor, "B E h w"]) -> Float[Tensor, "B D"]:
        """The last block and the readout."""
        h = self.blocks[3](h)
        return h.flatten(1) if self.readout == "flatten" else h.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.upper(self.lower(x))
