"""`selftaught claim`: run a claim, print it, and keep it with all that is needed to repeat it."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from selftaught.app import provenance
from selftaught.app.tabular import table_console
from selftaught.artifacts.files import write_json
from selftaught.core.errors import ConfigError

if TYPE_CHECKING:
    from selftaught.claims.outcome import Outcome

_out = Console(soft_wrap=True, highlight=False, markup=False)


def claim(
    name: Positional[str] = "", quick: bool = False, json: Path | None = None, page: Path | None = None
) -> None:
    """Show a paper's headline claim by an experiment of our own, with the regime where it fails.

    Args:
        name: Of the claim; without one, all names are listed.
        quick: Seconds instead of minutes: that it runs, on budgets too small to tell whether the claim holds.
        json: Also write the outcome to this file, with command, commit, machine, seeds and seconds.
        page: Also write examples of what the models do to this HTML file, for claims that have them to show.
    """
    from selftaught.claims import CLAIMS, PAGES

    if not name:
        _out.print("claims: " + ", ".join(CLAIMS))
        return
    if name not in CLAIMS:
        raise ConfigError(f"there is no claim {name!r}; there are {', '.join(CLAIMS)}")
    if page is not None and name not in PAGES:
        raise ConfigError(
            f"the claim {name!r} draws no page; leave --page out (there is one for {', '.join(PAGES)})"
        )
    # Taken before: other commits may be made while it runs.
    at = provenance.commit()
    began, worked = time.perf_counter(), time.process_time()
    done = CLAIMS[name](quick)
    spent = {"clock": time.perf_counter() - began, "processor": time.process_time() - worked}
    show(done)
    if quick:
        _out.print("quick: this shows that the claim runs, not whether it holds; leave --quick out for that")
    if json is not None:
        write_json(json, record(done, quick, at, spent))
        _out.print(f"written to {json}")
    if page is not None:
        PAGES[name](page, quick)
        _out.print(f"page: {page}")


def show(done: "Outcome") -> None:
    """Print an outcome: paper, claim, protocol, table, verdict, losing regime."""
    for word, text in (("paper", done.paper), ("claim", done.claim), ("protocol", done.protocol)):
        _out.print(f"{word}: {text}")
    shown = Table(*done.rows[0])
    for row in done.rows:
        shown.add_row(*(str(cell) for cell in row.values()))
    table_console().print(shown)
    _out.print(f"verdict: {done.verdict}")
    _out.print(f"where it fails: {done.losing}")


def record(done: "Outcome", quick: bool, at: str, seconds: dict[str, float]) -> dict[str, Any]:
    """The outcome as plain JSON values with the command that repeats it; `seconds` by clock and processor."""
    from selftaught.claims.outcome import as_json

    return {
        **as_json(done),
        "quick": quick,
        "command": shlex.join(["selftaught", "claim", done.name, *(["--quick"] if quick else [])]),
        "commit": at,
        "machine": provenance.machine(),
        "seeds": seeds(done),
        "seconds": {k: round(v, 1) for k, v in seconds.items()},
    }


def seeds(done: "Outcome") -> int:
    """Training seeds of the best repeated cell; 1 where there is no estimate."""
    from selftaught.claims.outcome import Estimate

    return max([c.seeds for row in done.rows for c in row.values() if isinstance(c, Estimate)], default=1)
