"""Views that a gradient can pass through to their strengths, with random numbers that are handed in.

Six changes, each of one strength that is its range: brightness and contrast (relative), noise (grey levels),
rotation (degrees), shift (part of the side) and zoom (logarithm). Geometry is one sampling grid, as in
`data.augment`, but with every number a tensor. Nothing is clipped to 0..1, where the gradient would end: our
choice.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

LIMITS: dict[str, float] = {
    "brightness": 0.8,
    "contrast": 0.8,
    "noise": 0.5,
    "rotate": 90.0,
    "translate": 0.5,
    "scale": 0.7,
}
"""The changes in their order, and the largest strength of each: past it few pictures would be themselves."""

NOISE_CHANNELS = 2
"""Noise that one view takes: in the first channel stand its draws, the second is the noise added to pixels."""

_DRAWS = 6


def differentiable_view(
    x: Float[Tensor, "B C H W"], noise: Float[Tensor, "B 2 H W"], strengths: Float[Tensor, "6"]
) -> Float[Tensor, "B C H W"]:
    """One view of each picture, differentiable by `strengths` (in the order and units of `LIMITS`).

    With u a number uniform on [-1, 1), of its own for each change and picture: turned by u * rotate, shifted by
    u * translate along each axis, enlarged by exp(u * scale), what comes into view having the colour of the
    nearest pixel; then (x - mean) * (1 + u * contrast) + mean, times 1 + u * brightness, plus u * noise at each
    pixel (equal in all channels). `noise` is uniform on [0, 1); pictures have six pixels or more.
    """
    brightness, contrast, grain, rotate, translate, scale = strengths
    draws = 2 * noise[:, 0].flatten(1)[:, :_DRAWS] - 1
    turn, zoom = draws[:, 0] * rotate * (math.pi / 180), (draws[:, 1] * scale).exp()
    # Half a side is 1 in the grid's coordinates.
    shift = 2 * draws[:, 2:4] * translate
    cos, sin = turn.cos() / zoom, turn.sin() / zoom
    maps = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).unflatten(1, (2, 3))
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (1 + _wide(draws[:, 4]) * contrast) + mean
    return x * (1 + _wide(draws[:, 5]) * brightness) + (2 * noise[:, 1:2] - 1) * grain


def _wide(x: Tensor) -> Tensor:
    return x[:, None, None, None]
