"""A hundred of the thousand mutated inputs that `python -m benchmarks fuzz` feeds every reader."""

from pathlib import Path

import pytest
from benchmarks.fuzz import fuzz, judged
from benchmarks.fuzz_targets import TARGETS
from benchmarks.mutations import mutated

from selftaught.core.errors import DataError


@pytest.mark.parametrize("name", list(TARGETS))
def test_no_crash_and_no_silent_drop(name: str) -> None:
    outcome = fuzz(name, cases=100, seed=1)
    assert (outcome.crashed, outcome.dropped, outcome.examples) == (0, 0, [])
    assert outcome.read + outcome.refused == 100 and outcome.read > 0


def test_a_crash_and_a_drop_are_noticed() -> None:
    def raising(error: Exception) -> None:
        def read(content: bytes) -> list[str]:
            raise error

        found.append(judged(read, b"")[0])

    found: list[str] = []
    for error in (DataError("why"), DataError(""), KeyError("x"), RecursionError()):
        raising(error)
    assert found == ["refused", "crashed", "crashed", "crashed"]
    assert judged(lambda _: ["a.png"], b"") == ("dropped", "not a word on a.png")
    assert judged(lambda _: [], b"")[0] == "read"


def test_the_same_seed_gives_the_same_inputs(tmp_path: Path) -> None:
    import random

    seeds = TARGETS["metrics"](tmp_path).seeds
    first, again = ([mutated(seeds, chance) for _ in range(50)] for chance in (random.Random(1), random.Random(1)))
    assert first == again and len(set(first)) > 40
