"""Progress bars with rates and time left, on a terminal only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    """A bar that shows steps, figures, time gone and time left; silent where `quiet` or not a terminal."""
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
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(title, total=total, completed=start, figures="")

        def tick(done: int, figures: str) -> None:
            progress.update(task, completed=done, figures=figures)

        yield tick
