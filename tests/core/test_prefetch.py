"""Drawing ahead changes nothing but the time: same bits, same order of errors, and no thread left behind."""

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch

from selftaught.core.prefetch import THREAD, draws
from selftaught.core.types import Examples, Task

PATIENCE = 30.0
"""Seconds to wait for another thread before a test fails; never waited for when all is well."""


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    assert not ours()
    yield
    gc.collect()
    assert not ours()


def ours() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith(THREAD)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class Source:
    """Draws a random number of random numbers; fails at draw `fails`; notes where and how often it was called."""

    fails: int = -1
    calls: int = 0
    threads: set[str] = field(default_factory=set)
    reached: dict[int, threading.Event] = field(default_factory=dict)

    def __call__(self, generator: torch.Generator) -> Task:
        self.calls += 1
        self.threads.add(threading.current_thread().name)
        count = int(torch.randint(1, 5, (), generator=generator))
        x = torch.randn(1, count, 2, generator=generator)
        if self.calls in self.reached:
            self.reached[self.calls].set()
        if self.calls == self.fails:
            raise OSError(f"draw {self.calls}")
        return Task(Examples(x), Examples(x), ways=2)


@pytest.mark.parametrize("ahead", [1, 2, 7, 50])
def test_same_bits_as_on_demand(ahead: int) -> None:
    """Batches and the generators that come with them, from any of which the rest can be drawn again."""
    given = rng(3)
    before = given.get_state()
    expected = list(draws(Source(), given, 20))
    found = list(draws(Source(), given, 20, ahead))
    assert torch.equal(given.get_state(), before)
    assert len(found) == len(expected) == 20
    for (task, after), (other, same) in zip(found, expected, strict=True):
        assert torch.equal(task.query.x, other.query.x)
        assert torch.equal(after.get_state(), same.get_state())
    for step in (0, 7, 18):
        resumed = draws(Source(), found[step][1], 19 - step, ahead)
        for (task, _), (other, _) in zip(resumed, expected[step + 1 :], strict=True):
            assert torch.equal(task.query.x, other.query.x)


def test_a_generator_handed_out_is_the_callers() -> None:
    plain = [task.query.x for task, _ in draws(Source(), rng(), 6)]
    moved = []
    for task, generator in draws(Source(), rng(), 6, ahead=2):
        moved.append(task.query.x)
        torch.rand(100, generator=generator)
    assert all(torch.equal(a, b) for a, b in zip(moved, plain, strict=True))


def test_the_next_is_drawn_meanwhile_and_elsewhere() -> None:
    source = Source(reached={3: threading.Event()})
    batches = draws(source, rng(), 5, ahead=2)
    next(batches)
    assert source.reached[3].wait(PATIENCE), "two batches must be drawn without being asked for"
    assert threading.current_thread().name not in source.threads and len(source.threads) == 1
    assert len(list(batches)) == 4 and source.calls == 5


@pytest.mark.parametrize("ahead", [1, 3])
def test_never_further_ahead_than_said(ahead: int) -> None:
    source, most = Source(), 0
    for taken, _ in enumerate(draws(source, rng(), 200, ahead), start=1):
        most = max(most, source.calls - taken)
    assert most <= ahead and source.calls == 200


def test_nothing_is_drawn_beyond_the_last() -> None:
    source = Source()
    assert len(list(draws(source, rng(), 2, ahead=10))) == 2 and source.calls == 2
    assert list(draws(source, rng(), 0, ahead=10)) == [] and source.calls == 2


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_errors_arrive_in_their_place(ahead: int) -> None:
    found = []
    with pytest.raises(OSError, match="draw 3"):
        for task, _ in draws(Source(fails=3), rng(), 10, ahead):
            found.append(task.query.x)
            assert len(found) <= 2
    expected = [task.query.x for task, _ in draws(Source(), rng(), 2)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_thread_ends_with_the_iterator() -> None:
    """Closed, forgotten, or left by Ctrl-C; the draw under way is waited for, the others are not begun."""
    closed = draws(Source(), rng(), 100, ahead=3)
    next(closed)
    assert len(ours()) == 1
    closed.close()
    assert not ours()
    forgotten = draws(Source(), rng(), 100, ahead=3)
    next(forgotten)
    del forgotten
    gc.collect()
    assert not ours()
    source = Source()
    left = draws(source, rng(), 100, ahead=3)
    next(left)
    with pytest.raises(KeyboardInterrupt):
        left.throw(KeyboardInterrupt())
    assert not ours() and source.calls <= 4


def test_collected_in_its_own_thread() -> None:
    """The collector runs in any thread; one that waited for itself would never end."""
    source = Source()
    held = [draws(source, rng(), 100, ahead=1)]
    done = threading.Event()

    def collects(generator: torch.Generator) -> Task:
        if source.calls == 1:
            held.clear()
            done.set()
        return Source.__call__(source, generator)

    held[0] = draws(collects, rng(), 100, ahead=1)
    next(held[0])
    assert done.wait(PATIENCE)
    for thread in ours():
        thread.join(PATIENCE)
    assert not ours()


OPEN_AT_EXIT = """
import torch
from selftaught.core.prefetch import draws
batches = draws(lambda g: torch.rand(2, generator=g), torch.Generator(), 1000, 3)
next(batches)
print("bye")
"""


def test_a_program_ends_with_batches_still_waiting() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPEN_AT_EXIT], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")


def test_fewer_than_none_ahead() -> None:
    with pytest.raises(ValueError, match="fewer than 0"):
        draws(Source(), rng(), 3, ahead=-1)
