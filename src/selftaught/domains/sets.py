"""Rows of several domains, ready to be fitted: pictures of several styles, digits in several renderings."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

from selftaught.core.errors import ConfigError, DataError
from selftaught.data.pictures import Pictures
from selftaught.domains.program import Floats

Integers = NDArray[np.int64]
SIDE = 8
"""Height and width of scikit-learn's digits."""


@final
@dataclass(frozen=True)
class Domains:
    """`X` [n D] (or sparse), labels `y` [n], `sample_domain` [n]; `names` says what each number stands for."""

    X: Any
    y: NDArray[Any]
    sample_domain: Integers
    names: Mapping[int, str]


def number_domains(names: Sequence[str], targets: Collection[str] = ()) -> tuple[Integers, dict[int, str]]:
    """Domains [n] by number: sources 1, 2, ... in the order they first appear, `targets` -1, -2, ... likewise.

    Raises ConfigError for a target that does not appear.
    """
    seen = list(dict.fromkeys(names))
    strange = [t for t in targets if t not in seen]
    if strange:
        raise ConfigError(f"there is no domain {strange[0]!r}; there are {', '.join(map(repr, seen[:20]))}")
    sources, wanted = [n for n in seen if n not in targets], [n for n in seen if n in targets]
    number = {n: k for k, n in enumerate(sources, 1)} | {n: -k for k, n in enumerate(wanted, 1)}
    return np.array([number[n] for n in names], dtype=np.int64), {k: n for n, k in number.items()}


def picture_domains(
    pictures: Pictures,
    embed: Callable[[Pictures], Any],
    *,
    labels: Mapping[str, str] | None = None,
    targets: Collection[str] = (),
) -> Domains:
    """Embeddings of pictures whose `groups` are the domains, for example drawing styles.

    `embed` is a trained model's `embed` (or any function to [n D]); labels are class names, or what `labels` makes
    of them. Raises DataError for pictures without groups or classes, or a class that `labels` does not know.
    """
    if pictures.groups is None or pictures.y is None:
        raise DataError("pictures need classes and groups: the groups are the domains")
    names = [pictures.classes[n] for n in pictures.y.tolist()]
    if labels is not None:
        strange = [n for n in names if n not in labels]
        if strange:
            raise DataError(f"labels has no entry for the class {strange[0]!r}")
        names = [labels[n] for n in names]
    domain, known = number_domains(pictures.groups, targets)
    return Domains(np.asarray(embed(pictures), dtype=np.float64), np.array(names), domain, known)


# ------------------------------------------------------------------------------------------------ digits

Rendering = Callable[[Floats, np.random.Generator], Floats]
"""Digits [n 8 8] in 0..1 to digits as they look in that domain."""


def _fonts(digits: Integers, rng: np.random.Generator) -> Floats:
    """Digits [n 8 8] of Pillow's own font, in random size, place and slant."""
    out = []
    for digit, size in zip(digits.tolist(), rng.integers(36, 56, len(digits)).tolist(), strict=True):
        sheet = Image.new("L", (64, 64))
        middle = 32 + rng.uniform(-4, 4, 2)
        drawing, font = ImageDraw.Draw(sheet), ImageFont.load_default(size)
        left, top, right, bottom = drawing.textbbox((0, 0), str(digit), font=font)
        place = (middle[0] - (left + right) / 2, middle[1] - (top + bottom) / 2)
        drawing.text(place, str(digit), fill=255, font=font)
        turned = sheet.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BILINEAR)
        out.append(np.asarray(turned.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64) / 255)
    return np.stack(out)


RENDERINGS: Mapping[str, Rendering] = {
    "plain": lambda x, rng: x,
    "inverted": lambda x, rng: 1 - x,
    "turned": lambda x, rng: np.rot90(x, axes=(1, 2)),
    "upside down": lambda x, rng: x[:, ::-1, ::-1],
    "mirrored": lambda x, rng: x[:, :, ::-1],
    "coarse": lambda x, rng: x.reshape(-1, 4, 2, 4, 2).mean((2, 4)).repeat(2, 1).repeat(2, 2),
    "noisy": lambda x, rng: np.clip(x + 0.4 * rng.normal(size=x.shape), 0, 1),
}
"""What may be done to scikit-learn's digits; "font" beside them draws digits anew."""


def digit_domains(
    renderings: Sequence[str] = ("plain", "inverted", "turned", "font"),
    *,
    each: int = 200,
    seed: int = 0,
    test: bool = False,
) -> Domains:
    """Rows of 64 brightnesses (0..1): scikit-learn's 1,797 digits of 8 x 8, other digits in every domain.

    `each` digits for each rendering; with `test`, those that are left, all of them in every rendering. Font
    digits are drawn, as many as the others. Raises ConfigError for an unknown rendering or too many digits.
    """
    strange = [n for n in renderings if n not in (*RENDERINGS, "font")]
    if strange or not renderings:
        raise ConfigError(f"renderings are {', '.join(RENDERINGS)} and font, got {list(renderings)}")
    known = load_digits()
    pixels, digits = known.images / 16, known.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(digits))
    left = len(digits) - each * len(renderings)
    if each < 1 or left < 1:
        raise ConfigError(f"{len(renderings)} times {each} digits leave none of {len(digits)} for a test")
    X, y, names = [], [], []
    for place, name in enumerate(renderings):
        rows = order[-left:] if test else order[place * each : (place + 1) * each]
        rng = np.random.default_rng((seed, place, int(test)))
        seen = _fonts(digits[rows], rng) if name == "font" else RENDERINGS[name](pixels[rows], rng)
        X.append(seen.reshape(len(rows), -1))
        y.append(digits[rows])
        names += [name] * len(rows)
    domain, numbers = number_domains(names)
    return Domains(np.concatenate(X), np.concatenate(y), domain, numbers)
