"""Keeping freed memory: pages are faulted in once, not at every allocation."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from selftaught.core.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)  # 64 MiB: glibc maps what is above 32 anew each time
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(), faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="concerns glibc")
def test_pages_are_not_faulted_in_again() -> None:
    def count(word: str) -> int:
        return int(
            subprocess.run([sys.executable, "-c", CODE, word], capture_output=True, text=True, check=True).stdout
        )

    assert 2 * count("keep") < count("default")
