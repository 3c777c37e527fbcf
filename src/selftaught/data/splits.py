"""Class lists kept as text files, one class name a line, so that a split is never a matter of code."""

from importlib.resources import files

from selftaught.core.errors import DataError


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
    text = (files("selftaught.data") / "splits" / f"{name}.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip())
