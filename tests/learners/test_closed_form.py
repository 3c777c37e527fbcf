"""Conv4's closed-form derivatives against autograd and finite differences, in float64."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import params_of, set_norm
from selftaught.core.types import Params
from selftaught.learners.closed_form import ClosedForm, closed_form, features, loss_and_logits, rules_for, why_not
from selftaught.learners.gradient import spread_head
from selftaught.learners.inner import TAPES_MIB, FusedGraph, choose_graph, descend
from selftaught.nets.conv4 import Conv4
from selftaught.nets.heads import WithClassifier

WAYS = 3
Readout = Literal["flatten", "mean"]
SHAPES = [(1, 16, "flatten"), (3, 36, "flatten"), (1, 44, "mean"), (2, 17, "flatten")]
each_shape = pytest.mark.parametrize(("channels", "size", "readout"), SHAPES)


class Problem:
    """Six labelled pictures; weights away from every symmetry, some gammas negative."""

    def __init__(self, channels: int = 1, size: int = 16, readout: Readout = "flatten") -> None:
        torch.manual_seed(size)
        encoder = Conv4(channels, size, width=8, readout=readout)
        self.net = WithClassifier(encoder, encoder.width).double()
        set_norm(self.net, "batch")
        weights = spread_head(params_of(self.net), WAYS)
        self.weights = {k: v + 0.3 * torch.randn(v.shape, dtype=torch.float64) for k, v in weights.items()}
        for i in range(4):
            self.weights[f"encoder.blocks.{i}.norm.weight"][::3] *= -1
        self.x = torch.rand(6, channels, size, size, dtype=torch.float64)
        self.y = torch.tensor([0, 2, 1, 1, 0, 2])
        self.query = torch.rand(9, channels, size, size, dtype=torch.float64), torch.arange(WAYS).repeat(3)
        self.along = {k: torch.randn(v.shape, dtype=torch.float64) for k, v in self.weights.items()}

    def loss(self, w: Params, outer: tuple[Tensor, ...] = ()) -> Tensor:
        return F.cross_entropy(functional_call(self.net, w, (self.x,)), self.y)

    def form(self) -> ClosedForm:
        return closed_form(self.net, self.x, self.y)


def close(found: Params, expected: Params, tolerance: float = 1e-11) -> None:
    assert list(found) == list(expected)
    for k, v in expected.items():
        assert (found[k] - v).norm() <= tolerance * v.norm() + 1e-14, k


@each_shape
def test_gradient_and_loss_are_autograds(channels: int, size: int, readout: Readout) -> None:
    p = Problem(channels, size, readout)
    slope, tape = p.form().slope(p.weights)
    close(slope, torch.func.grad(p.loss)(p.weights))
    assert torch.allclose(tape.loss, p.loss(p.weights), rtol=1e-12)
    assert torch.allclose(tape.logits, functional_call(p.net, p.weights, (p.x,)), rtol=1e-10)


@each_shape
def test_hessian_vector_product_is_autograds(channels: int, size: int, readout: Readout) -> None:
    p = Problem(channels, size, readout)
    form = p.form()
    _, tape = form.slope(p.weights)
    expected = torch.func.jvp(torch.func.grad(p.loss), (p.weights,), (p.along,))[1]
    close(form.curvature(tape, p.along), expected)


def test_hessian_vector_product_is_the_gradients_slope() -> None:
    """Finite differences of the closed-form gradient itself: a check that shares nothing with autograd."""
    p = Problem()
    form, h = p.form(), 1e-6
    ahead, _ = form.slope({k: v + h * p.along[k] for k, v in p.weights.items()})
    behind, _ = form.slope({k: v - h * p.along[k] for k, v in p.weights.items()})
    found = form.curvature(form.slope(p.weights)[1], p.along)
    close(found, {k: (ahead[k] - behind[k]) / (2 * h) for k in ahead}, 1e-6)


def test_product_is_symmetric_and_linear() -> None:
    p = Problem(3, 36)
    form = p.form()
    tape = form.slope(p.weights)[1]
    other = {k: torch.randn_like(v) for k, v in p.along.items()}
    one, two = form.curvature(tape, p.along), form.curvature(tape, other)
    left = sum((one[k] * other[k]).sum() for k in one)
    right = sum((two[k] * p.along[k]).sum() for k in two)
    assert torch.allclose(torch.as_tensor(left), torch.as_tensor(right), rtol=1e-9)
    both = form.curvature(tape, {k: 2 * p.along[k] - other[k] for k in other})
    close(both, {k: 2 * one[k] - two[k] for k in one}, 1e-9)


@pytest.mark.parametrize("graph", ["fused", "fused-remat"])
@pytest.mark.parametrize("steps", [1, 3])
def test_whole_meta_gradient_is_the_unrolled_one(graph: FusedGraph, steps: int) -> None:
    p = Problem()

    def gradient(graph: FusedGraph) -> Params:
        leaves = {k: v.clone().requires_grad_() for k, v in p.weights.items()}
        rate = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        rules = rules_for(graph, p.net, p.x, p.y)
        adapted = descend(p.loss, leaves, (), rate, steps, graph, rules)
        if rules is None:
            asked = F.cross_entropy(functional_call(p.net, adapted, (p.query[0],)), p.query[1])
        else:
            asked, _ = loss_and_logits(closed_form(p.net, *p.query), adapted)
        found = torch.autograd.grad(3 * asked, [*leaves.values(), rate])
        return dict(zip([*leaves, "rate"], found, strict=True))

    close(gradient(graph), gradient("unrolled"), 1e-10)


@each_shape
def test_features_and_their_gradient_are_the_networks(channels: int, size: int, readout: Readout) -> None:
    p = Problem(channels, size, readout)
    leaves = {k: v.clone().requires_grad_() for k, v in p.weights.items() if k.startswith("encoder.")}
    own = {k.removeprefix("encoder."): v for k, v in leaves.items()}
    expected = functional_call(p.net.encoder, own, (p.x,))
    found = features(p.net, leaves | {"head.bias": p.weights["head.bias"]}, p.x)
    assert torch.allclose(found, expected, rtol=1e-10)
    along = torch.randn_like(expected)
    slopes = (torch.autograd.grad((z * along).sum(), list(leaves.values())) for z in (found, expected))
    a, b = (dict(zip(leaves, slope, strict=True)) for slope in slopes)
    close(a, b, 1e-10)


def test_pieces_of_the_stem_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem(3, 36)
    whole = p.form().slope(p.weights)[1]
    product = p.form().curvature(whole, p.along)
    monkeypatch.setattr("selftaught.nets.conv4_calculus._PIECE", 4 * 8 * 36 * 36)  # four pictures, then two
    slope, tape = p.form().slope(p.weights)
    close(slope, torch.func.grad(p.loss)(p.weights))
    close(p.form().curvature(tape, p.along), product)


@pytest.mark.parametrize("pictures", [1, 2, 4])
def test_parts_of_a_batch_are_the_whole(pictures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem(3, 36)
    product = p.form().curvature(p.form().slope(p.weights)[1], p.along)
    monkeypatch.setattr("selftaught.nets.conv4_calculus._PART", pictures * 36 * 36)
    form = p.form()
    assert [part.size[0] for part in form.encoder.patches] == {1: [1] * 6, 2: [2, 2, 2], 4: [3, 3]}[pictures]
    slope, tape = form.slope(p.weights)
    close(slope, torch.func.grad(p.loss)(p.weights))
    close(form.slope(p.weights, keep=False)[0], slope)
    close(form.curvature(tape, p.along), product)


def test_weights_and_pictures_keep_their_numbers() -> None:
    p = Problem()
    weights, x = {k: v.clone() for k, v in p.weights.items()}, p.x.clone()
    form = p.form()
    form.curvature(form.slope(p.weights)[1], p.along)
    assert torch.equal(x, p.x) and all(torch.equal(weights[k], v) for k, v in p.weights.items())


def test_second_derivative_of_the_loss_is_refused() -> None:
    p = Problem()
    leaves = {k: v.clone().requires_grad_() for k, v in p.weights.items()}
    loss, _ = loss_and_logits(p.form(), leaves)
    (slope,) = torch.autograd.grad(loss * loss, leaves["head.bias"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_networks_without_rules_are_named() -> None:
    group = WithClassifier(Conv4(1, 16, width=8, norm="group"), 8)
    other = WithClassifier(nn.Sequential(nn.Flatten(), nn.Linear(256, 8)), 8)
    x, y = torch.rand(3, 1, 16, 16), torch.arange(3)
    for net, word in ((group, "normalisation"), (other, "Sequential"), (nn.Linear(1, 1), "Linear")):
        assert word in (why_not(net) or "")
        with pytest.raises(ConfigError, match="graph='auto'"):
            rules_for("fused", net, x, y)
        assert rules_for("auto", net, x, y) is None
    assert why_not(Problem().net) is None


def test_auto_takes_what_is_there() -> None:
    p = Problem()
    form = p.form()

    def chosen(steps: int, rules: ClosedForm | None, device: str = "cpu", batched: bool = False) -> FusedGraph:
        return choose_graph("auto", steps, rules=rules, device=device, batched=batched)

    assert chosen(5, form) == "fused"
    assert chosen(int(TAPES_MIB / form.tape_mib) + 1, form) == "fused-remat"
    assert chosen(5, None) == "unrolled" and chosen(6, None) == "adjoint"
    assert chosen(50, None, batched=True) == "unrolled" and chosen(5, form, "cuda") == "unrolled"
    assert choose_graph("adjoint", 1, rules=form, device="cpu", batched=False) == "adjoint"


def test_estimate_of_a_tape_is_near_its_bytes() -> None:
    encoder = Conv4(1, 28)
    net = WithClassifier(encoder, encoder.width)
    form = closed_form(net, torch.rand(25, 1, 28, 28), torch.arange(5).repeat(5))
    slope, tape = form.slope(spread_head(params_of(net), 5))
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(tape)}
    mine = {v.data_ptr() for v in slope.values()} | {p.columns.data_ptr() for p in form.encoder.patches}
    total = sum(n for place, n in held.items() if place not in mine) / 2**20
    assert 0.7 < form.tape_mib / total < 1.3


def _tensors(thing: object) -> list[Tensor]:
    if isinstance(thing, Tensor):
        return [thing]
    parts = (
        thing if isinstance(thing, list | tuple) else vars(thing).values() if hasattr(thing, "__dict__") else []
    )
    return [t for part in parts for t in _tensors(part)]
