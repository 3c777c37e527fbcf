"""The linear instance of the split's claim: its pieces against plain formulas, and its direction."""

import json
import math
from pathlib import Path

import pytest
import torch
from scipy.stats import norm

from selftaught.app.cli import main
from selftaught.claims import CLAIMS
from selftaught.claims.outcome import Estimate, estimate, from_json
from selftaught.claims.split import (
    Instance,
    around_a_centroid,
    draw,
    effective_rank,
    excess_risk,
    losing,
    ridge_weights,
    subspace,
    train,
    verdict,
)

SMALL = Instance(inputs=12, directions=2, samples=8, tasks=32, steps=200, test_tasks=100)


def test_tasks_lie_in_the_subspace_with_unit_length_on_average() -> None:
    basis = subspace(SMALL, 0)
    v, x, y = draw(SMALL, basis, 4000, 3, torch.Generator().manual_seed(1))
    assert torch.allclose(v @ basis @ basis.T, v, atol=1e-5)
    assert abs(float(v.square().sum(-1).mean()) - 1) < 0.1
    noise = y - torch.einsum("tnd,td->tn", x, v)
    assert abs(float(noise.std()) - SMALL.noise) < 0.02


@pytest.mark.parametrize("samples", [5, 9])
def test_ridge_is_the_minimum_of_its_objective(samples: int) -> None:
    generator = torch.Generator().manual_seed(0)
    z, y = torch.randn(3, samples, 7, generator=generator), torch.randn(3, samples, generator=generator)
    w = ridge_weights(z, y, 0.3).requires_grad_()
    objective = (torch.einsum("tnd,td->tn", z, w) - y).square().mean(1) + 0.3 * w.square().sum(1)
    (slope,) = torch.autograd.grad(objective.sum(), w)
    assert slope.abs().max() < 1e-4


def test_effective_rank_of_known_spectra() -> None:
    assert effective_rank(torch.eye(6)) == pytest.approx(6, rel=1e-4)
    assert effective_rank(torch.diag(torch.tensor([1.0, 0, 0, 0]))) == pytest.approx(1, abs=1e-3)


def test_the_subspace_itself_needs_fewer_samples_than_raw_inputs() -> None:
    basis = subspace(SMALL, 0)
    assert excess_risk(SMALL, basis, basis, 5, 0) < excess_risk(SMALL, torch.eye(12), basis, 5, 0)


def test_training_starts_at_the_identity_and_depends_on_the_split() -> None:
    basis = subspace(SMALL, 0)
    still = Instance(**{**vars(SMALL), "steps": 0})
    assert torch.equal(train(still, "tr-val", 1.0, basis, 0), torch.eye(12))
    split, union = (effective_rank(train(SMALL, s, 1.0, basis, 0)) for s in ("tr-val", "tr-tr"))
    assert split < union


def test_estimates_are_students() -> None:
    found = estimate([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.half_width == pytest.approx(4.302653 * math.sqrt(7 / 3) / math.sqrt(3), rel=1e-5)
    assert math.isnan(estimate([2.0]).half_width) and str(estimate([2.0])) == "2.000"
    many = estimate([float(x) for x in norm.ppf([(i + 0.5) / 200 for i in range(200)])])
    assert many.half_width == pytest.approx(1.96 / math.sqrt(200), rel=0.03)
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


def test_verdict_can_go_both_ways() -> None:
    low, high, wide = Estimate(5, 1, 3), Estimate(9, 1, 3), Estimate(9, 5, 3)
    names = ("tr-val, lambda 1", "tr-tr, lambda 1")
    assert verdict(dict(zip(names, (low, high), strict=True)), 1.0, 12).startswith("Shown")
    assert verdict(dict(zip(names, (low, wide), strict=True)), 1.0, 12).startswith("Not shown")
    assert verdict(dict(zip(names, (high, low), strict=True)), 1.0, 12).startswith("Not shown")


def test_the_losing_regime_is_what_was_found() -> None:
    low, high = ({"risk, 20 samples": Estimate(x, 0.1, 3)} for x in (0.2, 0.4))
    assert losing(low, high, 200).startswith("Many samples a task do not")
    assert losing(high, low, 200).startswith("With many")


def test_the_centroid_says_what_was_found() -> None:
    low, high, wide = (
        {"risk, 5 samples": e} for e in (Estimate(1, 0.1, 9), Estimate(2, 0.1, 9), Estimate(2, 1, 9))
    )
    assert "It loses" in around_a_centroid(high, low)
    assert "does not clearly lose" in around_a_centroid(low, high)
    assert "does not clearly lose" in around_a_centroid(wide, low)


def test_the_quick_claim_is_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kept = tmp_path / "split.json"
    assert main(["claim", "split", "--quick", "--json", str(kept)]) == 0
    text = capsys.readouterr().out
    for word in ("paper:", "protocol:", "verdict:", "where it fails:", "tr-tr", "raw inputs", "centroid"):
        assert word in text
    done = from_json(json.loads(kept.read_text(encoding="utf-8")))
    assert "split" in CLAIMS and len({tuple(r) for r in done.rows}) == 1
    assert [line.label for line in done.lines] == ["pictures, tr-val", "pictures, tr-tr"]
    assert main(["claim", "nothing"]) != 0
