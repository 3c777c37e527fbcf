"""MAXL: its hypergradient against brute force and both of its forms against each other; what leaks where."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from small_tasks import VIEWS, distance, gradient, leaves_of, pictures, small
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.app.model import Model
from selftaught.app.pretrain import pretrain
from selftaught.core.errors import ConfigError
from selftaught.core.functional import set_norm
from selftaught.core.types import Params, Task
from selftaught.learners import differences
from selftaught.losses.auxiliary import mean_label_negentropy
from selftaught.methods.maxl import MAXL

Form = Literal["second-order", "finite-difference"]

METHOD = MAXL(classes=6, subclasses=3, inner_rate=0.3, batch=12, data="held-out", held_out=0.5)
FORMS: tuple[Form, ...] = ("second-order", "finite-difference")


class Pixels(nn.Module):
    """A smooth encoder without pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(256, 5)
        self.width = 5

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.map(x.flatten(1)))


class TwoNumbers(nn.Module):
    """A label generator with two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(-0.4))
        directions = torch.randn(2, 256, 18, generator=torch.Generator().manual_seed(0))
        self.directions = directions / 4

    def forward(self, x: Tensor) -> Tensor:
        one, two = (x.flatten(1) @ self.directions.to(x.dtype)).unbind(0)
        return self.a * one + self.b * two.sin()


def plain(**changes: Any) -> tuple[MAXL, nn.Module, Params, Params, Task]:
    """With the smooth encoder and the two-parameter generator, in float64."""
    method = replace(METHOD, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = method.network(Pixels())
        net.generator = TwoNumbers()
    net = net.double()
    tasks = method.source(pictures(), VIEWS)(torch.Generator().manual_seed(2))
    double = [replace(side, x=side.x.double()) for side in (tasks.support, tasks.query)]
    params, slow = method.init(net)
    return method, net, params, slow, replace(tasks, support=double[0], query=double[1])


def slow_outer(method: MAXL, net: nn.Module, params: Params, tasks: Task) -> Tensor:
    """focal(primary; theta1+) + lambda H, picture by picture, as a plain number of the generator's parameters."""
    set_norm(net, "batch")
    assert tasks.support.y is not None and tasks.query.y is not None
    x, y, theta = tasks.support.x[0], tasks.support.y[0], leaves_of(params)
    own = {k.removeprefix("generator."): v for k, v in params.items() if k.startswith("generator.")}
    z = functional_call(net.get_submodule("generator"), own, (x,))
    labels = torch.zeros_like(z)
    for row, n in enumerate(y.tolist()):
        inside = slice(n * method.subclasses, (n + 1) * method.subclasses)
        labels[row, inside] = z[row, inside].exp() / z[row, inside].exp().sum()

    def focal(logits: Tensor, target: Tensor) -> Tensor:
        p = logits.softmax(-1)
        return -(target * (1 - p) ** 2 * p.log()).sum(-1).mean()

    def primary(w: Params, x: Tensor, y: Tensor) -> Tensor:
        return focal(functional_call(net, w, (x,))[:, :6], F.one_hot(y, 6).double())

    first = primary(theta, x, y) + focal(functional_call(net, theta, (x,))[:, 6:], labels.detach())
    slopes = torch.autograd.grad(first, list(theta.values()), materialize_grads=True)
    moved = {k: v - method.inner_rate * g for (k, v), g in zip(theta.items(), slopes, strict=True)}
    mean = labels.mean(0)
    negentropy = sum(m * m.log() for m in mean if m > 0)
    return (primary(moved, tasks.query.x[0], tasks.query.y[0]) + method.entropy * negentropy).detach()


@pytest.mark.parametrize("data", ["held-out", "same"])
@pytest.mark.parametrize("form", FORMS)
def test_the_hypergradient_is_the_slope_of_the_slow_objective(form: Form, data: str) -> None:
    method, net, params, slow, tasks = plain(hypergradient=form, data=data)
    _, found = gradient(method, net, params, slow, tasks)
    for name in ("generator.a", "generator.b"):  # a difference of its own kind errs by its e^2
        up, down = (
            slow_outer(method, net, params | {name: params[name] + sign * 1e-4}, tasks) for sign in (1, -1)
        )
        assert float(found[name]) == pytest.approx(
            float(up - down) / 2e-4, rel=1e-6 if form == FORMS[0] else 5e-3
        ), name


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_both_forms_agree_for_a_whole_network(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without H, which is the same in both and would hide a difference; near enough to cross no kink of a ReLU.
    monkeypatch.setattr(differences, "REACH", 1e-5)
    found = []
    for form in FORMS:
        method = replace(METHOD, hypergradient=form, entropy=0.0)
        net, params, slow, tasks = small(method, norm)
        loss, slope = gradient(method, net, params, slow, tasks)
        found.append((loss, {k: v for k, v in slope.items() if k.startswith("generator.")}))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-12)
    assert distance(found[1][1], found[0][1]) < 1e-4
    assert all(v.any() for k, v in found[0][1].items() if k.startswith("generator.head"))


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_of_the_entropy_reaches_the_generator(form: Form) -> None:
    method, net, params, slow, tasks = plain(hypergradient=form, inner_rate=0.0, entropy=0.5)
    _, found = gradient(method, net, params, slow, tasks)
    leaves = leaves_of(params)
    assert tasks.support.y is not None
    labels, _ = method.generate(net, leaves, slow, tasks.support.x[0], tasks.support.y[0])
    expected = torch.autograd.grad(
        0.5 * mean_label_negentropy(labels), [leaves["generator.a"], leaves["generator.b"]]
    )
    assert torch.allclose(torch.stack(expected), torch.stack([found["generator.a"], found["generator.b"]]))
    assert all(e.abs() > 1e-4 for e in expected)


@pytest.mark.parametrize("form", FORMS)
def test_the_network_gets_the_gradient_of_step_1_alone(form: Form) -> None:
    method = replace(METHOD, hypergradient=form)
    net, params, slow, tasks = small(method)
    _, found = gradient(method, net, params, slow, tasks)
    leaves = {k: v for k, v in leaves_of(params).items() if not k.startswith("generator.")}
    assert tasks.support.y is not None
    x, y = tasks.support.x[0], tasks.support.y[0]
    labels, _ = method.generate(net, params, slow, x, y)
    set_norm(net, "batch")
    logits = functional_call(net, leaves, (x,))
    first = method.primary(logits, y) + method.auxiliary(logits, labels)
    slopes = torch.autograd.grad(first, list(leaves.values()))
    assert distance({k: found[k] for k in leaves}, dict(zip(leaves, slopes, strict=True))) < 1e-12


def test_the_generator_gets_nothing_from_step_1() -> None:
    """Without a look-ahead and without H, nothing is left for it."""
    for form in FORMS:
        method = replace(METHOD, hypergradient=form, inner_rate=0.0, entropy=0.0)
        net, params, slow, tasks = small(method)
        _, found = gradient(method, net, params, slow, tasks)
        assert not any(v.any() for k, v in found.items() if k.startswith("generator."))
        assert any(v.any() for k, v in found.items() if k.startswith("encoder."))


def test_the_held_out_batch_moves_the_generator_and_not_the_network() -> None:
    net, params, slow, tasks = small(METHOD)
    other = replace(tasks, query=replace(tasks.query, x=tasks.query.x.flip(-1)))
    (_, a), (_, b) = (gradient(METHOD, net, params, slow, t) for t in (tasks, other))
    for k in a:
        same = torch.equal(a[k], b[k])
        assert same == (not k.startswith("generator.")), k


@pytest.mark.parametrize("form", FORMS)
def test_statistics_are_those_of_step_1_whatever_the_form(form: Form) -> None:
    method = replace(METHOD, hypergradient=form)
    net, params, slow, tasks = small(method)
    _, aux = method.loss(net, params, slow, tasks)
    after = method.refresh(net, slow, params, tasks, aux)
    counts = [v for k, v in after.items() if k.endswith("num_batches_tracked")]
    assert counts and all(v == 1 for v in counts)
    again, _ = MAXL.loss(method, net, params, after, tasks)
    first, _ = method.loss(net, params, slow, tasks)
    assert torch.equal(again, first), "running statistics have no part in training"


def test_labels_lie_in_the_primary_class() -> None:
    net, params, slow, tasks = small(METHOD)
    assert tasks.support.y is not None
    y = tasks.support.y[0]
    labels, _ = METHOD.generate(net, params, slow, tasks.support.x[0], y)
    inside = labels.unflatten(1, (6, 3)).sum(-1)
    assert torch.allclose(inside, F.one_hot(y, 6).double())


def test_what_a_run_leaves_is_the_multi_task_networks_encoder(tmp_path: Path) -> None:
    options = {"classes": 6, "subclasses": 2, "batch": 12}
    made = pretrain(
        pictures(), out=tmp_path / "run", method="maxl", options=options, size=16, channels=1, steps=2,
        encoder_options={"width": 8}, views="glyph", quiet=True,
    )  # fmt: skip
    again = Model.load(tmp_path / "run")
    found = again.encoder.state_dict()
    assert all(torch.equal(found[k], made.weights[f"encoder.{k}"]) for k in found)
    beside = {k: v for k, v in made.weights.items() if k.startswith("generator.encoder.")}
    assert len(beside) == len(found) and not any(
        torch.equal(found["blocks.0.conv.weight"], v) for v in beside.values()
    )
    assert again.embed(pictures()).shape == (36, again.width)


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigError, match="classes=6"):
        replace(METHOD, classes=5).source(pictures(), VIEWS)
    with pytest.raises(ConfigError, match="subclasses >= 1"):
        MAXL(subclasses=0)
