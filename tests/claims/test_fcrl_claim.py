"""FCRL's claim: its baselines are what they say, its verdict can go both ways, and all of it at toy size."""

import pytest
import torch

from selftaught.app.cli import main
from selftaught.claims import CLAIMS
from selftaught.claims.fcrl import (
    FITTED,
    QUICK,
    Errors,
    Found,
    Setting,
    emoji,
    in_order,
    lead,
    least_squares,
    losing,
    methods,
    trained,
    verdict,
)
from selftaught.data.functions import draw_sinusoids
from selftaught.learners.decoders import Kind

S = Setting(noises=(0.0, 1.0))


def found(error: float, linear: float) -> Found:
    each: dict[Kind, float] = {"mlp": error, "linear": linear}
    errors: Errors = {(k, n): [e, e + 0.01, e + 0.02] for k, e in each.items() for n in S.noises}
    return Found(errors, [50.0, 51.0, 52.0], [1.0])


def rows(ours: Found, cnp: Found, np: Found) -> dict[str, Found]:
    fitted = Found({("mlp", n): [0.02] for n in S.noises}, [], [])
    return {"FCRL": ours, "CNP": cnp, "NP": np, FITTED: fitted}


def test_least_squares_finds_the_truth_of_clear_functions() -> None:
    clear = draw_sinusoids(50)
    assert clear.truth is not None
    assert torch.allclose(least_squares(clear), clear.truth.double(), atol=1e-4)


def test_points_in_order_do_not_depend_on_the_order_given() -> None:
    functions = draw_sinusoids(5, points=6)
    other = torch.randperm(6)
    turned = type(functions)(functions.x[:, other], functions.y[:, other])
    assert torch.equal(in_order(turned), in_order(functions)) and in_order(functions).shape == (5, 12)
    assert (in_order(functions)[:, :6].diff() >= 0).all()


def test_all_three_start_from_one_encoder() -> None:
    functions = draw_sinusoids(20)
    starts = [trained(QUICK, m, functions, 0, 3)[1] for m in methods(QUICK).values()]
    encoder = [k for k in starts[0] if k.startswith("encoder.")]
    assert encoder and all(torch.equal(p[k], starts[0][k]) for p in starts for k in encoder)


def test_no_emoji_is_in_both_splits() -> None:
    own, asked = emoji("train"), emoji("test")
    assert own.sets.shape[1:] == asked.sets.shape[1:] == (256, 3)
    assert asked.labels is not None and len(asked.labels.unique()) * 3 == len(asked)
    assert not (own.y[:, None, :, 0][:200] == asked.y[None, :, :, 0][:, :200]).all(-1).any()


def test_the_verdict_and_where_it_fails_are_what_was_found() -> None:
    better = rows(found(0.1, 0.2), found(0.3, 0.2), found(0.3, 0.1))
    assert verdict(S, better).startswith("Shown") and "0.200 ± 0.000 below CNP at noise 1" in verdict(S, better)
    said = losing(S, better)
    assert "neither at any noise" in said and "behind NP at noise 0 (0.100 behind)" in said
    assert "clearly ahead of both" in said and "0.020 at noise 1" in said
    one_lost = rows(found(0.1, 0.2), found(0.1, 0.4), found(0.3, 0.1))
    assert verdict(S, one_lost).startswith("Not shown")
    assert "not clearly ahead of CNP" in losing(S, one_lost) and "ahead of CNP at noise 0" in losing(S, one_lost)
    assert lead(better, "NP", "linear", 1.0).mean == pytest.approx(-0.1)


def test_the_quick_claim_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert "fcrl" in CLAIMS
    assert main(["claim", "fcrl", "--quick"]) == 0
    text = capsys.readouterr().out
    for word in (
        "paper:",
        "protocol:",
        "verdict:",
        "where it fails:",
        "Least squares",
        "raw pixels",
        "linear",
        "2 seeds",
    ):
        assert word in text
