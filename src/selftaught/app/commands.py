"""Commands whose work is in files of its own, and what all commands share.

A signature is all that `selftaught --help` needs, so what a command works with is imported when it runs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from tyro.conf import Positional

from selftaught.app.choices import ComparisonHead
from selftaught.app.tabular import table_console
from selftaught.core.errors import ConfigError

if TYPE_CHECKING:
    from selftaught.app.model import Model
    from selftaught.data.pictures import Skipped

_out = Console(soft_wrap=True, highlight=False, markup=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def embed(run: Positional[Path], data: Positional[str], out: Path = Path("vectors.npz")) -> None:
    """Write the embedding of every picture.

    Args:
        run: A run, model or classifier folder.
        data: A folder or file.
        out: An .npz file with `vectors` [n D] float32 and `names` [n].
    """
    import numpy as np

    from selftaught.artifacts.files import write_atomically

    if out.suffix != ".npz":
        raise ConfigError(f"{out}: vectors are written as .npz; name the file something.npz")
    model = opened(run)
    pictures = model.read(place(data))
    vectors, names = model.features(pictures).numpy(), np.array(pictures.names)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, vectors=vectors, names=names)

    write_atomically(out, write)
    _out.print(f"{out}: {vectors.shape[0]} vectors of {vectors.shape[1]} numbers")
    say_skipped(pictures.skipped)


def report(run: Positional[Path]) -> None:
    """Write the report of a run again, with the evaluations made since.

    Args:
        run: A run folder.
    """
    from selftaught.app.reporting import write_run_report

    _out.print(f"report: {write_run_report(run)}")


def doctor(
    data: Positional[str],
    labelled: bool = False,
    ways: int | None = None,
    shots: int | None = None,
    against: str | None = None,
    size: int = 64,
    views: Literal["auto", "photo", "glyph", "flat"] = "auto",
    page: Path | None = None,
) -> None:
    """Look at pictures before training: duplicates, blanks, uneven or small classes, files that fail, views.

    Args:
        data: A folder.
        labelled: Subfolders are classes.
        ways: Classes in the tasks to come.
        shots: Labelled pictures per class in the tasks to come.
        against: Another folder, of test pictures for example: none of its pictures should be in the first.
        size: The picture size of the training to come, in pixels.
        views: The recipe whose views are looked at; auto is what pretrain would choose.
        page: Draw some views to this file, .png or .svg.
    """
    from selftaught.app.config import recipe
    from selftaught.app.doctor import examine, overlap
    from selftaught.app.doctor_views import examine_views, write_view_page
    from selftaught.app.sources import as_pictures
    from selftaught.data.views import choose_recipe

    tasks = ways is not None or shots is not None
    pictures = as_pictures(place(data), size, 3, labelled=labelled or tasks)
    other = None if against is None else as_pictures(place(against), size, 3)
    name, reason = choose_recipe(pictures) if views == "auto" else (views, "it was asked for")
    marks = {"ok": "ok     ", "warning": "WARNING", "problem": "PROBLEM"}
    _out.print(f"{len(pictures)} pictures; views would be {name!r}, because {reason}")
    found = examine(pictures, ways=ways, shots=shots) + examine_views(pictures, recipe(name), repr(name))
    for finding in found + ([] if other is None else overlap(pictures, other)):
        _out.print(f"{marks[finding.level]} {finding.title}: {finding.detail}")
        if finding.way_out:
            _out.print(f"        {finding.way_out}")
    if page is not None:
        write_view_page(page, pictures, recipe(name))
        _out.print(f"views: {page}")


def compare(
    runs: Positional[tuple[Path, ...]],
    labelled: str,
    out: Path = Path("comparison.svg"),
    ways: int = 5,
    shots: int = 1,
    queries: int | None = None,
    episodes: int = 600,
    seed: int = 0,
    head: ComparisonHead = "prototype",
    json: Path | None = None,
) -> None:
    """Compare finished runs on the same episodes: accuracies, paired differences, a picture.

    Args:
        runs: Two or more run folders.
        labelled: One subfolder per class; "emoji:test" stands for the packaged classes never trained on.
        out: The picture to write, an .svg file.
        ways: Classes in a task.
        shots: Labelled pictures per class.
        queries: Pictures per class to name (15, or as many as the smallest class leaves).
        episodes: Random tasks; the same list for every run.
        seed: Of the task list.
        head: prototype, ridge or logistic, on fixed features; own: each run by the learner it was trained with.
        json: Also write the figures to this file.
    """
    from selftaught.app.comparing import as_json, compared, drawing, loaded, tables
    from selftaught.artifacts.files import write_json, write_text

    if out.suffix != ".svg":
        raise ConfigError(f"{out}: the picture is written as .svg; name the file something.svg")
    models = loaded(runs)
    found = compared(models, labelled, ways, shots, queries, episodes, seed, head)
    write_text(out, drawing(found))
    if json is not None:
        write_json(json, as_json(found, runs))
    for table in tables(found):
        table_console().print(table)
    _out.print(f"picture: {out}" + (f"; figures: {json}" if json else ""))


def methods(name: Positional[str] = "", options: bool = False) -> None:
    """List the methods: what they learn from, their tasks, learner and objective.

    Args:
        name: Only this method, with its options.
        options: Also the options of each.
    """
    from selftaught.app.listing import FULL, as_table, grouped, options_of
    from selftaught.methods import METHODS

    if name and name not in METHODS:
        raise ConfigError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    rows = grouped((name,) if name else tuple(METHODS))
    console = table_console()
    console.print(as_table(rows, console.width))
    if len(rows) > 1 and console.width < FULL:
        _err.print("selftaught methods NAME: tasks, learner and options of one")
    for row in rows if name or options else ():
        _out.print(f"\n{row.name}: " + ", ".join(options_of(METHODS[row.name])), style="dim")


def search(
    run: Positional[Path],
    pictures: Positional[str],
    text: Positional[str],
    best: int = 10,
    templates: tuple[str, ...] = ("{}",),
) -> None:
    """Find the pictures that a text describes, by a model trained with captions.

    Args:
        run: A run or model folder made with --method clip.
        pictures: A folder or file.
        text: What to look for, in words of the captions.
        best: How many pictures to show.
        templates: Sentences with {} for the text, whose mean is taken.
    """
    from selftaught.app.naming import found_by

    if best < 1:
        raise ConfigError(f"--best {best} shows nothing; use at least 1")
    model = opened(run)
    read = model.read(Path(pictures) if Path(pictures).exists() else pictures)
    for name, cosine in found_by(model, read, text, templates)[:best]:
        _out.print(f"{cosine:.3f} {name}")
    say_skipped(read.skipped)


def place(data: str) -> Any:
    """A folder or file, or the word for packaged pictures as it is."""
    return data if data.partition(":")[0] == "emoji" else Path(data)


def opened(folder: Path) -> "Model":
    """The model of a run, model or classifier folder; raises RunError."""
    from selftaught.app.classifier import Classifier
    from selftaught.app.loading import load

    found = load(folder)
    return found.model if isinstance(found, Classifier) else found


def say_skipped(skipped: "Sequence[Skipped]") -> None:
    """Name the files that were left out, on stderr."""
    if skipped:
        from selftaught.app.classifier import summary_of_skipped

        _err.print(summary_of_skipped(skipped))
