"""Characters generated from random pen strokes: a quick stand-in for Omniglot that needs no file."""

import math

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.data.pictures import Pictures

_PER_ALPHABET = 20
_PARTS = 8
_STROKES = 4
_SAMPLES = 40


def draw_strokes(classes: int, per_class: int, *, size: int = 28, seed: int = 0) -> Pictures:
    """`classes` characters, each drawn `per_class` times, as uint8 [B 1 size size] with ink 255 on 0.

    An alphabet (`groups`, twenty characters each) owns eight cubic Bezier strokes. A character is two to four
    of them at places, sizes and angles of its own; a drawing of it moves every control point a little, turns,
    slants, shifts and scales the whole, and takes a thicker or thinner pen. Pictures are ordered by class;
    the same arguments give the same pictures. Raises ConfigError for counts below 1 or a `size` below 8.
    """
    if classes < 1 or per_class < 1:
        raise ConfigError(f"classes and per_class must be at least 1, not {classes} and {per_class}")
    if size < 8:
        raise ConfigError(f"size must be at least 8 pixels to hold a stroke, not {size}")
    generator = torch.Generator().manual_seed(seed)
    alphabet = torch.arange(classes) // _PER_ALPHABET
    control, used = _characters(alphabet, generator)
    labels = [f"alphabet{a:02d}/character{n % _PER_ALPHABET:02d}" for n, a in enumerate(alphabet.tolist())]
    y = torch.arange(classes).repeat_interleave(per_class)
    drawn = _vary(control[y], generator)
    pen = _between(0.02, 0.034, (len(y),), generator)
    return Pictures(
        # In portions that stay in the cache.
        x=torch.cat([_ink(drawn[i], used[y[i]], pen[i], size) for i in torch.arange(len(y)).split(256)]),
        names=tuple(f"{label}/{k:02d}" for label in labels for k in range(per_class)),
        y=y,
        classes=tuple(labels),
        groups=tuple(labels[n].split("/")[0] for n in y.tolist()),
    )


def _between(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _characters(alphabet: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Control points [M strokes 4 2] in -1..1 and which strokes are used [M strokes], as 0 or 1."""
    count = len(alphabet)
    parts = _between(-1.3, 1.3, (int(alphabet.max()) + 1, _PARTS, 4, 2), generator)
    which = torch.rand((count, _PARTS), generator=generator).argsort(dim=1)[:, :_STROKES]
    strokes = parts[alphabet[:, None], which]
    turn = _rotation(_between(-0.5, 0.5, (count, _STROKES), generator))
    place = _between(-0.35, 0.35, (count, _STROKES, 1, 2), generator)
    scale = _between(0.5, 1.0, (count, _STROKES, 1, 1), generator)
    placed = (strokes @ turn) * scale + place
    used = torch.arange(_STROKES) < torch.randint(2, _STROKES + 1, (count, 1), generator=generator)
    return placed, used.float()


def _rotation(angle: Tensor) -> Tensor:
    """Rotation matrices [... 2 2] for angles in radians."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def _vary(control: Tensor, generator: torch.Generator) -> Tensor:
    """One drawing each of the characters [B strokes 4 2]: a trembling hand, then a tilted sheet."""
    count = len(control)
    trembled = control + 0.12 * torch.randn(control.shape, generator=generator)
    turn = _rotation(_between(-0.3, 0.3, (count,), generator))
    slant = torch.eye(2).repeat(count, 1, 1)
    slant[:, 1, 0] = _between(-0.3, 0.3, (count,), generator)
    stretch = _between(0.75, 1.1, (count, 1, 2), generator)
    shift = _between(-0.25, 0.25, (count, 1, 1, 2), generator)
    return trembled @ (turn @ slant * stretch)[:, None] + shift


def _ink(control: Tensor, used: Tensor, pen: Tensor, size: int) -> Tensor:
    """Draw [B strokes 4 2] with a round pen of `pen` [B] (fraction of the side), as uint8 [B 1 size size].

    A stroke is many Gaussian blobs, whose sum is a ridge of height 1 and fades from
    80 to 20 % of it. A Gaussian is a
    product of a function of the row and one of the column, so all blobs of a picture are one matrix product.
    """
    t = torch.linspace(0, 1, _SAMPLES)[:, None]
    weights = torch.cat([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], dim=1)
    points = (weights @ control) * 0.42 + 0.5
    step = torch.nn.functional.pad((points[:, :, 1:] - points[:, :, :-1]).norm(dim=-1), (0, 1), mode="replicate")
    width = pen[:, None, None]
    height = (step / (math.sqrt(2 * math.pi) * width)).clamp(min=0.2) * used[:, :, None]
    pixels = (torch.arange(size) + 0.5) / size
    far = (points.flatten(1, 2)[..., None] - pixels) ** 2 / (2 * width[..., None] ** 2)
    # Cut off, because arithmetic with the denormal numbers far from the pen is many times slower.
    blobs = torch.exp(-far.clamp(max=20))
    columns, rows = blobs.unbind(dim=2)
    ridge = torch.einsum("bpr,bpc->brc", rows * height.flatten(1)[..., None], columns)
    return ((ridge - 0.2) / 0.6).clamp(0, 1).mul(255).round().to(torch.uint8)[:, None]
