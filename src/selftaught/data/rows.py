"""Decoded pictures written to a file one by one, and mapped once all are there.

So a set of any size is decoded in the memory of a few pictures, and afterwards a batch brings in its own pages.
"""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self, final

import numpy as np
import torch
from torch import Tensor

from selftaught.core.errors import SaveError
from selftaught.data.decode import Array

_BEGUN = "building-"


@final
class Rows:
    """An .npy file of uint8 [N *shape] that grows with every `append`.

    Plain writes: a full disk is an error, where a mapped file would end the process without a message. Without a
    `folder` the file has no name and goes with the process. With one it has a name of its own until `finished`
    moves it, and is locked meanwhile, so that the next `Rows` there clears away what killed processes left.

    Raises `SaveError` if the disk has no room for `expected` rows, and from `append` when it runs full.
    """

    def __init__(self, folder: Path | None, shape: tuple[int, int, int], expected: int = 0) -> None:
        self._shape, self._count = shape, 0
        self._where = Path(tempfile.gettempdir()) if folder is None else folder
        self._path: Path | None = None
        self._bytes = expected * int(np.prod(shape))
        try:
            self._file: IO[bytes] = self._begun(folder)
            try:
                self._header(expected)
                self._start = self._file.tell()
                # Take the room now, where it is known: better no start than an end after an hour.
                if self._bytes and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(self._file.fileno(), 0, self._start + self._bytes)
            except OSError:
                self.close()
                raise
        except OSError as error:
            raise self._no_room(error) from error

    def append(self, row: Array) -> None:
        """Write one picture, uint8 of `shape`, behind the others."""
        try:
            self._file.write(np.ascontiguousarray(row).data)
        except OSError as error:
            raise self._no_room(error) from error
        self._count += 1

    def finished(self, place: Path | None) -> Tensor:
        """The rows [N *shape], mapped; the file is now `place` (None where there is no folder).

        Writing into the tensor changes memory, never a file that has a name.
        """
        try:
            self._file.flush()
            self._file.truncate(self._start + self._count * int(np.prod(self._shape)))
            self._file.seek(0)
            self._header(self._count)
            self._file.flush()
            if self._path is None or place is None:
                return self._nameless()
            self._path.replace(place)
            self._path = None
            return mapped(place)
        except OSError as error:
            raise self._no_room(error) from error

    def close(self) -> None:
        """Drop the file, unless it was moved to its place."""
        with suppress(OSError):  # what could not be written to a full disk is tried once more
            self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begun(self, folder: Path | None) -> IO[bytes]:
        if folder is None:
            return tempfile.TemporaryFile(buffering=1 << 20)
        sweep(folder)
        while True:
            handle, name = tempfile.mkstemp(suffix=".tmp", prefix=_BEGUN, dir=folder)
            self._path = Path(name)
            with suppress(OSError):  # a disk without locks: nobody can take it for one that was left
                _lock(handle, wait=True)
            if self._path.exists():  # no sweep came before the lock
                return os.fdopen(handle, "w+b", buffering=1 << 20)
            os.close(handle)

    def _header(self, count: int) -> None:
        # numpy leaves room for the number of rows to grow, so that the second header is as long as the first.
        facts = {"descr": "|u1", "fortran_order": False, "shape": (count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, facts)

    def _nameless(self) -> Tensor:
        if self._count == 0:
            return torch.empty((0, *self._shape), dtype=torch.uint8)
        whole = (self._count, *self._shape)
        return torch.from_numpy(np.memmap(self._file, np.uint8, "r+", self._start, whole))

    def _no_room(self, error: OSError) -> SaveError:
        size = max(self._bytes, self._count * int(np.prod(self._shape))) / 1e9
        return SaveError(
            f"the decoded pictures need {size:.1f} GB or more and {self._where} cannot give it: {error.strerror}. "
            "Name a cache folder on a larger disk, or choose a smaller picture size."
        )


def mapped(path: Path) -> Tensor:
    """The .npy file `path`, copy-on-write: whoever writes into the tensor changes memory, never the file."""
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def sweep(folder: Path) -> None:
    """Remove files that killed processes were writing in `folder`; those of living ones are locked and stay."""
    for path in folder.glob(f"{_BEGUN}*.tmp"):
        with suppress(OSError), path.open("rb") as file:
            _lock(file.fileno(), wait=False)
            path.unlink()


def _lock(handle: int, wait: bool) -> None:
    """Lock an open file until it is closed. Raises `OSError` if somebody else has it, unless told to `wait`."""
    try:
        import fcntl
    except ImportError:  # Windows does not remove open files anyway
        return
    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
