"""A job for worker processes in which some items end the process, as a crash in a C decoder does."""

import os
from collections.abc import Sequence


def shout(items: Sequence[str]) -> list[str]:
    """Upper case; the item 'kill' never returns."""
    if "kill" in items:
        os._exit(9)
    return [item.upper() for item in items]
