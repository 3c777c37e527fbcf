"""R2D2 against its formula written out per task, its limits, and the learner beside the loss."""

from typing import Literal

import pytest
import torch
from small_tasks import distance, gradient, leaves_of, small
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply, part
from selftaught.core.types import Examples, Params, Task, merged
from selftaught.learners.heads import prototypes
from selftaught.learners.ridge import RidgeLearner, WithRidge, solve_ridge
from selftaught.methods.r2d2 import R2D2

METHOD = R2D2(penalty=0.7, scale=3.0, tasks=3, ways=3, shots=2, queries=2)


def slow_loss(net: nn.Module, params: Params, tasks: Task) -> Tensor:
    """Normal equations with a column of ones that is not penalised, task by task."""
    both = torch.cat([tasks.support.x, tasks.query.x], 1)
    z = apply(net, params, both.flatten(0, 1), "batch").unflatten(0, both.shape[:2])
    assert tasks.query.y is not None
    losses = []
    for t in range(len(both)):
        ones = torch.ones(len(z[t]), 1, dtype=z.dtype)
        a, q = torch.cat([z[t], ones], 1).split([6, 6])
        target = torch.eye(3, dtype=z.dtype).repeat(2, 1)
        pull = torch.eye(a.shape[1], dtype=z.dtype) * params["log_penalty"].exp()
        free = torch.ones_like(pull)
        free[-1, -1] = 0
        w = torch.linalg.inv(a.T @ a + pull * free) @ a.T @ target
        losses.append(F.cross_entropy(params["log_scale"].exp() * q @ w, tasks.query.y[t]))
    return torch.stack(losses).mean()


def test_loss_and_gradient_are_those_of_the_formula() -> None:
    net, params, slow, tasks = small(METHOD)
    leaves = leaves_of(params)
    expected = slow_loss(net, leaves, tasks)
    slopes = torch.autograd.grad(expected, list(leaves.values()))
    loss, found = gradient(METHOD, net, params, slow, tasks)
    assert torch.allclose(loss, expected.detach(), rtol=1e-10)
    assert distance(found, dict(zip(leaves, slopes, strict=True))) < 1e-8
    assert all(found[k] != 0 for k in ("log_scale", "log_penalty"))


def test_the_encoder_hears_of_the_support_through_the_solution() -> None:
    """Support features with a gradient of their own: the head is not a constant."""
    z = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    numbers = {"log_scale": torch.zeros((), dtype=z.dtype), "log_penalty": torch.zeros((), dtype=z.dtype)}
    asked = torch.randn(4, 5, dtype=torch.float64)

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(solve_ridge(numbers, z, 3).logits(asked), torch.tensor([0, 1, 2, 0]))

    assert torch.autograd.gradcheck(loss, (z,))


def test_a_hand_computed_head() -> None:
    """One feature, two classes at -1 and 1: slope 2 / (2 + lambda) between labels a half from their mean."""
    z = torch.tensor([[-1.0], [1.0]])
    numbers = {"log_scale": torch.tensor(4.0).log(), "log_penalty": torch.tensor(3.0).log()}
    head = solve_ridge(numbers, z, 2)
    assert torch.allclose(head.weight, 4 * torch.tensor([[-1.0, 1.0]]) / (2 + 3))
    assert torch.allclose(head.bias, 4 * torch.tensor([0.5, 0.5]))


def test_a_large_penalty_points_from_the_grand_mean_to_the_class_means() -> None:
    z = torch.randn(6, 5, dtype=torch.float64)
    penalty = torch.tensor(1e9, dtype=z.dtype)
    weight = solve_ridge({"log_scale": penalty.log(), "log_penalty": penalty.log()}, z, 3).weight
    assert torch.allclose(weight, 2 * (prototypes(z, 3) - z.mean(0)).T, rtol=1e-6)


def test_a_small_penalty_meets_every_label() -> None:
    z = torch.randn(2, 6, 9, dtype=torch.float64)
    numbers = {"log_scale": torch.zeros((), dtype=z.dtype), "log_penalty": torch.tensor(-25.0, dtype=z.dtype)}
    y = torch.tensor([[0, 0, 1, 2, 2, 1], [2, 1, 0, 0, 1, 2]])
    assert torch.allclose(solve_ridge(numbers, z, 3, y).logits(z), F.one_hot(y, 3).double(), atol=1e-6)


@pytest.mark.parametrize("norm", ["running", "support", "transductive"])
def test_the_learner_is_the_formula_under_every_norm(norm: Literal["running", "support", "transductive"]) -> None:
    net, params, slow, tasks = small(METHOD, "group" if norm == "running" else "batch")
    support, query = Examples(tasks.support.x[0]), tasks.query.x[0]
    learner, weights = RidgeLearner(net, norm), merged(params, slow)
    found = learner.predict(learner.adapt(weights, support, 3), query)
    encoder, own = net.get_submodule("encoder"), part(weights, "encoder")
    mode: Literal["running", "batch"] = "running" if norm == "running" else "batch"
    z = apply(encoder, own, support.x, mode)
    alone = learner.predict(learner.adapt(weights, support, 3), query[:3])
    if norm != "support":
        expected = solve_ridge(weights, z, 3).logits(apply(encoder, own, query, mode))
        assert torch.allclose(found, expected, rtol=1e-9)
    adapted = learner.adapt(weights, support, 3)
    assert torch.allclose(learner.predict(adapted, support.x), solve_ridge(weights, z, 3).logits(z), rtol=1e-9)
    # What a query is told depends on the other queries in the transductive case only.
    assert torch.allclose(found[:3], alone, rtol=1e-9) is (norm != "transductive")


def test_nonsense_is_refused() -> None:
    for scale, penalty in ((0.0, 1.0), (1.0, 0.0), (1.0, -1.0)):
        with pytest.raises(ConfigError, match="above 0"):
            WithRidge(nn.Identity(), scale, penalty)
    with pytest.raises(ConfigError, match="norm"):
        RidgeLearner(nn.Identity(), "none")  # type: ignore[arg-type]
