"""Random views of a whole batch at once, with its own draw for every picture.

All geometry is one sampling grid and one `grid_sample`; all colour is one 3x4 matrix per picture. The
distribution differs from per-picture pipelines in fixed order, no clamping between colour steps, hue as a
rotation in YIQ space and bilinear sampling without antialiasing; that is our choice, for speed.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from selftaught.core.functional import to_float
from selftaught.data.views import Views

_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_GREY = _YIQ[0]


def augment(x: Float[Tensor, "B C H W"] | Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """One random view of each picture: uint8 or float 0..1 [B C H W] -> float 0..1 [B C H W].

    Every draw comes from `generator` (on the CPU), so the same state gives the same views.
    """
    x = to_float(x)
    background = border_colour(x)
    if views.elastic or _moves(views):
        # Zero padding after taking the background away fills what comes into view with the background.
        grid = sampling_grid(len(x), x.shape[-2:], views, generator).to(x.device)
        x = F.grid_sample(x - background, grid, align_corners=False) + background
    if views.thickness:
        x = _thickness(x, _uniform(generator, len(x), -views.thickness, views.thickness).to(x.device))
    if views.blur:
        x = _blur(x, (torch.rand(len(x), generator=generator) < views.blur).to(x.device))
    if views.erase:
        # Before the colour changes, so that the hole keeps the colour of the background around it.
        x = _erase(x, background, views, generator)
    if views.brightness or views.contrast or views.saturation or views.hue or views.grey:
        x = _colour(x, views, generator)
    return x.clamp(0, 1)


def border_colour(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C 1 1"]:
    """Median of the outermost pixels of each picture and channel."""
    border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1]], dim=-1)
    return border.median(dim=-1).values[..., None, None]


def sampling_grid(
    batch: int, size: tuple[int, ...] | torch.Size, views: Views, generator: torch.Generator
) -> Float[Tensor, "B H W 2"]:
    """Where each output pixel looks in its input, in the -1..1 coordinates of `grid_sample`."""
    grid = F.affine_grid(affine(batch, views, generator), [batch, 1, *size], align_corners=False)
    if views.elastic:
        knots = torch.randn(batch, 2, 4, 4, generator=generator) * (2 * views.elastic)
        field = F.interpolate(knots, size=tuple(size), mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1)
    return grid


def affine(batch: int, views: Views, generator: torch.Generator) -> Float[Tensor, "B 2 3"]:
    """Output-to-input affine maps: mirror, then rotation, shear, zoom, crop window and shift."""
    g = generator
    angle = _uniform(g, batch, -views.rotate, views.rotate) * (math.pi / 180)
    shear = torch.tan(_uniform(g, batch, -views.shear, views.shear) * (math.pi / 180))
    zoom = 1 / _log_uniform(g, batch, *views.scale)
    area = _uniform(g, batch, *views.crop)
    ratio = _log_uniform(g, batch, 3 / 4, 4 / 3).sqrt() if views.crop[0] < 1 else torch.ones(batch)
    wide = (area.sqrt() * ratio).clamp(max=1)
    high = (area.sqrt() / ratio).clamp(max=1)
    mirror = torch.where(torch.rand(batch, generator=g) < views.flip, -1.0, 1.0)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    a = torch.stack([cos * wide * mirror, (shear * cos - sin) * high], -1)
    b = torch.stack([sin * wide * mirror, (shear * sin + cos) * high], -1)
    shift_x = _uniform(g, batch, -1, 1) * (1 - wide) + _uniform(g, batch, -2, 2) * views.translate
    shift_y = _uniform(g, batch, -1, 1) * (1 - high) + _uniform(g, batch, -2, 2) * views.translate
    return torch.stack([torch.cat([a, shift_x[:, None]], -1), torch.cat([b, shift_y[:, None]], -1)], 1)


def _moves(views: Views) -> bool:
    still = (views.crop, views.scale) == ((1.0, 1.0), (1.0, 1.0))
    return not still or bool(views.flip or views.rotate or views.shear or views.translate)


def _uniform(generator: torch.Generator, batch: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(batch, generator=generator)


def _log_uniform(generator: torch.Generator, batch: int, low: float, high: float) -> Tensor:
    return torch.exp(_uniform(generator, batch, math.log(low), math.log(high)))


def _thickness(x: Tensor, amount: Tensor) -> Tensor:
    """Blend towards the 3x3 maximum (amount > 0) or minimum (amount < 0) of each neighbourhood."""
    amount = amount[:, None, None, None]
    side = torch.where(amount > 0, 1.0, -1.0)
    return x + amount.abs() * side * (F.max_pool2d(x * side, 3, 1, 1) - x * side)


def _blur(x: Tensor, which: Tensor) -> Tensor:
    """A 3x3 binomial blur for the pictures marked in `which` [B]."""
    line = torch.tensor([0.25, 0.5, 0.25], device=x.device, dtype=x.dtype)
    kernel = torch.outer(line, line).expand(x.shape[1], 1, 3, 3)
    soft = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])
    return torch.where(which[:, None, None, None], soft, x)


def _colour(x: Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation, hue and grey as one affine map of the colour space per picture."""
    matrix, offset = colour_maps(x, views, generator)
    if x.shape[1] == 1:
        return x * matrix.sum(-1)[:, :1, None, None] + offset[:, :1, None, None]
    return torch.baddbmm(offset[..., None], matrix, x.flatten(2)).view_as(x)


def colour_maps(x: Tensor, views: Views, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """matrix [B 3 3], offset [B 3] of `y = matrix @ rgb + offset`."""
    batch = len(x)
    on = (torch.rand(batch, generator=generator) < views.jitter).float()
    gain = 1 + on * _uniform(generator, batch, -views.brightness, views.brightness)
    spread = 1 + on * _uniform(generator, batch, -views.contrast, views.contrast)
    chroma = 1 + on * _uniform(generator, batch, -views.saturation, views.saturation)
    turn = on * _uniform(generator, batch, -views.hue, views.hue) * (2 * math.pi)
    chroma = torch.where(torch.rand(batch, generator=generator) < views.grey, 0.0, chroma)
    cos, sin = (chroma * turn.cos()), (chroma * turn.sin())
    inner = torch.zeros(batch, 3, 3)
    inner[:, 0, 0] = 1
    inner[:, 1, 1], inner[:, 1, 2], inner[:, 2, 1], inner[:, 2, 2] = cos, -sin, sin, cos
    matrix = (torch.linalg.inv(_YIQ) @ inner @ _YIQ) * (gain * spread)[:, None, None]
    weights = _GREY if x.shape[1] == 3 else torch.ones(1)
    mean = (x.mean((2, 3)).cpu() * weights).sum(-1)
    offset = (mean * gain * (1 - spread))[:, None].expand(batch, 3)
    return matrix.to(x.device), offset.to(x.device)


def _erase(x: Tensor, background: Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """Fill one rectangle of up to `erase_area` with the background, with probability `erase`."""
    batch, height, width = len(x), x.shape[-2], x.shape[-1]
    area = _uniform(generator, batch, 0.02, views.erase_area)
    ratio = _log_uniform(generator, batch, 0.5, 2.0).sqrt()
    on = torch.rand(batch, generator=generator) < views.erase
    high, wide = area.sqrt() / ratio * on, area.sqrt() * ratio * on
    top = torch.rand(batch, generator=generator) * (1 - high)
    left = torch.rand(batch, generator=generator) * (1 - wide)
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    inside_rows = (rows >= top[:, None]) & (rows < (top + high)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    hole = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None].to(x.device)
    return torch.where(hole, background, x)
