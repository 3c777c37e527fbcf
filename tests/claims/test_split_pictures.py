"""The split's arm on pictures: sets without shared classes, errors by hand, training, the verdict."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from selftaught.claims import split_pictures
from selftaught.claims.outcome import Estimate
from selftaught.claims.split_pictures import (
    OMNIGLOT,
    SHOTS,
    Arm,
    Figures,
    Shown,
    effective_rank,
    line,
    measured,
    raw_pixels,
    row,
    sets,
    trained,
    untrained,
    verdict,
    wrong_share,
)
from selftaught.core.errors import DataError
from selftaught.tasks.episodes import EpisodePlan

SMALL = Arm(ways=4, tasks=2, steps=4, width=8, size=16, classes=(12, 6, 7), episodes=6, looks=2)


def test_generated_sets_share_no_class_and_suffice_for_every_plan() -> None:
    given = sets(SMALL)
    names = [set(p.classes) for p in (given.known, given.chosen_on, given.unseen)]
    assert (
        [len(n) for n in names] == [12, 6, 7] and not names[0] & names[1] and not (names[0] | names[1]) & names[2]
    )
    assert len(given.unseen) == 7 * 20 and given.unseen.shape == (1, 16, 16)


def test_omniglot_takes_the_place_of_generated_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with two characters of each list; the missing ones are named."""
    monkeypatch.setattr(split_pictures, "read_split", lambda name: (f"{name}/character01", f"{name}/character02"))
    for name in ("omniglot_tuning_train20", "omniglot_tuning_5", "omniglot_validation_last5"):
        for character in ("character01", "character02"):
            folder = tmp_path / name / character
            folder.mkdir(parents=True)
            Image.new("L", (105, 105), 255).save(folder / "0001_01.png")
    monkeypatch.setenv(OMNIGLOT, str(tmp_path))
    given = sets(SMALL)
    assert (
        given.source.startswith("Omniglot") and given.unseen.classes[0] == "omniglot_validation_last5/character01"
    )
    monkeypatch.setenv(OMNIGLOT, str(tmp_path / "gone.zip"))
    with pytest.raises(DataError, match=r"gone\.zip"):
        sets(SMALL)


def test_wrong_answers_are_few_where_classes_lie_apart_and_chance_where_they_do_not() -> None:
    y = torch.arange(6).repeat_interleave(20)
    plan = EpisodePlan(5, 2, 10, 40)
    noise = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))
    apart = 20 * torch.eye(8)[y] + 0.1 * noise
    assert wrong_share(apart, y, plan, 0.1) == 0
    assert abs(wrong_share(noise, y, plan, 0.1) - 0.8) < 0.06
    some = torch.eye(8)[y] + 0.5 * noise
    assert wrong_share(some, y, plan, 0.1) == wrong_share(1000 * some + 7, y, plan, 0.1)


def test_effective_rank_counts_directions_of_centred_features() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(4000, 3, generator=generator) @ torch.eye(3, 10) + 5
    assert effective_rank(flat) == pytest.approx(3, rel=0.01)
    assert effective_rank(torch.ones(5, 4)) == pytest.approx(1, abs=1e-6)


def test_the_penalty_is_chosen_on_the_other_classes() -> None:
    """Features that are noise on the reported classes change their error, never the choice."""
    given = sets(SMALL)
    z = [p.x.flatten(1).float() / 255 for p in (given.chosen_on, given.unseen)]
    good = measured(SMALL, given, z[0], z[1])
    noise = measured(SMALL, given, z[0], torch.randn(z[1].shape, generator=torch.Generator().manual_seed(0)))
    assert noise.wrong[0] > good.wrong[0] and good == raw_pixels(SMALL, given)


def test_training_is_repeatable_tracks_the_rank_and_depends_on_the_split() -> None:
    given = sets(SMALL)
    once, again = (trained(SMALL, "tr-val", given, 0) for _ in range(2))
    other = trained(SMALL, "tr-tr", given, 0)
    assert once == again and once.ranks != other.ranks
    assert [step for step, _ in once.ranks] == [2, 4] and once.ranks[-1][1] == pytest.approx(once.rank)
    assert len(once.wrong) == len(SHOTS) and untrained(SMALL, given, 0).rank > 1


def test_rows_and_lines_hold_all_seeds() -> None:
    found = [
        Figures(2.0, (0.4, 0.3, 0.2, 0.1), ((5, 3.0), (10, 2.0))),
        Figures(4.0, (0.6,) * 4, ((5, 5.0), (10, 4.0))),
    ]
    cells = row("x", found)
    assert list(cells)[2:] == ["risk, 5 samples", "risk, 10 samples", "risk, 20 samples", "risk, 50 samples"]
    first = cells["risk, 5 samples"]
    assert isinstance(first, Estimate) and first.mean == pytest.approx(0.5) and first.seeds == 2
    drawn = line("x", found)
    assert drawn.x == [5.0, 10.0] and [e.mean for e in drawn.y] == [4.0, 3.0]


def test_verdict_can_go_both_ways() -> None:
    less, more, unclear = Estimate(-2, 1, 3), Estimate(2, 1, 3), Estimate(-2, 3, 3)
    assert "shown too" in verdict(Shown([], [], less, less))
    for rank, wrong in ((less, more), (more, less), (less, unclear), (unclear, less)):
        assert "not shown" in verdict(Shown([], [], rank, wrong))
