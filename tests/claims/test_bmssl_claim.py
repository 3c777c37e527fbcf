"""The claim of BMSSL: its pieces, that equal means equal, and what it says for and against."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.app.cli import main
from selftaught.claims import CLAIMS, bmssl
from selftaught.claims.bmssl import LEAD, METHODS, Arm, Sizes, leads, losing, measured, steps_for, verdict
from selftaught.claims.outcome import Estimate
from selftaught.core.types import Method
from selftaught.data.emoji import read_emoji
from selftaught.data.pictures import Pictures
from selftaught.data.views import FLAT, Views

SMALL = Sizes(emoji=40, views=64, width=8, episodes=10, seeds=(0, 1))


def row(method: str, lead: Estimate | str, pictures: str = "a, equal views") -> Mapping[str, Estimate | str]:
    return {"pictures": pictures, "method": method, LEAD: lead}


@pytest.mark.parametrize("name", METHODS)
def test_as_many_views_are_fed_to_the_encoder(name: str) -> None:
    pictures = read_emoji(split="train").take(torch.arange(40))
    steps = steps_for(name, pictures, 3200)
    task = METHODS[name][0].source(pictures, FLAT)(torch.Generator().manual_seed(1))
    seen = sum(x.shape[0] * x.shape[1] for x in (task.support.x, task.query.x))
    assert steps * seen == 3200


def test_smaller_sets_are_parts_of_larger_ones() -> None:
    pictures = read_emoji(split="validation")
    few, more = (set(bmssl.some(pictures, n).names) for n in (10, 30))
    assert len(few) == 10 and few < more


def test_features_that_say_the_class_score_one() -> None:
    unseen = read_emoji(split="test")
    assert unseen.y is not None
    told = torch.nn.functional.one_hot(unseen.y).float()
    assert bmssl.few_shot_scores(unseen, 20, lambda x: told) == {"5-way 1-shot": 1.0, "20-way 1-shot": 1.0}
    x = torch.arange(80, dtype=torch.uint8).reshape(-1, 1, 1, 1) % 2 * 255
    known = Pictures(x, tuple(map(str, range(80))), torch.arange(80) % 2, ("a", "b"))

    def embed(x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot((x.flatten() > 0).long()).float()

    assert bmssl.probe_scores(known, known, embed) == {"linear probe": 1.0, "20 neighbours": 1.0}


def test_leads_are_paired_by_seed_and_pixels_know_no_seed() -> None:
    arm = Arm(read_emoji(split="test"), "a", "views", FLAT, {"bmssl": 1, "simclr": 1}, lambda e: {})
    scores = {
        "bmssl": [{"5-way 1-shot": v} for v in (0.5, 0.7)],
        "simclr": [{"5-way 1-shot": v} for v in (0.4, 0.6)],
        "raw pixels": [{"5-way 1-shot": 0.3}],
    }
    rows = {name: bmssl._row(arm, name, scores, ("5-way 1-shot", "linear probe")) for name in scores}
    lead, over_pixels = rows["simclr"][LEAD], rows["raw pixels"][LEAD]
    assert isinstance(lead, Estimate) and isinstance(over_pixels, Estimate)
    assert lead.mean == pytest.approx(0.1) and lead.half_width == pytest.approx(0, abs=1e-6)
    assert over_pixels.mean == pytest.approx(0.3) and over_pixels.half_width > 1
    pixels = rows["raw pixels"]["5-way 1-shot"]
    assert isinstance(pixels, Estimate) and math.isnan(pixels.half_width)
    assert rows["bmssl"][LEAD] == "-" and rows["simclr"]["linear probe"] == "-"


def test_a_run_of_as_many_steps_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []

    def count(
        method: Method, rate: float, pictures: Pictures, recipe: Views, steps: int, seed: int, width: int
    ) -> bmssl.Embed:
        made.append((steps, seed))
        return lambda x: x.flatten(1).float()

    monkeypatch.setattr(bmssl, "trained", count)
    pictures = read_emoji(split="test").take(torch.arange(40))
    views = Arm(pictures, "a", "views", FLAT, {"bmssl": 3, "simclr": 3}, lambda e: {"5-way 1-shot": len(made)})
    timed = Arm(pictures, "a", "time", FLAT, {"bmssl": 3, "simclr": 4}, views.score, baselines=False)
    first = measured(views, SMALL, {})
    second = measured(timed, SMALL, {views: first})
    assert made == [(3, 0), (3, 1), (3, 0), (3, 1), (4, 0), (4, 1)]
    assert second["bmssl"] == first["bmssl"] and second["simclr"] != first["simclr"]
    assert set(first) - set(second) == {"untrained encoder", "raw pixels"}


def test_a_seed_repeats_a_run_and_another_does_not() -> None:
    pictures = read_emoji(split="train").take(torch.arange(40))
    method, rate = METHODS["bmssl"]
    a, b, c = (bmssl.trained(method, rate, pictures, FLAT, 2, seed, 8)(pictures.x) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_verdict_and_losing_regime_go_both_ways() -> None:
    ahead, unclear, behind = Estimate(0.1, 0.05, 3), Estimate(-0.01, 0.05, 3), Estimate(-0.1, 0.05, 3)
    baseline = row("raw pixels", behind)
    good = [row("bmssl", "-"), row("simclr", ahead), row("umtra", ahead), baseline]
    assert verdict(good).startswith("Shown: of 2 comparisons BMSSL is clearly ahead in 2 (simclr")
    assert "behind on average of no" in losing(good)
    for worse in (unclear, behind):
        rows = [row("bmssl", "-"), row("simclr", worse), row("umtra", ahead), baseline]
        said = verdict(rows)
        assert said.startswith("Not shown: of 2 comparisons BMSSL is clearly ahead in 1 (umtra")
        assert said.endswith(f"behind in {int(worse is behind)}.")
        assert "simclr (a, equal views)" in losing(rows) and "raw pixels" not in losing(rows)
        assert ("of none" in losing(rows)) == (worse is unclear)
    assert "raw pixels" not in "".join(leads(good))


def test_cifar_is_what_was_named_or_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SELFTAUGHT_CIFAR10", raising=False)
    monkeypatch.setenv("SELFTAUGHT_DATA", str(tmp_path))
    assert bmssl.cifar_file() is None
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"")
    assert bmssl.cifar_file() == tmp_path / "cifar-10-binary.tar.gz"
    monkeypatch.setenv("SELFTAUGHT_CIFAR10", str(tmp_path))
    assert bmssl.cifar_file() == tmp_path


def test_the_quick_claim_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
        records = generator.integers(0, 256, (20, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(20) % 10
        (tmp_path / name).write_bytes(records.tobytes())
    monkeypatch.setenv("SELFTAUGHT_CIFAR10", str(tmp_path))
    assert CLAIMS["bmssl"] is bmssl.show
    assert main(["claim", "bmssl", "--quick", "--json", str(tmp_path / "c.json")]) == 0
    assert "where it fails:" in capsys.readouterr().out
    stored = json.loads((tmp_path / "c.json").read_text())
    assert len({tuple(r) for r in stored["rows"]}) == 1 and stored["seeds"] == 2
    by_arm: dict[str, list[str]] = {}
    for r in stored["rows"]:
        by_arm.setdefault(r["pictures"], []).append(r["method"])
    baselines = ["untrained encoder", "raw pixels"]
    assert by_arm == {
        "60 emoji, equal views": [*METHODS, *baselines],
        "60 emoji, equal time": [*METHODS],
        "2880 emoji, equal views": ["bmssl", "simclr"],
        "60 of CIFAR-10, equal views": ["bmssl", "simclr", "protoclr", *baselines],
    }
    assert "of 9 comparisons" in stored["verdict"] and "60 training pictures" in stored["protocol"]
