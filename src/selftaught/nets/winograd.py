"""3x3 convolution in fewer multiplications, for wide layers on CPUs where matrix products are the fast part.

Winograd's minimal filtering F(4x4, 3x3) (Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
2016, arXiv 1509.09308): output in tiles of 4x4, each from 6x6 inputs, needs 36 products for every pair of
channels instead of 144. The three matrices are the paper's. Our choice: the transforms as matrix products with
Kronecker squares over all tiles of a block of pictures; the gradient of the weights in the transformed domain;
backward passes made of the same two operations, so that derivatives of every order exist and only input and
weights are kept for them.

The result is the convolution's: in float64 they agree to 1e-10; in float32 rounding is about five times that of
the direct sum (relative 3e-6 for 256 channels), far below what bfloat16 leaves.
"""

import functools
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_TILES_AT_ONCE = 256
"""Tiles of one block: enough rows for the matrix products, few enough to stay in the cache."""
_LEAST_CHANNELS = 64
_MOST_PADDING = 1.5


def suits(x: Tensor, weight: Tensor, stride: int = 1) -> bool:
    """Whether `conv3x3` is the faster way for x [B C H W] and weight [O C k k].

    So for 3x3 with stride 1 and 64 channels or more on both sides on a CPU with AVX2, where it was measured. With
    AVX-512 the direct kernels are twice as fast, on a GPU the vendor's library chooses by itself, and bfloat16
    has too few digits for the transforms: always False.
    """
    if stride != 1 or weight.shape[-2:] != (3, 3) or min(weight.shape[:2]) < _LEAST_CHANNELS:
        return False
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or not _measured_cpu():
        return False
    height, width = x.shape[-2:]
    return _up(height) * _up(width) < _MOST_PADDING * height * width and not torch.is_autocast_enabled("cpu")


@functools.cache
def _measured_cpu() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def conv3x3(x: Float[Tensor, "B C H W"], weight: Float[Tensor, "O C 3 3"]) -> Float[Tensor, "B O H W"]:
    """`F.conv2d(x, weight, padding=1)` in channels-last memory; differentiable to any order, also in `vmap`."""
    out: Tensor = _Convolve.apply(x, weight)
    return out


class _Convolve(torch.autograd.Function):
    """y = x * w. Both gradients are again a convolution and a weight gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        filters = _matrix("weight", x) @ weight.permute(2, 3, 1, 0).reshape(9, -1)
        filters = filters.view(36, weight.shape[1], weight.shape[0])
        return torch.cat([_convolve(part, filters) for part in x.split(_block(x))])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = _Convolve.apply(g, _turned(weight)) if ctx.needs_input_grad[0] else None
        return dx, _Correlate.apply(x, g) if ctx.needs_input_grad[1] else None


class _Correlate(torch.autograd.Function):
    """The weights' gradient [O C 3 3]: bilinear in the input x [B C H W] and the output's gradient g [B O H W]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, g: Tensor) -> Tensor:
        parts = zip(x.split(_block(x)), g.split(_block(x)), strict=True)
        # One block's product after the other: for 512 channels each is 36 MiB.
        products = (torch.bmm(_inputs(a).transpose(1, 2), _outputs(b)) for a, b in parts)
        total = next(products)
        for product in products:
            total += product
        weight = _matrix("weight", x).T @ total.flatten(1)
        return weight.view(3, 3, x.shape[1], g.shape[1]).permute(3, 2, 0, 1).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, g = ctx.saved_tensors
        dx = _Convolve.apply(g, _turned(v)) if ctx.needs_input_grad[0] else None
        return dx, _Convolve.apply(x, v) if ctx.needs_input_grad[1] else None


def _turned(weight: Tensor) -> Tensor:
    """The filters [C O 3 3] that carry a gradient back through `weight` [O C 3 3]."""
    return weight.flip(2, 3).transpose(0, 1)


def _convolve(x: Tensor, filters: Float[Tensor, "36 C O"]) -> Tensor:
    pictures, _, height, width = x.shape
    product = torch.bmm(_inputs(x), filters).view(36, -1)
    tiles = (_matrix("output", x) @ product).view(4, 4, pictures, _up(height) // 4, _up(width) // 4, -1)
    y = tiles.permute(2, 3, 0, 4, 1, 5).reshape(pictures, _up(height), _up(width), -1)
    # With one tile a picture nothing was copied yet, and strange strides would make all that follows slow.
    return y[:, :height, :width].contiguous().permute(0, 3, 1, 2)


def _inputs(x: Tensor) -> Float[Tensor, "36 M C"]:
    """All M tiles, transformed."""
    return (_matrix("input", x) @ _tiles(x, 6, 1)).view(36, -1, x.shape[1])


def _outputs(g: Tensor) -> Float[Tensor, "36 M O"]:
    """All M tiles of an output's gradient, transformed back."""
    return (_matrix("output", g).T @ _tiles(g, 4, 0)).view(36, -1, g.shape[1])


def _tiles(x: Tensor, size: int, rim: int) -> Float[Tensor, "P MC"]:
    """The P = size^2 positions of every tile, four pixels apart, of x with a rim of zeros."""
    height, width = x.shape[-2:]
    below, right = rim + _up(height) - height, rim + _up(width) - width
    last = x.permute(0, 2, 3, 1)
    if rim or below or right:
        last = F.pad(last, (0, 0, rim, right, rim, below))
    return last.unfold(1, size, 4).unfold(2, size, 4).permute(4, 5, 0, 1, 2, 3).reshape(size * size, -1)


def _up(side: int) -> int:
    return math.ceil(side / 4) * 4


def _block(x: Tensor) -> int:
    """How many pictures go together."""
    return max(1, _TILES_AT_ONCE * 16 // (_up(x.shape[-2]) * _up(x.shape[-1])))


def _matrix(name: str, like: Tensor) -> Tensor:
    return _matrices(like.dtype)[name]


@functools.cache
def _matrices(dtype: torch.dtype) -> dict[str, Tensor]:
    """The Kronecker squares of the paper's B^T [6 6], G [6 3] and A^T [4 6]."""
    rows = {
        "input": [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        "weight": [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        "output": [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    }
    found = {k: torch.tensor(v, dtype=torch.float64) for k, v in rows.items()}
    return {k: torch.kron(v, v).to(dtype) for k, v in found.items()}
