"""Conv4, the small encoder of the few-shot literature: four conv3x3-norm-ReLU-maxpool blocks.

Widths and depths follow Vinyals et al. 2016 (Matching Networks) and Snell et al. 2017 (ProtoNet). Pooling
floors, so 28x28 pictures give 1x1xwidth features; rounding up would silently give four times as many.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.nets.conv4_closed import serves, train_step_features

NormName = Literal["batch", "group", "none"]


def norm_layer(name: NormName, channels: int, groups: int = 8) -> nn.Module:
    """Batch, group or no normalisation over `channels` feature maps."""
    if name == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(groups, channels) if name == "group" else nn.Identity()


def channels_last(x: Tensor) -> Tensor:
    """The same [B C H W] in channels-last memory, where CPU pooling is ten times faster; works under `vmap`."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    """[B C H W] -> [B width H/2 W/2]. No conv bias: normalisation takes it away again."""

    def __init__(self, channels: int, width: int, norm: NormName) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none")
        self.norm = norm_layer(norm, width)
        # Group normalisation does not take this layout under vmap (torch 2.13).
        self.channels_last = norm == "batch"

    def forward(self, x: Tensor) -> Tensor:
        # Pooling before the ReLU gives the same numbers (both are monotone) on a quarter of the pixels.
        return F.relu(F.max_pool2d(self.norm(self._convolve(x)), 2))

    def _convolve(self, x: Tensor) -> Tensor:
        if not self.channels_last:
            return self.conv(x)
        if x.shape[1] == 1:
            # One channel cannot carry the channels-last layout, and the slow kernels follow: add a zero one.
            weight = F.pad(self.conv.weight, (0, 0, 0, 0, 0, 1))
            return F.conv2d(channels_last(F.pad(x, (0, 0, 0, 0, 0, 1))), weight, self.conv.bias, padding=1)
        return self.conv(channels_last(x))


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
            raise ConfigError(f"Conv4 halves four times: pictures of {size} pixels leave nothing, use 16 or more")
        self.blocks = nn.ModuleList([ConvBlock(channels if i == 0 else width, width, norm) for i in range(4)])
        self.readout = readout
        self.width = width * side * side if readout == "flatten" else width

    def lower(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        """All blocks but the last."""
        return self.blocks[2](self.blocks[1](self.blocks[0](x)))

    def upper(self, h: Float[Tensor, "B E h w"]) -> Float[Tensor, "B D"]:
        """The last block and the readout."""
        h = self.blocks[3](h)
        return h.flatten(1) if self.readout == "flatten" else h.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        if serves(self.blocks, x):
            return train_step_features(self.blocks, x, self.readout == "mean")
        return self.upper(self.lower(x))
