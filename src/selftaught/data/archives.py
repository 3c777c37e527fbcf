"""Reading published archives in memory: nothing is unpacked to disk, and odd members are refused."""

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from selftaught.core.errors import DataError

_CHUNK = 1 << 20
MOST_BYTES = 1 << 28
"""A member of an archive that is larger is refused: 256 MiB."""
MOST_RATIO, FREE_BYTES = 100, 1 << 26
"""An archive that unpacks to more than 64 MiB and to more than so many times its size is refused."""
_PACKED: Mapping[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


class _Bounded:
    """The plain bytes of a file that may be compressed, as `tarfile` reads them, but never too many of them.

    Counts how far it was unpacked, also where members are passed over, and refuses to go beyond `limit` or to
    hand out more than `most` at once (a header can ask for any number of bytes).
    """

    def __init__(self, place: Path, most: int) -> None:
        packed = place.stat().st_size
        self._place, self._most = place, most
        self._limit = max(packed, FREE_BYTES, MOST_RATIO * packed)
        with place.open("rb") as file:
            start = file.read(6)
        opener = next((known for magic, known in _PACKED.items() if start.startswith(magic)), Path.open)
        self._file: BinaryIO = opener(place, "rb")

    def read(self, size: int) -> bytes:
        if size > self._most:
            raise DataError(f"{self._place} holds {size:,} bytes in one piece, more than {self._most:,}: refused")
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        if whence == 0:
            self._check(position)
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    def _check(self, position: int) -> None:
        # tarfile reads whole blocks, so that the end of a small file may be passed by a little.
        if position > self._limit + _CHUNK:
            raise DataError(
                f"{self._place} unpacks to more than {MOST_RATIO} times its size, as no archive of pictures does: "
                "refused. Get it from its official home."
            )


def refuse_unsafe(members: Iterable[str], place: Path) -> None:
    """Raise DataError if a member of the archive `place` points outside it, or comes twice: no published
    set does."""
    seen: set[str] = set()
    for member in members:
        parts = PurePosixPath(member.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in (parts.parts or ("",))[0] or "\0" in member:
            raise DataError(f"{place} holds {member!r}, a path outside of it; get it from its official home")
        if str(parts) in seen and not member.endswith("/"):
            raise DataError(f"{place} holds {member!r} twice: which one is meant? Pack it again.")
        seen.add(str(parts))


def tar_files(place: Path, wanted: Callable[[str], bool], most: int = MOST_BYTES) -> Iterator[tuple[str, bytes]]:
    """Name and content of the regular files of a tar (compressed or not) that are `wanted`, in its order.

    Raises DataError when it is no tar, is truncated or damaged anywhere, holds a path that leads outside, a name
    twice, a link, a device or a file with holes, a file of more than `most` bytes, or unpacks to more than
    `MOST_RATIO` times its size (and 64 MiB).
    """
    file: _Bounded | None = None
    seen: set[str] = set()
    try:
        file = _Bounded(place, most)
        with tarfile.open(fileobj=file, mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members = []  # else every header of a long archive is kept
                if not member.isdir():
                    _refuse_odd(member, place, seen)
                if member.isfile() and wanted(member.name):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield member.name, content.read()
            _refuse_rest(file, tar.offset, place)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise DataError(f"{place} is truncated or no tar archive ({error}); download it again") from error
    except (OverflowError, RecursionError, MemoryError) as error:
        raise DataError(f"{place} has headers that no tar archive has ({error}); download it again") from error
    finally:
        if file is not None:
            file.close()


def _refuse_odd(member: tarfile.TarInfo, place: Path, seen: set[str]) -> None:
    refuse_unsafe([member.name], place)
    if not member.isfile() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "a device, pipe or file with holes"
        raise DataError(f"{place} holds {member.name!r}, {kind}: pack plain files only")
    name = str(PurePosixPath(member.name))
    if name in seen:
        raise DataError(f"{place} holds {member.name!r} twice: which one is meant? Pack it again.")
    seen.add(name)


def _refuse_rest(file: _Bounded, end: int, place: Path) -> None:
    """DataError unless only zeros follow: `tarfile` takes a damaged header for the end, and drops what follows.

    Read to the last byte, because only there does a compressed file carry its own checksum.
    """
    file.seek(end)
    count = 0
    while block := file.read(_CHUNK):
        count += len(block)
        if block.strip(b"\0"):
            raise DataError(f"{place} is damaged at byte {end:,} of its contents; download it again")
    if not count:
        raise DataError(f"{place} is truncated: it has no end mark; download it again")


def open_zip(place: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """The names in a zip, and a function that reads one of them.

    Raises DataError when it is no zip, holds a path that leads outside, a name twice, a link, an encrypted file or
    one of more than `MOST_BYTES`, or says that it unpacks to more than `MOST_RATIO` times its size (and 64 MiB).
    The function raises DataError for a damaged file; it never unpacks more than the zip says.
    """
    try:
        archive = zipfile.ZipFile(place)
        members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError, struct.error) as error:
        raise DataError(f"{place} is not a readable zip ({error}); download it again") from error
    refuse_unsafe((m.filename for m in members), place)
    for member in members:
        if stat.S_ISLNK(member.external_attr >> 16) or member.flag_bits & 1 or member.file_size > MOST_BYTES:
            raise DataError(
                f"{place} holds {member.filename!r}, a link, encrypted, or of more than {MOST_BYTES:,} bytes"
            )
    packed = place.stat().st_size
    if sum(m.file_size for m in members) > max(FREE_BYTES, MOST_RATIO * packed):
        raise DataError(f"{place} unpacks to more than {MOST_RATIO} times its size: refused")

    def read(name: str) -> bytes:
        try:
            return archive.read(name)
        except (
            zipfile.BadZipFile,
            OSError,
            EOFError,
            zlib.error,
            lzma.LZMAError,
            RuntimeError,
            ValueError,
        ) as error:
            raise DataError(f"{place}: {name} is damaged ({error}); download it again") from error

    return [m.filename for m in members], read


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
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
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
