"""Views have the distribution of torchvision's: against a slow implementation from the definitions, and against
torchvision itself where it can be imported."""

import importlib
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from slow_views import Drawn, draw, recolour, view
from torch import Tensor

from selftaught.data import geometry
from selftaught.data.augment import augment
from selftaught.data.colour import draw_colours, in_order
from selftaught.data.geometry import draw_geometry
from selftaught.data.views import Views

SIMCLR = Views(
    crop=(0.08, 1.0), flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2, exact_colour=True
)
OURS, THEIRS = 40_000, 8_000
SAME, DIFFERENT = 1e-3, 1e-6
"""p-values: above the first two samples are taken as one distribution, below the second as two."""

Sample = Mapping[str, np.ndarray]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def our_draws(views: Views, size: tuple[int, int], count: int = OURS) -> dict[str, np.ndarray]:
    """Continuous parameters of `count` draws, those of colour where the jitter is on."""
    place, colours = draw_geometry(count, size, views, rng(1)), draw_colours(count, views, rng(2))
    (left, top), (width, height) = place.start, place.length
    on = colours.on
    sample = window_figures(left, top, width, height, size)
    sample |= {n: f[on] for n, f in zip(("brightness", "contrast", "saturation"), colours.factors, strict=True)}
    return {k: v.numpy() for k, v in (sample | {"turn": colours.turn[on]}).items()}


def their_draws(drawn: list[Drawn], size: tuple[int, int]) -> dict[str, np.ndarray]:
    left, top, width, height = torch.tensor([d.window for d in drawn]).T
    on = torch.tensor([d.order is not None for d in drawn])
    sample = window_figures(left, top, width, height, size)
    factors = torch.tensor([d.factors for d in drawn]).T
    sample |= {n: f[on] for n, f in zip(("brightness", "contrast", "saturation"), factors, strict=True)}
    return {k: v.numpy() for k, v in (sample | {"turn": torch.tensor([d.turn for d in drawn])[on]}).items()}


def window_figures(
    left: Tensor, top: Tensor, width: Tensor, height: Tensor, size: tuple[int, int]
) -> dict[str, Tensor]:
    """Area and shape, and the place as the part of the room that there is (all of it where there is none)."""
    high, wide = size
    return {
        "area": (width * height).double(),
        "shape": (width / height).double(),
        "left": left.double(),
        "top": top.double(),
        "right": (wide - left - width).double(),
        "bottom": (high - top - height).double(),
    }


def p_values(one: Sample, other: Sample) -> dict[str, float]:
    """By the Kolmogorov-Smirnov test, which errs towards 'the same' for whole numbers."""
    assert set(one) == set(other)
    return {name: float(ks_2samp(one[name], other[name], method="asymp").pvalue) for name in one}


def slow(views: Views, size: tuple[int, int], count: int = THEIRS) -> list[Drawn]:
    dice = random.Random(0)
    return [draw(views, size, dice) for _ in range(count)]


# --- (a) the numbers drawn -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (60, 30), (200, 200)])
def test_draws_are_those_of_the_definition(size: tuple[int, int]) -> None:
    found = p_values(our_draws(SIMCLR, size), their_draws(slow(SIMCLR, size), size))
    assert len(found) == 10 and min(found.values()) > SAME, found


@pytest.mark.parametrize("crop", [(0.9, 1.0), (0.99, 1.0), (0.25, 0.5)])
def test_windows_that_seldom_fit(crop: tuple[float, float]) -> None:
    """Ten tries, then the middle: on a tall picture a window of nearly all of it never fits."""
    views = Views(crop=crop)
    for size in ((32, 32), (64, 20)):
        ours, theirs = our_draws(views, size), their_draws(slow(views, size), size)
        windows = ("area", "shape", "left", "top")
        found = p_values({k: ours[k] for k in windows}, {k: theirs[k] for k in windows})
        assert min(found.values()) > SAME, found
    if crop[0] > 0.9:
        assert set(ours["area"]) == {20 * 27} == set(theirs["area"]) and set(ours["top"]) == {18}


def test_a_wrong_shape_range_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = their_draws(slow(SIMCLR, (32, 32)), (32, 32))
    monkeypatch.setattr(geometry, "RATIO", (0.8, 1.25))
    assert p_values(our_draws(SIMCLR, (32, 32)), theirs)["shape"] < DIFFERENT
    monkeypatch.setattr(geometry, "RATIO", (3 / 4, 4 / 3))
    monkeypatch.setattr(geometry, "TRIES", 1)
    assert p_values(our_draws(SIMCLR, (32, 32)), theirs)["area"] < DIFFERENT


@pytest.mark.parametrize(
    ("wrong", "seen"),
    [
        ({"crop": (0.12, 1.0)}, "area"),
        ({"brightness": 0.36}, "brightness"),
        ({"contrast": 0.44}, "contrast"),
        ({"saturation": 0.36}, "saturation"),
        ({"hue": 0.09}, "turn"),
    ],
)
def test_a_wrong_strength_would_be_seen(wrong: dict[str, Any], seen: str) -> None:
    theirs = their_draws(slow(SIMCLR, (32, 32)), (32, 32))
    found = p_values(our_draws(replace(SIMCLR, **wrong), (32, 32)), theirs)
    assert found.pop(seen) < DIFFERENT and len([p for p in found.values() if p < DIFFERENT]) <= 5 * (
        seen == "area"
    )


def test_strengths_above_one_stop_at_black() -> None:
    ours = our_draws(Views(brightness=1.5, jitter=1.0), (8, 8))["brightness"]
    assert 0 <= ours.min() < 0.01 and 2.49 < ours.max() <= 2.5


def test_probabilities_and_orders() -> None:
    place, colours = draw_geometry(OURS, (32, 32), SIMCLR, rng(1)), draw_colours(OURS, SIMCLR, rng(2))
    for found, expected in ((place.mirror, 0.5), (colours.on, 0.8), (colours.grey, 0.2)):
        assert abs(float(found.float().mean()) - expected) < 4 * math.sqrt(expected * (1 - expected) / OURS)
    assert colours.order is not None
    codes = (colours.order * torch.tensor([[1], [4], [16], [64]])).sum(0)
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == 24 and chisquare(counts.numpy()).pvalue > SAME
    assert (colours.order.sort(0).values == torch.arange(4)[:, None]).all()


def test_draws_are_independent() -> None:
    """Of one another and from picture to picture."""
    place, colours = draw_geometry(OURS, (200, 200), SIMCLR, rng(1)), draw_colours(OURS, SIMCLR, rng(2))
    always = draw_colours(OURS, replace(SIMCLR, jitter=1.0), rng(3))
    area, shape = place.length.prod(0), (place.length[0] / place.length[1]).log()
    rows = torch.stack([area, shape, place.mirror.float(), colours.on.float(), colours.grey.float()])
    for one in (rows, torch.cat([always.factors, always.turn[None], always.grey.float()[None]])):
        related = torch.corrcoef(one) - torch.eye(len(one))
        assert related.abs().max() < 5 / math.sqrt(OURS), related
        shifted = torch.corrcoef(torch.cat([one[:, 1:], one[:, :-1]]))[: len(one), len(one) :]
        assert shifted.abs().max() < 5 / math.sqrt(OURS)


# --- (b) what the numbers do -----------------------------------------------------------------------------


def pictures(count: int, side: int = 12) -> Tensor:
    """Colourful, with light and dark parts so that clipping happens, and some grey pixels."""
    x = torch.rand(count, 3, side, side, generator=rng(5))
    x[:, :, 0] = x[:, :1, 0]
    x[:, :, 1] = (x[:, :, 1] * 1.6).clamp(max=1)
    return x


def test_colours_in_order_are_those_of_the_definition() -> None:
    """Pixel by pixel, with the draws handed over."""
    x = pictures(60)
    drawn = draw_colours(60, replace(SIMCLR, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5), rng(3))
    assert drawn.order is not None
    expected = [
        recolour(
            x[i],
            Drawn(
                (0, 0, 12, 12),
                False,
                (float(drawn.factors[0, i]), float(drawn.factors[1, i]), float(drawn.factors[2, i])),
                float(drawn.turn[i]),
                tuple(drawn.order[:, i].tolist()) if drawn.on[i] else None,
                bool(drawn.grey[i]),
            ),
        )
        for i in range(60)
    ]
    torch.testing.assert_close(in_order(x.clone(), drawn), torch.stack(expected), rtol=0, atol=2e-5)


def ramps(side: int = 12) -> Tensor:
    """Red grows to the right and green to the top, so that every window has its own colours; grey below."""
    ramp = torch.linspace(0, 1, side)
    x = torch.stack([0.1 + 0.9 * ramp.expand(side, side), 0.8 - 0.6 * ramp[:, None].expand(side, side),
                     torch.full((side, side), 0.3)])  # fmt: skip
    x[:, -3:] = 0.47
    return x


def figures(x: Tensor) -> dict[str, np.ndarray]:
    """What views [B 3 H W] look like, one number each: mean and spread of channels, colourfulness, pixels."""
    out = {f"mean {c}": x[:, i].mean((1, 2)) for i, c in enumerate("rgb")}
    out |= {f"spread {c}": x[:, i].std((1, 2)) for i, c in enumerate("rgb")}
    out |= {"colour": (x.amax(1) - x.amin(1)).mean((1, 2)), "corner": x[:, 1, 0, 0], "middle": x[:, 0, 5, 5]}
    out |= {"green over blue": (x[:, 1] - x[:, 2]).mean((1, 2)), "white": (x >= 1).float().mean((1, 2, 3))}
    # Pictures left as they are pile up on one number, which rounding errors must not spread out.
    return {k: v.numpy().round(4) for k, v in out.items()}


def histogram_distance(one: Tensor, other: Tensor, bins: int = 32) -> float:
    """Largest total variation distance of the three channels' histograms."""
    parts = [[torch.histc(x[:, c], bins, 0, 1) for c in range(3)] for x in (one, other)]
    return max(float((a / a.sum() - b / b.sum()).abs().sum() / 2) for a, b in zip(*parts, strict=True))


@pytest.fixture(scope="module")
def slow_sample() -> tuple[Tensor, Tensor]:
    """A picture and 1500 slow views of it."""
    picture = ramps()
    return picture, torch.stack([view(picture, d) for d in slow(SIMCLR, (12, 12), 1500)])


def our_sample(picture: Tensor, views: Views, count: int = 12_000) -> Tensor:
    return augment(picture.expand(count, -1, -1, -1), views, rng(11))


def test_pictures_are_those_of_the_definition(slow_sample: tuple[Tensor, Tensor]) -> None:
    picture, theirs = slow_sample
    ours = our_sample(picture, SIMCLR)
    found = p_values(figures(ours), figures(theirs))
    assert min(found.values()) > SAME, found
    assert histogram_distance(ours, theirs) < 0.03


@pytest.mark.parametrize("wrong", [{"brightness": 0.25}, {"saturation": 0.0}, {"hue": 0.03}, {"crop": (0.3, 1.0)}])
def test_other_pictures_would_be_seen(slow_sample: tuple[Tensor, Tensor], wrong: dict[str, Any]) -> None:
    picture, theirs = slow_sample
    found = p_values(figures(our_sample(picture, replace(SIMCLR, **wrong))), figures(theirs))
    assert min(found.values()) < 1e-4, found


def test_the_matrix_is_another_distribution_but_near(slow_sample: tuple[Tensor, Tensor]) -> None:
    """What the fast way costs: the same windows, factors and means; other hues and no clipping in between."""
    picture, theirs = slow_sample
    ours = our_sample(picture, replace(SIMCLR, exact_colour=False))
    near = figures(ours), figures(theirs)
    for name in ("mean r", "mean g", "mean b", "spread r", "spread g", "spread b", "colour"):
        means, spreads = zip(*((float(f[name].mean()), float(f[name].std())) for f in near), strict=True)
        assert abs(means[0] - means[1]) < 0.03 and 0.75 < spreads[0] / spreads[1] < 1.35, name
    assert histogram_distance(ours, theirs) < 0.1


# --- (c) torchvision itself ------------------------------------------------------------------------------


def transforms() -> Any:
    """torchvision.transforms, or a skip that says why not."""
    try:
        importlib.import_module("torchvision")
    except ImportError as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    except RuntimeError:
        # Its wheel declares kernels for operators that do not exist on a torch without CUDA.
        importlib.import_module("benchmarks.peers.torchvision_operators")
    try:
        return importlib.import_module("torchvision.transforms")
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")


@pytest.mark.oracle
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (64, 20)])
def test_draws_are_torchvisions(size: tuple[int, int]) -> None:
    T = transforms()
    torch.manual_seed(0)
    picture = torch.zeros(3, *size)
    crops = [T.RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(THEIRS)]
    top, left, height, width = torch.tensor(crops).T
    theirs = {k: v.numpy() for k, v in window_figures(left, top, width, height, size).items()}
    jitter = T.ColorJitter(0.4, 0.4, 0.4, 0.1)
    drawn = [
        T.ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for _ in range(THEIRS)
    ]
    for position, name in enumerate(("brightness", "contrast", "saturation", "turn"), start=1):
        theirs[name] = np.array([d[position] for d in drawn])
    found = p_values(our_draws(SIMCLR, size), theirs)
    print(size, {k: round(v, 3) for k, v in found.items()})
    assert len(found) == 10 and min(found.values()) > SAME, found


@pytest.mark.oracle
def test_pictures_are_torchvisions() -> None:
    """On float tensors, where it rounds nothing: the whole chain as lightly's SimCLRTransform puts it together."""
    T = transforms()
    torch.manual_seed(0)
    picture = ramps()
    chain = T.Compose(
        [
            T.RandomResizedCrop(12, scale=(0.08, 1.0)),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
        ]
    )
    theirs = torch.stack([chain(picture) for _ in range(THEIRS)])
    ours = our_sample(picture, SIMCLR, 24_000)
    found = p_values(figures(ours), figures(theirs))
    print({k: round(v, 3) for k, v in found.items()}, "histograms", round(histogram_distance(ours, theirs), 4))
    assert min(found.values()) > SAME, found
    assert histogram_distance(ours, theirs) < 0.03


@pytest.mark.oracle
def test_pictures_are_torchvisions_pixel_by_pixel() -> None:
    """The same draws handed to both."""
    functional = transforms().functional
    x = pictures(40)
    place, colours = draw_geometry(40, (12, 12), SIMCLR, rng(7)), draw_colours(40, SIMCLR, rng(8))
    assert colours.order is not None
    expected = []
    for i, picture in enumerate(x):
        (left, top), (width, height) = place.start[:, i].int().tolist(), place.length[:, i].int().tolist()
        picture = functional.resized_crop(picture, top, left, height, width, [12, 12])
        picture = picture.flip(-1) if place.mirror[i] else picture
        steps = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation,
                 functional.adjust_hue)  # fmt: skip
        numbers = [*colours.factors[:, i].tolist(), float(colours.turn[i])]
        for change in colours.order[:, i].tolist() if colours.on[i] else []:
            picture = steps[change](picture, numbers[change])
        expected.append(functional.rgb_to_grayscale(picture, 3) if colours.grey[i] else picture)
    only_place = replace(SIMCLR, brightness=0, contrast=0, saturation=0, hue=0, grey=0)
    ours = in_order(augment(x, only_place, rng(7)), colours)
    print("largest difference", float((ours - torch.stack(expected)).abs().max()))
    torch.testing.assert_close(ours, torch.stack(expected), rtol=0, atol=2e-3)
