"""The claim of bootstrapped meta-gradients: its arithmetic by hand, and that it can go both ways."""

import math
from dataclasses import replace

import pytest

from selftaught.claims import CLAIMS
from selftaught.claims.bmg import (
    Instance,
    Run,
    Sets,
    baselines,
    curve,
    losing,
    methods,
    ratios,
    reached,
    share,
    show,
    tuned,
    verdict,
)
from selftaught.claims.outcome import Estimate
from selftaught.data.strokes import draw_strokes
from selftaught.methods import BMG, MAML

TINY = Instance(
    width=4, classes=8, drawings=7, steps=4, tuning_steps=1, checks=2, episodes=4, inner_steps=1, tasks=1
)
SETS = Sets(*(draw_strokes(TINY.classes, TINY.drawings, size=TINY.size, seed=s) for s in (1, 2, 3)))


def test_where_a_curve_meets_a_goal() -> None:
    assert reached((10, 20, 30), (0.2, 0.4, 0.6), 0.5) == pytest.approx(25)
    assert reached((10, 20), (0.5, 0.4), 0.3) == 10
    assert reached((10, 20, 30), (0.2, 0.6, 0.4), 0.4) == pytest.approx(15)
    assert math.isinf(reached((10, 20), (0.2, 0.3), 0.5))


def test_ratios_divide_by_mamls_own_way_to_the_goal() -> None:
    maml = Run((10, 20), (1.0, 2.0), (0.31, 0.51))
    bmg = Run((10, 20), (2.0, 4.0), (0.5, 0.6))
    data, work = ratios([maml], [bmg])
    assert data == [pytest.approx(10 / 19.5)] and work == [pytest.approx(2.0 / 1.95)]
    poor = Run((10, 20), (2.0, 4.0), (0.1, 0.2))
    assert ratios([maml], [poor])[0] == [math.inf]
    # A seed of MAML that misses the mean goal counts with its whole run, not as infinitely slow.
    assert ratios([maml, Run((10, 20), (1.0, 2.0), (0.1, 0.1))], [bmg, bmg])[0][1] == pytest.approx(10 / 20)


def test_the_verdict_needs_the_whole_interval() -> None:
    assert verdict("BMG", [0.5, 0.52, 0.51], [0.9, 1.2, 1.4]).startswith("Shown")
    assert verdict("BMG", [0.5, 0.9, 1.3], [0.9, 1.2, 1.4]).startswith("Not shown")
    assert verdict("BMG", [0.5, math.inf, 0.5], [2.0, math.inf, 2.0]).startswith("Not shown")
    assert share([0.5, math.inf]) == "not reached in 1 of 2" and isinstance(share([0.5, 0.6]), Estimate)


def test_the_losing_regime_is_what_was_found() -> None:
    low, high = Run((1,), (1.0,), (0.3,)), Run((1,), (1.0,), (0.6,))
    runs = {"MAML": [high], "BMG, L = 5": [high], "BMG, L = 1": [low]}
    said = losing(runs, {"BMG, L = 5": ([0.5], [0.7]), "BMG, L = 1": ([1.0], [1.5])})
    assert "Weakest target: BMG, L = 1" in said and "No time is gained with BMG, L = 1." in said
    assert "Every L gained time" in losing(runs, {"BMG, L = 5": ([0.5], [0.7])})


def test_both_start_alike_and_time_only_grows() -> None:
    known = methods(TINY)
    assert isinstance(known["MAML"], MAML) and isinstance(known["BMG, L = 1"], BMG)
    runs = [curve(TINY, replace(m, inner_rate=0.1), 1e-9, SETS.train, SETS.test, 4, 0) for m in known.values()]
    assert all(r.steps == (2, 4) and 0 < r.seconds[0] < r.seconds[1] for r in runs)
    # A rate of nearly nothing leaves the start; the statistics see the same pictures under each method.
    assert len({r.accuracy for r in runs}) == 1
    assert tuned(TINY, known["MAML"], SETS, [(0.2, 1e-3)]) == (0.2, 1e-3)


def test_baselines_are_fractions_and_guessing_is_beaten_by_pixels() -> None:
    found = baselines(replace(TINY, episodes=50), SETS, (0,))
    assert found["raw pixels, nearest class mean"][0] > 0.25
    for values in found.values():
        assert all(0 <= v <= 1 for v in values)


@pytest.mark.slow
def test_the_quick_claim_is_whole() -> None:
    done = show(quick=True)
    assert "bmg" in CLAIMS and len({tuple(r) for r in done.rows}) == 1
    assert {line.label for line in done.lines} == {str(r["method"]) for r in done.rows[:4]}
    assert done.verdict.startswith(("Shown", "Not shown"))
