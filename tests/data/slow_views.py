"""The SimCLR views of one picture, step by step from the definitions, with Python's own random numbers."""

import colorsys
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.data.views import Views

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one picture: window (left, top, width, height), mirror, colour factors, turn of the hue,
    order of the four changes (None: left out), grey."""

    window: tuple[int, int, int, int]
    mirror: bool
    factors: tuple[float, float, float]
    turn: float
    order: tuple[int, ...] | None
    grey: bool


def draw(views: Views, size: tuple[int, int], dice: random.Random) -> Drawn:
    on = dice.random() < views.jitter
    strengths = (views.brightness, views.contrast, views.saturation)
    first, second, third = (dice.uniform(max(0, 1 - s), 1 + s) for s in strengths)
    order = list(range(4))
    dice.shuffle(order)
    return Drawn(
        draw_window(views.crop, size, dice),
        dice.random() < views.flip,
        (first, second, third),
        dice.uniform(-views.hue, views.hue),
        tuple(order) if on else None,
        dice.random() < views.grey,
    )


def draw_window(
    crop: tuple[float, float], size: tuple[int, int], dice: random.Random
) -> tuple[int, int, int, int]:
    """left, top, width, height: a window of random area and shape that fits, else the largest allowed one."""
    high, wide = size
    for _ in range(10):
        area = dice.uniform(*crop) * high * wide
        ratio = math.exp(dice.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= wide and 0 < height <= high:
            return dice.randint(0, wide - width), dice.randint(0, high - height), width, height
    width, height = wide, high
    if wide / high < 3 / 4:
        height = round(wide * 4 / 3)
    elif wide / high > 4 / 3:
        width = round(high * 4 / 3)
    return (wide - width) // 2, (high - height) // 2, width, height


def view(picture: Tensor, drawn: Drawn) -> Tensor:
    """One view [3 H W] of a float picture [3 H W]."""
    left, top, width, height = drawn.window
    cut = picture[None, :, top : top + height, left : left + width]
    x = F.interpolate(cut, size=picture.shape[1:], mode="bilinear", align_corners=False)[0]
    x = x.flip(-1) if drawn.mirror else x
    return recolour(x, drawn)


def recolour(x: Tensor, drawn: Drawn) -> Tensor:
    """The colour changes alone."""
    for change in drawn.order or ():
        if change == 0:
            x = (x * drawn.factors[0]).clamp(0, 1)
        elif change == 1:
            x = _towards(x, luma(x).mean(), drawn.factors[1])
        elif change == 2:
            x = _towards(x, luma(x), drawn.factors[2])
        else:
            x = turn_hue(x, drawn.turn)
    return luma(x).expand(3, -1, -1) if drawn.grey else x


def _towards(x: Tensor, target: Tensor, factor: float) -> Tensor:
    return (factor * x + (1 - factor) * target).clamp(0, 1)


def luma(x: Tensor) -> Tensor:
    return sum(weight * channel for weight, channel in zip(LUMA, x, strict=True))  # type: ignore[return-value]


def turn_hue(x: Tensor, turn: float) -> Tensor:
    """Pixel by pixel, by the standard library."""
    pixels = [_turn_pixel(pixel, turn) for pixel in x.flatten(1).T.tolist()]
    return torch.tensor(pixels).T.reshape(x.shape)


def _turn_pixel(pixel: Sequence[float], turn: float) -> tuple[float, float, float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
