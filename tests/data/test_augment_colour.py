"""Colour and strokes of augmentation, with kornia as the reference."""

import kornia
import pytest
import torch
from drawn_views import COLOUR, rng, smooth
from torch import Tensor

from selftaught.data.augment import augment
from selftaught.data.colour import colour_maps, draw_colours
from selftaught.data.views import Views


def factors(name: str, x: Tensor) -> Tensor:
    """The drawn factor of each picture, read from its colour matrix."""
    matrix, _ = colour_maps(draw_colours(len(x), COLOUR[name], rng()), x.mean((2, 3)))
    if name == "saturation":
        return (matrix.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2
    return matrix.sum(-1)[:, 0]


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("brightness", kornia.enhance.adjust_brightness_accumulative),
        ("contrast", kornia.enhance.adjust_contrast_with_mean_subtraction),
        ("saturation", kornia.enhance.adjust_saturation_with_gray_subtraction),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_equals_kornia(name: str, reference: object, channels: int) -> None:
    x = smooth(6, channels, low=0.35, high=0.65)
    factor = factors(name, x)
    assert factor.min() >= 0.6 - 1e-5 and factor.max() <= 1.4 + 1e-5 and factor.std() > 0.1
    assert callable(reference)
    torch.testing.assert_close(augment(x, COLOUR[name], rng()), reference(x, factor), rtol=0, atol=1e-4)


def test_brightness_and_contrast_follow_one_another() -> None:
    """Contrast spreads about the mean of the brightened picture, so that it leaves that mean alone."""
    x = smooth(6, 1, low=0.4, high=0.6)
    ours = augment(x, Views(brightness=0.4, contrast=0.4, jitter=1.0), rng())
    # The same draws without contrast give the gain.
    gain = factors("brightness", x)
    torch.testing.assert_close(ours.mean((1, 2, 3)), x.mean((1, 2, 3)) * gain, rtol=0, atol=1e-4)


def test_grey_is_kornias_grey() -> None:
    x = smooth(4)
    grey = kornia.color.rgb_to_grayscale(x).expand(-1, 3, -1, -1)
    torch.testing.assert_close(augment(x, Views(grey=1.0), rng()), grey, rtol=0, atol=1e-4)


def test_hue_turns_colour_and_leaves_light() -> None:
    x = smooth(6, low=0.4, high=0.6)
    turned = augment(x, COLOUR["hue"], rng())
    light = kornia.color.rgb_to_grayscale
    torch.testing.assert_close(light(turned), light(x), rtol=0, atol=1e-3)
    assert (turned - x).abs().mean() > 5e-3
    grey = smooth(6, 1).expand(-1, 3, -1, -1)
    torch.testing.assert_close(augment(grey, COLOUR["hue"], rng()), grey, rtol=0, atol=1e-4)
    matrix, _ = colour_maps(draw_colours(6, COLOUR["hue"], rng()), x.mean((2, 3)))
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(6), rtol=0, atol=1e-4)


def test_jitter_is_a_probability() -> None:
    x = smooth(400, side=8)
    moved = (augment(x, Views(brightness=0.4, jitter=0.3), rng()) - x).abs().amax((1, 2, 3)) > 1e-4
    assert 0.2 < moved.float().mean() < 0.4


def test_blur_equals_kornia() -> None:
    x = torch.rand(4, 3, 16, 16, generator=rng())
    line = torch.tensor([1.0, 2.0, 1.0])
    kernel = torch.outer(line, line)[None] / 16
    reference = kornia.filters.filter2d(x, kernel, border_type="replicate")
    torch.testing.assert_close(augment(x, Views(blur=1.0), rng()), reference, rtol=0, atol=1e-5)
    some = augment(x.repeat(20, 1, 1, 1), Views(blur=0.5), rng()) - x.repeat(20, 1, 1, 1)
    share = (some.abs().amax((1, 2, 3)) > 0).float().mean()
    assert 0.3 < share < 0.7


def test_thickness_lies_between_kornias_erosion_and_dilation() -> None:
    x = torch.rand(12, 1, 16, 16, generator=rng())
    ours = augment(x, Views(thickness=1.0), rng())
    thicker = kornia.morphology.dilation(x, torch.ones(3, 3)) - x
    thinner = kornia.morphology.erosion(x, torch.ones(3, 3)) - x
    thickened = 0
    for moved, up, down in zip(ours - x, thicker, thinner, strict=True):
        grows = float(moved.sum()) > 0
        thickened += grows
        amount = float((moved * (up if grows else down)).sum() / (up if grows else down).square().sum())
        assert 0 <= amount <= 1
        torch.testing.assert_close(moved, amount * (up if grows else down), rtol=0, atol=1e-5)
    assert 0 < thickened < 12
