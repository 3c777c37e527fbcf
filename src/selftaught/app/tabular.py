"""Where tables are printed."""

from rich.console import Console

WIDE = 400
"""Columns where the output is no terminal: every row on one line, for pipes and files."""


def table_console() -> Console:
    """As wide as the terminal, and `WIDE` where there is none; texts as they are, without markup."""
    out = Console(highlight=False, markup=False)
    return out if out.is_terminal else Console(highlight=False, markup=False, width=WIDE)
