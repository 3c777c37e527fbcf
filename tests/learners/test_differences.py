"""The look-ahead by differences against the second derivative that it stands for."""

import torch
from torch import Tensor

from selftaught.core.types import Params
from selftaught.learners.differences import look_ahead_by_differences
from selftaught.learners.inner import descend

RATE = 0.3


def problem() -> tuple[Params, tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    weights = {k: torch.randn(3, generator=generator, dtype=torch.float64) for k in ("a", "b")}
    return weights, (torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_(),)


def inner(w: Params, outer: tuple[Tensor, ...]) -> Tensor:
    return (torch.sin(w["a"] * outer[0]) * w["b"] + outer[0].exp() * w["b"].square()).sum()


def asked(w: Params, outer: tuple[Tensor, ...]) -> Tensor:
    return torch.cos(w["a"]).sum() + (w["a"] * w["b"]).square().sum()


def test_value_and_gradient_are_those_of_the_unrolled_step() -> None:
    weights, outer = problem()
    exact = asked(descend(inner, weights, outer, RATE, 1, "unrolled"), ())
    near = look_ahead_by_differences(inner, asked, weights, outer, RATE)
    assert torch.allclose(near, exact, rtol=1e-12)
    (wanted,), (found,) = (torch.autograd.grad(value, outer) for value in (exact, near))
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)
    assert wanted.norm() > 0.1


def test_the_weights_get_no_gradient_and_keep_their_numbers() -> None:
    weights, outer = problem()
    weights = {k: w.requires_grad_() for k, w in weights.items()}
    before = {k: w.detach().clone() for k, w in weights.items()}
    value = look_ahead_by_differences(inner, asked, weights, outer, RATE)
    found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    assert all(g is None for g in found)
    assert all(torch.equal(weights[k], before[k]) for k in weights)


def test_a_flat_question_gives_zero_and_not_nan() -> None:
    weights, outer = problem()
    value = look_ahead_by_differences(inner, lambda w, _: 0 * w["a"].sum(), weights, outer, RATE)
    (slope,) = torch.autograd.grad(value, outer)
    assert value == 0 and slope.abs().max() < 1e-20
