"""A folder of pictures becomes one tensor, whatever lies in it.

Bad files never stop a reading: they end up in `Pictures.skipped` with a reason. `decode.py` says what becomes
of each picture (orientation, transparency, depth, crop), `listing.py` which files are looked at, `cache.py`
what is kept.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from selftaught.core.errors import DataError
from selftaught.data import cache as stored
from selftaught.data.cache import Decoded
from selftaught.data.decode import Array, Failure, decode_many, picture_extensions, printable
from selftaught.data.listing import Entries, Listing, list_files, list_folder
from selftaught.data.parallel import Job, default_workers, in_order
from selftaught.data.pictures import Pictures, Skipped
from selftaught.data.rows import Rows
from selftaught.data.wish import CRASHED, START_SECONDS, Progress, Wish, wished

FEW_FILES = 256
"""Smaller sets are never decoded in worker processes, of which each must first import the caller's script."""

_MEASURED = 32

AnyPath = str | os.PathLike[str]


def read_folder(
    path: AnyPath,
    *,
    size: int,
    channels: int = 3,
    labelled: bool = False,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    limit_pixels: int = 64_000_000,
    in_memory_bytes: int = 1 << 30,
) -> Pictures:
    """All pictures in a folder, at any depth, or the one picture `path` names; `x` uint8 [B C size size].

    The order is that of the sorted paths. With `labelled`, every folder directly below `path` is a class of
    that name (deeper folders belong to it); pictures beside the class folders are skipped. `names` are the
    paths, with bytes that cannot be printed escaped.

    Sets of 256 files and more are decoded in `workers` processes (0 or 1: in this one; None: one a core, at
    most 8, once that saves time). As always with processes in Python, a script that does this needs
    `if __name__ == "__main__":` around its start. `progress(done, total)` is called as files are finished.
    Sets larger than `in_memory_bytes` are memory-mapped: from the folder `cache`, else from a nameless
    temporary file. `cache` also keeps decoded sets for the next time, until a file in the set changes its
    path, size or time.

    Raises `DataError` if the path is missing, is no folder, holds no picture that can be used, or has a class
    without any; `SaveError` if the cache folder cannot be written or the disk is full; `ConfigError` for
    impossible options.
    """
    wish = wished(size, channels, limit_pixels, cache, workers, in_memory_bytes, progress)
    root = os.fspath(path)
    if _is_one_picture(root, labelled):
        return _read(list_files([root]), root, wish)
    listing = list_folder(root)
    if not labelled:
        return _read(listing, root, wish)
    listing = _only_in_classes(listing, root)
    return _with_labels(_read(listing, root, wish), listing, root)


def read_files(
    paths: Iterable[AnyPath],
    *,
    size: int,
    channels: int = 3,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    limit_pixels: int = 64_000_000,
    in_memory_bytes: int = 1 << 30,
) -> Pictures:
    """The named files in the order given, unlabelled; otherwise as `read_folder`.

    A file that is missing or cannot be used is in `skipped`; `DataError` is raised if that leaves none.
    """
    wish = wished(size, channels, limit_pixels, cache, workers, in_memory_bytes, progress)
    listing = list_files(os.fspath(p) for p in paths)
    return _read(listing, "the list of files", wish)


def _is_one_picture(root: str, labelled: bool) -> bool:
    """Whether `root` is a picture file. Raises `DataError` for paths that are nothing to read from."""
    try:
        there, folder = Path(root).exists(), Path(root).is_dir()
    except (OSError, ValueError):
        there, folder = False, False
    if folder:
        return False
    if not there:
        raise DataError(
            f"there is no folder {printable(root)}. Check the spelling; relative paths start from {_here()}"
        )
    extension = Path(root).suffix.lower()
    if extension in picture_extensions() and not labelled:
        return True
    packed = extension in (".zip", ".gz", ".tgz", ".7z", ".rar")
    hint = "Unpack it first" if packed else "Name the folder it is in"
    if extension == ".tar":
        hint = "Read it with data.shards.read_shards, or unpack it first"
    raise DataError(f"{printable(root)} is a file, not a folder. {hint}.")


def _here() -> str:
    try:
        return printable(str(Path.cwd()))
    except OSError:
        return "a folder that no longer exists"


def _read(listing: Listing, source: str, wish: Wish) -> Pictures:
    """Decode what is listed, or take it from the cache."""
    if not listing.files:
        raise DataError(_nothing_there(listing, printable(source)))
    files = listing.files
    decoded = _known_or_decoded(files, wish)
    failed = tuple(Skipped(printable(files.paths[i]), reason) for i, reason in sorted(decoded.failed.items()))
    skipped = (*listing.skipped, *failed)
    if len(decoded.x) == 0:
        raise DataError(
            f"none of the {len(skipped)} pictures in {printable(source)} can be used: {_some(skipped)}. "
            "Save them again as JPEG or PNG."
        )
    return Pictures(decoded.x, tuple(printable(files.paths[i]) for i in decoded.kept()), skipped=skipped)


def _nothing_there(listing: Listing, source: str) -> str:
    if listing.skipped:
        return f"no picture in {source} can be used: {_some(listing.skipped)}."
    if listing.ignored:
        seen = ", ".join(listing.ignored[:5]) + (", ..." if len(listing.ignored) > 5 else "")
        count = len(listing.ignored)
        return f"{source} holds no pictures, only {count} other files: {seen}. Put JPEG or PNG files there."
    return f"{source} is empty (hidden files do not count). Put JPEG or PNG files there, or name another folder."


def _some(skipped: Sequence[Skipped]) -> str:
    text = "; ".join(f"{s.path}: {s.reason}" for s in skipped[:3])
    return f"{text}; and {len(skipped) - 3} more" if len(skipped) > 3 else text


def _known_or_decoded(files: Entries, wish: Wish) -> Decoded:
    key = stored.key_of(files, wish.form)
    known = None if wish.cache is None else stored.find(wish.cache, key, len(files))
    if known is not None:
        if wish.progress is not None:
            wish.progress(len(files), len(files))
        return known
    shape = (wish.form.channels, wish.form.size, wish.form.size)
    if len(files) * math.prod(shape) > wish.in_memory_bytes:
        return _decoded_on_disk(files, wish, key, shape)
    room, kept = np.empty((len(files), *shape), np.uint8), 0

    def put(row: Array) -> None:
        nonlocal kept
        room[kept] = row
        kept += 1

    failed, lasting = _fill(put, files, wish)
    decoded = Decoded(torch.from_numpy(room)[:kept], len(files), failed)
    if wish.cache is not None and kept and lasting:
        stored.store(wish.cache, key, decoded)
    return decoded


def _decoded_on_disk(files: Entries, wish: Wish, key: str, shape: tuple[int, int, int]) -> Decoded:
    with Rows(wish.cache, shape, expected=len(files)) as rows:
        failed, lasting = _fill(rows.append, files, wish)
        if wish.cache is None or len(failed) == len(files):
            return Decoded(rows.finished(None), len(files), failed)
        return stored.store_mapped(wish.cache, key, rows, len(files), failed, keep=lasting)


def _fill(put: Callable[[Array], None], files: Entries, wish: Wish) -> tuple[dict[int, str], bool]:
    """Hand on the good pictures in order; the reasons of the others, and whether all of these are lasting."""
    failed: dict[int, str] = {}
    lasting = True
    for i, result in enumerate(_results(files, wish)):
        if isinstance(result, Failure):
            failed[i], lasting = result.reason, lasting and result.lasting
        else:
            put(result)
        if wish.progress is not None:
            wish.progress(i + 1, len(files))
    return failed, lasting


def _results(files: Entries, wish: Wish) -> Iterator[Array | Failure]:
    """Processes from the start if their number was given, else once the rest would take long without."""
    paths = files.paths
    job: Job[str, Array | Failure] = partial(decode_many, form=wish.form)
    if len(paths) < FEW_FILES or (wish.workers is not None and wish.workers <= 1):
        yield from in_order(job, paths, 1, CRASHED)
        return
    rest = paths
    while wish.workers is None and rest:
        start = time.monotonic()
        results = job(rest[:_MEASURED])
        seconds = (time.monotonic() - start) / len(results)
        yield from results
        rest = rest[_MEASURED:]
        if seconds * len(rest) > START_SECONDS:
            break
    yield from in_order(job, rest, default_workers() if wish.workers is None else wish.workers, CRASHED)


def _only_in_classes(listing: Listing, root: str) -> Listing:
    """The listing without what lies beside the class folders; `DataError` if a class has no picture."""
    if not listing.folders:
        raise DataError(
            f"{printable(root)} has no folders in it, so no classes. Make one folder a class and put "
            "its pictures there, or read it unlabelled."
        )
    inside = [n for n, f in enumerate(listing.files) if len(f.parts) > 1]
    beside = tuple(
        Skipped(printable(f.path), "is not in a class folder") for f in listing.files if len(f.parts) == 1
    )
    files = listing.files.chosen(inside)
    _no_empty_class({f.parts[0] for f in files}, listing, listing.skipped, root)
    return replace(listing, files=files, skipped=(*listing.skipped, *beside))


def _no_empty_class(filled: set[str], listing: Listing, skipped: Sequence[Skipped], root: str) -> None:
    empty = [name for name in listing.folders if name not in filled]
    if not empty:
        return
    # One reason from inside the class says more than the bare fact.
    start = printable(str(Path(root, empty[0])))
    why = [s for s in skipped if s.path == start or s.path.startswith(start + os.sep)]
    reason = f" ({_some(why)})" if why else ""
    names = ", ".join(printable(n) for n in empty[:5]) + (", ..." if len(empty) > 5 else "")
    raise DataError(
        f"{len(empty)} of {len(listing.folders)} class folders in {printable(root)} hold no usable picture: "
        f"{names}{reason}. Add pictures to them or move these folders away."
    )


def _with_labels(pictures: Pictures, listing: Listing, root: str) -> Pictures:
    left_out = {s.path for s in pictures.skipped}
    number: dict[str, int] = {}  # by first appearance; sorted below
    where = (f.parts[0] for f in listing.files if printable(f.path) not in left_out)
    met = torch.from_numpy(np.fromiter((number.setdefault(n, len(number)) for n in where), np.int64))
    names = sorted(number)
    _no_empty_class(set(names), listing, pictures.skipped, root)
    place = {name: n for n, name in enumerate(names)}
    y = torch.tensor([place[name] for name in number])[met]
    return replace(pictures, y=y, classes=tuple(printable(name) for name in names))
