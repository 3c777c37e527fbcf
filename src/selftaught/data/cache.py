"""Decoded picture sets kept on disk, so that the second start does not decode again.

A stored set is one data file (safetensors, or .npy where the set is to be memory-mapped) and one JSON file
beside it. The JSON file is written last: without it, or if the two do not fit, the set counts as not stored.
The folder may be emptied at any time.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selftaught.core.errors import SaveError
from selftaught.data.decode import Form
from selftaught.data.listing import Entry
from selftaught.data.rows import Rows, mapped

_VERSION = 2  # raise it when decoding changes


@dataclass(frozen=True)
class Decoded:
    """What became of `count` pictures: `x` uint8 [B C H W] in their order, and the reasons why those at the
    positions `failed` are not in it.
    """

    x: Tensor
    count: int
    failed: dict[int, str]

    def kept(self) -> Iterator[int]:
        """The positions [B] of the pictures in `x`."""
        return (i for i in range(self.count) if i not in self.failed)


def key_of(files: Iterable[Entry], form: Form, kind: str = "files") -> str:
    """A name for the result of decoding these files: it changes with any path, size, time or wish."""
    wish = [_VERSION, PIL.__version__, kind, form.size, form.channels, form.limit_pixels]
    digest = hashlib.blake2b(json.dumps(wish).encode("ascii"), digest_size=16)
    for f in files:
        fact = [os.path.abspath(f.path), f.size_bytes, f.mtime_ns]  # noqa: PTH100 (links stay)
        digest.update(json.dumps(fact).encode("ascii"))
    return digest.hexdigest()


def prepared(folder: Path) -> Path:
    """The cache folder, made if need be. Raises `SaveError` now rather than after minutes of decoding."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise SaveError(
            f"cannot write to the cache folder {folder}: {error.strerror}. Name another one, or none."
        ) from error


def find(folder: Path, key: str, count: int) -> Decoded | None:
    """The stored set made from `count` files, or None if there is none that is whole."""
    try:
        notes: dict[str, Any] = json.loads(_notes_path(folder, key).read_text("ascii"))
        shape, known = tuple(notes["shape"]), notes["count"]
        failed = {int(i): str(reason) for i, reason in notes["failed"]}
        x = mapped(_mapped_path(folder, key)) if notes["mapped"] else load_file(_plain_path(folder, key))["x"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    fits = known == count == len(x) + len(failed) and all(0 <= i < count for i in failed)
    return Decoded(x, count, failed) if fits and tuple(x.shape) == shape and x.dtype == torch.uint8 else None


def store(folder: Path, key: str, decoded: Decoded) -> None:
    """Write a set held in memory. A full disk gives a warning, no error: the set itself is there."""
    try:
        moved_in(_plain_path(folder, key), lambda path: save_file({"x": decoded.x}, path))
        _write_notes(folder, key, decoded, mapped=False)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"the decoded pictures could not be kept in {folder}: {error}", RuntimeWarning, stacklevel=3)


def store_mapped(
    folder: Path, key: str, rows: Rows, count: int, failed: dict[int, str], keep: bool = True
) -> Decoded:
    """Move what was written of `count` pictures to its place, and map it from there.

    With `keep` false there are no notes, so that the next reading decodes again.
    """
    decoded = Decoded(rows.finished(_mapped_path(folder, key)), count, failed)
    try:
        if keep:
            _write_notes(folder, key, decoded, mapped=True)
    except OSError as error:
        raise SaveError(
            f"cannot write the decoded pictures to {folder}: {error.strerror}. Free some space."
        ) from error
    return decoded


def moved_in(place: Path, write: Callable[[Path], object]) -> None:
    """Write under a temporary name beside `place`, then move; a failure leaves nothing behind."""
    aside = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    try:
        write(aside)
        aside.replace(place)
    finally:
        aside.unlink(missing_ok=True)


def _write_notes(folder: Path, key: str, decoded: Decoded, *, mapped: bool) -> None:
    notes = {
        "mapped": mapped,
        "shape": list(decoded.x.shape),
        "count": decoded.count,
        "failed": sorted(decoded.failed.items()),
    }
    moved_in(_notes_path(folder, key), lambda path: path.write_text(json.dumps(notes), "ascii"))


def _notes_path(folder: Path, key: str) -> Path:
    return folder / f"pictures-{key}.json"


def _plain_path(folder: Path, key: str) -> Path:
    return folder / f"pictures-{key}.safetensors"


def _mapped_path(folder: Path, key: str) -> Path:
    return folder / f"pictures-{key}.npy"
