"""The implicit gradient against closed forms, a dense solve, finite differences and the unrolled loop."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from selftaught.core.errors import ConfigError
from selftaught.core.functional import buffers_of, params_of, set_norm
from selftaught.core.types import Examples, Params, merged
from selftaught.learners.gradient import GradientLearner
from selftaught.learners.implicit import (
    Proximal,
    ProximalLearner,
    conjugate_gradient,
    damped_inverse,
    descend_implicit,
)
from selftaught.nets.conv4 import Conv4
from selftaught.nets.heads import WithClassifier

SOLVED = Proximal(strength=2.0, rate=0.3, steps=150, cg_steps=40)


def positive(size: int) -> Tensor:
    a = torch.randn(size, size, dtype=torch.float64)
    return a @ a.T / size


# ------------------------------------------------------------------------------------- a quadratic problem


def quadratic(w: Params, outer: tuple[Tensor, ...]) -> Tensor:
    """1/2 w^T A w - b.w over two tensors of weights."""
    a, b = outer
    flat = torch.cat([v.flatten() for v in w.values()])
    return flat @ a @ flat / 2 - b @ flat


def asked(solved: Params) -> Tensor:
    return torch.stack([v.sin().sum() for v in solved.values()]).sum()


@pytest.mark.parametrize("strength", [0.5, 7.0])
def test_quadratic_problem_has_its_closed_form_gradient(strength: float) -> None:
    """phi* = (A + lambda I)^-1 (b + lambda theta), for the start and for the outer tensors."""
    torch.manual_seed(0)
    a, b = positive(6).requires_grad_(), torch.randn(6, dtype=torch.float64, requires_grad=True)
    start = {"u": torch.randn(2, 2, dtype=torch.float64), "v": torch.randn(2, dtype=torch.float64)}
    leaves = {k: x.requires_grad_() for k, x in start.items()}
    solver = Proximal(strength, 0.12, 400, 6)
    solved, gap = descend_implicit(quadratic, leaves, (a, b), solver)
    found = torch.autograd.grad(asked(solved), [*leaves.values(), a, b])

    theta = torch.cat([v.flatten() for v in leaves.values()])
    # The loss knows only the symmetric part of A.
    exact = torch.linalg.solve((a + a.T) / 2 + strength * torch.eye(6), b + strength * theta)
    expected = torch.autograd.grad(exact.sin().sum(), [*leaves.values(), a, b])
    assert gap < 1e-10
    for x, y in zip(found, expected, strict=True):
        assert torch.allclose(x, y, rtol=1e-10, atol=1e-12)


def test_under_vmap_as_in_a_loop() -> None:
    torch.manual_seed(0)
    a = torch.stack([positive(3) for _ in range(4)]).requires_grad_()
    b = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    start = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def one(start: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return asked(descend_implicit(quadratic, {"w": start}, (a, b), Proximal(1.0, 0.2, 5, 2))[0])

    loop = torch.stack([one(start, x, y) for x, y in zip(a, b, strict=True)]).mean()
    batched = torch.func.vmap(one, in_dims=(None, 0, 0))(start, a, b).mean()
    slopes = (torch.autograd.grad(x, [start, a, b]) for x in (loop, batched))
    for x, y in zip(*slopes, strict=True):
        assert torch.allclose(x, y, rtol=1e-12, atol=1e-14)


def test_the_gradient_can_be_taken_once() -> None:
    start = torch.randn(3, dtype=torch.float64, requires_grad=True)
    outer = (positive(3), torch.randn(3, dtype=torch.float64))
    solved, _ = descend_implicit(quadratic, {"w": start}, outer, Proximal(steps=3))
    slope = torch.autograd.grad(asked(solved), start, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


# -------------------------------------------------------------------------------------- conjugate gradient


def counted(matrix: Tensor) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    calls: list[int] = []

    def product(x: Tensor) -> Tensor:
        calls.append(1)
        return matrix @ x

    return product, calls


def test_conjugate_gradient_is_exact_after_as_many_steps_as_numbers() -> None:
    torch.manual_seed(0)
    matrix, target = positive(7) + torch.eye(7), torch.randn(7, dtype=torch.float64)
    for steps in (1, 3, 7, 12):
        product, calls = counted(matrix)
        x = conjugate_gradient(product, target, steps)
        assert len(calls) == steps
        # The best point of the Krylov space, in the norm of the matrix.
        span = torch.stack([torch.linalg.matrix_power(matrix, k) @ target for k in range(min(steps, 7))], 1)
        span = torch.linalg.qr(span)[0]
        best = span @ torch.linalg.solve(span.T @ matrix @ span, span.T @ target)
        assert torch.allclose(x, best, rtol=1e-8, atol=1e-10), steps


def test_no_more_steps_once_a_direction_bends_down() -> None:
    """At the first direction the answer is the target (the first-order gradient), later what was found so far."""
    target = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert torch.equal(conjugate_gradient(lambda x: -x, target, 4), target)
    assert torch.equal(conjugate_gradient(lambda x: 0 * x, target, 4), target)
    matrix = torch.tensor([4.0, 1.0, -0.5], dtype=torch.float64).diag()
    first = conjugate_gradient(counted(matrix)[0], target, 1)
    residual = target - matrix @ first
    along = residual + (residual @ residual) / (target @ target) * target
    assert target @ matrix @ target > 0 > along @ matrix @ along, "the second direction bends down"
    assert torch.equal(conjugate_gradient(counted(matrix)[0], target, 5), first)
    nothing = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(conjugate_gradient(counted(matrix)[0], nothing, 3), nothing)


def test_damping_is_divided_by_the_strength() -> None:
    """(I + H/lambda) x = v, not (H + lambda I) x = v: at H = 0 the gradient passes unchanged."""
    along = [torch.randn(2, 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)]
    solver = Proximal(strength=4.0, cg_steps=3)
    for curved in (0.0, 3.0):
        found = damped_inverse(lambda v, c=curved: [c * x for x in v], along, solver)  # type: ignore[misc]
        for x, y in zip(found, along, strict=True):
            assert torch.allclose(x, y / (1 + curved / 4))


# ------------------------------------------------------------------------------------- a small conv network


class SmallConv(nn.Module):
    """Smooth, so that finite differences say something; 101 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.avg_pool2d(self.norm(self.conv(x)), 2).tanh().flatten(1))


class Problem:
    """Classify six pictures with statistics of the batch, then be asked about nine others; float64."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = SmallConv().double()
        set_norm(self.net, "batch")
        self.weights = params_of(self.net)
        self.x, self.query = torch.randn(15, 1, 6, 6, dtype=torch.float64).split([6, 9])

    def inner(self, w: Params, outer: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(functional_call(self.net, w, (outer[0],)), torch.arange(3).repeat(2))

    def asked(self, w: Params) -> Tensor:
        return F.cross_entropy(functional_call(self.net, w, (self.query,)), torch.arange(3).repeat(3))

    def whole(self, solver: Proximal, weights: Params, x: Tensor) -> Tensor:
        return self.asked(descend_implicit(self.inner, weights, (x,), solver)[0])

    def leaves(self) -> tuple[Params, Tensor]:
        return {k: v.clone().requires_grad_() for k, v in self.weights.items()}, self.x.clone().requires_grad_()

    def gradients(self, solver: Proximal) -> list[Tensor]:
        weights, x = self.leaves()
        return list(torch.autograd.grad(self.whole(solver, weights, x), [*weights.values(), x]))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])


@pytest.mark.parametrize("steps", [3, 60])
def test_equals_a_dense_solve_wherever_the_steps_end(steps: int) -> None:
    problem = Problem()
    solver = replace(SOLVED, steps=steps)
    end, _ = descend_implicit(problem.inner, problem.weights, (problem.x,), solver)
    leaves = {k: v.detach().requires_grad_() for k, v in end.items()}
    target = flat(torch.autograd.grad(problem.asked(leaves), list(leaves.values())))
    inner = problem.inner(leaves, (problem.x,))
    slope = flat(torch.autograd.grad(inner, list(leaves.values()), create_graph=True))
    rows = [flat(torch.autograd.grad(s, list(leaves.values()), retain_graph=True)) for s in slope]
    hessian = torch.stack(rows)
    assert torch.linalg.eigvalsh(hessian)[0] < -1e-3, "no minimum without the pull"
    expected = torch.linalg.solve(torch.eye(len(target)) + hessian / solver.strength, target)
    found = flat(problem.gradients(solver)[:-1])
    assert (found - expected).norm() < 1e-6 * expected.norm()
    assert (target - expected).norm() > 1e-2 * expected.norm(), "first order would pass as well"


@pytest.mark.parametrize("which", ["weights", "pictures"])
def test_equals_finite_differences_where_the_problem_is_solved(which: str) -> None:
    problem = Problem()
    weights, x = problem.leaves()
    torch.manual_seed(1)
    toward = [torch.randn_like(v) * (which == "weights") for v in weights.values()]
    toward.append(torch.randn_like(x) * (which == "pictures"))
    step = 1e-5

    def at(side: float) -> Tensor:
        moved = {k: v + side * d for (k, v), d in zip(problem.weights.items(), toward[:-1], strict=True)}
        with torch.no_grad():
            return problem.whole(SOLVED, moved, problem.x + side * toward[-1])

    expected = (at(step) - at(-step)) / (2 * step)
    slope = sum((g * d).sum() for g, d in zip(problem.gradients(SOLVED), toward, strict=True))
    assert expected.abs() > 1e-3, "nothing to compare"
    assert torch.allclose(torch.as_tensor(slope), expected, rtol=1e-6, atol=1e-9)


def test_a_strong_pull_gives_the_first_order_gradient_at_the_start() -> None:
    """lambda -> infinity: the solution is the start, the matrix the identity."""
    problem = Problem()
    leaves, _ = problem.leaves()
    expected = flat(torch.autograd.grad(problem.asked(leaves), list(leaves.values())))
    gaps = []
    for strength in (1e4, 1e6, 1e8):
        found = problem.gradients(Proximal(strength, 0.5 / strength, 60, 5))
        gaps.append(float((flat(found[:-1]) - expected).norm() / expected.norm()))
        assert found[-1].abs().max() < 10 / strength, "pictures reach the query only through the solution"
    assert gaps[0] > 50 * gaps[1] > 2500 * gaps[2] and gaps[2] < 1e-6


class CountedRules:
    """Rules as a closed form would bring them, made of autograd, that note what is asked of them."""

    tape_mib = 0.0

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.asked: list[str] = []

    def slope(self, weights: Params) -> tuple[Params, Any]:
        self.asked.append("slope")
        with torch.enable_grad():
            leaves = {k: v.detach().requires_grad_() for k, v in weights.items()}
            loss = self.problem.inner(leaves, (self.problem.x,))
            slope = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        return {k: g.detach() for k, g in zip(leaves, slope, strict=True)}, (leaves, slope)

    def curvature(self, tape: Any, along: Params) -> Params:
        self.asked.append("product")
        leaves, slope = tape
        found = torch.autograd.grad(slope, list(leaves.values()), list(along.values()), retain_graph=True)
        return dict(zip(along, found, strict=True))


def test_rules_are_asked_for_one_tape_and_one_product_a_step() -> None:
    """And for a gradient at each step forward; the numbers are those of autograd."""
    problem = Problem()
    rules = CountedRules(problem)
    weights, _ = problem.leaves()
    solver = Proximal(steps=4, cg_steps=3)
    solved, _ = descend_implicit(problem.inner, weights, (), solver, rules)
    found = torch.autograd.grad(problem.asked(solved), list(weights.values()))
    assert rules.asked == ["slope"] * 4 + ["slope"] + ["product"] * 3
    assert torch.allclose(flat(found), flat(problem.gradients(solver)[:-1]), rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------- memory


class Live(TorchDispatchMode):
    """Bytes of the storages that operations made and nobody has let go of yet; `most` is their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self.known:
                self._add(x.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def test_memory_does_not_grow_with_the_steps() -> None:
    problem = Problem()
    weights, x = problem.leaves()
    most = {}
    for steps in (2, 40):
        with Live() as live:
            solved, _ = descend_implicit(problem.inner, weights, (x,), Proximal(steps=steps))
            torch.autograd.grad(problem.asked(solved), [*weights.values(), x])
        most[steps] = live.most
    assert most[40] == most[2] > sum(v.nbytes for v in weights.values())


@pytest.mark.parametrize("steps", [1, 20])
def test_the_way_back_keeps_the_solution_and_the_outer_tensors(steps: int) -> None:
    problem = Problem()
    weights, x = problem.leaves()
    solved, _ = descend_implicit(problem.inner, weights, (x,), Proximal(steps=steps))
    node: Any = solved["head.bias"].grad_fn
    assert sum(t.numel() for t in node.saved_tensors) == x.numel() + sum(v.numel() for v in weights.values())
    assert all(below is None or hasattr(below, "variable") for below, _ in node.next_functions), "only leaves"


# ------------------------------------------------------------------------------------ options, the learner


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"strength": 0.0}, "strength"),
        ({"strength": -1.0}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"cg_steps": 0}, "cg_steps=0"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_impossible_options_say_a_way_out(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"{says}.*MAML"):
        Proximal(**options)


def setting() -> tuple[nn.Module, Params, Examples, Tensor]:
    """Six support pictures of three classes and five queries."""
    torch.manual_seed(0)
    net = WithClassifier(Conv4(1, 16, 8), 8).double()
    nn.init.normal_(net.head.weight)
    x = torch.rand(11, 1, 16, 16, dtype=torch.float64)
    return net, merged(params_of(net), buffers_of(net)), Examples(x[:6], torch.arange(3).repeat(2)), x[6:]


@pytest.mark.parametrize("moving", ["all", "head"])
@pytest.mark.parametrize("norm", ["running", "support", "transductive"])
def test_the_learner_takes_the_pulled_steps(norm: Any, moving: Literal["all", "head"]) -> None:
    """In the limit of no pull, those of plain gradient descent; with it, nearer to the start."""
    net, weights, support, query = setting()
    before = {k: v.clone() for k, v in weights.items()}
    plain = GradientLearner(net, 4, 0.3, moving, norm)
    free, pulled = (ProximalLearner(net, Proximal(strength, 0.3, 4), moving, norm) for strength in (1e-12, 2.0))
    expected, found = (learner.adapt(weights, support, 3) for learner in (plain, free))
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[k], expected[k], rtol=1e-8, atol=1e-9) for k in found)
    assert torch.allclose(free.predict(found, query), plain.predict(expected, query), rtol=1e-7)
    near = pulled.adapt(weights, support, 3)
    way = {k: (near[k] - weights[k].expand_as(near[k])).norm() for k in ("head.weight", "head.bias")}
    assert all(0 < way[k] < 0.9 * (found[k] - weights[k].expand_as(found[k])).norm() for k in way)
    assert all(torch.equal(weights[k], before[k]) for k in weights)
    assert not any(v.requires_grad for v in near.values())
    without = pulled.adapt(weights, Examples(support.x), 3)
    assert all(torch.equal(without[k], near[k]) for k in near), "rows are by shot, then class"


def test_a_residual_that_underflows_ends_conjugate_gradient() -> None:
    """Its square is zero in float32 long before more products are refused."""
    torch.manual_seed(0)
    factor = torch.randn(6, 6)
    a, b = factor @ factor.t() + torch.eye(6), 1e-20 * torch.randn(6)
    x = conjugate_gradient(lambda v: a @ v, b, 40)
    assert x.isfinite().all()
    solved = conjugate_gradient(lambda v: a @ v, 1e20 * b, 200)
    torch.testing.assert_close(solved, torch.linalg.solve(a, 1e20 * b), rtol=1e-3, atol=1e-4)
