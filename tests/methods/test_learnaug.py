"""Learned augmentation: whose gradient goes where, the hypergradient against differences, a toy with an answer."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from small_tasks import VIEWS, gradient, pictures, small
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply
from selftaught.core.train import start, train
from selftaught.core.types import Examples, Params, Task
from selftaught.data.differentiable import LIMITS, differentiable_view
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.losses.contrastive import nt_xent
from selftaught.methods.learnaug import LearnedAugmentation
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.episodes import EpisodeSource
from selftaught.tasks.views import ViewTasks

SMALL: dict[str, Any] = {"hidden": 12, "out": 6, "inner_rate": 0.05, "speed": 3.0}
VIEWS_ASK = LearnedAugmentation("views", batch=8, **SMALL)
LABELS_ASK = LearnedAugmentation("labels", ways=3, shots=2, queries=2, **SMALL)
both = pytest.mark.parametrize("method", [VIEWS_ASK, LABELS_ASK], ids=["views", "labels"])


def weights_of(params: Params) -> Params:
    return {k: v for k, v in params.items() if k != "strengths"}


def pair_of(method: LearnedAugmentation, params: Params, tasks: Task) -> Tensor:
    """The two views [2*B C H W] of the pictures that train."""
    x = tasks.support.x[0][:4] if method.question == "views" else tasks.support.x[0]
    limits = torch.tensor(list(LIMITS.values()), dtype=x.dtype)
    a = limits / (1 + (-method.speed * params["strengths"]).exp())
    return torch.cat([differentiable_view(x[:, :1], x[:, 1:3], a), differentiable_view(x[:, :1], x[:, 3:5], a)])


def inner_loss(net: nn.Module, w: Params, pair: Tensor) -> Tensor:
    return nt_xent(apply(net, w, pair, "batch").unflatten(0, (2, -1)), 0.2)


def validation(method: LearnedAugmentation, net: Any, w: Params, tasks: Task) -> Tensor:
    """The outer question, picture by picture for labels."""
    query = tasks.query.x[0]
    if method.question == "views":
        return inner_loss(net, w, torch.cat([query[4:8], query[12:16]]))
    own = {k.removeprefix("encoder."): v for k, v in w.items() if k.startswith("encoder.")}
    z = apply(net.encoder, own, torch.cat([tasks.support.x[0][:, :1], query]), "batch")
    support, asked = z[:6], z[6:]
    centres = [(support[n] + support[n + 3]) / 2 for n in range(3)]
    terms = []
    for i, q in enumerate(asked):
        cosines = torch.stack([F.cosine_similarity(q, c, dim=0) for c in centres]) / 0.2
        terms.append(cosines.logsumexp(0) - cosines[i % 3])
    return torch.stack(terms).mean()


@both
def test_the_loss_is_the_formula(method: LearnedAugmentation) -> None:
    net, params, slow, tasks = small(method)
    loss, aux = method.loss(net, params, slow, tasks)
    w = {k: v.clone().requires_grad_() for k, v in weights_of(params).items()}
    train_loss = inner_loss(net, w, pair_of(method, params, tasks))
    slopes = torch.autograd.grad(train_loss, list(w.values()))
    moved = {k: (v - 0.05 * g).detach() for (k, v), g in zip(w.items(), slopes, strict=True)}
    outer = validation(method, net, moved, tasks)
    assert torch.allclose(aux.metrics["train"], train_loss, rtol=1e-10)
    assert torch.allclose(aux.metrics["validation"], outer, rtol=1e-10)
    assert torch.allclose(loss, train_loss + outer, rtol=1e-10)
    assert [float(aux.metrics[k]) for k in LIMITS] == pytest.approx([0.3 * v for v in LIMITS.values()])


@both
def test_weights_get_the_training_gradient_alone(method: LearnedAugmentation) -> None:
    net, params, slow, tasks = small(method)
    _, found = gradient(method, net, params, slow, tasks)
    w = {k: v.clone().requires_grad_() for k, v in weights_of(params).items()}
    slopes = torch.autograd.grad(inner_loss(net, w, pair_of(method, params, tasks)), list(w.values()))
    for k, g in zip(w, slopes, strict=True):
        assert torch.allclose(found[k], g, rtol=1e-8, atol=1e-12), k
    # Labels and pictures of the question move the strengths, and nothing else.
    other = dataclasses.replace(tasks, query=Examples(tasks.query.x.flip(1), tasks.query.y))
    _, moved = gradient(method, net, params, slow, other)
    assert all(torch.equal(moved[k], found[k]) for k in w)
    assert not torch.allclose(moved["strengths"], found["strengths"])


@both
@pytest.mark.parametrize("steps", [1, 2])
def test_the_hypergradient_agrees_with_finite_differences(method: LearnedAugmentation, steps: int) -> None:
    method = dataclasses.replace(method, inner_steps=steps)
    net, params, slow, tasks = small(method)
    _, found = gradient(method, net, params, slow, tasks)
    slope, eps = found["strengths"], 1e-6
    assert (slope.abs() > 1e-5).all()
    for i in range(len(LIMITS)):
        step = torch.zeros(len(LIMITS), dtype=torch.float64)
        step[i] = eps
        values = [
            float(
                method.loss(net, params | {"strengths": params["strengths"] + s}, slow, tasks)[1].metrics[
                    "validation"
                ]
            )
            for s in (step, -step)
        ]
        assert (values[0] - values[1]) / (2 * eps) == pytest.approx(float(slope[i]), rel=1e-4, abs=1e-8), i


@both
def test_both_graphs_give_one_hypergradient(method: LearnedAugmentation) -> None:
    slopes = []
    for graph in ("unrolled", "adjoint"):
        chosen = dataclasses.replace(method, graph=graph, inner_steps=3)
        slopes.append(gradient(chosen, *small(chosen))[1])
    assert all(torch.allclose(slopes[0][k], slopes[1][k], rtol=1e-8, atol=1e-12) for k in slopes[0])


def test_without_a_step_no_strength_is_to_blame() -> None:
    method = dataclasses.replace(VIEWS_ASK, inner_rate=0.0)
    assert not gradient(method, *small(method))[1]["strengths"].any()


def test_the_source_is_the_tasks_and_noise() -> None:
    drawn = VIEWS_ASK.source(pictures(), VIEWS)(torch.Generator().manual_seed(1))
    plain = ViewTasks(pictures(), VIEWS, 1, 8, 1, 2, raw_support=True)(torch.Generator().manual_seed(1))
    assert torch.equal(drawn.support.x[:, :, :1], plain.support.x) and torch.equal(drawn.query.x, plain.query.x)
    assert drawn.support.x.shape == (1, 8, 5, 16, 16)
    labelled = LABELS_ASK.source(pictures(), VIEWS)(torch.Generator().manual_seed(1))
    episodes = EpisodeSource(pictures(), 3, 2, 2, 1)(torch.Generator().manual_seed(1))
    assert torch.equal(labelled.support.x[:, :, :1], episodes.support.x) and labelled.support.y is not None


# ------------------------------------------------------------------------------------------------- a toy


def bars(per_class: int = 16, size: int = 16) -> Pictures:
    """Four classes of bars, told apart by their direction and by nothing else: places are random."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*(torch.arange(size) - (size - 1) / 2,) * 2, indexing="ij")
    found = []
    for k in range(4):
        cos, sin = math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)
        for place in (torch.rand(per_class, 2, generator=generator) - 0.5) * 8:
            across, along = (
                (x - place[0]) * cos + (y - place[1]) * sin,
                (y - place[1]) * cos - (x - place[0]) * sin,
            )
            found.append((across.abs() < 1.2) & (along.abs() < 5))
    like = pictures().take(torch.zeros(4 * per_class, dtype=torch.int64))
    return dataclasses.replace(
        like, x=(torch.stack(found)[:, None] * 255).to(torch.uint8), y=torch.arange(4).repeat_interleave(per_class)
    )


class Filters(nn.Module):
    """Two convolutions and a mean over places: it can tell directions, and does not see places."""

    width = 8

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 7, 2, 3), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x)))).mean((2, 3))


def test_turning_is_unlearned_where_direction_is_the_class() -> None:
    """Views turned by up to 45 degrees make two classes one: of all strengths this one falls most."""
    method = LearnedAugmentation(
        "labels", ways=4, shots=3, queries=3, inner_rate=0.3, start=0.5, speed=40.0, hidden=16, out=8
    )
    left = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = method.network(Filters())
        optimizer = Gradient(rate=3e-3, schedule="constant")
        run = train(
            method, net, method.source(bars(), Views()), optimizer, start(method, net, optimizer, seed), 50
        )
        first, *_, last = [figures for _, figures in run]
        assert first["rotate"] == pytest.approx(45, rel=1e-5)
        left.append({k: last[k] / first[k] for k in LIMITS})
    assert all(one["rotate"] < 0.6 for one in left), left
    means = {k: sum(one[k] for one in left) / 2 for k in LIMITS}
    assert min(means, key=lambda k: means[k]) == "rotate", means


def test_what_leaves_nothing_to_learn_is_refused() -> None:
    for wrong in ({"start": 0.0}, {"start": 1.0}, {"inner_steps": 0}):
        with pytest.raises(ConfigError, match="use 0 < start < 1 and inner_steps >= 1"):
            LearnedAugmentation(**wrong)
