"""The claim's bookkeeping: who needs how many rounds and models, and a verdict that can go both ways."""

from dataclasses import replace

import pytest
import torch

from selftaught.app.cli import main
from selftaught.claims.outcome import Estimate
from selftaught.claims.pfl import (
    DYN,
    PER,
    PERSONAL,
    PLAIN,
    SCAF,
    TRIED,
    Choice,
    Found,
    Setting,
    federations,
    filled,
    losing,
    objective,
    personal,
    rounds_to,
    saved,
    table,
    verdict,
)
from selftaught.claims.pfl_quadratics import left_over
from selftaught.federated import Dyn, FineTuneModel, MAMLModel, NoCorrection, ProtoModel, Scaf, alid


def found(rounds: list[float], correction: NoCorrection | Dyn | Scaf, reached: int = 3) -> Found:
    choice = Choice(correction, 0.1, (1, 0.1))
    return Found(choice, torch.zeros(3, 4), 0.8, rounds, reached, 4 * (correction.models_down + 1))


def four(dyn: float, scaf: float) -> dict[str, Found]:
    jitter = [-1.0, 0.0, 1.0]
    levels = {PLAIN: (60.0, NoCorrection()), PER: (40.0, NoCorrection()), DYN: (dyn, Dyn()), SCAF: (scaf, Scaf())}
    return {n: found([level + j for j in jitter], c) for n, (level, c) in levels.items()}


def test_rounds_to_the_target_count_from_one_and_stop_at_the_limit() -> None:
    curve = torch.tensor([[0.1, 0.8, 0.5], [0.1, 0.2, 0.3], [0.9, 0.1, 0.1]])
    assert rounds_to(curve, 0.8, 3) == [2.0, 3.0, 1.0]


def test_models_are_rounds_times_what_a_round_sends() -> None:
    assert found([10, 10, 10], Dyn()).models == [80, 80, 80]
    assert found([10, 10, 10], Scaf()).models == [120, 120, 120]


def test_the_verdict_can_go_both_ways() -> None:
    assert verdict(four(20, 22)).startswith("Shown") and "0.500" in verdict(four(20, 22))
    assert verdict(four(40, 22)).startswith("Not shown")
    assert verdict(four(20, 40)).startswith("Not shown")


def test_what_is_lost_is_said_as_found() -> None:
    easy = {"ACID": four(40, 40), "means": {"Proto": four(9, 9)[PER], DYN: four(20, 9)[DYN]}}
    text = losing(four(20, 30), easy)
    assert "ACID: PFLDyn does not clearly save" in text and "means: PFLDyn saves" in text
    assert "saves -0.125" in text and "-0.500" in text  # 30 rounds of three against 40 of two, and of four


def test_savings_are_paired_and_a_row_says_who_never_came() -> None:
    assert saved([10, 20], [20, 40]).mean == pytest.approx(0.5) and saved([10, 20], [20, 40]).half_width < 1e-9
    (row,) = table("ALID", {PER: found([80, 80, 30], NoCorrection(), reached=1)})
    assert "at least" in str(row["rounds"]) and "2 of 3 seeds never" in str(row["rounds"])
    assert isinstance(table("ALID", four(1, 1))[0]["rounds"], Estimate)


def test_every_row_has_the_same_budget_of_choices_and_pictures() -> None:
    assert len({len(tried) for tried in TRIED.values()}) == 1
    for row in TRIED:
        model = objective(row, 4)
        pictures = model.batch if isinstance(model, FineTuneModel) else model.support + model.query  # type: ignore[attr-defined]
        assert pictures == 40
        for option in PERSONAL:
            other = personal(model, option)
            assert isinstance(other, FineTuneModel) and (other.steps, other.rate) == option
    assert isinstance(personal(ProtoModel(4), (1, 0.1)), ProtoModel)
    assert isinstance(personal(MAMLModel(4), None), MAMLModel)


def test_tuning_and_reporting_share_no_partition() -> None:
    s = Setting()
    assert not set(s.seeds) & set(s.tuning_seeds) and len(s.seeds) >= 3
    small = replace(s, devices=4)
    one, other = federations(small, alid, MAMLModel(4), 4, (NoCorrection(), 0.1), (0, 100))
    assert not torch.equal(one.clients["device 000"].x_train, other.clients["device 000"].x_train)


def test_quadratics_show_the_bias_and_its_end() -> None:
    assert left_over(NoCorrection(), 20, 1.0, 0) > 0.5
    assert left_over(Scaf(), 20, 1.0, 0) < 1e-3


def test_the_quick_claim_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claim", "pfl", "--quick"]) == 0
    text = capsys.readouterr().out
    for word in ("paper:", "protocol:", "verdict:", "where it fails:", "PFLDyn", "PFLScaf", "ACID", "quadratics"):
        assert word in text, word


def test_every_row_of_the_table_has_every_column() -> None:
    rows = filled([{"case": "a", "rounds": "1"}, {"case": "b", "sum": "2"}])
    assert [list(r) for r in rows] == [["case", "rounds", "sum"]] * 2
    assert list(rows[1].values()) == ["b", "", "2"]
