"""View recipes: how strongly a picture may change and still be itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

from selftaught.data.pictures import Pictures


@dataclass(frozen=True)
class Views:
    """Ranges of the random changes, each drawn per picture. Zero (or (1, 1)) switches a change off.

    Geometry: `crop` is the range of area kept (aspect ratio 3/4 to 4/3), `flip` the probability of a mirror,
    `rotate` and `shear` degrees either way, `scale` a range of zoom, `translate` a fraction of the side,
    `elastic` the standard deviation of a smooth displacement field as a fraction of the side.
    Strokes: `thickness` is the largest blend towards dilation or erosion.
    Colour: `brightness`, `contrast`, `saturation` relative ranges, `hue` in turns, all with probability
    `jitter`; `grey` a probability. `exact_colour` applies them one by one as torchvision does, in an order drawn
    per picture, clipped after each, with the hue of HSV; without it they are one matrix, in a fixed order, which
    is faster (`data.colour`). `blur` and `erase` are probabilities; `erase_area` the largest area.
    """

    crop: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    rotate: float = 0.0
    shear: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    translate: float = 0.0
    elastic: float = 0.0
    thickness: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 0.8
    grey: float = 0.0
    blur: float = 0.0
    erase: float = 0.0
    erase_area: float = 0.25
    exact_colour: bool = False


PHOTO = Views(
    crop=(0.25, 1.0), flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2, blur=0.2
)
"""SimCLR's changes (Chen et al. 2020, appendix A) with the milder colour strength usual for small pictures."""

GLYPH = Views(
    rotate=20,
    shear=15,
    scale=(0.75, 1.2),
    translate=0.12,
    elastic=0.03,
    thickness=0.6,
    erase=0.3,
    erase_area=0.15,
)
"""Characters and line drawings: no mirror (it changes the class), strokes bend and change thickness."""

FLAT = Views(
    crop=(0.35, 1.0), flip=0.5, rotate=15, scale=(0.9, 1.1), brightness=0.3, contrast=0.3, saturation=0.4,
    hue=0.1, grey=0.2, erase=0.2,
)  # fmt: skip
"""Flat drawings, icons, logos: colour is a weak cue, small rotations are harmless."""

RECIPES: dict[str, Views] = {"photo": PHOTO, "glyph": GLYPH, "flat": FLAT}


def choose_recipe(pictures: Pictures, sample: int = 256) -> tuple[str, str]:
    """The name of a fitting recipe and the reason, from a look at up to `sample` pictures.

    Few colours on an even border is a drawing; without colour it is a glyph; all else is a photo.
    The thresholds are ours, set on Omniglot, emoji, CIFAR-10 and Caltech-101.
    """
    step = max(1, len(pictures) // sample)
    x = pictures.x[::step][:sample].float() / 255
    colour = 0.0 if x.shape[1] == 1 else float((x.amax(1) - x.amin(1)).mean())
    even = float(_even_border(x).float().mean())
    if even < 0.6:
        return "photo", f"only {even:.0%} of the pictures looked at have an even border"
    kind = "glyph" if colour < 0.02 else "flat"
    return kind, f"{even:.0%} have an even border and the mean colour spread is {colour:.2f}"


def _even_border(x: Tensor) -> Tensor:
    """[B] whether three quarters of a picture's outermost pixels share one colour (within 4 %)."""
    border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1]], dim=-1)
    middle = border.median(dim=-1, keepdim=True).values
    return ((border - middle).abs().amax(1) < 0.04).float().mean(-1) > 0.75
