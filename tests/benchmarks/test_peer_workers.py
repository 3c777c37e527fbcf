"""The protocol between the benchmarks and their workers, and how their turns are arranged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.measure import Seconds, rank_interval, summary
from benchmarks.peers import environments
from benchmarks.peers.meters import Reading
from benchmarks.peers.work import Work
from benchmarks.peers.worker import Conditions, Program, Worker, WorkerDied, alternate, compare

TOYS = """
import os, sys, time
import torch

def square(work):
    print("a peer that talks on its standard output")
    x = work.tensors["x"]
    return lambda: {"g": 2 * x, "rate": torch.tensor(work.options["rate"])}

def memory(work):
    return lambda: {"g": torch.ones(work.options["mib"] * 2**18)}

def dies(work):
    calls = []
    def step():
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("out of luck")
    return step

def leaves(work):
    os._exit(3)

def hangs(work):
    return lambda: time.sleep(60)

"""


@pytest.fixture(scope="module")
def at_toys(tmp_path_factory: pytest.TempPathFactory) -> Conditions:
    """Conditions under which workers find the module `toys`."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "toys.py").write_text(TOYS)
    root = str(Path(environments.__file__).parents[2])
    return Conditions(variables={"PYTHONPATH": f"{root}:{folder}"})


def toy(function: str, **options: Any) -> Program:
    """A program of `TOYS` in the environment of the tests."""
    return Program(f"toys:{function}", options=options)


WORK = Work({"x": torch.tensor([1.0, 2.0]), "n": torch.tensor([3])}, {"rate": 0.5})


def test_work_goes_through_a_file(tmp_path: Path) -> None:
    """Tensors keep type and shape; `double` widens only floats."""
    WORK.save(tmp_path / "w.npz")
    found = Work.load(tmp_path / "w.npz")
    assert found.options == {"rate": 0.5} and list(found.tensors) == ["x", "n"]
    assert torch.equal(found.tensors["x"], WORK.tensors["x"])
    wide = found.double()
    assert wide.tensors["x"].dtype == torch.float64 and wide.tensors["n"].dtype == torch.int64


def test_worker_answers(at_toys: Conditions) -> None:
    """Steps, float64 gradients, options and threads of its own, with whatever the script prints out of the way."""
    with Worker("a", toy("square", rate=0.25), WORK, at=replace(at_toys, threads=2)) as worker:
        first, second = worker.go(), worker.go()
        gradient = worker.gradient()
    assert first.wall > 0 and second.wall > 0 and first.cpu >= 0
    assert gradient["g"].dtype == torch.float64 and gradient["g"].tolist() == [2.0, 4.0]
    assert float(gradient["rate"]) == 0.25 and worker.about == {"torch": torch.__version__, "threads": 2}


def test_dead_workers_are_named_and_the_others_go_on(at_toys: Conditions) -> None:
    """One that cannot be found fails beside one that works, whose memory is counted."""
    programs = {"absent": Program("no_such_module:step"), "large": toy("memory", mib=48)}
    found = compare(programs, WORK, rounds=2, at=at_toys)
    assert {name: len(r) for name, r in found.readings.items()} == {"large": 2}
    assert found.failures == {"absent": "absent: ModuleNotFoundError: No module named 'no_such_module'"}
    assert found.peaks == {"large": pytest.approx(48, abs=6)}


def test_last_words_of_a_worker(at_toys: Conditions) -> None:
    """Its error where there is one, else its status; a dead worker stays dead."""
    with pytest.raises(WorkerDied, match="silent: ended with status 3 and no words"):
        Worker("silent", toy("leaves"), WORK, at=at_toys)
    with Worker("late", toy("dies"), WORK, at=at_toys) as worker:
        worker.go()
        for _ in range(2):
            with pytest.raises(WorkerDied, match="late: "):
                worker.go()


def test_silent_workers_are_given_up(at_toys: Conditions) -> None:
    """One that does not answer in time is ended; its name stands in the message."""
    with (
        Worker("slow", toy("hangs"), WORK, at=replace(at_toys, patience=20.0)) as worker,
        pytest.raises(WorkerDied, match=r"slow: no answer in 0\.2 s"),
    ):
        worker._at = replace(at_toys, patience=0.2)
        worker.go()


class Fake:
    """A worker that writes down when it was asked, and dies at a turn of its own."""

    def __init__(self, name: str, asked: list[str], last: int = 99) -> None:
        self.name, self.asked, self.last, self.count = name, asked, last, 0

    def go(self) -> Reading:
        """One reading, until the last."""
        self.count += 1
        if self.count > self.last:
            raise WorkerDied(f"{self.name}: gone")
        self.asked.append(self.name)
        return Reading(1.0, 1.0, 0.0)


def test_workers_alternate() -> None:
    """Every one once a round, another one first each time; a dead one is left out with all its readings."""
    asked: list[str] = []
    workers: dict[str, Any] = {"a": Fake("a", asked), "b": Fake("b", asked, last=1), "c": Fake("c", asked)}
    found = alternate(workers, 3)
    assert "".join(asked) == "abc" + "ca" + "ca"
    assert {k: len(v) for k, v in found.readings.items()} == {"a": 3, "c": 3}
    assert found.failures == {"b": "b: gone"}
    assert len(alternate({"a": Fake("a", [])}, 5, limit=0.0).readings["a"]) == 1  # type: ignore[dict-item]
    assert alternate({}, 2).readings == {}


def test_interval_of_the_median() -> None:
    """Ranks and probabilities of the binomial distribution: for 9 values the second from either end."""
    values = [5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0]
    assert rank_interval(values) == (2.0, 8.0, pytest.approx(1 - 2 * 10 / 512))
    assert rank_interval(values[:5]) == (1.0, 9.0, pytest.approx(1 - 2 / 32))
    assert rank_interval([4.0]) == (4.0, 4.0, 0.0)
    found = summary([Seconds(float(v), 1.0) for v in values], [Seconds(1.0, 1.0)] * 9)
    assert found["wall_ratio"] == 5.0 and found["wall_ratio_interval"] == [2.0, 8.0]
    assert found["interval_coverage"] == pytest.approx(0.961, abs=1e-3)
