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


SETTLE = """
import resource, sys, torch
from selftaught.core.memory import settle_thresholds
if sys.argv[1] == "settle":
    settle_thresholds()
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        maps = [torch.ones(2**20) for _ in range(10)]  # 40 MiB in all, given back between the tasks
        del maps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(), faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="concerns glibc")
def test_a_tasks_maps_stay_for_the_next_task() -> None:
    def count(word: str) -> int:
        done = subprocess.run([sys.executable, "-c", SETTLE, word], capture_output=True, text=True, check=True)
        return int(done.stdout)

    default = count("default")  # 200,000 pages, or none where an import freed a block of that size before us
    assert count("settle") <= max(default // 4, 10_000)
