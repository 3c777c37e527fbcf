"""Few-shot accuracy against slow loops, its interval, and the learner path."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError, DataError, TooFewPicturesError
from selftaught.core.functional import buffers_of, in_batches, params_of, part
from selftaught.core.types import Examples, Params, merged
from selftaught.data.pictures import Pictures
from selftaught.evaluate import fewshot
from selftaught.evaluate.fewshot import few_shot, few_shot_learner, paired_difference
from selftaught.learners.heads import logistic_logits, prototype_logits, ridge_logits
from selftaught.learners.prototype import PrototypeLearner
from selftaught.nets.conv4 import Conv4
from selftaught.tasks.episodes import EpisodePlan, draw_episodes

SLOW = {"prototype": prototype_logits, "ridge": ridge_logits, "logistic": logistic_logits}


def clusters(noise: float, classes: int = 8, each: int = 12, width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(classes, width, generator=generator)
    y = torch.arange(classes).repeat_interleave(each)
    return centres[y] + noise * torch.randn(len(y), width, generator=generator), y


@pytest.mark.parametrize("head", ["prototype", "ridge", "logistic"])
def test_accuracy_is_that_of_a_slow_loop(head: fewshot.Head, monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = clusters(1.0)
    plan = EpisodePlan(4, 2, 5, episodes=15, seed=2)
    whole = few_shot(z, y, plan, head)
    episodes = draw_episodes(y, plan)
    for e in range(15):
        logits = SLOW[head](z[episodes.support[e]], z[episodes.query[e]], 4)
        guessed = episodes.classes[e][logits.argmax(1)]
        right = (guessed == y[episodes.query[e]]).double().mean() * 100
        assert math.isclose(whole.per_episode[e].item(), right.item(), abs_tol=1e-9)
    assert 30 < whole.mean < 99, "a task that is neither trivial nor hopeless"
    monkeypatch.setattr(fewshot, "_NUMBERS_AT_ONCE", 2 * 28 * 6)  # two episodes at a time
    assert torch.equal(few_shot(z, y, plan, head).per_episode, whole.per_episode)


def test_mean_and_interval() -> None:
    z, y = clusters(1.0)
    got = few_shot(z, y, EpisodePlan(5, 1, 5, episodes=40))
    per = got.per_episode
    assert math.isclose(got.mean, sum(per.tolist()) / 40)
    variance = sum((p - got.mean) ** 2 for p in per.tolist()) / 39
    assert math.isclose(got.half_width_95, 1.96 * math.sqrt(variance / 40))
    assert "±" in str(got)
    assert math.isnan(few_shot(z, y, EpisodePlan(5, 1, 5, episodes=1)).half_width_95)


def test_noise_is_at_chance_and_separated_classes_at_hundred() -> None:
    _, y = clusters(1.0)
    noise = torch.randn(len(y), 32, generator=torch.Generator().manual_seed(1))
    chance = few_shot(noise, y, EpisodePlan(5, 1, 10, episodes=300))
    assert abs(chance.mean - 20) < 2.5
    for head in ("prototype", "ridge", "logistic"):
        assert few_shot(torch.eye(8)[y], y, EpisodePlan(5, 1, 5, episodes=10), head).mean == 100


def test_squared_distance_is_another_head() -> None:
    z, y = clusters(1.0)
    z = z * torch.linspace(0.2, 3, len(z))[torch.randperm(len(z))].unsqueeze(1)
    plan = EpisodePlan(5, 1, 5, episodes=30)
    assert few_shot(z, y, plan).mean > few_shot(z, y, plan, distance="squared").mean


def test_paired_difference() -> None:
    z, y = clusters(1.0)
    plan = EpisodePlan(5, 1, 5, episodes=50)
    good, bad = few_shot(z, y, plan), few_shot(z + 0.3 * torch.randn_like(z), y, plan)
    gap = paired_difference(good, bad)
    assert math.isclose(gap.mean, good.mean - bad.mean, abs_tol=1e-9)
    assert torch.equal(gap.per_episode, good.per_episode - bad.per_episode)
    with pytest.raises(ConfigError, match="one episode list"):
        paired_difference(good, few_shot(z, y, EpisodePlan(5, 1, 5, episodes=50, seed=1)))


def test_errors_name_the_shape() -> None:
    z, y = clusters(1.0)
    with pytest.raises(DataError, match=r"\[96, 6\] and \[95\]"):
        few_shot(z, y[1:], EpisodePlan(5, 1))
    with pytest.raises(DataError, match="nan"):
        few_shot(z * math.nan, y, EpisodePlan(5, 1, 2))
    with pytest.raises(TooFewPicturesError, match="12 pictures"):
        few_shot(z, y, EpisodePlan(5, 1, 15))
    with pytest.raises(ConfigError, match="prototype, ridge, logistic"):
        few_shot(z, y, EpisodePlan(5, 1, 2), "svm")  # type: ignore[arg-type]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Conv4(channels=1, size=16, width=8)


def labelled() -> tuple[Net, Params, Pictures]:
    torch.manual_seed(0)
    net = Net()
    base = torch.randint(0, 256, (5, 1, 16, 16))
    x = (base.repeat_interleave(6, 0) + torch.randint(-99, 99, (30, 1, 16, 16))).clamp(0, 255).byte()
    y = torch.arange(5).repeat_interleave(6)
    weights = merged(params_of(net), buffers_of(net))
    return net, weights, Pictures(x, tuple(map(str, range(30))), y, tuple("abcde"))


def test_learner_path_agrees_with_the_feature_path() -> None:
    net, weights, pictures = labelled()
    plan = EpisodePlan(3, 2, 3, episodes=12)
    learner = PrototypeLearner(net, distance="cosine")
    one = few_shot_learner(learner, weights, pictures, plan)
    assert pictures.y is not None
    z = in_batches(net.encoder, part(weights, "encoder"), pictures.x)
    assert torch.equal(one.per_episode, few_shot(z, pictures.y, plan).per_episode)
    again = few_shot_learner(learner, weights, pictures, plan, query_batch=2)
    assert torch.equal(one.per_episode, again.per_episode)
    with pytest.raises(DataError, match="labelled"):
        few_shot_learner(learner, weights, Pictures(pictures.x, pictures.names), plan)


def test_transductive_accuracy_falls_where_queries_come_alone() -> None:
    """The trap that the default avoids: by its own statistics, a lone query looks like anything."""
    net, weights, pictures = labelled()
    plan = EpisodePlan(5, 1, 5, episodes=20)
    transductive = PrototypeLearner(net, "transductive")
    together = few_shot_learner(transductive, weights, pictures, plan)
    alone = few_shot_learner(transductive, weights, pictures, plan, query_batch=1)
    assert together.mean > alone.mean + 10
    support = PrototypeLearner(net, "support")
    whole = few_shot_learner(support, weights, pictures, plan)
    single = few_shot_learner(support, weights, pictures, plan, query_batch=1)
    assert torch.equal(whole.per_episode, single.per_episode)


@dataclass(frozen=True)
class OneStep:
    """A linear classifier trained by one gradient step inside `adapt`: needs gradients to be on."""

    def adapt(self, weights: Params, support: Examples, ways: int) -> Any:
        w = weights["w"].clone().requires_grad_()
        loss = nn.functional.cross_entropy(support.x.flatten(1) @ w, support.y)
        return w - torch.autograd.grad(loss, w)[0]

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return x.flatten(1) @ adapted


def test_learners_with_inner_steps_may_differentiate() -> None:
    _, _, pictures = labelled()
    got = few_shot_learner(OneStep(), {"w": torch.zeros(256, 3)}, pictures, EpisodePlan(3, 1, 5, episodes=10))
    assert got.mean > 50
