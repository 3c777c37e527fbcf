"""Random views of a whole batch at once, with its own draw for every picture.

All geometry is one sampling grid and one `grid_sample` (`data.geometry`), all colour one 3x4 matrix per picture
or, if the recipe asks for it, torchvision's steps one by one (`data.colour`). Each of the other changes is a pass
over the pictures it is drawn for.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from selftaught.core.functional import to_float
from selftaught.data.colour import as_matrix, changes_colour, draw_colours, in_order
from selftaught.data.geometry import keeps_to_window, sampling_grid, uniform
from selftaught.data.views import Views


def augment(x: Float[Tensor, "B C H W"] | Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """One random view of each picture: uint8 or float 0..1 [B C H W] -> float 0..1 [B C H W].

    Every draw comes from `generator` (on the CPU), so the same state gives the same views. What comes into view
    from beyond a picture has the colour of its border.
    """
    x = _own(x)  # changes are written into it: fresh memory costs as much as the arithmetic
    background = border_colour(x) if views.erase or not keeps_to_window(views) else None
    if views.crop != (1.0, 1.0) or views.flip or not keeps_to_window(views):
        x = _moved(x, background, views, generator)
    if views.thickness:
        amount = uniform([(-views.thickness, views.thickness)], len(x), generator)[0]
        x = _thickness(x, amount.to(x.device))
    if views.blur:
        _blur(x, (torch.rand(len(x), generator=generator) < views.blur).to(x.device))
    if views.erase and background is not None:
        # Before the colour changes, so that the hole keeps the colour of the background around it.
        x = _erase(x, background, views, generator)
    if changes_colour(views):
        drawn = draw_colours(len(x), views, generator)
        x = as_matrix(x, drawn) if drawn.order is None else in_order(x, drawn)
    return x.clamp_(0, 1)


def border_colour(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C 1 1"]:
    """Median of the outermost pixels of each picture and channel (of an even number the lower)."""
    border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1]], dim=-1)
    if x.device.type != "cpu":
        return border.median(dim=-1).values[..., None, None]
    # The same number; torch's own median takes seven times as long on a CPU.
    middle = (border.shape[-1] - 1) // 2
    return torch.from_numpy(np.partition(border.numpy(), middle, axis=-1)[..., middle])[..., None, None]


def _own(x: Tensor) -> Tensor:
    return to_float(x) if x.dtype == torch.uint8 else x.clone()


def _moved(x: Tensor, background: Tensor | None, views: Views, generator: torch.Generator) -> Tensor:
    grid = sampling_grid(len(x), (x.shape[2], x.shape[3]), views, generator).to(x.device)
    if background is None or keeps_to_window(views):
        # Nothing from beyond the picture is asked for; this padding is the quickest.
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    # Zero padding after taking the background away fills what comes into view with the background.
    return F.grid_sample(x.sub_(background), grid, align_corners=False).add_(background)


def _thickness(x: Tensor, amount: Tensor) -> Tensor:
    """Blend towards the 3x3 maximum (amount > 0) or minimum (amount < 0) of each neighbourhood."""
    amount = amount[:, None, None, None]
    # The minimum is the maximum of the negative.
    side = torch.where(amount > 0, 1.0, -1.0)
    return x.lerp_(_maximum(x * side).mul_(side), amount.abs())


def _maximum(x: Tensor) -> Tensor:
    """3x3 maximum by comparing shifted pictures: twenty times as fast as max_pool2d on a CPU."""
    wide = x.clone()
    torch.maximum(wide[..., 1:], x[..., :-1], out=wide[..., 1:])
    torch.maximum(wide[..., :-1], x[..., 1:], out=wide[..., :-1])
    both = wide.clone()
    torch.maximum(both[..., 1:, :], wide[..., :-1, :], out=both[..., 1:, :])
    torch.maximum(both[..., :-1, :], wide[..., 1:, :], out=both[..., :-1, :])
    return both


def _blur(x: Tensor, which: Tensor) -> None:
    """A 3x3 binomial blur of the pictures marked in `which` [B], written into `x`."""
    index = which.nonzero()[:, 0]
    if not len(index):
        return
    padded = F.pad(x.index_select(0, index), (1, 1, 1, 1), mode="replicate")
    rows = padded[..., 1:-1, :].mul(2).add_(padded[..., :-2, :]).add_(padded[..., 2:, :])
    soft = rows[..., 1:-1].mul(2).add_(rows[..., :-2]).add_(rows[..., 2:])
    x.index_copy_(0, index, soft.mul_(1 / 16))


def _erase(x: Tensor, background: Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """Fill one rectangle of up to `erase_area` with the background, with probability `erase`."""
    ranges = [(0.02, views.erase_area), (math.log(0.5), math.log(2)), (0, 1), (0, 1), (0, 1)]
    area, ratio, on, top, left = uniform(ranges, len(x), generator)
    root, tall = area.sqrt() * (on < views.erase), (ratio / 2).exp()
    rows = _inside(top, root / tall, x.shape[2])
    columns = _inside(left, root * tall, x.shape[3])
    hole = (rows[:, None, :, None] * columns[:, None, None, :]).to(x.device)
    # With weights of 0 and 1 this is a choice, and quicker than `where`.
    return x.lerp_(background, hole)


def _inside(place: Tensor, length: Tensor, side: int) -> Tensor:
    """[B side] 1 in a stretch of `length` [B] that starts at random, both as parts of the side, else 0."""
    start = (place * (1 - length))[:, None]
    centres = (torch.arange(side) + 0.5) / side
    return ((centres >= start) & (centres < start + length[:, None])).float()
