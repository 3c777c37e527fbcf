"""The logistic head: scikit-learn's optimum, gradients by finite differences, tasks apart, hard cases."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply, part
from selftaught.core.types import Examples, Params
from selftaught.learners.convex import LogisticLearner, Newton, solve_logistic
from selftaught.learners.ridge import WithRidge
from selftaught.nets import build_encoder

TIGHT = Newton(steps=30, cg_steps=60, tolerance=1e-11)


def numbers(scale: float, penalty: float) -> Params:
    made = {"log_scale": scale, "log_penalty": penalty}
    return {k: torch.tensor(v, dtype=torch.float64).log() for k, v in made.items()}


def features(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("penalty", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("rows", "width"), [(12, 5), (6, 20)])
def test_it_is_the_optimum_that_scikit_learn_finds(penalty: float, rows: int, width: int) -> None:
    z, y = features(rows, width) + 3, torch.arange(3).repeat(rows // 3)
    head, gap = solve_logistic(numbers(1.0, penalty), z, 3, newton=TIGHT)
    peer = LogisticRegression(C=1 / penalty, solver="newton-cg", tol=1e-12, max_iter=10_000).fit(
        z.numpy(), y.numpy()
    )
    assert gap < 1e-9
    assert np.allclose(head.weight.T.numpy(), peer.coef_, atol=1e-6)
    new = features(7, width, seed=1) + 3
    assert np.allclose(head.logits(new).softmax(-1).numpy(), peer.predict_proba(new.numpy()), atol=1e-6)


def test_the_implicit_gradient_is_that_of_finite_differences() -> None:
    """Towards features, scale and penalty; two tasks at once, labels in disorder."""
    z, asked = features(2, 6, 3).requires_grad_(), features(2, 5, 3, seed=1)
    y = torch.tensor([[0, 2, 1, 1, 2, 0], [2, 1, 0, 0, 1, 2]])
    own = {k: v.requires_grad_() for k, v in numbers(2.0, 0.3).items()}

    def loss(z: Tensor, scale: Tensor, penalty: Tensor) -> Tensor:
        head, _ = solve_logistic({"log_scale": scale, "log_penalty": penalty}, z, 3, y, Newton(20, 20, 1e-12))
        return F.cross_entropy(head.logits(asked).flatten(0, 1), torch.arange(10) % 3)

    assert torch.autograd.gradcheck(loss, (z, own["log_scale"], own["log_penalty"]), atol=1e-7, fast_mode=True)


def test_the_implicit_gradient_is_that_of_the_way_there() -> None:
    """Thousands of unrolled gradient steps to the same optimum, differentiated step by step."""
    z, asked = features(6, 3), features(4, 3, seed=1)
    target = torch.eye(3, dtype=z.dtype).repeat(2, 1)

    def unrolled(z: Tensor) -> Tensor:
        w, b = torch.zeros(3, 3, dtype=z.dtype), torch.zeros(3, dtype=z.dtype)
        for _ in range(1500):
            error = (z @ w + b).softmax(-1) - target
            w, b = w - 0.1 * (z.T @ error + 0.5 * w), b - 0.1 * error.sum(0)
        return asked @ w + b

    def slope(answer: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = z.clone().requires_grad_()
        loss = F.cross_entropy(answer(leaf), torch.tensor([0, 1, 2, 0]))
        return torch.autograd.grad(loss, leaf)[0]

    ours = slope(lambda z: solve_logistic(numbers(1.0, 0.5), z, 3, newton=TIGHT)[0].logits(asked))
    assert torch.allclose(ours, slope(unrolled), atol=1e-9)


def test_tasks_solved_together_are_those_solved_apart() -> None:
    """One easy, one with features a hundred times as long: step sizes and stops are each its own."""
    z = torch.stack([features(8, 6), features(8, 6, seed=1, spread=100.0), features(8, 6, seed=2, spread=0.01)])
    together, _ = solve_logistic(numbers(1.0, 1.0), z, 4, newton=TIGHT)
    for t in range(3):
        alone, gap = solve_logistic(numbers(1.0, 1.0), z[t], 4, newton=TIGHT)
        assert gap < 1e-7 and torch.allclose(alone.weight, together.weight[t], rtol=1e-5, atol=1e-9)


def test_two_classes_by_hand() -> None:
    """One feature at -1 and 1: by symmetry -w and w, where lambda w = 2 sigmoid(-2 w)."""
    head, _ = solve_logistic(
        numbers(1.0, 0.5), torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 2, newton=TIGHT
    )
    w = head.weight[0, 1]
    assert torch.allclose(0.5 * w, 2 * torch.sigmoid(-2 * w)) and torch.allclose(head.weight[0, 0], -w)
    assert torch.allclose(head.bias, torch.zeros(2, dtype=w.dtype), atol=1e-12)


def test_shifted_features_change_the_intercept_alone() -> None:
    z, shift = features(6, 4), features(4, seed=3)
    here, there = (solve_logistic(numbers(1.0, 1.0), x, 3, newton=TIGHT)[0] for x in (z, z + shift))
    assert torch.allclose(here.weight, there.weight, atol=1e-9)
    assert torch.allclose(here.bias, there.bias + shift @ there.weight, atol=1e-9)


def test_the_default_solver_is_close_in_single_precision() -> None:
    z = features(2, 20, 64, spread=3.0)
    exact, _ = solve_logistic(numbers(1.0, 1.0), z, 20, newton=TIGHT)
    own = {k: v.float() for k, v in numbers(1.0, 1.0).items()}
    head, gap = solve_logistic(own, z.float(), 20)
    assert gap < 1e-3 and torch.allclose(head.weight, exact.weight.float(), rtol=1e-2, atol=1e-3)


def test_many_more_products_than_unknowns_stay_finite_in_single_precision() -> None:
    """Conjugate gradient must stop when its residual is gone, or it divides zero by zero."""
    z = features(2, 2, 3).float().requires_grad_()
    own = {k: v.float() for k, v in numbers(1.0, 1.0).items()}
    head, _ = solve_logistic(own, z, 2, newton=Newton(cg_steps=200, tolerance=0.0))
    (slope,) = torch.autograd.grad(head.logits(torch.ones(1, 3)).square().sum(), z)
    assert head.weight.isfinite().all() and slope.isfinite().all()


def test_equal_pictures_and_few_steps_are_survived() -> None:
    head, _ = solve_logistic(numbers(1.0, 1.0), torch.ones(6, 4, dtype=torch.float64), 3)
    assert torch.allclose(head.weight, torch.zeros_like(head.weight), atol=1e-12)
    _, gap = solve_logistic(numbers(1.0, 1e-3), features(6, 4, spread=50), 3, newton=Newton(1, 1))
    assert gap.isfinite()


@pytest.mark.parametrize("norm", ["running", "support", "transductive"])
def test_the_learner_is_the_formula_under_every_norm(norm: Literal["running", "support", "transductive"]) -> None:
    net = WithRidge(build_encoder("conv4", 1, 16, 0, width=8, norm="batch"), 2.0, 0.5).double()
    weights = {k: v.detach() for k, v in net.state_dict().items()}
    x, query = features(6, 1, 16, 16).sigmoid(), features(4, 1, 16, 16, seed=1).sigmoid()
    learner = LogisticLearner(net, TIGHT, norm)
    adapted = learner.adapt(weights, Examples(x), 3)
    found = learner.predict(adapted, query)
    mode: Literal["running", "batch"] = "running" if norm == "running" else "batch"
    z = apply(net.encoder, part(weights, "encoder"), x, mode)
    expected = solve_logistic(weights, z, 3, newton=TIGHT)[0]
    assert torch.allclose(adapted.head.weight, expected.weight)
    if norm != "support":
        assert torch.allclose(found, expected.logits(apply(net.encoder, part(weights, "encoder"), query, mode)))
    alone = learner.predict(adapted, query[:2])
    assert torch.allclose(found[:2], alone) is (norm != "transductive")


def test_nonsense_is_refused() -> None:
    for wrong in ({"steps": 0}, {"cg_steps": 0}, {"tolerance": -1.0}, {"tolerance": 1.0}):
        with pytest.raises(ConfigError, match="Newton"):
            Newton(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="norm"):
        LogisticLearner(nn.Identity(), norm="none")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="ways"):
        solve_logistic(numbers(1.0, 1.0), features(5, 3), 3)
