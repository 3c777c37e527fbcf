"""Augmentation: kornia as the reference, a draw of its own for every picture, and no other randomness."""

import math
import random
from dataclasses import replace

import kornia
import numpy as np
import pytest
import torch
from drawn_views import ALL, GEOMETRY, SINGLE, STROKES, rng, smooth
from torch import Tensor
from torch.nn import functional as F

from selftaught.data.augment import augment, border_colour
from selftaught.data.geometry import affine, draw_geometry, sampling_grid
from selftaught.data.pictures import Pictures
from selftaught.data.views import FLAT, GLYPH, PHOTO, RECIPES, Views, choose_recipe


def maps(batch: int, views: Views, side: int = 32) -> Tensor:
    """The affine maps that `augment` uses with the same seed."""
    return affine(draw_geometry(batch, (side, side), views, rng()), (side, side))


# --- geometry against kornia ----------------------------------------------------------------------------


def pixel_maps(theta: Tensor, side: int) -> Tensor:
    """Input-to-output maps [B 3 3] in pixels, for output-to-input maps [B 2 3] in -1..1 coordinates."""
    to_unit = torch.tensor([[2 / side, 0, 1 / side - 1], [0, 2 / side, 1 / side - 1], [0, 0, 1]])
    full = torch.cat([theta, torch.tensor([[[0.0, 0.0, 1.0]]]).expand(len(theta), 1, 3)], dim=1)
    return torch.linalg.inv(torch.linalg.inv(to_unit) @ full @ to_unit)


@pytest.mark.parametrize("name", [n for n in GEOMETRY if n not in ("elastic", "crop")])
def test_geometry_equals_kornia_warp(name: str) -> None:
    views = GEOMETRY[name]
    x = smooth(6)
    ours = augment(x, views, rng())
    warp = pixel_maps(maps(6, views), 32)[:, :2]
    background = border_colour(x)
    reference = kornia.geometry.warp_affine(x - background, warp, (32, 32), align_corners=True) + background
    torch.testing.assert_close(ours, reference, rtol=0, atol=2e-4)
    assert (ours - x).abs().mean() > 1e-3


def test_rotation_turns_as_kornia_turns() -> None:
    """Degrees, about the middle, one sign convention: positive angles turn against the clock."""
    x, views = smooth(8), Views(rotate=30)
    theta = maps(8, views)
    degrees = torch.atan2(theta[:, 1, 0], theta[:, 0, 0]) * 180 / math.pi
    assert degrees.abs().max() <= 30 and degrees.min() < -5 and degrees.max() > 5
    reference = kornia.geometry.rotate(x, degrees)
    inside = (..., slice(8, 24), slice(8, 24))
    torch.testing.assert_close(augment(x, views, rng())[inside], reference[inside], rtol=0, atol=2e-4)


def test_zoom_is_kornias_scale() -> None:
    x = smooth(2)
    reference = kornia.geometry.scale(x, torch.full((2, 2), 1.25))
    inside = (..., slice(4, 28), slice(4, 28))
    ours = augment(x, Views(scale=(1.25, 1.25)), rng())
    torch.testing.assert_close(ours[inside], reference[inside], rtol=0, atol=2e-4)


def test_flip_is_kornias_mirror() -> None:
    x = smooth(12)
    ours = augment(x, Views(flip=0.5), rng())
    mirrored = kornia.geometry.hflip(x)
    same = (ours - x).abs().amax((1, 2, 3)) < 1e-5
    other = (ours - mirrored).abs().amax((1, 2, 3)) < 1e-5
    assert (same ^ other).all() and same.any() and other.any()
    torch.testing.assert_close(augment(x, Views(flip=1.0), rng()), mirrored, rtol=0, atol=1e-5)


def test_ranges_of_the_draws() -> None:
    shift = maps(2000, Views(translate=0.2))[:, :, 2]
    # Half a side is 1 in these coordinates: a fifth of the side is 0.4.
    assert 0.38 < shift.abs().max() <= 0.4
    shear = maps(2000, Views(shear=20))
    slope = torch.atan(shear[:, 0, 1]) * 180 / math.pi
    assert 19 < slope.abs().max() <= 20.001 and shear[:, 1, 0].abs().max() == 0
    zoom = 1 / maps(2000, Views(scale=(0.5, 2.0)))[:, 0, 0]
    assert 0.5 <= zoom.min() < 0.52 and 1.95 < zoom.max() <= 2.001
    # As many draws enlarge as shrink.
    assert abs(float((zoom > 1).float().mean()) - 0.5) < 0.05


@pytest.mark.parametrize("size", [(32, 32), (20, 31)])
def test_crop_is_the_window_resized(size: tuple[int, int]) -> None:
    """As torchvision does it: cut out, then enlarge; the pixels beyond the window play no part. And mirrored."""
    x = torch.rand(30, 3, *size, generator=rng(2))
    views = Views(crop=(0.08, 1.0), flip=0.5)
    drawn = draw_geometry(30, size, views, rng())
    expected = []
    for picture, (left, top), (width, height), mirror in zip(
        x, drawn.start.T.int().tolist(), drawn.length.T.int().tolist(), drawn.mirror.tolist(), strict=True
    ):
        window = picture[None, :, top : top + height, left : left + width]
        resized = F.interpolate(window, size=size, mode="bilinear", align_corners=False, antialias=True)
        expected.append(resized.flip(-1) if mirror else resized)
    torch.testing.assert_close(augment(x, views, rng()), torch.cat(expected), rtol=0, atol=2e-5)


def test_crop_with_a_turn_looks_beyond_its_window() -> None:
    """The window is then one more affine map."""
    views = Views(crop=(0.25, 0.25), rotate=1e-5)
    x = smooth(20)
    drawn = draw_geometry(20, (32, 32), views, rng())
    warp = pixel_maps(affine(drawn, (32, 32)), 32)[:, :2]
    reference = kornia.geometry.warp_affine(x, warp, (32, 32), align_corners=True, padding_mode="border")
    inside = (..., slice(2, 30), slice(2, 30))
    torch.testing.assert_close(augment(x, views, rng())[inside], reference[inside], rtol=0, atol=2e-4)


def test_crop_keeps_its_window_inside() -> None:
    for size in ((32, 32), (5, 90), (90, 5), (1, 1)):
        drawn = draw_geometry(500, size, Views(crop=(0.08, 1.0)), rng())
        assert (drawn.start >= 0).all() and (drawn.length >= 1).all()
        assert (drawn.start + drawn.length <= torch.tensor([[size[1]], [size[0]]])).all()
        assert (drawn.start == drawn.start.round()).all() and (drawn.length == drawn.length.round()).all()
        grid = sampling_grid(200, size, Views(crop=(0.25, 1.0)), rng())
        assert grid.shape == (200, *size, 2) and grid.abs().max() < 1


def test_elastic_is_smooth_and_of_the_stated_size() -> None:
    views = Views(elastic=0.05)
    still = sampling_grid(400, (32, 32), Views(), rng())
    field = (sampling_grid(400, (32, 32), views, rng()) - still) / 2
    assert 0.035 < field.std() < 0.06
    assert abs(field.mean()) < 0.005
    assert (field[:, 1:] - field[:, :-1]).abs().max() < 0.05


# --- one draw for every picture, from our generator only -------------------------------------------------


def textured(batch: int, channels: int = 3) -> Tensor:
    one = torch.rand(1, channels, 24, 24, generator=rng(3)) * 0.6 + 0.2
    return one.expand(batch, -1, -1, -1).clone()


@pytest.mark.parametrize("name", ALL)
def test_equal_pictures_get_different_views(name: str) -> None:
    """A draw per batch would make the pretext trivial."""
    views = augment(textured(12), ALL[name], rng()).flatten(1)
    distinct = (torch.cdist(views, views) > 1e-4).sum() / 2
    # A coin has two sides; everything else differs for each of the 66 pairs.
    assert distinct >= (20 if name in ("flip", "grey", "blur") else 66)


@pytest.mark.parametrize("name", ALL)
def test_a_view_does_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    x = textured(5)
    others = x.clone()
    others[1:] = torch.rand(4, 3, 24, 24, generator=rng(4))
    torch.testing.assert_close(
        augment(x, ALL[name], rng())[0], augment(others, ALL[name], rng())[0], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("name", ALL)
def test_our_generator_is_the_only_source(name: str) -> None:
    x = textured(4)
    kept = x.clone()
    torch.manual_seed(1)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())  # noqa: NPY002
    first = augment(x, ALL[name], rng(7))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002
    torch.manual_seed(2)
    assert torch.equal(first, augment(x, ALL[name], rng(7)))
    assert not torch.equal(first, augment(x, ALL[name], rng(8)))
    assert torch.equal(x, kept), "the pictures given must stay as they were"


def test_the_generator_moves_on() -> None:
    x, g = textured(2), rng()
    assert not torch.equal(augment(x, PHOTO, g), augment(x, PHOTO, g))


# --- background, range, input ---------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.9, 0.2, 0.4)])
@pytest.mark.parametrize("name", GEOMETRY | STROKES)
def test_an_empty_picture_stays_empty(name: str, colour: tuple[float, float, float]) -> None:
    """What comes into view is the picture's own background, whatever its colour."""
    x = torch.tensor(colour)[None, :, None, None].expand(8, 3, 20, 20)
    torch.testing.assert_close(augment(x, SINGLE[name], rng()), x, rtol=0, atol=1e-5)


def test_an_erased_hole_has_the_colour_of_the_background_around_it() -> None:
    x = torch.full((8, 3, 20, 20), 0.8)
    out = augment(x, Views(erase=1.0, brightness=0.3, jitter=1.0), rng())
    spread = out.amax((2, 3)) - out.amin((2, 3))
    assert spread.max() < 1e-4


@pytest.mark.parametrize("ink", [0.0, 1.0])
def test_corners_show_the_background(ink: float) -> None:
    x = torch.full((8, 1, 28, 28), 1 - ink)
    x[..., 10:18, 10:18] = ink
    out = augment(x, Views(rotate=45, scale=(0.5, 0.8), translate=0.1), rng())
    assert (out[..., 0, 0] - (1 - ink)).abs().max() < 1e-5
    assert (out - (1 - ink)).abs().amax((1, 2, 3)).min() > 0.5, "the ink must still be there"


def test_border_colour_is_the_median_of_each_channel() -> None:
    x = torch.rand(2, 3, 9, 9, generator=rng())
    x[:, 0, 0], x[:, 0, -1], x[:, 0, :, 0] = 0.25, 0.25, 0.25
    assert border_colour(x).shape == (2, 3, 1, 1)
    assert (border_colour(x)[:, 0] == 0.25).all()


def test_erased_area() -> None:
    x = torch.ones(500, 1, 32, 32)
    x[..., 1:-1, 1:-1] = 0
    out = augment(x, Views(erase=0.5, erase_area=0.2), rng())
    share = (out != x).float().mean((1, 2, 3))
    assert 0.4 < (share > 0).float().mean() < 0.6
    assert 0.15 < share.max() < 0.25


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ALL)
def test_form_and_range(name: str, channels: int) -> None:
    x = (torch.rand(16, channels, 28, 28, generator=rng()) > 0.5).float()
    out = augment(x, ALL[name], rng())
    assert out.shape == x.shape and out.dtype == torch.float32
    assert torch.isfinite(out).all() and out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_identity_gives_the_input_back(channels: int) -> None:
    x = torch.rand(3, channels, 17, 23, generator=rng())
    assert torch.equal(augment(x, Views(), rng()), x)
    # The whole machinery, with ranges too narrow to be seen.
    tiny = Views(rotate=1e-4, elastic=1e-6, brightness=1e-6, contrast=1e-6, hue=1e-7, thickness=1e-6)
    torch.testing.assert_close(augment(x, tiny, rng()), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_bytes_and_floats_agree(name: str) -> None:
    x = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8, generator=rng())
    kept = x.clone()
    assert torch.equal(augment(x, RECIPES[name], rng()), augment(x.float() / 255, RECIPES[name], rng()))
    assert torch.equal(x, kept)


# --- recipes --------------------------------------------------------------------------------------------


def pictures(x: Tensor) -> Pictures:
    return Pictures((x * 255).to(torch.uint8), tuple(str(i) for i in range(len(x))))


def test_choose_recipe() -> None:
    noise = torch.rand(12, 3, 24, 24, generator=rng())
    assert choose_recipe(pictures(noise))[0] == "photo"
    ink = torch.zeros(12, 1, 24, 24)
    ink[..., 6:18, 10:13] = 1
    for drawing in (ink, 1 - ink, ink.expand(-1, 3, -1, -1)):
        assert choose_recipe(pictures(drawing))[0] == "glyph"
    flat = torch.ones(12, 3, 24, 24)
    flat[:, 0, 5:19, 5:19] = 0.1
    name, reason = choose_recipe(pictures(flat))
    assert name == "flat" and "100%" in reason


def test_glyphs_are_never_mirrored() -> None:
    """A mirror changes the class of a character."""
    assert GLYPH.flip == 0 and GLYPH.rotate < 45
    determinants = torch.linalg.det(maps(500, GLYPH)[:, :, :2])
    assert (determinants > 0).all()
    assert (torch.linalg.det(maps(500, replace(FLAT, flip=1.0))[:, :, :2]) < 0).all()
