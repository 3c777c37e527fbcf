"""What the C library does with freed memory."""

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the next allocation; True where that worked (Linux with glibc).

    By default everything above 32 MiB (a feature map of 128 pictures) is mapped anew and its pages are faulted in
    one by one: a third of a training step of a small encoder on a CPU. It concerns the whole process, so only the
    command line, a program of its own, calls it, never the library.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _MOST)) and bool(mallopt(_TRIM_THRESHOLD, _MOST))


@functools.cache
def settle_thresholds() -> None:
    """Free one block of just under 32 MiB, once in a process.

    glibc learns from it, as it would from any program's first block of that size, to keep what is below for
    the next allocation, up to 64 MiB. Without it the maps of every task are mapped anew: thousands of pages
    a task of MAML on Conv4. No setting of the process is changed; other C libraries ignore it.
    """
    if sys.platform.startswith("linux"):
        import torch

        torch.empty(2**25 - 2**16, dtype=torch.uint8)
