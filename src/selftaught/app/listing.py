"""The matrix of methods: what each learns from, where its tasks come from, its learner, its objective.

All of it is read from the methods themselves - what `source` accepts and the first lines of their docstrings -
so a new method is listed by its line in `METHODS`.
"""

import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args, get_type_hints

from rich.table import Table

from selftaught.core.types import Method
from selftaught.methods import METHODS

LearnsFrom = Literal["pictures", "both", "labels"]
GROUPS: tuple[LearnsFrom, ...] = get_args(LearnsFrom)
"""The order in which methods are printed; within a group it is that of METHODS."""
FULL = 200
"""Columns from which every method has its tasks and learner on the same line."""


@dataclass(frozen=True)
class Listed:
    """One row of the matrix: a name and four short texts."""

    name: str
    learns_from: LearnsFrom
    tasks: str
    learner: str
    objective: str


def grouped(names: Sequence[str]) -> list[Listed]:
    """The matrix of these methods, by what they learn from."""
    return sorted(matrix(names), key=lambda row: GROUPS.index(row.learns_from))


def as_table(rows: Sequence[Listed], width: int) -> Table:
    """The rows for a terminal of `width` columns: several stay on a line each.

    Below `FULL` columns they are names, what is learned from, and as much of the objective as there is room for.
    """
    if len(rows) == 1 or width >= FULL:
        table = Table("name", "learns from", "tasks", "learner", "objective", box=None, pad_edge=False)
        for row in rows:
            table.add_row(*dataclasses.astuple(row))
        return table
    table = Table("name", "learns from", box=None, pad_edge=False)
    room = width - max(len(row.name) for row in rows) - len("learns from") - 4
    table.add_column("objective", no_wrap=True, overflow="ellipsis", max_width=room)
    for row in rows:
        table.add_row(row.name, row.learns_from, row.objective)
    return table


def matrix(names: Sequence[str]) -> list[Listed]:
    """A row for each name, in order."""
    return [_listed(name, METHODS[name]) for name in names]


def options_of(kind: type[Method]) -> list[str]:
    """Each option as name=default."""
    return [f"{f.name}={f.default}" for f in dataclasses.fields(cast(Any, kind))]


def learns_from(kind: type[Method]) -> LearnsFrom:
    """ "pictures" where `source` takes pictures without labels, "labels" where it refuses them, and "both" where
    an option decides."""
    from selftaught.claims.review import accepts, choices

    usual, *others = [accepts(one) for one in choices(kind)]
    if any(other != usual for other in others):
        return "both"
    return "pictures" if usual else "labels"


def _listed(name: str, kind: type[Method]) -> Listed:
    said = (sys.modules[kind.__module__].__doc__ or "").strip().splitlines()[0]
    return Listed(
        name,
        learns_from(kind),
        _short(kind.source.__doc__),
        base_learner(kind),
        (said.partition(": ")[2] or said).rstrip("."),
    )


def base_learner(kind: type[Method]) -> str:
    """The learner's type in words ("prototype", "gradient"), or its docstring where the type does not say."""
    made = getattr(get_type_hints(kind.learner).get("return"), "__name__", "")
    return made.removesuffix("Learner").lower() or _short(kind.learner.__doc__)


def _short(text: str | None) -> str:
    """Up to the first stop, colon or semicolon: what follows are details and errors."""
    return re.split(r"[.:;](?:\s|$)", " ".join((text or "").split()))[0]
