"""Fetching published archives: never used unchecked, never half written."""

import hashlib
import http.client
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from selftaught.core.errors import ConfigError, DataError

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and, where the server says so, the bytes in all."""

_CHUNK = 1 << 20
_TIMEOUT = 30.0


def fetch(
    url: str,
    to: str | Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The file `to` with the contents of `url`, after its checksum (one of the two, as hex) was verified.

    A file that is already there with the right checksum is not downloaded again; one with a wrong checksum
    is replaced, but only by a right one. Bytes go to a temporary name beside `to` that is moved at the end.
    Raises ConfigError without exactly one checksum, DataError when the address cannot be reached, the
    transfer breaks off, the checksum differs, or the folder cannot be written.
    """
    if (sha256 is None) == (md5 is None):
        raise ConfigError(f"give exactly one of sha256 and md5 for {url}: unverified files are not used")
    kind, expected = ("sha256", sha256) if sha256 is not None else ("md5", md5)
    assert expected is not None
    target = Path(to)
    if target.is_file() and _digest_of(target, kind) == expected.lower():
        return target
    partial = _partial_beside(target)
    try:
        found = _transfer(url, partial, kind, progress)
        if found != expected.lower():
            raise DataError(
                f"{url} has {kind} {found} instead of {expected}: the transfer was damaged or the file was "
                "changed; try again, or get it elsewhere and pass its local path"
            )
        partial.chmod(0o644)  # temporary files are private, a shared data folder is not
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def data_folder() -> Path:
    """Where downloads are kept: $SELFTAUGHT_DATA, else `selftaught` in the user's cache folder."""
    if named := os.environ.get("SELFTAUGHT_DATA"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "selftaught"


def _partial_beside(target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    except OSError as error:
        raise DataError(
            f"cannot write to {target.parent} ({error.strerror}); set SELFTAUGHT_DATA to another folder"
        ) from error
    os.close(handle)
    return Path(name)


def _transfer(url: str, partial: Path, kind: str, progress: Progress | None) -> str:
    """Write the contents of `url` to `partial`; returns their checksum."""
    digest = hashlib.new(kind, usedforsecurity=False)
    done = 0
    try:
        with urlopen(url, timeout=_TIMEOUT) as source, partial.open("wb") as out:
            stated = source.headers.get("Content-Length")
            total = int(stated) if stated else None
            while block := source.read(_CHUNK):
                out.write(block)
                digest.update(block)
                done += len(block)
                if progress is not None:
                    progress(done, total)
    except (URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise DataError(_unreachable(url, partial, error)) from error
    if total is not None and done < total:
        raise DataError(f"{url} broke off after {done} of {total} bytes; try again, or pass a local path")
    return digest.hexdigest()


def _unreachable(url: str, partial: Path, error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    free = shutil.disk_usage(partial.parent).free // 2**20
    return (
        f"cannot download {url} ({reason}; {free} MiB free in {partial.parent}). Without a network, copy the "
        "file here by other means and pass its path instead"
    )


def _digest_of(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()
