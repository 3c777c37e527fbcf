"""Files that are either the old one or the new one, never half of each."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from selftaught.core.errors import ConfigError, RunError, SaveError

TEMPORARY_SUFFIX = ".selftaught-tmp"
"""How names of unfinished files and folders end; whoever holds a run's lock may remove them."""

_ASIDE = f".before{TEMPORARY_SUFFIX}"


def writer() -> str:
    """Name and version of this library, as written into every file."""
    try:
        return f"selftaught {version('selftaught')}"
    except PackageNotFoundError:
        return "selftaught (not installed)"


def temporary_beside(path: Path) -> Path:
    """A new name in the folder of `path`: only there is moving a rename and not a copy."""
    return path.parent / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"


def save_error(path: Path, error: OSError) -> SaveError:
    """The operating system's refusal as an error that names the file and the way out."""
    why = error.strerror or str(error) or type(error).__name__
    return SaveError(
        f"{path} could not be written: {why}. What stood there before is untouched. "
        "Make room or check the permissions of the folder, or choose another folder; then try again."
    )


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in the folder of `path`, then move it to `path`.

    Missing parent folders are made; a symbolic link keeps pointing where it did and its target is replaced.
    Raises SaveError when the operating system refuses (no space, no permission, read-only disk). On every
    failure, also of `write` itself, the temporary file is removed and the old file is as it was.
    """
    target = Path(os.path.realpath(path))
    temporary = temporary_beside(target)
    try:
        # Moving a file onto a device or a folder would destroy or miss it.
        if target.exists() and not target.is_file():
            raise SaveError(f"{path} is not an ordinary file; choose another name.")
        target.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _to_disk(temporary)
        temporary.replace(target)
    except OSError as error:
        _remove(temporary)
        raise save_error(Path(path), error) from error
    except BaseException:
        _remove(temporary)
        raise
    sync_folder(target.parent)


def write_bytes(path: str | Path, content: bytes) -> None:
    """`content` as the file `path`, atomically; raises SaveError."""
    write_atomically(path, lambda temporary: _put(temporary, content))


def write_text(path: str | Path, content: str) -> None:
    """`content` in UTF-8 with plain newlines as the file `path`, atomically; raises SaveError."""
    # File names that are no UTF-8 hold lone surrogates; written as escapes, JSON reads them back.
    write_bytes(path, content.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """A JSON object, indented, atomically; paths become strings.

    Raises SaveError when the disk refuses, and ConfigError when a value has no form in JSON.
    """
    try:
        text = json.dumps(dict(content), indent=2, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} was not written: {error}. Use text, numbers, lists and dictionaries only."
        ) from error
    write_text(path, text + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in `path`; raises RunError when it is missing, unreadable, broken or no object."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing. Check the folder's name, or make the file anew.") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is broken, not JSON ({error}). Restore it from a copy, or run again into a new folder."
        ) from error
    if not isinstance(content, dict):
        raise RunError(
            f"{path} holds a JSON {type(content).__name__} where an object belongs. "
            "Restore it from a copy, or run again into a new folder."
        )
    return content


def sweep(folder: Path) -> None:
    """Remove what killed processes left unfinished in `folder`; only for the holder of its lock.

    A folder that was laid aside by a process that died before the new one stood in its place is put back.
    """
    for left in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        target = folder / left.name.removeprefix(".").removesuffix(_ASIDE)
        if left.is_file():
            _remove(left)
        elif left.name.endswith(_ASIDE) and not target.exists():
            with contextlib.suppress(OSError):
                left.rename(target)
        else:
            shutil.rmtree(left, ignore_errors=True)


def replace_folder(new: Path, target: Path) -> None:
    """Put folder `new` in the place of `target`; should that fail, the old one comes back. Raises OSError.

    Two renames are needed, so there is a moment without `target`. The old one then stands where `standing` finds
    it, also when the process dies there.
    """
    aside = _aside(target)
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    try:
        new.rename(target)
    except OSError:
        with contextlib.suppress(OSError):
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    sync_folder(target.parent)


def standing(target: Path) -> Path:
    """`target`, or where it stands when a process died while it put a new folder in its place."""
    return target if target.exists() or not _aside(target).is_dir() else _aside(target)


def _aside(target: Path) -> Path:
    return target.parent / f".{target.name}{_ASIDE}"


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system knows how (not on Windows)."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _to_disk(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
