"""Class lists kept as text files, one class name a line, so that a split is never a matter of code."""

from collections import Counter
from importlib.resources import files
from pathlib import Path

from selftaught.core.errors import DataError
from selftaught.data.decode import printable


def split_names() -> tuple[str, ...]:
    """The names of the class lists that come with the library, sorted."""
    folder = files("selftaught.data") / "splits"
    return tuple(sorted(f.name.removesuffix(".txt") for f in folder.iterdir() if f.name.endswith(".txt")))


def read_split(name: str) -> tuple[str, ...]:
    """The class names of the list `name` (for example 'omniglot_background'), in the order of the file.

    Raises DataError, with the lists there are, when there is none of that name.
    """
    known = split_names()
    if name not in known:
        raise DataError(f"no class list is called {name!r}; there are: {', '.join(known)}")
    return _names((files("selftaught.data") / "splits" / f"{name}.txt").read_bytes(), name)


def read_class_list(path: str | Path) -> tuple[str, ...]:
    """The class names of a list of your own: a UTF-8 text file with a name a line, in the order of the file.

    Raises DataError when it cannot be read, is empty, names a class twice or holds control characters.
    """
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the class list {printable(str(path))}: {error}") from error
    return _names(content, printable(str(path)))


def _names(content: bytes, where: str) -> tuple[str, ...]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 ({error}): save it as UTF-8 text") from error
    names = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not names:
        raise DataError(f"{where} names no class: write one a line")
    odd = [name for name in names if printable(name) != name]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if odd or twice:
        what = (
            f"names {printable(twice[0])!r} twice" if twice else f"has control characters in {printable(odd[0])!r}"
        )
        raise DataError(f"{where} {what}: write every class once, on a line of its own")
    return names
