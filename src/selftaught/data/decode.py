"""One picture (a file or its bytes) to one uint8 array. Worker processes import this, so it stays free of torch.

What becomes of a file, in this order:

- only the first frame of an animation is used; colour profiles are ignored;
- the EXIF orientation is applied;
- 16-bit and 32-bit greyscale is scaled to 8 bits, not clipped (see `_deep_to_grey`);
- transparency is laid on white; if nothing darker than `VANISHES` is left then, on black, so that white
  drawings on a transparent ground stay visible;
- colours become RGB (`channels` 3) or grey (`channels` 1);
- the largest centred square is resized to `size` x `size` with Pillow's bicubic filter, which averages when
  it shrinks (the same as resizing the shorter side to `size` and cropping the centre).
"""

import io
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Array = NDArray[np.uint8]

VANISHES = 240
"""A picture whose darkest pixel on white is at least this (of 255) is laid on black instead."""

# EPS starts another program, the others are recognised by Pillow but have no decoder of its own.
_REFUSED = frozenset({"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF", "IPTC"})

# Cameras and phones write these; they deserve a word instead of being passed over as "no pictures".
FOREIGN = frozenset({".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".svg", ".jxl", ".eps"})

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Form:
    """What every picture is brought to; files with more than `limit_pixels` pixels are refused."""

    size: int
    channels: int = 3
    limit_pixels: int = 64_000_000


@dataclass(frozen=True)
class Failure:
    """Why a file could not be used. `lasting` failures lie in the content and come back on every reading."""

    reason: str
    lasting: bool = True


def picture_extensions() -> frozenset[str]:
    """Lower-case extensions, with their dot, of the formats this library opens through Pillow."""
    known = Image.registered_extensions()
    return frozenset(e for e, f in known.items() if f in Image.OPEN and f not in _REFUSED)


def printable(name: str) -> str:
    """`name` fit for any terminal or file: undecodable bytes and control characters become escapes."""
    if name.isprintable():
        return name
    return "".join(_escaped(c) if unicodedata.category(c) in ("Cc", "Cs") else c for c in name)


def _escaped(c: str) -> str:
    code = ord(c)
    # 0xDC80..0xDCFF is how Python carries a byte of a file name that is not UTF-8.
    return f"\\x{code & 0xFF:02x}" if code < 0x100 or 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def decode(source: str | bytes, form: Form) -> Array:
    """The picture in `source`, a path or the bytes of a file, as uint8 [channels size size].

    Raises whatever Pillow raises on bad content, `OSError` if the file cannot be read, and
    `Image.DecompressionBombError` or its warning for more than `form.limit_pixels` pixels.
    """
    with (
        _limited(form.limit_pixels),
        _opened(source) as file,
        Image.open(file, formats=_formats()) as picture,
    ):
        # JPEGs are decoded at 1/2, 1/4 or 1/8 where that still leaves twice the wanted size to average over.
        picture.draft(None, (2 * form.size, 2 * form.size))
        picture.load()
        turn = _orientation(picture)
        plain = _plain(picture, form.channels)
    if turn is not None:
        plain = plain.transpose(turn)
    array = np.asarray(_square(plain, form.size))
    return np.ascontiguousarray(array[None] if form.channels == 1 else array.transpose(2, 0, 1))


def decode_many(sources: Sequence[str | bytes], form: Form) -> list[Array | Failure]:
    """`decode` for each source, with failures as values: one bad file costs the others nothing."""
    return [_tried(source, form) for source in sources]


def original_size(source: str | bytes) -> tuple[int, int] | None:
    """Width and height as the header of `source` (as in `decode`) states them, or None where none is readable."""
    try:
        if isinstance(source, str) and not Path(source).is_file():
            return None
        with warnings.catch_warnings(), _opened(source) as file:
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_formats()) as picture:
                return picture.size
    except Exception:  # see _tried
        return None


def _opened(source: str | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def _tried(source: str | bytes, form: Form) -> Array | Failure:
    try:
        return decode(source, form)
    except UnidentifiedImageError:
        return Failure("not in a picture format that Pillow reads")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Failure(f"has more than {form.limit_pixels:,} pixels (raise limit_pixels to allow it)")
    except PermissionError:
        return Failure("no permission to read it", lasting=False)
    except MemoryError:
        return Failure("not enough memory to decode it", lasting=False)
    except Exception as error:
        # Pillow's decoders meet bad bytes with almost any exception: OSError, SyntaxError, KeyError.
        text = printable(str(error))[:200] or type(error).__name__
        gone = isinstance(error, OSError) and error.errno is not None
        return Failure(f"cannot be decoded: {text}", lasting=not gone)


@contextmanager
def _limited(pixels: int) -> Iterator[None]:
    """Let Pillow itself refuse too many pixels, in every frame and at every place where it allocates."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        # Remarks on corrupt metadata are no reason to lose the picture, even where warnings are errors.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in _REFUSED]


def _orientation(picture: Image.Image) -> Image.Transpose | None:
    """Asked after loading: Pillow turns some formats (TIFF) itself and then removes the tag."""
    try:
        return _TURNS.get(picture.getexif().get(0x0112, 1))
    except Exception:  # a broken EXIF block leaves a good picture
        return None


def _plain(picture: Image.Image, channels: int) -> Image.Image:
    """The picture in mode L or RGB."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _deep_to_grey(picture)
    elif picture.has_transparency_data:
        picture = _on_ground(picture.convert("RGBA"))
    mode = "L" if channels == 1 else "RGB"
    if picture.mode in ("L", "RGB", "1"):
        return picture.convert(mode)
    return picture.convert("RGB").convert(mode)  # CMYK and others have no direct way to grey


def _deep_to_grey(picture: Image.Image) -> Image.Image:
    """16-bit values are divided by 257. 32-bit integers and floats have no agreed range: 0..1 (floats),
    0..255 or 0..65535 is taken if all values lie in it, else the picture's own minimum and maximum become
    black and white.
    """
    values = np.asarray(picture).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    sixteen = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
    if sixteen:
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 65535:
        steps = (1.0, 255.0, 65535.0) if picture.mode == "F" else (255.0, 65535.0)
        low, high = 0.0, next(step for step in steps if high <= step)
    scaled = (values - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))


def _on_ground(picture: Image.Image) -> Image.Image:
    """RGBA laid on white, or on black where it would vanish."""
    on_white = _laid(picture, "white")
    lowest, highest = picture.getchannel("A").getextrema()
    # Fully opaque pictures have no ground, and of fully transparent ones nothing can be saved.
    if lowest == 255 or highest == 0:
        return on_white
    darkest = on_white.convert("L").getextrema()[0]
    return _laid(picture, "black") if isinstance(darkest, int | float) and darkest >= VANISHES else on_white


def _laid(picture: Image.Image, colour: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture).convert("RGB")


def _square(picture: Image.Image, size: int) -> Image.Image:
    width, height = picture.size
    side = min(width, height)
    # Whole pixels, so that a picture which already has the size is not blurred by half a pixel.
    left, top = (width - side) // 2, (height - side) // 2
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
