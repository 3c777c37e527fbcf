"""What torchrun tells a process about itself; without torch, so that asking costs nothing."""

import os


def leads() -> bool:
    """Whether this process is the first of its run, or the only one: the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"
