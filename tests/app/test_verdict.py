"""The headline of a report claims what the intervals allow, and no more."""

import math

import pytest

from selftaught.app.verdict import AccuracyRow, compare, counterpart, model_name, verdict
from selftaught.core.errors import ConfigError


def row(name: str, mean: float, shots: int = 1, half: float = 0.01, head: str = "ridge") -> AccuracyRow:
    return AccuracyRow(name, 5, shots, mean, half, head)


def three(model: float, raw: float, untrained: float, shots: int = 1) -> list[AccuracyRow]:
    return [
        row("BMSSL", model, shots),
        row("raw pixels", raw, shots),
        row("untrained encoder", untrained, shots),
    ]


def test_clear_gain() -> None:
    found = verdict([*three(0.6, 0.4, 0.5), *three(0.7, 0.5, 0.6, 5), *three(0.8, 0.6, 0.7, 10)])
    assert found.status == "clear"
    assert found.headline == (
        "BMSSL clears raw pixels and the untrained encoder in all 3 settings measured: "
        "the 95 % intervals do not touch."
    )
    first = found.details[0].replace("\N{NO-BREAK SPACE}", " ")
    assert first == (
        "5-way 1-shot: 60.0 ± 1.0 % for BMSSL, 40.0 ± 1.0 % for raw pixels "
        "and 50.0 ± 1.0 % for the untrained encoder."
    )


def test_overlap_is_no_gain() -> None:
    found = verdict(three(0.51, 0.50, 0.495))
    assert found.status == "unclear"
    assert found.headline.startswith("No gain can be claimed")
    assert any("training did not help" in d for d in found.details)


def test_loss_is_said() -> None:
    found = verdict(three(0.4, 0.5, 0.405))
    assert found.status == "behind"
    assert found.headline == (
        "BMSSL falls short: it is below raw pixels in the one setting, "
        "and level with the untrained encoder in the one setting."
    )


def test_mixed_is_counted() -> None:
    found = verdict([*three(0.6, 0.4, 0.6), *three(0.7, 0.5, 0.6, 5), *three(0.5, 0.6, 0.7, 10)])
    assert found.status == "mixed"
    assert "Mixed result: BMSSL is above raw pixels in 2, below in 1 of 3 settings, and" in found.headline
    assert "above the untrained encoder in 1, level in 1, below in 1 of 3 settings" in found.headline
    assert not any("did not help" in d for d in found.details)


def test_a_win_over_raw_pixels_alone_is_no_gain_of_the_training() -> None:
    found = verdict(three(0.6, 0.4, 0.6))
    assert found.status == "mixed"
    assert any("training did not help" in d for d in found.details)


@pytest.mark.parametrize(("left", "word"), [("raw pixels", "untrained"), ("untrained encoder", "Raw pixels")])
def test_a_missing_baseline_is_named(left: str, word: str) -> None:
    found = verdict([row("BMSSL", 0.6), row(left, 0.4)])
    assert found.status == "incomplete"
    assert any(word in d and "not measured" in d for d in found.details)


def test_without_baselines_nothing_is_claimed() -> None:
    assert verdict([]).status == "unknown"
    assert verdict([row("raw pixels", 0.4)]).status == "unknown"
    found = verdict([row("BMSSL", 0.6), row("SimCLR", 0.7)])
    assert found.status == "unknown" and "no baseline" in found.headline
    assert "BMSSL is below SimCLR in the one setting." in found.details


def test_a_better_rival_is_said_even_after_a_clear_gain() -> None:
    found = verdict([*three(0.6, 0.4, 0.5), row("Pretrained", 0.9)])
    assert found.status == "clear"
    assert found.details[-1] == "BMSSL is below Pretrained in the one setting."


def test_touching_intervals_are_level() -> None:
    pairs = compare([row("m", 0.5, half=0.25), row("r", 0.0, half=0.25)], "m", "r")
    assert pairs[0].outcome == "level" and pairs[0].points == 50


def test_counterpart_is_the_most_alike_then_the_best() -> None:
    mine = row("m", 0.5, head="ridge")
    rows = [row("r", 0.9, head="knn"), row("r", 0.4, head="ridge"), row("r", 0.3, head="ridge")]
    assert counterpart(mine, rows, "r") == rows[1]
    assert counterpart(row("m", 0.5, head="other"), rows, "r") == rows[0]
    assert counterpart(row("m", 0.5, shots=7), rows, "r") is None


def test_model_is_the_first_that_is_no_baseline_or_the_one_named() -> None:
    rows = [row("Raw pixels", 0.1), row("SimCLR", 0.2), row("BMSSL", 0.3)]
    assert model_name(rows) == "SimCLR" and model_name(rows, "BMSSL") == "BMSSL"
    with pytest.raises(ConfigError, match="'Raw pixels', 'SimCLR', 'BMSSL'"):
        model_name(rows, "MAML")


@pytest.mark.parametrize(("mean", "half"), [(61.2, 0.8), (-0.1, 0.1), (math.nan, 0.1), (0.5, math.nan), (0.5, -1)])
def test_rows_that_cannot_be_are_refused(mean: float, half: float) -> None:
    with pytest.raises(ConfigError, match="accuracy row 'x', 5-way 1-shot"):
        row("x", mean, half=half)
