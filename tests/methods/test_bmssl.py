"""BMSSL against what bootstrapped meta-gradients must equal."""

from typing import Any, Literal

import pytest
import torch
from small_tasks import distance, gradient, leaves_of, small
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import selftaught.methods.bmssl as module
from selftaught.core.errors import ConfigError
from selftaught.core.functional import set_norm
from selftaught.core.types import Params, Task
from selftaught.learners.inner import descend_detached
from selftaught.losses.contrastive import nt_xent
from selftaught.methods.bmssl import BMSSL
from selftaught.nets.heads import MLP, WithProjector, width_of

SMALL: dict[str, Any] = {
    "tasks": 2, "ways": 5, "hidden": 12, "out": 6, "inner_steps": 2, "inner_rate": 0.3, "temperature": 0.2,
    "bootstrap": 1.0, "outer": "info-nce",
}  # fmt: skip
BOOTSTRAP_ONLY: dict[str, Any] = {**SMALL, "contrastive": 0.0}


def posterior(net: nn.Module, w: Params, support: Tensor, query: Tensor, ways: int, temperature: float) -> Tensor:
    """Cosines of queries to the mean support views, over the temperature."""
    z = F.normalize(functional_call(net, w, (support,)), dim=-1)
    centres = F.normalize(torch.stack([z[n::ways].mean(0) for n in range(ways)]), dim=-1)
    return F.normalize(functional_call(net, w, (query,)), dim=-1) @ centres.T / temperature


class Features(nn.Module):
    """The projector on features, under its full name."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.projector = net.projector

    def forward(self, h: Tensor) -> Tensor:
        return self.projector(h)  # type: ignore[operator]


def query_meta_gradient(method: BMSSL, net: nn.Module, params: Params, tasks: Task) -> Params:
    """MAML's gradient of the query loss through the adapted weights, by a plain loop and plain autograd."""
    leaves = leaves_of(params)
    set_norm(net, "batch")
    total = torch.zeros((), dtype=torch.float64)
    whole = method.adapt == "all"
    x = torch.cat([tasks.support.x, tasks.query.x], 1)
    h = x if whole else functional_call(net.encoder, part_of(leaves), (x.flatten(0, 1),)).unflatten(0, x.shape[:2])
    own = net if whole else Features(net)
    rows = tasks.support.x.shape[1]
    for features in h:
        support, query = features[:rows], features[rows:]
        w = {k: v for k, v in leaves.items() if whole or k.startswith("projector.")}
        for _ in range(method.inner_steps):
            z = functional_call(own, w, (support,)).unflatten(0, (-1, tasks.ways))
            slope = torch.autograd.grad(nt_xent(z, method.temperature), list(w.values()), create_graph=True)
            w = {k: v - method.inner_rate * g for (k, v), g in zip(w.items(), slope, strict=True)}
        logits = posterior(own, w, support.detach(), query.detach(), tasks.ways, method.temperature)
        total = total + F.cross_entropy(logits, torch.arange(tasks.ways).repeat(len(query) // tasks.ways))
    found = torch.autograd.grad(total / len(h), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def part_of(params: Params) -> Params:
    return {k.removeprefix("encoder."): v for k, v in params.items() if k.startswith("encoder.")}


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("adapt", ["all", "head"])
def test_one_target_step_and_l2_is_maml_on_view_tasks(adapt: Literal["all", "head"], norm: str) -> None:
    """Flennerhag et al. 2022: then the gradient is the last step's rate times the meta-gradient."""
    method = BMSSL(**BOOTSTRAP_ONLY, adapt=adapt, bootstrap_steps=1, matching="l2", target_rate=0.07)
    net, params, slow, tasks = small(method, norm)
    _, found = gradient(method, net, params, slow, tasks)
    expected = query_meta_gradient(method, net, params, tasks)
    assert distance(found, {k: 0.07 * g for k, g in expected.items()}) < 1e-9
    encoder = torch.stack([g.abs().max() for k, g in found.items() if k.startswith("encoder.")])
    assert encoder.max() > 0


def test_more_target_steps_are_another_gradient() -> None:
    """So that the identity above is not true of everything."""
    one = BMSSL(**BOOTSTRAP_ONLY, adapt="all", bootstrap_steps=1, matching="l2")
    many = BMSSL(**BOOTSTRAP_ONLY, adapt="all", bootstrap_steps=4, matching="l2")
    net, params, slow, tasks = small(one)
    (_, a), (_, b) = gradient(one, net, params, slow, tasks), gradient(many, net, params, slow, tasks)
    assert distance(a, b) > 0.05


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ConfigError, match="gradient is zero"):
        BMSSL(bootstrap_steps=0, contrastive=0)
    with pytest.raises(ConfigError, match="gradient is zero"):
        BMSSL(bootstrap=0, contrastive=0)
    with pytest.raises(ConfigError, match="negative"):
        BMSSL(inner_steps=-1)
    with pytest.raises(ConfigError, match="negative"):
        BMSSL(bootstrap_steps=-1)
    BMSSL(bootstrap_steps=0)


@pytest.mark.parametrize("matching", ["kl", "kl-reverse"])
def test_the_posterior_of_oneself_is_no_gap(matching: Literal["kl", "kl-reverse"]) -> None:
    """With rates of zero the target is the model: the bootstrapped term and its gradient vanish."""
    still = SMALL | {"inner_rate": 0.0, "contrastive": 0.0, "matching": matching}
    net, params, slow, tasks = small(BMSSL(**still, adapt="all"))
    loss, found = gradient(BMSSL(**still, adapt="all"), net, params, slow, tasks)
    assert loss.abs() < 1e-14 and all(g.abs().max() < 1e-12 for g in found.values())
    moves = BMSSL(**still | {"target_rate": 0.1}, adapt="all")
    loss, found = gradient(moves, net, params, slow, tasks)
    assert loss > 1e-6 and any(g.abs().max() > 1e-6 for g in found.values())


@pytest.mark.parametrize("adapt", ["head", "last", "all"])
@pytest.mark.parametrize("matching", ["kl", "l2"])
def test_the_target_is_a_constant(
    adapt: Literal["head", "last", "all"], matching: Literal["kl", "l2"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No target tensor asks for a gradient, and putting its numbers in by hand changes no bit."""
    method = BMSSL(**BOOTSTRAP_ONLY, adapt=adapt, matching=matching, bootstrap_steps=3, path="loop")
    net, params, slow, tasks = small(method)
    made: list[Params] = []

    def watched(*args: Any) -> Params:
        made.append(descend_detached(*args))
        return made[-1]

    monkeypatch.setattr(module, "descend_detached", watched)
    _, found = gradient(method, net, params, slow, tasks)
    assert len(made) == 2 * tasks.support.x.shape[0]
    assert not any(v.requires_grad for target in made for v in target.values())
    replay = iter([{k: v.clone() for k, v in target.items()} for target in made])
    monkeypatch.setattr(module, "descend_detached", lambda *args: next(replay))
    _, again = gradient(method, net, params, slow, tasks)
    assert all(torch.equal(found[k], again[k]) for k in found)


def test_a_target_with_a_way_back_would_be_another_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake that raises no error: the loss is the same, the gradient is not."""
    method = BMSSL(**BOOTSTRAP_ONLY, adapt="all", matching="l2", bootstrap_steps=3, path="loop")
    net, params, slow, tasks = small(method)
    loss, right = gradient(method, net, params, slow, tasks)

    def attached(inner: Any, w: Params, outer: Any, rate: float, steps: int) -> Params:
        for _ in range(steps):
            slope = torch.func.grad(inner)(w, outer)
            w = {k: v - rate * slope[k] for k, v in w.items()}
        return w

    def gap(w: Params, target: Params) -> Tensor:
        return torch.stack([(w[k] - target[k]).square().sum() for k in w]).sum() / 2

    monkeypatch.setattr(module, "descend_detached", attached)
    monkeypatch.setattr(module, "half_squared_distance", gap)
    other, wrong = gradient(method, net, params, slow, tasks)
    assert torch.allclose(loss, other, rtol=1e-12)
    assert distance(wrong, right) > 0.01


@pytest.mark.parametrize("adapt", ["all", "head"])
def test_without_steps_level_one_is_gone(adapt: Literal["all", "head"]) -> None:
    """K = 0 and no bootstrap: plain InfoNCE of the query views over the support views' means."""
    method = BMSSL(**SMALL | {"inner_steps": 0}, bootstrap_steps=0, adapt=adapt)
    net, params, slow, tasks = small(method, "group")
    loss, found = gradient(method, net, params, slow, tasks)
    leaves = leaves_of(params)
    y = torch.arange(tasks.ways).repeat(2)
    each = [
        F.cross_entropy(posterior(net, leaves, s, q, tasks.ways, method.temperature), y)
        for s, q in zip(tasks.support.x, tasks.query.x, strict=True)
    ]
    expected = torch.stack(each).mean()
    slopes = torch.autograd.grad(expected, list(leaves.values()))
    assert torch.allclose(loss, expected, rtol=1e-12)
    assert distance(found, dict(zip(leaves, slopes, strict=True))) < 1e-9


def test_level_one_without_steps_still_has_a_target() -> None:
    method = BMSSL(**BOOTSTRAP_ONLY | {"inner_steps": 0}, bootstrap_steps=2, adapt="all")
    loss, found = gradient(method, *small(method))
    assert loss > 0 and any(g.any() for g in found.values())


def test_the_terms_add_up() -> None:
    parts = [BMSSL(**SMALL), BMSSL(**BOOTSTRAP_ONLY), BMSSL(**SMALL, bootstrap_steps=0)]
    setting = small(parts[0])
    both, bootstrap, contrast = (gradient(method, *setting)[0] for method in parts)
    assert torch.allclose(both, bootstrap + contrast, rtol=1e-12)
    weighted = BMSSL(**SMALL | {"contrastive": 0.5, "bootstrap": 3})
    assert torch.allclose(gradient(weighted, *setting)[0], 3 * bootstrap + 0.5 * contrast, rtol=1e-12)
    _, aux = parts[0].loss(*setting)
    assert torch.allclose(aux.metrics["bootstrap"], bootstrap) and torch.allclose(
        aux.metrics["contrastive"], contrast
    )


def test_outer_nt_xent_is_simclrs_loss_on_all_views() -> None:
    method = BMSSL(**SMALL | {"inner_steps": 0, "tasks": 1, "outer": "nt-xent"}, bootstrap_steps=0)
    net, params, slow, tasks = small(method, "group")
    x = torch.cat([tasks.support.x[0], tasks.query.x[0]])
    z = functional_call(net, params, (x,)).unflatten(0, (4, tasks.ways))
    assert torch.allclose(method.loss(net, params, slow, tasks)[0], nt_xent(z, method.temperature), rtol=1e-12)


def test_few_pictures_make_smaller_tasks() -> None:
    """A set smaller than `ways` gives smaller tasks, and the method follows the task and not its field."""
    method = BMSSL(**SMALL | {"ways": 1000})
    net, params, slow, tasks = small(method)
    assert tasks.ways == 36 and method.loss(net, params, slow, tasks)[0].isfinite()


@pytest.mark.parametrize("options", [
    {}, {"outer": "nt-xent"}, {"matching": "l2"}, {"matching": "kl-reverse", "target_rate": 0.2},
    {"inner_steps": 7}, {"inner_steps": 0}, {"bootstrap_steps": 0}, {"graph": "first-order"}, {"tasks": 1},
])  # fmt: skip
def test_heads_of_all_tasks_at_once_are_one_after_the_other(options: dict[str, Any]) -> None:
    """Without a `path` a head's tasks run as batched matrix products; with one, through autograd."""
    at_once, one_by_one = BMSSL(**SMALL | options), BMSSL(**SMALL | options, path="loop")
    setting = small(at_once)
    (loss, found), (expected, other) = (gradient(m, *setting) for m in (at_once, one_by_one))
    assert torch.allclose(loss, expected, rtol=1e-12) and distance(found, other) < 1e-10
    (_, a), (_, b) = (m.loss(*setting) for m in (at_once, one_by_one))
    assert a.metrics.keys() == b.metrics.keys()
    assert all(torch.allclose(a.metrics[k], b.metrics[k], rtol=1e-9, atol=1e-14) for k in a.metrics)
    assert not any(v.requires_grad for v in a.metrics.values())
    assert all(torch.equal(a.buffers[k], b.buffers[k]) for k in b.buffers)


def test_a_head_with_normalisation_runs_through_autograd() -> None:
    """Its statistics are of each task and view set, and move."""
    method = BMSSL(**SMALL)
    net, _, _, tasks = small(method)
    encoder = net.get_submodule("encoder")
    net = WithProjector(encoder, MLP([width_of(encoder), 12, 6], norm=True)).double()
    params, slow = method.init(net)
    _, aux = method.loss(net, leaves_of(params), slow, tasks)
    name = "projector.layers.1.running_mean"
    assert not torch.equal(aux.buffers[name], slow[name])
