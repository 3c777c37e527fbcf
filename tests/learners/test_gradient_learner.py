"""Learning a task by gradient steps: labels, shots and normalisation as promised."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.functional import buffers_of, params_of, set_norm
from selftaught.core.types import Examples, Params, merged
from selftaught.learners.gradient import GradientLearner, moving_names, spread_head
from selftaught.learners.prototype import LearnerNorm
from selftaught.nets.conv4 import Conv4
from selftaught.nets.heads import WithClassifier

NORMS: tuple[LearnerNorm, ...] = ("running", "support", "transductive")
each_norm = pytest.mark.parametrize("norm", NORMS)


def setting(group: bool = False) -> tuple[nn.Module, Params, Examples, Tensor]:
    """Six support pictures of three classes and seven queries; statistics far from the batch's."""
    torch.manual_seed(0)
    net = WithClassifier(Conv4(1, 16, 8, norm="group" if group else "batch"), 8).double()
    nn.init.normal_(net.head.weight)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.2, 1)
    weights = merged(params_of(net), buffers_of(net))
    x = torch.rand(13, 1, 16, 16, dtype=torch.float64)
    return net, weights, Examples(x[:6], torch.arange(3).repeat(2)), x[6:]


@each_norm
def test_renaming_and_reordering_the_support(norm: LearnerNorm) -> None:
    net, weights, support, query = setting()
    learner = GradientLearner(net, 3, 0.3, norm=norm)
    assert support.y is not None
    logits = learner.predict(learner.adapt(weights, support, 3), query)
    order = torch.tensor([1, 2, 0])
    renamed = learner.predict(learner.adapt(weights, Examples(support.x, order[support.y]), 3), query)
    assert torch.allclose(renamed[:, order], logits, atol=1e-10)
    rows = torch.tensor([5, 3, 1, 0, 2, 4])
    shuffled = learner.adapt(weights, Examples(support.x[rows], support.y[rows]), 3)
    assert torch.allclose(learner.predict(shuffled, query), logits, atol=1e-10)
    unnamed = learner.adapt(weights, Examples(support.x), 3)
    assert torch.equal(learner.predict(unnamed, query), logits), "rows are by shot, then class"


@each_norm
def test_the_steps_are_gradient_descent(norm: LearnerNorm) -> None:
    """Under the statistics of training, or under those of the support."""
    net, weights, support, _ = setting()
    adapted = GradientLearner(net, 2, 0.3, norm=norm).adapt(weights, support, 3)
    set_norm(net, "running" if norm == "running" else "batch")
    w = {k: v.clone() for k, v in weights.items()}
    for k in ("head.weight", "head.bias"):
        w[k] = torch.cat([w[k]] * 3)
    names = [k for k, _ in net.named_parameters()]
    for _ in range(2):
        leaves = {k: w[k].requires_grad_() for k in names}
        loss = F.cross_entropy(functional_call(net, w | leaves, (support.x,)), support.y)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        w |= {k: (leaves[k] - 0.3 * g).detach() for k, g in zip(names, slopes, strict=True)}
    assert adapted.keys() == w.keys()
    assert all(torch.allclose(adapted[k], w[k], atol=1e-12) for k in names)


def test_unequal_shots() -> None:
    """Four of one class, one of each other; a class twice in the support counts twice."""
    net, weights, support, query = setting()
    learner = GradientLearner(net, 5, 0.3)
    y = torch.tensor([0, 0, 0, 0, 1, 2])
    logits = learner.predict(learner.adapt(weights, Examples(support.x, y), 3), query)
    assert logits.shape == (7, 3) and logits.isfinite().all()
    on_support = learner.predict(learner.adapt(weights, Examples(support.x, y), 3), support.x)
    assert F.cross_entropy(on_support, y) < torch.tensor(3.0).log()
    twice = Examples(torch.cat([support.x, support.x]), torch.cat([y, y]))
    assert torch.allclose(learner.predict(learner.adapt(weights, twice, 3), query), logits, atol=1e-10)


@pytest.mark.parametrize("norm", ["running", "support"])
def test_inductive_predictions_do_not_see_other_queries(norm: LearnerNorm) -> None:
    net, weights, support, query = setting()
    learner = GradientLearner(net, 3, 0.3, norm=norm)
    adapted = learner.adapt(weights, support, 3)
    whole = learner.predict(adapted, query)
    parts = torch.cat([learner.predict(adapted, one) for one in query.split(1)])
    assert torch.allclose(parts, whole, atol=1e-10)


def test_transductive_predictions_do() -> None:
    net, weights, support, query = setting()
    learner = GradientLearner(net, 3, 0.3, norm="transductive")
    adapted = learner.adapt(weights, support, 3)
    assert not torch.allclose(learner.predict(adapted, query[:4]), learner.predict(adapted, query)[:4], atol=1e-3)


def test_support_statistics_are_those_of_the_adapted_support() -> None:
    net, weights, support, _ = setting()
    found = {}
    for norm in NORMS:
        learner = GradientLearner(net, 3, 0.3, norm=norm)
        found[norm] = learner.predict(learner.adapt(weights, support, 3), support.x)
    # On the support itself, its own statistics and those of the batch at hand are the same thing.
    assert torch.allclose(found["support"], found["transductive"], atol=1e-10)
    assert not torch.allclose(found["support"], found["running"], atol=1e-3)


def test_group_normalisation_knows_no_difference() -> None:
    net, weights, support, query = setting(group=True)
    found = [GradientLearner(net, 3, 0.3, norm=n) for n in NORMS]
    logits = [learner.predict(learner.adapt(weights, support, 3), query) for learner in found]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("moving", ["all", "head"])
def test_what_moves(moving: Literal["all", "head"]) -> None:
    net, weights, support, _ = setting()
    before = {k: v.clone() for k, v in weights.items()}
    adapted = GradientLearner(net, 2, 0.3, moving).adapt(weights, support, 3)
    assert all(torch.equal(weights[k], before[k]) for k in weights)
    moved = {k for k in weights if not k.startswith("head.") and not torch.equal(adapted[k], weights[k])}
    expected = {k for k in moving_names(net, "all") if k.startswith("encoder.")} if moving == "all" else set()
    assert moved == expected
    assert adapted["head.weight"].shape == (3, 8) and not torch.equal(*adapted["head.weight"][:2])
    assert not any(v.requires_grad for v in adapted.values())


def test_no_class_owns_a_row_of_the_head() -> None:
    _, weights, _, _ = setting()
    spread = spread_head(weights, 4)
    assert spread["head.weight"].shape == (4, 8) and spread["head.bias"].shape == (4,)
    assert all(torch.equal(row, weights["head.weight"][0]) for row in spread["head.weight"])
    assert weights["head.weight"].shape == (1, 8)
