"""Training from a mapped set, at toy size: what is written, what is read, what the table says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.stream import Stream, lines, trained, watched, write
from benchmarks.stream_shards import decoded, write_shards

from benchmarks import stream_shards
from selftaught.artifacts.files import read_json
from selftaught.data.shards import read_shards


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


def test_shards_hold_what_the_reader_gives_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_shards, "CHUNK", 5)
    write_shards(tmp_path / "set", 12, 16)
    assert [p.name for p in sorted((tmp_path / "set").iterdir())] == ["00000.tar", "00001.tar", "00002.tar"]
    read = read_shards(tmp_path / "set", size=16, channels=1, labelled=True)
    assert read.names[:2] == ("00000.tar/0000000.jpg", "00000.tar/0000001.png") and len(read) == 12
    assert read.y is not None and read.y.tolist() == [*range(12)] and float(read.x.float().std()) > 20
    row = decoded(tmp_path / "set", 12, Stream(shards=12, size=16, steps=2, batch=4))
    assert row["pictures"] == 12 and row["decoded, MB"] == 12 * 256 / 1e6
    assert row["pictures decoded a processor second"] > 0 and row["steps a processor second"] > 0
    assert sorted(p.suffix for p in (tmp_path / "set/cache").iterdir()) == [".json", ".npy", ".tsv"]


def test_both_outcomes_stand_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"pictures": 3, "own memory at most, MB": 1.0}]
    monkeypatch.setattr(stream_shards, "from_shards", lambda asked: rows)
    monkeypatch.setattr(Stream, "from_map", lambda asked: rows)
    out = tmp_path / "stream.json"
    Stream(shards=30, steps=7, out=out).run()
    Stream(pictures=300, out=out).run()
    Stream(shards=40, out=out).run()
    found = read_json(out)
    assert found["command"] == "python -m benchmarks stream --pictures 300" and found["rows"] == rows
    assert found["shards"]["command"] == "python -m benchmarks stream --shards 40"
    assert found["shards"]["options"] == {"shards": 40, "size": 32, "steps": 200, "batch": 64, "threads": 1}


def test_the_highest_memory_is_seen_while_it_is_held() -> None:
    with watched(0.001) as seen:
        pass
    assert len(seen) >= 2


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
    phases = [
        {"at most while decoding, MB": a, "at most while training, MB": b} for a, b in ((5.0, 9.0), (7.0, 8.0))
    ]
    assert lines(phases)[-1] == "| 7.0 | 8.0 | -1.0 |"
