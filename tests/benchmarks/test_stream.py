"""Training from a mapped set, at toy size: what is written, what is read, what the table says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.stream import Stream, lines, trained, write


def test_the_set_is_written_whole_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy"):
        write(tmp_path / name, 30, 16)
    a, b = (np.load(tmp_path / name) for name in ("a.npy", "b.npy"))
    assert a.shape == (30, 1, 16, 16) and a.dtype == np.uint8 and np.array_equal(a, b)
    assert len({picture.tobytes() for picture in a}) == 30 and a.std() > 20


def test_training_reads_the_part_it_is_given(tmp_path: Path) -> None:
    write(tmp_path / "set.npy", 12, 16)
    row = trained(tmp_path / "set.npy", 8, Stream(pictures=12, size=16, steps=2, batch=4))
    assert row["pictures"] == 8 and row["set, MB"] == 8 * 256 / 1e6 and row["steps a second"] > 0


_HELD_AND_MAPPED = """
import sys
import numpy as np
from benchmarks.stream import own_memory
np.zeros(64_000_000, np.uint8).tofile(sys.argv[1])
before = own_memory()
mapped = np.memmap(sys.argv[1], np.uint8, "r")
read = mapped.sum()
with_mapped = own_memory()
held = np.ones(64_000_000, np.uint8)
print(read, with_mapped - before, own_memory() - with_mapped, held.sum())
"""


def test_own_memory_counts_what_is_held_and_not_what_is_mapped(tmp_path: Path) -> None:
    # In a process of its own: one that keeps memory freed earlier gives out 64 MB without taking any.
    command = [sys.executable, "-c", _HELD_AND_MAPPED, str(tmp_path / "file")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    read, mapped, held, total = (float(word) for word in ended.stdout.split())
    assert read == 0 and total == 64_000_000
    if np.isnan(mapped):
        pytest.skip("own memory is read from /proc, which this system lacks")
    assert mapped < 20 and held > 40


def test_the_table_shows_growth_over_the_smallest() -> None:
    rows = [{"pictures": n, "own memory at most, MB": m} for n, m in ((100, 200.0), (10_000, 212.5))]
    head, _, *body = lines(rows)
    assert head.endswith("| more than the smallest, MB |")
    assert body == ["| 100 | 200 | 0.0 |", "| 10,000 | 212 | 12.5 |"]
