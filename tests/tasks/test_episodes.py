"""The laws of the episode sampler."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selftaught.core.errors import ConfigError, DataError, TooFewPicturesError
from selftaught.data.pictures import Pictures
from selftaught.tasks.episodes import EpisodePlan, EpisodeSource, draw_episodes


def labels(counts: list[int], seed: int = 0) -> torch.Tensor:
    y = torch.cat([torch.full((c,), n) for n, c in enumerate(counts)])
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]


plans = st.builds(
    EpisodePlan,
    ways=st.integers(2, 4),
    shots=st.integers(1, 3),
    queries=st.integers(1, 4),
    episodes=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)


@settings(deadline=None, max_examples=60)
@given(plan=plans, counts=st.lists(st.integers(7, 12), min_size=4, max_size=7), seed=st.integers(0, 99))
def test_every_episode_obeys_its_plan(plan: EpisodePlan, counts: list[int], seed: int) -> None:
    y = labels(counts, seed)
    episodes = draw_episodes(y, plan)
    assert episodes.support.shape == (plan.episodes, plan.ways * plan.shots)
    assert episodes.query.shape == (plan.episodes, plan.ways * plan.queries)
    for support, query, classes in zip(episodes.support, episodes.query, episodes.classes, strict=True):
        assert len(set(classes.tolist())) == plan.ways
        pictures = support.tolist() + query.tolist()
        assert len(set(pictures)) == len(pictures), "a picture is used twice"
        # Row k * ways + n is shot k of class n.
        assert torch.equal(y[support], classes.repeat(plan.shots))
        assert torch.equal(y[query], classes.repeat(plan.queries))
    assert torch.equal(episodes.support_y, torch.arange(plan.ways).repeat(plan.shots))
    assert torch.equal(episodes.query_y, torch.arange(plan.ways).repeat(plan.queries))


@settings(deadline=None, max_examples=20)
@given(plan=plans)
def test_same_plan_same_list_and_global_randomness_untouched(plan: EpisodePlan) -> None:
    y = labels([8] * 5)
    before = torch.random.get_rng_state()
    one, two = draw_episodes(y, plan), draw_episodes(y.clone(), plan)
    assert torch.equal(one.support, two.support) and torch.equal(one.query, two.query)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_seed_gives_another_list() -> None:
    y = labels([20] * 10)
    one = draw_episodes(y, EpisodePlan(5, 1, 5, 50, seed=0))
    two = draw_episodes(y, EpisodePlan(5, 1, 5, 50, seed=1))
    assert (one.support != two.support).float().mean() > 0.9


def test_longer_list_starts_with_the_shorter_one() -> None:
    y = labels([20] * 10)
    short = draw_episodes(y, EpisodePlan(5, 2, 5, 37))
    long = draw_episodes(y, EpisodePlan(5, 2, 5, 1203))
    assert torch.equal(long.support[:37], short.support)
    assert torch.equal(long.query[:37], short.query)


def test_classes_places_and_pictures_are_uniform() -> None:
    """Each class is equally often at each place, each picture equally often in each role (5 sigma)."""
    counts = [6, 9, 6, 12, 6]
    y = torch.arange(5).repeat_interleave(torch.tensor(counts))
    many = 8000
    episodes = draw_episodes(y, EpisodePlan(3, 2, 3, many))
    at_place = torch.stack([torch.bincount(column, minlength=5) for column in episodes.classes.T])
    expected = many / 5
    assert (at_place - expected).abs().max() < 5 * expected**0.5
    for column in (episodes.support[:, 0], episodes.support[:, 3], episodes.query[:, 8]):
        seen = torch.bincount(column, minlength=len(y)).double()
        wanted = many / 5 / torch.tensor(counts).repeat_interleave(torch.tensor(counts)).double()
        assert ((seen - wanted).abs() / wanted.sqrt()).max() < 5


def test_pairs_of_pictures_are_uniform() -> None:
    """Without replacement every pair of support pictures is equally likely, not only every picture."""
    y = torch.zeros(6, dtype=torch.int64)
    y = torch.cat([y, y + 1])
    many = 6000
    episodes = draw_episodes(y, EpisodePlan(2, 2, 1, many))
    first, second = episodes.support[:, 0] % 6, episodes.support[:, 2] % 6
    seen = torch.bincount(first * 6 + second, minlength=36).reshape(6, 6).double()
    assert seen.diagonal().sum() == 0
    off = seen[~torch.eye(6, dtype=torch.bool)]
    assert (off - many / 30).abs().max() < 5 * (many / 30) ** 0.5


def test_labels_may_have_gaps() -> None:
    y = torch.tensor([7, 3, 7, 3, 40, 40])
    episodes = draw_episodes(y, EpisodePlan(3, 1, 1, 4))
    assert set(episodes.classes.flatten().tolist()) == {3, 7, 40}
    assert torch.equal(y[episodes.support], episodes.classes)


def test_too_small_class_is_named_with_a_way_out() -> None:
    y = labels([10, 5, 10])
    with pytest.raises(TooFewPicturesError, match=r"'owl' has 5 pictures.*need 6.*fewer shots or queries"):
        draw_episodes(y, EpisodePlan(2, 1, 5), names=("cat", "owl", "dog"))
    with pytest.raises(TooFewPicturesError, match="number 1 has 5"):
        draw_episodes(y, EpisodePlan(2, 1, 5))
    draw_episodes(y, EpisodePlan(2, 1, 4))


def test_too_few_classes_and_bad_arguments() -> None:
    with pytest.raises(TooFewPicturesError, match="at most 3 ways"):
        draw_episodes(labels([10] * 3), EpisodePlan(4, 1, 5))
    with pytest.raises(ConfigError, match="shots >= 1"):
        EpisodePlan(5, 0)
    with pytest.raises(DataError, match="whole numbers"):
        draw_episodes(torch.rand(10), EpisodePlan(2, 1, 1))


def test_two_thousand_twenty_way_episodes_take_under_two_seconds() -> None:
    y = torch.arange(100).repeat_interleave(600)
    start = time.process_time()
    draw_episodes(y, EpisodePlan(20, 5, 15, 2000))
    assert time.process_time() - start < 2


def pictures() -> Pictures:
    x = torch.arange(30, dtype=torch.uint8).reshape(30, 1, 1, 1).expand(30, 1, 2, 2).contiguous()
    return Pictures(x, tuple(map(str, range(30))), torch.arange(30) % 3, ("a", "b", "c"))


def test_source_gives_pictures_in_the_promised_order() -> None:
    task = EpisodeSource(pictures(), ways=2, shots=2, queries=3, tasks=5)(torch.Generator().manual_seed(3))
    assert task.support.x.shape == (5, 4, 1, 2, 2) and task.query.x.shape == (5, 6, 1, 2, 2)
    assert task.index is not None and task.index.shape == (5, 10)
    together = torch.cat([task.support.x, task.query.x], 1)[..., 0, 0, 0]
    assert torch.equal((together * 255).round().long(), task.index)
    assert together.dtype == torch.float32 and together.max() <= 1
    assert task.support.y is not None and task.query.y is not None
    assert torch.equal(task.support.y, torch.tensor([0, 1, 0, 1]).expand(5, 4))
    # One local label, one class: in support and in query.
    true = task.index % 3
    for row, local in zip(true, torch.cat([task.support.y, task.query.y], 1), strict=True):
        assert len({(int(a), int(b)) for a, b in zip(row, local, strict=True)}) == 2


def test_source_is_pure_in_the_generator() -> None:
    source = EpisodeSource(pictures(), ways=3, shots=1, queries=2)
    generator = torch.Generator().manual_seed(1)
    state = generator.get_state()
    one, later = source(generator), source(generator)
    generator.set_state(state)
    again = source(generator)
    assert one.index is not None and again.index is not None and later.index is not None
    assert torch.equal(one.index, again.index)
    assert not torch.equal(one.index, later.index)


def test_source_refuses_what_it_cannot_use() -> None:
    unlabelled = Pictures(pictures().x, pictures().names)
    with pytest.raises(DataError, match="labelled"):
        EpisodeSource(unlabelled, ways=2, shots=1)
    with pytest.raises(TooFewPicturesError, match="'a' has 10"):
        EpisodeSource(pictures(), ways=2, shots=1, queries=10)
