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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selftaught.core.errors import SaveError
from selftaught.data.decode import Array, Form
from selftaught.data.listing import Entry

_VERSION = 1  # raise it when decoding changes


@dataclass(frozen=True)
class Decoded:
    """`x` uint8 [B C H W]; `kept` [B] positions in the list of files; `failed`: reasons for the others."""

    x: Tensor
    kept: tuple[int, ...]
    failed: dict[int, str]


def key_of(files: Sequence[Entry], form: Form) -> str:
    """A name for the result of decoding these files: it changes with any path, size, time or wish."""
    facts = [[os.path.abspath(f.path), f.size_bytes, f.mtime_ns] for f in files]  # noqa: PTH100 (links stay)
    wish = [_VERSION, PIL.__version__, form.size, form.channels, form.limit_pixels]
    return hashlib.blake2b(json.dumps([wish, facts]).encode("ascii"), digest_size=16).hexdigest()


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
        shape, kept = tuple(notes["shape"]), tuple(int(i) for i in notes["kept"])
        failed = {int(i): str(reason) for i, reason in notes["failed"]}
        x = _mapped(_mapped_path(folder, key)) if notes["mapped"] else load_file(_plain_path(folder, key))["x"]
        x = x[: len(kept)]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    whole = sorted((*kept, *failed)) == list(range(count)) and tuple(x.shape) == shape and x.dtype == torch.uint8
    return Decoded(x, kept, failed) if whole else None


def store(folder: Path, key: str, decoded: Decoded) -> None:
    """Write a set held in memory. A full disk gives a warning, no error: the set itself is there."""
    try:
        _moved_in(_plain_path(folder, key), lambda path: save_file({"x": decoded.x}, path))
        _write_notes(folder, key, decoded, mapped=False)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"the decoded pictures could not be kept in {folder}: {error}", RuntimeWarning, stacklevel=3)


def store_mapped(folder: Path, key: str, working: Path, decoded: Decoded, keep: bool) -> Decoded:
    """Move the .npy file `working`, in which the pictures stand, to its place, and map it from there.

    With `keep` false there are no notes, so that the next reading decodes again.
    """
    try:
        place = _mapped_path(folder, key)
        working.replace(place)
        x = _mapped(place)[: len(decoded.kept)]
        if keep:
            _write_notes(folder, key, decoded, mapped=True)
    except OSError as error:
        raise SaveError(
            f"cannot write the decoded pictures to {folder}: {error.strerror}. Free some space."
        ) from error
    return Decoded(x, decoded.kept, decoded.failed)


def working_array(folder: Path | None, shape: tuple[int, int, int, int]) -> tuple[Array, Path | None]:
    """Room on disk for a set too large for memory, and its .npy file (without a folder: a nameless file).

    Raises `SaveError` if the disk has not that much room.
    """
    size = int(np.prod(shape))
    where = Path(tempfile.gettempdir()) if folder is None else folder
    try:
        if folder is None:
            with tempfile.TemporaryFile() as file:
                _reserve(file.fileno(), size)
                return np.memmap(file, dtype=np.uint8, mode="r+", shape=shape), None
        handle, name = tempfile.mkstemp(suffix=".tmp", prefix="pictures-", dir=folder)
        path = Path(name)
        try:
            _reserve(handle, size + 256)  # the .npy header takes 128 bytes
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(handle)
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape), path
    except OSError as error:
        raise SaveError(
            f"the decoded pictures need {size / 1e9:.1f} GB and {where} cannot give it: {error.strerror}. "
            "Name a cache folder on a larger disk, or choose a smaller picture size."
        ) from error


def _reserve(handle: int, size: int) -> None:
    """Take the room now: a mapped file that runs out of disk later ends the process without a message."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.truncate(handle, size)


def _mapped(path: Path) -> Tensor:
    # Copy-on-write: whoever writes into the tensor changes memory, never the stored set.
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def _write_notes(folder: Path, key: str, decoded: Decoded, *, mapped: bool) -> None:
    notes = {
        "mapped": mapped,
        "shape": list(decoded.x.shape),
        "kept": list(decoded.kept),
        "failed": sorted(decoded.failed.items()),
    }
    _moved_in(_notes_path(folder, key), lambda path: path.write_text(json.dumps(notes), "ascii"))


def _moved_in(place: Path, write: Callable[[Path], object]) -> None:
    """Write under a temporary name beside `place`, then move; a failure leaves nothing behind."""
    aside = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    try:
        write(aside)
        aside.replace(place)
    finally:
        aside.unlink(missing_ok=True)


def _notes_path(folder: Path, key: str) -> Path:
    return folder / f"pictures-{key}.json"


def _plain_path(folder: Path, key: str) -> Path:
    return folder / f"pictures-{key}.safetensors"


def _mapped_path(folder: Path, key: str) -> Path:
    return folder / f"pictures-{key}.npy"
