"""Recipes of one change each, and pictures to change, for the tests of augmentation."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.data.views import PHOTO, RECIPES, Views

GEOMETRY: dict[str, Views] = {
    "rotate": Views(rotate=40),
    "shear": Views(shear=25),
    "scale": Views(scale=(0.6, 1.5)),
    "translate": Views(translate=0.2),
    "crop": Views(crop=(0.25, 1.0)),
    "flip": Views(flip=0.5),
    "elastic": Views(elastic=0.05),
}
COLOUR: dict[str, Views] = {
    "brightness": Views(brightness=0.4, jitter=1.0),
    "contrast": Views(contrast=0.4, jitter=1.0),
    "saturation": Views(saturation=0.4, jitter=1.0),
    "hue": Views(hue=0.3, jitter=1.0),
    "grey": Views(grey=0.5),
}
STROKES: dict[str, Views] = {
    "thickness": Views(thickness=1.0),
    "blur": Views(blur=0.5),
    "erase": Views(erase=1.0),
}
SINGLE = GEOMETRY | COLOUR | STROKES
ALL = (
    SINGLE | RECIPES | {"exact": replace(PHOTO, exact_colour=True), "exact hue": Views(hue=0.3, exact_colour=True)}
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(batch: int, channels: int = 3, side: int = 32, low: float = 0.3, high: float = 0.7) -> Tensor:
    """Random pictures without sharp edges, so that interpolation differs little; away from 0 and 1."""
    coarse = torch.rand(batch, channels, 6, 6, generator=rng(1)) * (high - low) + low
    return F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)
