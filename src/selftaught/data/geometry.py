"""Where every pixel of a view looks in its picture: crop, mirror, turn, zoom, shift and bend as one sampling grid.

The crop window is that of torchvision's RandomResizedCrop, number for number: area uniform, aspect ratio
log-uniform between 3/4 and 4/3, rounded to whole pixels, up to ten tries until it fits (else the largest
centred window of an allowed shape), then uniform over all positions. A recipe of crop and mirror alone takes
its pixels as torchvision's bilinear resizing does, without looking over the edge of the window. (It never
shrinks, so antialiasing makes no difference.) In combination with turns and shifts the window is one more
affine map, and what lies beyond it comes into view; that is our choice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from selftaught.data.views import Views

RATIO = (3 / 4, 4 / 3)
"""Width over height of a crop window."""

TRIES = 10
"""Windows drawn before the centred one is taken."""


@dataclass(frozen=True)
class Geometry:
    """The draws for one batch of B pictures.

    `angle` and `shear` [B] radians, `zoom` [B] (above 1 enlarges), `mirror` [B] bool, `shift` [2 B] (x, y) in
    -1..1 coordinates (half a side is 1). The crop window in whole pixels: `start` [2 B] (left, top) and `length`
    [2 B] (width, height).
    """

    angle: Tensor
    shear: Tensor
    zoom: Tensor
    mirror: Tensor
    shift: Tensor
    start: Tensor
    length: Tensor


def draw_geometry(batch: int, size: tuple[int, int], views: Views, generator: torch.Generator) -> Geometry:
    """Independent draws for `batch` pictures of `size` (height, width) pixels, from `generator` on the CPU."""
    turn, slant, move = math.radians(views.rotate), math.radians(views.shear), 2 * views.translate
    zoom, area = (math.log(views.scale[0]), math.log(views.scale[1])), views.crop
    # The order of the rows is part of what a seed means: new draws go into calls of their own.
    ranges = [(-turn, turn), (-slant, slant), zoom, area, (0, 1), (0, 1), (-move, move), (0, 1), (-move, move)]
    rows = uniform(ranges, batch, generator)
    side = torch.tensor([[float(size[1])], [float(size[0])]])
    start, length = torch.zeros(2, batch), side.expand(2, batch)
    if views.crop != (1.0, 1.0):
        more = uniform([area] * (TRIES - 1) + [(math.log(RATIO[0]), math.log(RATIO[1]))] * TRIES, batch, generator)
        areas = torch.cat([rows[3:4], more[: TRIES - 1]])
        start, length = _windows(areas, more[TRIES - 1 :].exp(), rows[5:8:2], side)
    return Geometry(rows[0], rows[1], rows[2].exp(), rows[4] < views.flip, rows[6:9:2], start, length)


def uniform(ranges: Sequence[tuple[float, float]], batch: int, generator: torch.Generator) -> Tensor:
    """[len(ranges) B] independent uniform draws, a range for each row; one call, as draws are many and small."""
    low, high = torch.tensor(ranges, dtype=torch.float32)[..., None].unbind(1)
    return torch.addcmul(low, high - low, torch.rand(len(ranges), batch, generator=generator))


def _windows(area: Tensor, ratio: Tensor, place: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """Start and length [2 B] from draws of `area` (parts) and `ratio` [TRIES B], `place` [2 B]; `side` [2 1]."""
    square = area * side.prod()
    lengths = torch.stack([square * ratio, square / ratio]).sqrt_().round_()
    fits = ((lengths > 0) & (lengths <= side[:, None])).all(0)
    first = fits.int().argmax(0).expand(2, 1, -1)  # of equals, the first
    found = fits.any(0)
    centred = torch.minimum(side, (side.flip(0) * torch.tensor([[RATIO[1]], [1 / RATIO[0]]])).round())
    length = torch.where(found, lengths.gather(1, first)[:, 0], centred)
    # A draw just below 1 may be rounded up to it, hence the minimum.
    start = torch.minimum((place * (side - length + 1)).floor_(), side - length)
    return torch.where(found, start, ((side - centred) / 2).floor()), length


def keeps_to_window(views: Views) -> bool:
    """Whether views are upright windows of their pictures, so that nothing beyond can come into view."""
    return not (views.rotate or views.shear or views.translate or views.elastic) and views.scale == (1.0, 1.0)


def sampling_grid(
    batch: int, size: tuple[int, int], views: Views, generator: torch.Generator
) -> Float[Tensor, "B H W 2"]:
    """Where each output pixel looks in its input, in the -1..1 coordinates of `grid_sample`.

    x and y lie in planes of their own in memory: they are quicker to fill, and `grid_sample` minds neither.
    """
    drawn = draw_geometry(batch, size, views, generator)
    if keeps_to_window(views):
        return window_grid(drawn, size)
    maps, basis = affine(drawn, size).flatten(0, 1), [_unit_grid(size)]
    if views.elastic:
        knots = torch.randn(batch, 2, 4, 4, generator=generator) * (2 * views.elastic)
        maps = torch.cat([maps, knots.flatten(2).flatten(0, 1)], 1)
        basis.append(_bend(size))
    # Affine map and displacement are linear in their numbers: one product makes the whole grid.
    return (maps @ torch.cat(basis)).view(batch, 2, *size).permute(0, 2, 3, 1)


def window_grid(drawn: Geometry, size: tuple[int, int]) -> Float[Tensor, "B H W 2"]:
    """The grid of crop and mirror alone, which never looks over the edge of its window."""
    wide, centre = _relative(drawn, size)
    # One pixel of the picture is 2 / side: the middles of the outermost pixels of the window are its limits.
    reach = wide - 1 / torch.tensor([[size[1]], [size[0]]])
    across = torch.where(drawn.mirror, -wide[0], wide[0])
    grid = torch.empty(len(across), 2, *size)
    for axis, factor in enumerate((across, wide[1])):
        line = torch.addcmul(centre[axis, :, None], factor[:, None], _centres(size[1 - axis]))
        low, high = (centre[axis] - reach[axis])[:, None], (centre[axis] + reach[axis])[:, None]
        line = torch.clamp(line, low, high)
        grid[:, axis] = line[:, None, :] if axis == 0 else line[:, :, None]
    return grid.permute(0, 2, 3, 1)


def affine(drawn: Geometry, size: tuple[int, int]) -> Float[Tensor, "B 2 3"]:
    """Output-to-input affine maps: mirror and crop window, then shear, rotation, zoom and shift."""
    (wide, high), centre = _relative(drawn, size)
    cos, sin, shear = drawn.angle.cos() / drawn.zoom, drawn.angle.sin() / drawn.zoom, drawn.shear.tan()
    across = torch.where(drawn.mirror, -wide, wide)
    x, y = centre + drawn.shift
    numbers = [cos * across, (shear * cos - sin) * high, x, sin * across, (shear * sin + cos) * high, y]
    return torch.stack(numbers, 1).view(-1, 2, 3)


def _relative(drawn: Geometry, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Window lengths [2 B] as parts of the side, and its centre [2 B] in -1..1 coordinates."""
    side = torch.tensor([[float(size[1])], [float(size[0])]])
    wide = drawn.length / side
    return wide, (2 / side * drawn.start).add_(wide).sub_(1)


def _centres(side: int) -> Tensor:
    """[side] the middles of pixels in -1..1 coordinates."""
    return (2 * torch.arange(side) + 1) / side - 1


def _unit_grid(size: tuple[int, int]) -> Float[Tensor, "3 H*W"]:
    """x, y and 1 at every pixel's centre."""
    y, x = map(_centres, size)
    return torch.stack([x.repeat(size[0]), y.repeat_interleave(size[1]), torch.ones(size[0] * size[1])])


def _bend(size: tuple[int, int]) -> Float[Tensor, "16 H*W"]:
    """What each of 4 x 4 knots adds to the displacement of every pixel, by bicubic interpolation."""
    knots = torch.eye(16).view(1, 16, 4, 4)
    return F.interpolate(knots, size=size, mode="bicubic", align_corners=True).flatten(2)[0]
