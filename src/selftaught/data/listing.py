"""Which picture files lie in a folder: sorted, each real file once, nothing opened."""

import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from selftaught.core.errors import DataError
from selftaught.data.decode import FOREIGN, picture_extensions, printable
from selftaught.data.pictures import Skipped

LEFTOVERS = frozenset({"__MACOSX", "@eaDir"})
"""What archivers and network drives leave behind; the second is full of thumbnails."""


Identity = tuple[int, int]
_SIXTY_FOUR = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: the path to open, its place below the folder, and what tells that it has changed."""

    path: str
    parts: tuple[str, ...]
    size_bytes: int
    mtime_ns: int


@final
class Entries:
    """Files in a given order, held as a path and two numbers each: a million of them are no burden.

    The place of a file below its folder begins in its path at `start`; without one the path is its place.
    """

    def __init__(self, start: int | None = None) -> None:
        self._start = start
        self._paths: list[str] = []
        self._sizes, self._times = array("q"), array("q")

    def add(self, path: str, size_bytes: int, mtime_ns: int) -> None:
        """Put a file behind the others."""
        self._paths.append(path)
        self._sizes.append(size_bytes)
        self._times.append(mtime_ns)

    @property
    def paths(self) -> Sequence[str]:
        """All paths."""
        return self._paths

    def place(self, path: str) -> tuple[str, ...]:
        """The parts of a path below the folder."""
        return (path,) if self._start is None else tuple(path[self._start :].split(os.sep))  # noqa: PTH206 (fast)

    def chosen(self, order: Iterable[int]) -> "Entries":
        """The files `order` names, in that order."""
        some = Entries(self._start)
        for n in order:
            some.add(self._paths[n], self._sizes[n], self._times[n])
        return some

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, n: int) -> Entry:
        return Entry(self._paths[n], self.place(self._paths[n]), self._sizes[n], self._times[n])

    def __iter__(self) -> Iterator[Entry]:
        return (self[n] for n in range(len(self)))


@dataclass(frozen=True)
class Listing:
    """`files` to decode, in order of their path; `skipped` pictures; `ignored`, the names of files that are
    no pictures; `folders`, the visible folders directly below the top.
    """

    files: Entries
    skipped: tuple[Skipped, ...] = ()
    ignored: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


@dataclass
class _Found:
    files: Entries
    devices: "array[int]" = field(default_factory=lambda: array("Q"))
    numbers: "array[int]" = field(default_factory=lambda: array("Q"))
    skipped: list[Skipped] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def skip(self, path: str, reason: str) -> None:
        self.skipped.append(Skipped(printable(path), reason))


def list_folder(root: str) -> Listing:
    """All picture files at any depth below `root`.

    Hidden files and folders (leading dot) are passed over without a word. Links are followed; a folder or
    file reached a second time is not read again, so loops end. Raises `DataError` if `root` cannot be read.
    """
    try:
        top = _identity(Path(root).stat())
        os.scandir(root).close()
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read the folder {printable(root)}: {_why(error)}. Check the path and its permissions."
        ) from error
    start = _inside(str(Path(root)))
    found, seen = _Found(Entries(len(start))), {top}
    waiting = [root]
    extensions = picture_extensions()
    while waiting:
        folder = waiting.pop()
        below = _look_into(folder, found, seen, extensions, top=folder is root)
        waiting.extend(reversed(below))
    return _finished(found)


def _inside(folder: str) -> str:
    """What the paths of files in `folder` begin with."""
    return "" if folder == "." else folder if folder.endswith(os.sep) else folder + os.sep


def list_files(paths: Iterable[str]) -> Listing:
    """The named files, in the order given; whatever their extension, they are tried."""
    found = _Found(Entries())
    for path in paths:
        try:
            facts = Path(path).stat()
        except (OSError, ValueError) as error:
            found.skip(path, _why(error))
            continue
        if stat.S_ISDIR(facts.st_mode):
            found.skip(path, "is a folder; read it with read_folder")
        else:
            _add_file(path, facts, found)
    return Listing(found.files, tuple(found.skipped))


def _look_into(
    folder: str, found: _Found, seen: set[Identity], extensions: frozenset[str], top: bool
) -> list[str]:
    """Sort one folder's content into `found`; give back the folders below that were not seen before."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as error:
        found.skip(folder, f"folder cannot be read: {_why(error)}")
        return []
    below: list[str] = []
    start = _inside(str(Path(folder)))
    for name in names:
        if name.startswith(".") or name in LEFTOVERS:
            continue
        path, extension = start + name, Path(name).suffix.lower()
        try:
            facts = Path(path).stat()
        except OSError as error:
            if extension in extensions:
                found.skip(path, _why(error))
            continue
        if stat.S_ISDIR(facts.st_mode):
            if top:
                found.folders.append(name)
            if _identity(facts) not in seen:
                seen.add(_identity(facts))
                below.append(path)
        elif extension in extensions:
            _add_file(path, facts, found)
        elif extension in FOREIGN:
            found.skip(path, f"Pillow does not open {extension}; save it as JPEG or PNG")
        elif extension == ".tar":
            found.skip(path, "is an archive; shards are read by their name or that of a folder without pictures")
        else:
            found.ignored.append(printable("/".join(found.files.place(path))))
    return below


def _add_file(path: str, facts: os.stat_result, found: _Found) -> None:
    # Opening a pipe would wait for a writer that may never come.
    if not stat.S_ISREG(facts.st_mode):
        found.skip(path, "is a pipe, socket or device, not a file")
    elif facts.st_size == 0:
        found.skip(path, "is empty (0 bytes)")
    else:
        found.files.add(path, facts.st_size, facts.st_mtime_ns)
        device, number = _identity(facts)
        found.devices.append(device)
        found.numbers.append(number)


def _finished(found: _Found) -> Listing:
    """Sorted by path, and every real file kept once, under its first name."""
    order = _order(found.files.paths)
    same = _same_as(np.array(found.devices, np.uint64)[order], np.array(found.numbers, np.uint64)[order])
    paths = found.files.paths
    for n, first in same.items():
        known = printable(paths[order[first]])
        found.skip(paths[order[n]], f"is the same file as {known} (a link)")
    files = found.files.chosen(i for n, i in enumerate(order.tolist()) if n not in same)
    skipped = sorted(found.skipped, key=lambda s: s.path)
    return Listing(files, tuple(skipped), tuple(sorted(found.ignored)), tuple(found.folders))


def _order(paths: Sequence[str]) -> NDArray[np.int64]:
    """The positions [n] of the paths sorted folder by folder."""

    def key(n: int) -> str:
        return paths[n].replace(os.sep, "\0")

    # Mostly they are in order already, and the keys of a million paths would be as much as the paths.
    if all(a <= b for a, b in pairwise(map(key, range(len(paths))))):
        return np.arange(len(paths))
    return np.array(sorted(range(len(paths)), key=key), np.int64)


def _same_as(devices: NDArray[np.uint64], numbers: NDArray[np.uint64]) -> dict[int, int]:
    """Position of each file that stands for the same as an earlier one -> position of the first of these."""
    rank = np.lexsort((numbers, devices))  # stable: equal ones stay in order
    again = np.zeros(len(rank), np.bool_)
    again[1:] = (np.diff(devices[rank]) == 0) & (np.diff(numbers[rank]) == 0)
    if not again.any():
        return {}
    first = rank[np.maximum.accumulate(np.where(again, 0, np.arange(len(rank))))]
    return {int(n): int(f) for n, f in zip(rank[again], first[again], strict=True)}


def _identity(facts: os.stat_result) -> Identity:
    return facts.st_dev & _SIXTY_FOUR, facts.st_ino & _SIXTY_FOUR


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file or folder (or a broken link)"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, NotADirectoryError):
        return "it is a file, not a folder"
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
