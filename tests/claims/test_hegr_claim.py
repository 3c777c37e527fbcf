"""HEGR's claim: its data, verdicts that go both ways, the quick run and the page."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selftaught.app.cli import main
from selftaught.claims.hegr import (
    NAMES,
    QUICK,
    Score,
    Scores,
    Setting,
    ahead,
    data_of,
    losing,
    most_frequent,
    score,
    table,
    verdict,
    write_scenes,
)
from selftaught.graphs.world import draw_scenes

SMALL = replace(QUICK, scenes=(12, 24), test=10, encoder_steps=1)


def scores(**means: float) -> Scores:
    """Exact match of every model, with small changes between three seeds; a name with a count is that one only."""
    found = {}
    for i, h in enumerate(NAMES):
        for n in SMALL.scenes:
            level = means.get(f"{h}{n}", means.get(h, 0.5))
            found[h, n] = [Score((level + d * (i + 1),) * 3, level) for d in (-1e-3, 0.0, 2e-3)]
    return found


def test_seeds_share_the_test_scenes_and_nothing_else() -> None:
    one, two = data_of(SMALL, 0), data_of(SMALL, 1)
    assert [x.sentence for x in one.tested_on] == [x.sentence for x in two.tested_on]
    assert one.wanted == two.wanted and torch.equal(one.test.target, two.test.target)
    assert [x.sentence for x in one.trained_on] != [x.sentence for x in two.trained_on]
    assert not torch.allclose(one.test.features, two.test.features)
    assert one.train.features.shape == (24, 3, SMALL.features)
    flat = one.train.features.flatten(0, 1)
    assert torch.allclose(flat.mean(0), torch.zeros(SMALL.features), atol=1e-4)
    assert {x.name for x in one.trained_on}.isdisjoint(x.name for x in one.tested_on)
    assert all(0 <= k <= 1 for k in one.known)
    common = most_frequent(SMALL, one)
    assert 0 <= common.mean < 0.5 and common.f1 > common.mean


def test_worlds_for_choosing_are_not_the_worlds_reported() -> None:
    assert Setting().world != 0
    used = {1000 * Setting().world + k for k in (*Setting().seeds, 999)}
    assert len(used) == len(Setting().seeds) + 1
    assert draw_scenes(1, min(used))[0].sentence != draw_scenes(1, max(used))[0].sentence


def test_scores_are_by_moment() -> None:
    wanted = [("a b", "c", "d"), ("a", "c", "e f")]
    found = score([("a b", "x", "d"), ("b", "x", "e f")], wanted)
    assert found.exact == (0.5, 0.0, 1.0) and found.mean == pytest.approx(0.5)
    assert found.f1 == pytest.approx((1 + 0 + 1 + 0 + 0 + 1) / 6)


def test_differences_are_paired_by_seed() -> None:
    found = dict(scores())
    for h, shift in (("moments", 0.1), ("none", 0.0)):
        found[h, 12] = [Score((level + shift,) * 3, 0) for level in (0.2, 0.4, 0.7)]  # type: ignore[index]
    gap = ahead(found, "none", [12])
    assert gap.mean == pytest.approx(0.1) and gap.half_width < 1e-9


def test_the_verdict_can_go_both_ways() -> None:
    assert verdict(SMALL, scores(moments=0.7)).startswith("Shown")
    assert verdict(SMALL, scores()).startswith("Not shown")
    assert verdict(SMALL, scores(moments=0.7, one=0.8)).startswith("Not shown")
    assert verdict(SMALL, scores(moments=0.4)).startswith("Not shown")


def test_the_losing_regime_is_what_was_found() -> None:
    assert "no clear lead at 24." in losing(SMALL, scores(moments12=0.9))
    assert "no clear lead at none of them" in losing(SMALL, scores(moments=0.9))
    assert "are clearly beaten" in losing(SMALL, scores(moments=0.9))
    assert "are not clearly beaten" in losing(SMALL, scores(moments=0.9, cliques=0.95))


def test_the_table_has_every_model_and_the_commonest_text() -> None:
    found = scores()
    rows = table(found, found["none", 12], 24)
    assert len(rows) == len(NAMES) * 2 + 1 and len({tuple(r) for r in rows}) == 1
    assert rows[-1]["model"] == "the commonest text"


def test_the_quick_claim_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claim", "hegr", "--quick"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in ("paper:", "verdict:", "where it fails:", "after", "token F1", "equations ours"):
        assert word in text, word


def test_ten_scenes_are_a_page(tmp_path: Path) -> None:
    file = tmp_path / "scenes.html"
    write_scenes(file, quick=True)
    text = file.read_text(encoding="utf-8")
    assert text.count("<h2>") == 10 and text.count("data:image/png") == 30
    assert all(name in text for name in NAMES.values())


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "scenes.html"
    assert main(["claim", "hegr", "--quick", "--page", str(file)]) == 0
    assert f"page: {file}" in capsys.readouterr().out.replace("\n", "")
    assert [p.name for p in file.parent.iterdir()] == ["scenes.html"]
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
