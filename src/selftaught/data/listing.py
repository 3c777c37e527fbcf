"""Which picture files lie in a folder: sorted, each real file once, nothing opened."""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from selftaught.core.errors import DataError
from selftaught.data.decode import FOREIGN, picture_extensions, printable
from selftaught.data.pictures import Skipped

LEFTOVERS = frozenset({"__MACOSX", "@eaDir"})
"""What archivers and network drives leave behind; the second is full of thumbnails."""

Identity = tuple[int, int]


@dataclass(frozen=True)
class Entry:
    """One file: the path to open, its place below the folder, and what tells that it has changed."""

    path: str
    parts: tuple[str, ...]
    size_bytes: int
    mtime_ns: int
    identity: Identity


@dataclass(frozen=True)
class Listing:
    """`files` to decode, in order of their path; `skipped` pictures; `ignored`, the names of files that are
    no pictures; `folders`, the visible folders directly below the top.
    """

    files: tuple[Entry, ...]
    skipped: tuple[Skipped, ...] = ()
    ignored: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


@dataclass
class _Found:
    files: list[Entry] = field(default_factory=list)
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
    found, seen = _Found(), {top}
    waiting: list[tuple[str, tuple[str, ...]]] = [(root, ())]
    extensions = picture_extensions()
    while waiting:
        folder, parts = waiting.pop()
        below = _look_into(folder, parts, found, seen, extensions)
        waiting.extend(reversed(below))
    return _finished(found)


def list_files(paths: Iterable[str]) -> Listing:
    """The named files, in the order given; whatever their extension, they are tried."""
    found = _Found()
    for path in paths:
        try:
            facts = Path(path).stat()
        except (OSError, ValueError) as error:
            found.skip(path, _why(error))
            continue
        if stat.S_ISDIR(facts.st_mode):
            found.skip(path, "is a folder; read it with read_folder")
        else:
            _add_file(path, (path,), facts, found)
    return Listing(tuple(found.files), tuple(found.skipped))


def _look_into(
    folder: str, parts: tuple[str, ...], found: _Found, seen: set[Identity], extensions: frozenset[str]
) -> list[tuple[str, tuple[str, ...]]]:
    """Sort one folder's content into `found`; give back the folders below that were not seen before."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as error:
        found.skip(folder, f"folder cannot be read: {_why(error)}")
        return []
    below = []
    for name in names:
        if name.startswith(".") or name in LEFTOVERS:
            continue
        path, here = str(Path(folder, name)), (*parts, name)
        extension = Path(name).suffix.lower()
        try:
            facts = Path(path).stat()
        except OSError as error:
            if extension in extensions:
                found.skip(path, _why(error))
            continue
        if stat.S_ISDIR(facts.st_mode):
            if not parts:
                found.folders.append(name)
            if _identity(facts) not in seen:
                seen.add(_identity(facts))
                below.append((path, here))
        elif extension in extensions:
            _add_file(path, here, facts, found)
        elif extension in FOREIGN:
            found.skip(path, f"Pillow does not open {extension}; save it as JPEG or PNG")
        elif extension == ".tar":
            found.skip(path, "is an archive; shards are read by their name or that of a folder without pictures")
        else:
            found.ignored.append(printable("/".join(here)))
    return below


def _add_file(path: str, parts: tuple[str, ...], facts: os.stat_result, found: _Found) -> None:
    # Opening a pipe would wait for a writer that may never come.
    if not stat.S_ISREG(facts.st_mode):
        found.skip(path, "is a pipe, socket or device, not a file")
    elif facts.st_size == 0:
        found.skip(path, "is empty (0 bytes)")
    else:
        found.files.append(Entry(path, parts, facts.st_size, facts.st_mtime_ns, _identity(facts)))


def _finished(found: _Found) -> Listing:
    """Sorted by path, and every real file kept once, under its first name."""
    first: dict[Identity, Entry] = {}
    for entry in sorted(found.files, key=lambda e: e.parts):
        known = first.setdefault(entry.identity, entry)
        if known is not entry:
            found.skip(entry.path, f"is the same file as {printable(known.path)} (a link)")
    skipped = sorted(found.skipped, key=lambda s: s.path)
    return Listing(tuple(first.values()), tuple(skipped), tuple(sorted(found.ignored)), tuple(found.folders))


def _identity(facts: os.stat_result) -> Identity:
    return facts.st_dev, facts.st_ino


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file or folder (or a broken link)"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, NotADirectoryError):
        return "it is a file, not a folder"
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
