"""Progress bars with rates and time left, on a terminal only."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Tick = Callable[[int, str], None]
"""(steps done, text of figures) -> None."""


@contextmanager
def bar(title: str, total: int, start: int = 0, quiet: bool = False) -> Iterator[Tick]:
    """A bar that shows steps, figures, time gone and time left; silent where `quiet` or not a terminal.

    What is logged meanwhile stands above it.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    before, silent = sys.stderr, quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=silent) as progress, _logged_to(sys.stderr, before):
        task = progress.add_task(title, total=total, completed=start, figures="")

        def tick(done: int, figures: str) -> None:
            progress.update(task, completed=done, figures=figures)

        yield tick


@contextmanager
def _logged_to(stream: TextIO, before: TextIO) -> Iterator[None]:
    """Handlers of the log that write to `before` write to `stream`.

    A live bar catches what is written to `sys.stderr`; a handler keeps the one that it began with, and would write
    into the bar.
    """
    handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    found = [h for h in handlers if h.stream is before]
    for handler in found:
        handler.setStream(stream)
    try:
        yield
    finally:
        for handler in found:
            handler.setStream(before)
