"""Dropped bytes become a picture: what the encoder sees, and a thumbnail for the page."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from selftaught.core.errors import DataError
from selftaught.data.decode import Array, Failure, Form, decode_many, original_size, printable
from selftaught.data.pictures import Pictures

THUMBNAIL = 128
"""Pixels a side of a thumbnail at most; a smaller picture keeps its size."""


@final
@dataclass(frozen=True)
class Limits:
    """What a session takes: bytes of a file, pixels of a picture, and how many there may be at a time."""

    file_bytes: int = 20 << 20
    pixels: int = 64_000_000
    per_class: int = 20
    classes: int = 50
    unlabelled: int = 200


@final
@dataclass(frozen=True)
class Picture:
    """`x` uint8 [C H W] as the encoder takes it, `vector` [D] its embedding, `thumbnail` a PNG file's bytes."""

    id: int
    name: str
    x: UInt8[Tensor, "C H W"] = field(repr=False)
    vector: Float[Tensor, " D"] = field(repr=False)
    thumbnail: bytes = field(repr=False)


def read_bytes(content: bytes, name: str, form: Form) -> tuple[Tensor, bytes]:
    """The picture in a file's bytes as uint8 [C H W], and a PNG thumbnail of it.

    Raises DataError, with the name, for what cannot be decoded or has more than `form.limit_pixels` pixels.
    """
    if not content:
        raise DataError(f"{name}: the file is empty")
    seen = _decoded(content, name, form)
    side = min(THUMBNAIL, *(original_size(content) or (THUMBNAIL,)))
    shown = _decoded(content, name, Form(side, 3, form.limit_pixels))
    return torch.from_numpy(seen.copy()), as_png(shown)


def _decoded(content: bytes, name: str, form: Form) -> Array:
    found = decode_many([content], form)[0]
    if isinstance(found, Failure):
        raise DataError(f"{name}: {found.reason}")
    return found


def as_png(picture: "Array | Tensor") -> bytes:
    """A PNG file of uint8 [C H W], one channel being grey."""
    array: Any = picture.numpy() if isinstance(picture, Tensor) else picture
    image = Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0))
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return file.getvalue()


def shown_name(name: str) -> str:
    """The last part of a path of any system, fit to print, at most 120 characters."""
    last = printable(name.replace("\\", "/").rstrip("/").rpartition("/")[2]).strip()
    return last[:120] or "picture"


def together(pictures: Sequence[Picture], y: Sequence[int], classes: Sequence[str]) -> Pictures:
    """A labelled set of them; `y` counts into `classes`."""
    return Pictures(
        torch.stack([p.x for p in pictures]),
        tuple(p.name for p in pictures),
        torch.tensor(y, dtype=torch.int64),
        tuple(classes),
    )
