"""DMSA's claim: its worlds are what they say, its verdict can go both ways, and all of it at toy size."""

import numpy as np
import pytest
import torch

from selftaught.app.cli import main
from selftaught.claims.dmsa import (
    BEST,
    DMSA,
    DMSA_UNIFORM,
    GMSA,
    GMSA_REDUCED,
    POOLED,
    UNIFORM,
    Found,
    Worlds,
    lead,
    losing,
    mean,
    row,
    verdict,
    world,
    worst,
)
from selftaught.claims.dmsa_sets import shared_out
from selftaught.claims.outcome import Estimate
from selftaught.data.emoji import read_emoji

W = Worlds(dimensions=(2, 50))
NAMES = (DMSA, DMSA_UNIFORM, GMSA, GMSA_REDUCED, BEST, UNIFORM, POOLED)


def found(ours: float, others: float) -> Found:
    """Three seeds, two sources, the second twice as hard; z = 1/K is better in the mean."""
    rows = {n: [[v * (1 + s / 100), 2 * v] for s in range(3)] for n, v in dict.fromkeys(NAMES, others).items()}
    rows[DMSA] = [[ours * (1 + s / 100), 2 * ours] for s in range(3)]
    rows[DMSA_UNIFORM] = [[ours / 2, 2 * ours] for _ in range(3)]
    return {f"d {d}": rows for d in W.dimensions}


@pytest.mark.parametrize("dimensions", [2, 30])
def test_a_world_has_unit_variance_and_one_law_a_source(dimensions: int) -> None:
    w = Worlds(each=400, asked=4000, noise=0.0)
    spread = []
    for seed in range(6):
        train, test = world(w, dimensions, seed)
        spread.append(test.y.var())
        assert train.X.shape == (1600, dimensions) and not np.array_equal(train.X[:5], test.X[:5])
        for k in range(1, 5):
            own, asked = train.sample_domain == k, test.sample_domain == k
            law = np.linalg.lstsq(train.X[own], train.y[own], rcond=None)[0]
            assert np.allclose(test.X[asked] @ law, test.y[asked])
            assert np.linalg.norm(test.X[asked].mean(0)) == pytest.approx(2.5, rel=0.1)
    assert np.mean(spread) == pytest.approx(1, rel=0.1)


def test_every_training_emoji_is_seen_in_one_style() -> None:
    pictures = read_emoji(split="train")
    taken = shared_out(pictures, None, seed=0)
    part = pictures.take(taken)
    assert part.y is not None and torch.equal(part.y.sort().values, torch.arange(len(pictures.classes)))
    assert part.groups is not None and set(part.groups) == {"twemoji", "noto", "fluent_flat"}
    assert len(shared_out(pictures, 10, seed=0)) == 30
    assert not torch.equal(taken, shared_out(pictures, None, seed=1))


def test_the_verdict_and_where_it_fails_are_what_was_found() -> None:
    better, worse = found(0.1, 0.3), found(0.3, 0.3)
    assert verdict(W, better).startswith("Shown") and "0.400 ± 0.000 below GMSA" in verdict(W, better)
    assert verdict(W, worse).startswith("Not shown")
    only_low = {"d 2": worse["d 2"], "d 50": better["d 50"]}
    assert verdict(W, only_low).startswith("Shown") and "d 2:" not in verdict(W, only_low)
    said = losing(W, only_low, better["d 2"], worse["d 2"])
    assert "DMSA's lead over GMSA at d 2 is 0.000" in said
    assert "z the mean over mixtures changes by 0.02" in said and "the worst mixture by 0.000" in said
    assert "digits, ahead of pooled by 0.400" in said and "emoji, ahead of pooled by 0.000" in said


def test_worst_and_mean_are_over_mixtures() -> None:
    losses = [[1.0, 3.0], [2.0, 0.0]]
    assert worst(losses) == [3.0, 2.0] and mean(losses) == [2.0, 1.0]
    for weights in np.random.default_rng(0).dirichlet(np.ones(2), size=20):
        assert weights @ np.array(losses[0]) <= worst(losses)[0]
    cells = row(DMSA, found(0.1, 0.3) | {"digits": {}})
    assert cells["worst, digits"] == "" and isinstance(cells["mean, d 50"], Estimate)
    assert lead(found(0.1, 0.3)["d 2"], DMSA, GMSA, mean).mean == pytest.approx(0.301)


def test_the_quick_claim_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claim", "dmsa", "--quick"]) == 0
    text = capsys.readouterr().out
    for word in ("paper:", "protocol:", "verdict:", "where it fails:", "told its source", "digits", "emoji"):
        assert word in text
