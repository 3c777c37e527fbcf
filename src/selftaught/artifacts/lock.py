"""One writer at a time for a folder; the system takes the right back from a process that died."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from selftaught.artifacts.files import save_error, sweep, write_text
from selftaught.core.errors import RunError

LOCK, OWNER = "run.lock", "run.pid"


@contextmanager
def locked(folder: Path, *below: str) -> Iterator[None]:
    """Hold the right to write `folder`, and clear away what killed writers left there and in its folders `below`.

    Nothing but the system's lock on the file `run.lock` decides: neither the file being there nor the number in
    `run.pid`, which is for messages only. Raises RunError, naming the folder and its writer, when another process
    (or another `locked` of this one) holds it, SaveError where the folder cannot be written.
    """
    # `is_singleton=False`: a second lock in this process must fail like one in another process.
    lock = FileLock(folder / LOCK, timeout=0, is_singleton=False)
    owner = folder / OWNER
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"{folder} is being written by process {_writer(owner)}. "
            "Wait for it to end, end it, or choose another folder."
        ) from error
    except OSError as error:
        raise save_error(folder / LOCK, error) from error
    try:
        for place in (folder, *(folder / name for name in below)):
            sweep(place)
        write_text(owner, f"{os.getpid()}\n")
        yield
    finally:
        with suppress(OSError):
            owner.unlink()
        lock.release()


def _writer(file: Path) -> str:
    """Who holds the lock, as far as it can be told."""
    try:
        return file.read_text(encoding="utf-8").strip() or "of unknown number"
    except (OSError, ValueError):
        return "of unknown number"
