"""Residual encoders: ResNet-12 of the few-shot literature, and ResNet-18 with a stem for small pictures.

No operation works in place and none draws random numbers: both would break second derivatives or `vmap`.
DropBlock, which some ResNet-12 recipes add, is therefore left out. With batch normalisation everything runs in
channels-last memory, and wide 3x3 convolutions by Winograd's algorithm where `winograd.suits`: the same numbers.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.nets import winograd
from selftaught.nets.conv4 import channels_last, norm_layer

BatchOrGroup = Literal["batch", "group"]
"""`batch`: batch normalisation. `group`: group normalisation, which knows no batch (safe for inner loops)."""


class Conv(nn.Module):
    """A convolution without bias that keeps height and width at stride 1: [B C H W] -> [B outside H W].

    With batch normalisation behind it, input and output are in channels-last memory.
    """

    def __init__(self, inside: int, outside: int, size: int, stride: int, norm: BatchOrGroup) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outside, inside, size, size))
        self.stride = stride
        # Group normalisation does not take this layout under vmap (torch 2.13).
        self.channels_last = norm == "batch"

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if self.channels_last and winograd.suits(x, weight, self.stride):
            return winograd.conv3x3(x, weight)
        if self.channels_last and x.shape[1] == 1:
            # One channel cannot carry the channels-last layout, and the slow kernels follow: add a zero one.
            x, weight = channels_last(F.pad(x, (0, 0, 0, 0, 0, 1))), F.pad(weight, (0, 0, 0, 0, 0, 1))
        size, stride = weight.shape[-1], self.stride
        if size == 1 and stride > 1 and x.shape[1] < 16:
            # The same pixels without a stride: oneDNN's strided kernel for narrow channels-last input writes
            # out of bounds (oneDNN issue 6035).
            x, stride = x[..., ::stride, ::stride], 1
        return F.conv2d(x, weight, stride=stride, padding=size // 2)

    def extra_repr(self) -> str:
        return f"{list(self.weight.shape)}, stride={self.stride}"


def _init(net: nn.Module, slope: float) -> None:
    """He initialisation for the output side (He et al., 2015), from the global generator."""
    for module in net.modules():
        if isinstance(module, Conv):
            nn.init.kaiming_normal_(module.weight, a=slope, mode="fan_out", nonlinearity="leaky_relu")


def _check_widths(widths: tuple[int, ...], norm: BatchOrGroup) -> None:
    if norm == "group" and any(width % 8 for width in widths):
        raise ConfigError(
            f"group normalisation makes 8 groups: widths {widths} must be multiples of 8; "
            f'widen the network or take norm="batch"'
        )


def _check_size(x: Tensor, least: int, name: str) -> None:
    height, width = x.shape[-2:]
    if min(height, width) < least:
        raise ConfigError(
            f"{name} halves its pictures four times and needs at least {least} x {least} pixels, "
            f"got {height} x {width}; enlarge the pictures or take a network with fewer stages"
        )


def _laid_out(x: Tensor, last: bool) -> Tensor:
    """The same pictures in the memory layout that the network runs in; one channel is left to `Conv`."""
    return channels_last(x) if last and x.shape[1] > 1 else x


class Block12(nn.Module):
    """Three conv3x3-norm, a projected shortcut, LeakyReLU(0.1), 2x2 max-pool: [B C H W] -> [B D H/2 W/2]."""

    def __init__(self, inside: int, outside: int, norm: BatchOrGroup) -> None:
        super().__init__()
        self.act = nn.LeakyReLU(0.1)
        self.body = nn.Sequential(
            Conv(inside, outside, 3, 1, norm),
            norm_layer(norm, outside),
            nn.LeakyReLU(0.1),
            Conv(outside, outside, 3, 1, norm),
            norm_layer(norm, outside),
            nn.LeakyReLU(0.1),
            Conv(outside, outside, 3, 1, norm),
            norm_layer(norm, outside),
        )
        self.shortcut = nn.Sequential(Conv(inside, outside, 1, 1, norm), norm_layer(norm, outside))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        # Pooling before the activation gives the same numbers (both are monotone) on a quarter of the pixels.
        return self.act(self.pool(self.body(x) + self.shortcut(x)))


class ResNet12(nn.Module):
    """ResNet-12 with global average pooling: [B C H W] -> [B widths[-1]], pictures of 16 px and more.

    The wide form of Lee et al., "Meta-Learning with Differentiable Convex Optimization" (CVPR 2019), without
    DropBlock; widths (64, 128, 256, 512) are those of TADAM (Oreshkin et al., NeurIPS 2018).
    """

    last = "layer4"

    def __init__(
        self,
        channels: int = 3,
        widths: tuple[int, int, int, int] = (64, 160, 320, 640),
        norm: BatchOrGroup = "batch",
    ) -> None:
        super().__init__()
        _check_widths(widths, norm)
        self.channels_last = norm == "batch"
        self.layer1 = Block12(channels, widths[0], norm)
        self.layer2 = Block12(widths[0], widths[1], norm)
        self.layer3 = Block12(widths[1], widths[2], norm)
        self.layer4 = Block12(widths[2], widths[3], norm)
        self.width = widths[3]
        _init(self, slope=0.1)

    def lower(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        """All blocks but the last: [B C H W] -> [B widths[2] H/8 W/8]; raises ConfigError below 16 px."""
        _check_size(x, 16, "ResNet12")
        return self.layer3(self.layer2(self.layer1(_laid_out(x, self.channels_last))))

    def upper(self, h: Float[Tensor, "B E H W"]) -> Float[Tensor, "B D"]:
        """The last block and the average over space: [B E H W] -> [B D]."""
        return self.layer4(h).mean(dim=(-2, -1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        return self.upper(self.lower(x))


class Block18(nn.Module):
    """Two conv3x3-norm with ReLU and a shortcut, projected where the shape changes (He et al., 2016)."""

    def __init__(self, inside: int, outside: int, stride: int, norm: BatchOrGroup) -> None:
        super().__init__()
        self.conv1 = Conv(inside, outside, 3, stride, norm)
        self.bn1 = norm_layer(norm, outside)
        self.conv2 = Conv(outside, outside, 3, 1, norm)
        self.bn2 = norm_layer(norm, outside)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(Conv(inside, outside, 1, stride, norm), norm_layer(norm, outside))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn1(self.conv1(x)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn2(self.conv2(h)) + shortcut)


def _stage(inside: int, outside: int, stride: int, norm: BatchOrGroup) -> nn.Sequential:
    return nn.Sequential(Block18(inside, outside, stride, norm), Block18(outside, outside, 1, norm))


class ResNet18(nn.Module):
    """ResNet-18 without its classifier: [B C H W] -> [B width] (He et al., CVPR 2016).

    `stem="small"` starts with a conv3x3 of stride 1 and no max-pool, as is usual for 32 px; `"large"` is the
    published 7x7 stride 2 with a 3x3 max-pool. `width` is that of the last stage and scales the whole net.
    Parameters carry torchvision's names, so that its weights load where stem, norm and width agree.
    """

    last = "layer4"

    def __init__(
        self,
        channels: int = 3,
        stem: Literal["small", "large"] = "small",
        norm: BatchOrGroup = "batch",
        width: int = 512,
    ) -> None:
        super().__init__()
        if width < 8 or width % 8:
            raise ConfigError(f"ResNet18 doubles its width three times: width {width} is not a multiple of 8")
        first = width // 8
        _check_widths((first,), norm)
        self.channels_last = norm == "batch"
        size, stride = (3, 1) if stem == "small" else (7, 2)
        self.conv1 = Conv(channels, first, size, stride, norm)
        self.bn1 = norm_layer(norm, first)
        self.maxpool = nn.Identity() if stem == "small" else nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _stage(first, first, 1, norm)
        self.layer2 = _stage(first, first * 2, 2, norm)
        self.layer3 = _stage(first * 2, first * 4, 2, norm)
        self.layer4 = _stage(first * 4, width, 2, norm)
        self.width = width
        _init(self, slope=0.0)

    def lower(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        """Stem and three stages: [B C H W] -> [B width/2 H/4 W/4], or H/16 W/16 with the large stem."""
        # Pooling before the ReLU gives the same numbers on fewer pixels.
        h = torch.relu(self.maxpool(self.bn1(self.conv1(_laid_out(x, self.channels_last)))))
        return self.layer3(self.layer2(self.layer1(h)))

    def upper(self, h: Float[Tensor, "B E H W"]) -> Float[Tensor, "B D"]:
        """The last stage and the average over space: [B E H W] -> [B D]."""
        return self.layer4(h).mean(dim=(-2, -1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        return self.upper(self.lower(x))
