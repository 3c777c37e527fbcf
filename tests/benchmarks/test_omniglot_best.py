"""The long Omniglot run's bookkeeping: parts, neighbours, what is kept; training itself is tested elsewhere."""

from pathlib import Path

import pytest
import torch
from benchmarks.omniglot import views_per_step
from benchmarks.omniglot_best import COLUMNS, METHODS, OmniglotBest, as_table, right, whitening, with_neighbours

from benchmarks import omniglot_best
from selftaught.artifacts.files import read_json
from selftaught.core.types import Method
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import GLYPH
from selftaught.methods import BMSSL, SimCLR
from selftaught.tasks.neighbours import Neighbours


@pytest.mark.parametrize("name", list(METHODS))
def test_methods_see_as_many_views_a_step_with_and_without_neighbours(name: str) -> None:
    pictures = draw_strokes(20, 4, size=16)
    near = Neighbours(torch.arange(80)[:, None] ^ 1, torch.ones(80, dtype=torch.int64))
    source = METHODS[name].source(pictures, GLYPH)
    for each in (source, with_neighbours(source, near, 0.25)):
        tasks = each(torch.Generator().manual_seed(0))
        seen = sum(x.shape[0] * x.shape[1] for x in (tasks.support.x, tasks.query.x))
        assert seen == views_per_step(METHODS[name], 80) == 128


def test_parts_cover_all_steps_in_order() -> None:
    asked = OmniglotBest(Path("-"))
    assert list(asked._parts(101)) == [(50, False), (75, True), (101, True)]
    assert list(OmniglotBest(Path("-"), rounds=0)._parts(7)) == [(7, False)]


def test_right_counts_neighbours_of_the_same_class_only_where_there_are_some() -> None:
    pictures = draw_strokes(3, 2, size=16)  # classes 0 0 1 1 2 2
    near = Neighbours(
        torch.tensor([[1, 2], [0, 2], [3, 0], [0, 1], [5, 0], [4, 0]]), torch.tensor([1, 2, 1, 1, 0, 0])
    )
    assert right(near, pictures) == pytest.approx(3 / 5)


def test_a_stopped_table_goes_on_and_keeps_every_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = draw_strokes(22, 20, size=16)
    small: dict[str, Method] = {"simclr": SimCLR(batch=8), "bmssl": BMSSL(ways=4, bootstrap_steps=1)}
    monkeypatch.setattr(omniglot_best, "METHODS", small)
    monkeypatch.setattr(omniglot_best, "load", lambda data, split: (pictures, pictures))
    monkeypatch.setattr(omniglot_best, "read_omniglot", lambda *_, **__: pictures)
    monkeypatch.setattr(omniglot_best, "subset", lambda p, n: p)
    monkeypatch.setattr(omniglot_best, "seconds_per_step", lambda methods, _: dict.fromkeys(methods, 0.25))
    asked = OmniglotBest(Path("a/b.zip"), tmp_path / "t.json", sizes=(0,), seeds=(0,), seconds=1, episodes=5)
    asked.run()
    kept = read_json(asked.out)
    asked.run()
    assert read_json(asked.out) == kept
    row = kept["runs"]["bmssl|0|0"]
    assert row["steps"] == 4 and len(row["neighbours"]) == 2 and row["machine"]["torch"] == torch.__version__
    assert all(set(row[column]) == {"5w1s", "5w5s", "20w1s", "20w5s"} for column in COLUMNS)
    assert "a/b.zip" not in str(kept["protocol"])
    printed = capsys.readouterr().out
    assert all(f"| all | {name} | projector, whitened |" in printed for name in small)
    assert as_table(kept["runs"], kept["baselines"])[-1].startswith(
        "| none | untrained encoder | encoder; rotations"
    )


def test_whitening_makes_variances_equal_and_shrinking_goes_half_way() -> None:
    z = torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ torch.diag(
        torch.tensor([3.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    )
    white = whitening(z, 0.0)(z)
    torch.testing.assert_close(torch.cov(white.mT), torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(white.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    variances, mean = torch.linalg.eigvalsh(torch.cov(z.mT)), torch.cov(z.mT).diagonal().mean()
    got = torch.cov(whitening(z, 2.0)(z).mT).diagonal()
    torch.testing.assert_close(got, variances / (variances + 2 * mean))
