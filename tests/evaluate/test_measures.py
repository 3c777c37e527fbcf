"""Collisions, geometry, probes, baselines and tables, against loops and known numbers."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch import nn

from selftaught.core.errors import DataError, TooFewPicturesError
from selftaught.core.functional import buffers_of, params_of
from selftaught.core.types import merged
from selftaught.evaluate.baselines import estimated_statistics, raw_pixels, untrained_features
from selftaught.evaluate.collisions import false_negative_rate, probability_all_distinct
from selftaught.evaluate.fewshot import few_shot
from selftaught.evaluate.geometry import (
    alignment,
    collapse_warning,
    effective_rank,
    geometry,
    mean_std,
    uniformity,
)
from selftaught.evaluate.probes import knn, linear_probe
from selftaught.evaluate.table import Features, as_markdown, evaluate_features
from selftaught.nets.conv4 import Conv4
from selftaught.tasks.episodes import EpisodePlan


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("counts", "n", "wanted"),
    [
        ([20] * 1200, 5, 0.992),
        ([20] * 1200, 20, 0.860),
        ([20] * 1200, 64, 0.197),
        ([600] * 64, 5, 0.852),
        ([600] * 64, 20, 0.036),
        ([5000] * 10, 5, 0.3025),  # 45*40*35*30 / (49.999*49.998*49.997*49.996)
        ([5000] * 10, 11, 0.0),
    ],
)
def test_published_collision_figures(counts: list[int], n: int, wanted: float) -> None:
    assert abs(probability_all_distinct(counts, n) - wanted) < 5.1e-4


def test_collisions_by_counting_every_draw() -> None:
    counts = [1, 3, 0, 2, 4]
    y = [c for c, many in enumerate(counts) for _ in range(many)]
    for n in (1, 2, 3, 4, 5):
        draws = list(itertools.combinations(y, n))
        slow = sum(len(set(d)) == n for d in draws) / len(draws)
        assert math.isclose(probability_all_distinct(counts, n), slow, abs_tol=1e-12)
    pairs = list(itertools.combinations(y, 2))
    assert math.isclose(false_negative_rate(counts), sum(a == b for a, b in pairs) / len(pairs))
    assert abs(false_negative_rate([20] * 1200) - 0.0008) < 5e-5


def test_collisions_refuse_impossible_draws() -> None:
    with pytest.raises(TooFewPicturesError, match="7 pictures out of 6"):
        probability_all_distinct([3, 3], 7)
    with pytest.raises(DataError, match="negative"):
        probability_all_distinct([3, -3], 1)
    with pytest.raises(TooFewPicturesError, match="two pictures"):
        false_negative_rate([1])


def test_effective_rank_counts_directions() -> None:
    axes = torch.cat([torch.eye(6)[:4], -torch.eye(6)[:4]])
    assert math.isclose(effective_rank(axes), 4, rel_tol=1e-6)
    assert math.isclose(effective_rank(axes + 100), 4, rel_tol=1e-3), "centred first"
    line = torch.linspace(-1, 1, 9).unsqueeze(1) * torch.ones(6)
    assert math.isclose(effective_rank(line), 1, rel_tol=1e-3)
    assert effective_rank(torch.full((9, 6), 0.3)) == 1
    assert effective_rank(normal(2000, 16)) > 15.8


def test_alignment_and_uniformity_against_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(7, 5), normal(7, 5, seed=1)
    ua, ub = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    slow = sum((x - y).square().sum().item() for x, y in zip(ua, ub, strict=True)) / 7
    assert math.isclose(alignment(a, b), slow, rel_tol=1e-5)
    assert alignment(a, a * 3) < 1e-10
    pairs = [math.exp(-2 * (x - y).square().sum().item()) for x, y in itertools.combinations(ua, 2)]
    assert math.isclose(uniformity(a), math.log(sum(pairs) / 21), rel_tol=1e-5)
    whole = uniformity(a)
    monkeypatch.setattr("selftaught.evaluate.geometry._ROWS_AT_ONCE", 3)
    assert math.isclose(uniformity(a), whole, rel_tol=1e-9)
    assert abs(uniformity(torch.ones(5, 3))) < 1e-6


def test_collapse_is_told_and_health_is_not() -> None:
    healthy = normal(200, 32)
    assert collapse_warning(healthy) is None
    assert 0.9 < mean_std(healthy) < 1.1
    point = torch.ones(200, 32) + 1e-4 * healthy
    assert "nearly the same" in (collapse_warning(point) or "")
    line = normal(200, 1) * torch.ones(32)
    assert "of 32 dimensions" in (collapse_warning(line) or "")
    assert "nan" in (collapse_warning(healthy * math.nan) or "")
    assert collapse_warning(normal(50, 2)) is None, "two dimensions are not a collapse of two"
    assert geometry(healthy).width == 32
    with pytest.raises(DataError, match="two pictures"):
        geometry(healthy[:1])


def two_classes() -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(120) % 3
    return torch.eye(3).repeat(1, 2)[y] + 0.45 * normal(120, 6), y


def test_probes() -> None:
    z, y = two_classes()
    scaled = z * torch.tensor([1.0, 1e3, 1e-3, 1, 1, 1]) + 50
    probe = linear_probe(scaled[:90], y[:90], scaled[90:], y[90:])
    assert probe == linear_probe(z[:90], y[:90], z[90:], y[90:]), "standardised: units do not matter"
    assert probe.mean > 75 and probe.pictures == 30
    share = probe.mean / 100
    assert math.isclose(probe.half_width_95, 196 * math.sqrt(share * (1 - share) / 30))
    for k in (1, 5, 20):
        nearest = cosine_similarity(z[90:], z[:90]).argsort(1)[:, -k:]
        votes = [np.bincount(y[:90].numpy()[row], minlength=3).argmax() for row in nearest]
        slow = 100 * np.mean(np.array(votes) == y[90:].numpy())
        assert math.isclose(knn(z[:90], y[:90], z[90:], y[90:], k).mean, slow)
    with pytest.raises(TooFewPicturesError, match="91 neighbours"):
        knn(z[:90], y[:90], z[90:], y[90:], 91)
    with pytest.raises(DataError, match=r"\[90, 6\], \[89\]"):
        linear_probe(z[:90], y[1:90], z[90:], y[90:])
    with pytest.raises(DataError, match="nan"):
        linear_probe(z[:90] * math.nan, y[:90], z[90:], y[90:])


def pictures(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def test_raw_pixels() -> None:
    x = pictures(3)
    assert torch.allclose(raw_pixels(x) * 255, x.reshape(3, 256).float())
    with pytest.raises(DataError, match="B C H W"):
        raw_pixels(x[0])


def test_untrained_features_are_seeded_and_leave_global_randomness_alone() -> None:
    train, x = pictures(70), pictures(9)
    before = torch.random.get_rng_state()

    def build() -> Conv4:
        return Conv4(channels=1, size=16, width=8)

    one = untrained_features(build, train, x, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.features, untrained_features(build, train, x, seed=1).features)
    assert not torch.equal(one.features, untrained_features(build, train, x, seed=2).features)
    assert one.norm == "training pictures" and one.features.shape == (9, 8)
    group = untrained_features(lambda: Conv4(channels=1, size=16, width=8, norm="group"), train, x)
    assert group.norm == "none"


def test_estimated_statistics_are_the_mean_over_batches() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1, momentum=0.3), nn.Flatten())
    net[0].running_mean.fill_(9)
    x = pictures(70)
    got = estimated_statistics(net, merged(params_of(net), buffers_of(net)), x, batch=32)
    batches = [b.float() / 255 for b in (x[:32], x[32:64])]
    assert torch.allclose(got["0.running_mean"], torch.stack([b.mean() for b in batches]).mean())
    assert torch.allclose(got["0.running_var"], torch.stack([b.var() for b in batches]).mean())
    assert net[0].momentum == 0.3 and net[0].running_mean.item() == 9
    with pytest.raises(DataError, match="two or more"):
        estimated_statistics(net, buffers_of(net), x[:1])


def test_table_measures_all_sets_on_one_list() -> None:
    z, y = two_classes()
    plans = [EpisodePlan(3, 1, 5, 20, seed=4), EpisodePlan(2, 5, 5, 20)]
    sets = [Features("model", z), Features("same model", z), Features("noise", normal(120, 4), "none")]
    rows = evaluate_features(sets, y, plans, "ridge")
    assert [(r.name, r.ways) for r in rows] == [(s.name, p.ways) for p in plans for s in sets]
    assert rows[0].mean == rows[1].mean == few_shot(z, y, plans[0], "ridge").mean
    assert rows[0].mean > rows[2].mean
    first = rows[0]
    assert (first.shots, first.head, first.norm, first.episodes, first.queries, first.seed) == (
        1, "ridge", "running", 20, 5, 4,
    )  # fmt: skip
    text = as_markdown(rows)
    assert len(text.splitlines()) == 8 and "3-way 1-shot" in text and f"{first.mean:.2f}" in text
    with pytest.raises(DataError, match="'short'"):
        evaluate_features([Features("short", z[1:])], y, plans)
    with pytest.raises(DataError, match="'bad'"):
        evaluate_features([Features("bad", z * math.inf)], y, plans)
