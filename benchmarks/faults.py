"""Commands in copies of a warm process that are killed, or refused the disk, at a chosen moment.

A copy of a process that has loaded its modules starts in milliseconds, so that hundreds of deaths are cheap. The
warm process must not have used several threads yet: its copies could wait for them for ever.
"""

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, final

from selftaught.app import cli

CRASHED = 70
"""Exit status of a command that ended in an error which is none of the library's own."""

KILLED = -signal.SIGKILL
PATIENCE = 120.0
"""Seconds after which a copy counts as hanging."""

_CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"})


class Fault(Protocol):
    """What goes wrong in a copy. `arm` is called there, before the command; `seconds` until it is killed."""

    @property
    def seconds(self) -> float: ...

    def arm(self, root: Path) -> None: ...


@final
@dataclass(frozen=True)
class Moment:
    """kill -9 after so many seconds."""

    seconds: float = PATIENCE

    def arm(self, root: Path) -> None:
        """Nothing: the killer is outside."""


@final
@dataclass(frozen=True)
class Operation:
    """At the `number`-th change of a file or folder below `root` (from 1): death, or the system's refusal.

    Changes are opening to write, renaming, removing, making and cutting, as Python's audit events report them
    just before they happen, and forcing to disk. After a refusal all later ones are refused too, as on a disk that
    is full or read-only, but what removes or renames is let through on a full one.
    """

    number: int
    what: Literal["kill", "full", "read-only"] = "kill"
    seconds: float = PATIENCE

    def arm(self, root: Path) -> None:
        """Listen to the audit events of this process; they cannot be silenced again, so only in a copy."""
        seen = Count()
        limit = self.number

        def change(frees: bool, path: str) -> None:
            seen.value += 1
            if seen.value < limit or (frees and self.what == "full"):
                return
            if self.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            number = errno.ENOSPC if self.what == "full" else errno.EROFS
            raise OSError(number, os.strerror(number), path)

        listen(root, change)


@final
@dataclass(frozen=True)
class Limit:
    """No file may grow beyond so many bytes: a write is cut short there and the next one refused."""

    size: int
    seconds: float = PATIENCE

    def arm(self, root: Path) -> None:
        """Set the system's limit for this process."""
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


@final
@dataclass(frozen=True)
class Torn:
    """kill -9 in the middle of the `number`-th file that is written whole (from 1): half of it is there."""

    number: int
    seconds: float = PATIENCE

    def arm(self, root: Path) -> None:
        """Replace the one function by which the library puts bytes into new files."""
        write, seen, limit = Path.write_bytes, Count(), self.number

        def torn(path: Path, content: bytes) -> int:
            seen.value += 1
            if seen.value < limit:
                return write(path, content)
            write(path, bytes(content)[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        Path.write_bytes = torn  # type: ignore[assignment,method-assign]


@dataclass
class Count:
    """A number that several functions share."""

    value: int = 0


def listen(root: Path, change: Callable[[bool, str], None]) -> None:
    """Call `change(frees, path)` before every change below `root`; `frees` where it needs no room."""
    top = str(root)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in _CHANGES:
            path = arguments[0]
        else:
            return
        place = os.fsdecode(path) if isinstance(path, str | bytes) else str(path)
        # Removing a tree names files relative to their open folder.
        if place.startswith(top) or not place.startswith("/"):
            change(event in ("os.remove", "os.rmdir", "os.rename"), place)

    sys.addaudithook(hook)
    sync = os.fsync

    def synced(number: int) -> None:
        change(False, top)
        sync(number)

    os.fsync = synced  # type: ignore[assignment]


@final
@dataclass(frozen=True)
class Lived:
    """How a command ended: its exit status (KILLED where it was killed), and what it printed."""

    status: int
    words: str


def run(
    arguments: Sequence[str], root: Path, fault: Fault | None = None, prepare: Callable[[], object] = int
) -> Lived:
    """`selftaught ARGUMENTS` in a copy of this process, disturbed below `root` by `fault`; `prepare` runs first.

    What it prints must fit into a pipe. Raises TimeoutError for a copy that hangs.
    """
    ear, mouth = os.pipe()
    pid = os.fork()
    if pid == 0:
        _live(arguments, root, mouth, fault, prepare)
    os.close(mouth)
    seconds = PATIENCE if fault is None else fault.seconds
    end = time.monotonic() + seconds
    found, status = 0, 0
    while not found:
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found and time.monotonic() >= end:
            os.kill(pid, signal.SIGKILL)
            found, status = os.waitpid(pid, 0)
            if seconds == PATIENCE:
                raise TimeoutError(f"selftaught {' '.join(arguments)} hung")
        time.sleep(0.001)
    with os.fdopen(ear, encoding="utf-8", errors="replace") as pipe:
        return Lived(os.waitstatus_to_exitcode(status), pipe.read())


def _live(
    arguments: Sequence[str], root: Path, mouth: int, fault: Fault | None, prepare: Callable[[], object]
) -> None:
    """The copy's whole life; never returns."""
    code = CRASHED
    try:
        os.dup2(mouth, 1)
        os.dup2(mouth, 2)
        prepare()
        if fault is not None:
            fault.arm(root)
        code = cli.main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else CRASHED
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
