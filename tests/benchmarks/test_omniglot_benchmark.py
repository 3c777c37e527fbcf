"""The Omniglot benchmark's bookkeeping; training itself is tested elsewhere."""

import math
from pathlib import Path

import pytest
import torch
from benchmarks.omniglot import (
    ABLATIONS,
    METHODS,
    Omniglot,
    as_table,
    differences,
    subset,
    summary,
    views_per_step,
)

from benchmarks import omniglot
from selftaught.data.pictures import Pictures
from selftaught.data.splits import read_split
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import GLYPH


def test_splits_are_disjoint_and_tuning_never_sees_the_reported_classes() -> None:
    names = {k: [set(read_split(n)) for n in v] for k, v in omniglot.SPLITS.items()}
    for train, held_out in names.values():
        assert not train & held_out
    reported = names["report"][1]
    assert not reported & (names["tuning"][0] | names["tuning"][1])


def test_subsets_are_nested() -> None:
    small = sorted(read_split("omniglot_background_small1"))
    y = torch.arange(len(small)).repeat_interleave(20)
    x = torch.arange(len(y)).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).remainder(251).to(torch.uint8)
    pictures = Pictures(x, tuple(str(i) for i in range(len(y))), y, tuple(small))
    parts = [set(subset(pictures, n).names) for n in (20, 100, 500, 2720)]
    assert [len(p) for p in parts] == [20, 100, 500, 2720]
    assert parts[0] < parts[1] < parts[2] < parts[3]


@pytest.mark.parametrize("name", [*METHODS, *ABLATIONS])
def test_views_per_step_is_what_the_encoder_sees(name: str) -> None:
    method = METHODS.get(name) or ABLATIONS[name]
    tasks = method.source(draw_strokes(20, 4, size=16), GLYPH)(torch.Generator().manual_seed(0))
    seen = sum(x.shape[0] * x.shape[1] for x in (tasks.support.x, tasks.query.x))
    assert views_per_step(method, 80) == seen


def test_summary_is_the_t_interval() -> None:
    mean, half = summary([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert math.isnan(summary([1.0])[1])


def test_a_stopped_table_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pictures = draw_strokes(24, 20, size=28)
    monkeypatch.setattr(omniglot, "load", lambda data, split: (pictures, pictures))
    monkeypatch.setattr(omniglot, "subset", lambda p, n: p)
    trained = []
    real = omniglot.fit

    def counted(*args, **kwargs):
        trained.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(omniglot, "fit", counted)
    asked = Omniglot(Path("-"), tmp_path / "t.json", names=("simclr",), sizes=(0,), seeds=(0,), views=64)
    asked.run()
    asked.run()
    assert len(trained) == 1
    out = capsys.readouterr().out
    assert "| all | simclr |" in out and "raw pixels" in out


def test_one_seed_shows_no_interval() -> None:
    run = {
        "name": "a",
        "size": 0,
        "steps": 1,
        "cpu_seconds": 1.0,
        **{f"{w}w{k}s": [50, 1] for w, k in omniglot.TASKS},
    }
    assert "±" not in as_table({"x": run}, ["a"], [0], {})


def test_differences_are_paired() -> None:
    """A gap that is the same in every pair has no spread, however far the pairs lie apart."""
    rows = {}
    for seed in range(3):
        for name, lead in (("a", 2.0), ("b", 0.0)):
            figures = {f"{w}w{k}s": [50 + 10 * seed + lead, 1] for w, k in omniglot.TASKS}
            rows[f"{name}{seed}"] = {"name": name, "size": 0, "seed": seed, **figures}
    (line,) = differences(rows, ["a", "b"])
    assert line.startswith("a minus b") and "+2.0 ± 0.0" in line and "3 pairs" in line
