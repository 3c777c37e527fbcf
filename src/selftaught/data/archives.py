"""Reading published archives in memory: nothing is unpacked to disk, and odd members are refused."""

import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from selftaught.core.errors import DataError

_CHUNK = 1 << 20


def refuse_unsafe(members: Iterable[str], place: Path) -> None:
    """Raise DataError if a member of the archive `place` points outside it: no published set has such."""
    for member in members:
        parts = PurePosixPath(member.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in (parts.parts or ("",))[0]:
            raise DataError(f"{place} holds {member!r}, a path outside of it; get it from its official home")


def tar_files(place: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the regular files of a tar (compressed or not) that are `wanted`, in its order.

    Raises DataError when it is no tar, is truncated, or holds a path that leads outside.
    """
    try:
        with tarfile.open(place) as tar:
            for member in tar:
                refuse_unsafe([member.name], place)
                if member.isfile() and wanted(member.name):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield member.name, content.read()
            # Read on to the end, because only there does a compressed file carry its own checksum.
            while tar.fileobj is not None and tar.fileobj.read(_CHUNK):
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{place} is truncated or no tar archive ({error}); download it again") from error


def centre_square(content: bytes, size: int, name: str) -> NDArray[np.uint8]:
    """An encoded picture as uint8 [3 size size]: its largest centred square, resized antialiased.

    Raises DataError, with `name`, when it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.draft("RGB", (2 * size, 2 * size))
            colour = picture.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be decoded ({error}); download the archive again") from error
    side = min(colour.size)
    left, top = (colour.width - side) // 2, (colour.height - side) // 2
    if colour.size != (size, size):
        box = (left, top, left + side, top + side)
        colour = colour.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(colour).transpose(2, 0, 1)


@dataclass(frozen=True)
class Joined:
    """A `*_jpeg.npz` file: `x` uint8 [B 3 size size], `y` and `split` int64 [B], the names of the classes."""

    x: Tensor
    y: Tensor
    split: Tensor
    classes: tuple[str, ...]


def read_joined(place: Path, size: int, only: int | None = None) -> Joined:
    """The pictures of an npz file that joins them, still encoded, to one array.

    `blob` uint8 holds every file one after the other, picture i from `offset[i]` to `offset[i+1]`; `label`
    [B] counts into `classes`; `split` [B] is 0 for training and 1 for test, and `only` keeps one of
    them. Raises DataError when a field is missing, the offsets do not fit, or a picture cannot be decoded.
    """
    try:
        with np.load(place, allow_pickle=False) as file:
            blob, offset, label, split, classes = (
                file[k] for k in ("blob", "offset", "label", "split", "classes")
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{place} is no *_jpeg.npz file ({error}): that has blob, offset, label, split, classes"
        ) from error
    fits = 1 < len(offset) == len(label) + 1 == len(split) + 1 and bool((np.diff(offset) > 0).all())
    if not fits or offset[0] != 0 or offset[-1] != len(blob) or not 0 <= label.min() <= label.max() < len(classes):
        raise DataError(f"{place}: offsets and labels do not fit its {len(blob)} bytes; copy it again")
    chosen = np.arange(len(label)) if only is None else np.flatnonzero(split == only)
    x = np.empty((len(chosen), 3, size, size), dtype=np.uint8)
    for row, n in enumerate(chosen):
        x[row] = centre_square(blob[offset[n] : offset[n + 1]].tobytes(), size, f"picture {n} of {place}")
    y, part = (torch.from_numpy(z[chosen].astype(np.int64)) for z in (label, split))
    return Joined(torch.from_numpy(x), y, part, tuple(str(c) for c in classes))
