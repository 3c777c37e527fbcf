"""The inner loop: three ways through it, against each other and against finite differences."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import params_of, set_norm
from selftaught.core.types import Params
from selftaught.learners.inner import Graph, InnerLoss, descend, descend_detached
from selftaught.nets.conv4 import Conv4
from selftaught.nets.heads import WithProjector

NETS: dict[str, Callable[[], nn.Module]] = {
    "conv4-batch": lambda: WithProjector(Conv4(1, 16, width=8, norm="batch"), nn.Linear(8, 3)),
    "conv4-group": lambda: WithProjector(Conv4(1, 16, width=8, norm="group"), nn.Linear(8, 3)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 3)),
}
each_net = pytest.mark.parametrize("name", NETS)
EXACT: tuple[Graph, ...] = ("unrolled", "adjoint")


class Problem:
    """Classify six pictures, then be asked about four others; float64."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.net = NETS[name]().double()
        set_norm(self.net, "batch")
        self.weights = params_of(self.net)
        self.x = torch.rand(6, 1, 16, 16, dtype=torch.float64)
        self.rate = torch.tensor(0.2, dtype=torch.float64)
        self.query = torch.rand(4, 1, 16, 16, dtype=torch.float64)

    def inner(self, w: Params, outer: tuple[Tensor, ...]) -> Tensor:
        y = torch.arange(3).repeat(len(outer[0]) // 3)
        return F.cross_entropy(functional_call(self.net, w, (outer[0],)), y)

    def asked(self, w: Params) -> Tensor:
        return F.cross_entropy(functional_call(self.net, w, (self.query,)), torch.tensor([0, 1, 2, 0]))

    def whole(self, graph: Graph, weights: Params, x: Tensor, rate: float | Tensor, steps: int = 3) -> Tensor:
        return self.asked(descend(self.inner, weights, (x,), rate, steps, graph))

    def inputs(self) -> tuple[Params, Tensor, Tensor]:
        """The start, the pictures and the rate, each asking for a gradient."""
        weights = {k: v.clone().requires_grad_() for k, v in self.weights.items()}
        return weights, self.x.clone().requires_grad_(), self.rate.clone().requires_grad_()

    def gradients(self, graph: Graph, steps: int = 3) -> list[Tensor]:
        weights, x, rate = self.inputs()
        loss = self.whole(graph, weights, x, rate, steps)
        return list(torch.autograd.grad(loss, [*weights.values(), x, rate], materialize_grads=True))


@each_net
def test_adjoint_equals_unrolled(name: str) -> None:
    problem = Problem(name)
    assert torch.equal(
        problem.whole("adjoint", problem.weights, problem.x, 0.2),
        problem.whole("unrolled", problem.weights, problem.x, 0.2),
    )
    for steps in (1, 4):
        unrolled, adjoint = (problem.gradients(graph, steps) for graph in EXACT)
        for a, b in zip(unrolled, adjoint, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@each_net
@pytest.mark.parametrize("which", ["weights", "outer", "rate"])
def test_gradients_equal_finite_differences(name: str, which: str) -> None:
    problem = Problem(name)
    count = len(problem.weights)
    torch.manual_seed(1)
    toward = [torch.zeros_like(v) for v in (*problem.weights.values(), problem.x, problem.rate)]
    for i in {"weights": range(count), "outer": [count], "rate": [count + 1]}[which]:
        toward[i] = torch.randn_like(toward[i])
    step = 1e-6

    def at(side: float) -> Tensor:
        moved = {k: v + side * d for (k, v), d in zip(problem.weights.items(), toward[:count], strict=True)}
        return problem.whole("unrolled", moved, problem.x + side * toward[-2], problem.rate + side * toward[-1])

    expected = (at(step) - at(-step)) / (2 * step)
    assert expected.abs() > 1e-4, "nothing to compare"
    for graph in EXACT:
        slope = sum((g * d).sum() for g, d in zip(problem.gradients(graph), toward, strict=True))
        assert torch.allclose(slope, expected, rtol=1e-6, atol=1e-9), graph


@pytest.mark.parametrize("graph", EXACT)
def test_a_rate_given_as_a_number_is_not_rounded(graph: Graph) -> None:
    """0.1 has no exact float32; a float64 gradient would be off by 1e-8."""
    problem = Problem("linear")
    weights, x, _ = problem.inputs()
    as_number = torch.autograd.grad(problem.whole(graph, weights, x, 0.1), x)[0]
    as_tensor = torch.autograd.grad(problem.whole(graph, weights, x, torch.tensor(0.1, dtype=torch.float64)), x)[0]
    assert torch.allclose(as_number, as_tensor, rtol=1e-12, atol=0)


@each_net
def test_first_order_takes_each_slope_as_a_constant(name: str) -> None:
    problem = Problem(name)
    weights, x, rate = problem.inputs()
    found = torch.autograd.grad(
        problem.whole("first-order", weights, x, rate), [*weights.values(), x, rate], materialize_grads=True
    )
    end = descend_detached(problem.inner, problem.weights, (problem.x,), 0.2, 3)
    leaves = {k: v.requires_grad_() for k, v in end.items()}
    expected = torch.autograd.grad(problem.asked(leaves), list(leaves.values()))
    for a, b in zip(found, expected, strict=False):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    assert not found[-2].any(), "pictures reach the loss only through slopes"
    assert found[-1] != 0, "the rate multiplies the slopes"
    second = problem.gradients("unrolled")
    assert not all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(second, expected, strict=False))


@pytest.mark.parametrize("graph", EXACT)
def test_weights_that_the_loss_is_linear_in_or_does_not_know(graph: Graph) -> None:
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    names = ("bent", "linear", "unknown")
    weights = {k: torch.randn(3, dtype=torch.float64, requires_grad=True) for k in names}

    def loss(w: Params, outer: tuple[Tensor, ...]) -> Tensor:
        return (outer[0] @ w["bent"]).tanh().square().mean() + (outer[0].sin() @ w["linear"]).mean()

    moved = descend(loss, weights, (x,), 0.1, 3, graph)
    asked = torch.stack([v.pow(3).sum() for v in moved.values()]).sum()
    found = torch.autograd.grad(asked, [*weights.values(), x])
    by_hand = weights["linear"] - 3 * 0.1 * x.sin().mean(0)
    assert torch.allclose(found[1], 3 * by_hand.square())
    assert torch.allclose(found[2], 3 * weights["unknown"].square())
    only = descend(lambda w, _: w["linear"].sum(), weights, (), 0.1, 3, graph)
    assert torch.allclose(only["linear"], weights["linear"] - 0.3)
    torch.autograd.grad(only["linear"].square().sum(), [weights["linear"]])


def nodes(x: Tensor) -> int:
    """How many steps of a graph hang on `x`."""
    todo, seen = [x.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [below for below, _ in node.next_functions]
    return len(seen)


def test_adjoint_keeps_no_graph_of_the_steps() -> None:
    problem = Problem("conv4-batch")
    weights, x, rate = problem.inputs()

    def size(graph: Graph, steps: int) -> int:
        return nodes(next(iter(descend(problem.inner, weights, (x,), rate, steps, graph).values())))

    assert size("adjoint", 1) == size("adjoint", 6) <= len(weights) + 3  # one node, and the leaves
    assert size("unrolled", 6) > size("unrolled", 1) + 100


@pytest.mark.parametrize("pictures", [3, 12])
def test_adjoint_saves_each_steps_weights_and_nothing_of_the_activations(pictures: int) -> None:
    problem = Problem("conv4-batch")
    weights, _, rate = problem.inputs()
    x = torch.rand(pictures, 1, 16, 16, dtype=torch.float64)
    alive: list[int] = []

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            alive.append(tensor.numel())

        def __del__(self) -> None:
            alive.remove(self.tensor.numel())

    for steps in (1, 4):
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            moved = descend(problem.inner, weights, (x,), rate, steps, "adjoint")
        assert sum(alive) == steps * sum(w.numel() for w in weights.values()) + x.numel() + 1
        del moved
        assert not alive


def test_adjoint_under_vmap_says_what_to_do() -> None:
    problem = Problem("linear")
    x = torch.stack([problem.x, problem.x])
    with pytest.raises(ConfigError, match="unrolled"):
        torch.func.vmap(lambda x: descend(problem.inner, problem.weights, (x,), 0.1, 2, "adjoint"))(x)


@each_net
def test_detached_steps_are_the_same_steps_without_a_way_back(name: str) -> None:
    problem = Problem(name)
    weights, x, rate = problem.inputs()
    before = {k: v.detach().clone() for k, v in weights.items()}
    fixed = descend_detached(problem.inner, weights, (x,), rate, 3)
    moved = descend(problem.inner, weights, (x,), rate, 3, "unrolled")
    for k in weights:
        assert not fixed[k].requires_grad
        assert torch.allclose(fixed[k], moved[k], rtol=1e-12, atol=1e-14)
        assert torch.equal(weights[k], before[k])


@pytest.mark.parametrize("graph", [*EXACT, "first-order"])
def test_no_steps_is_the_identity(graph: Graph) -> None:
    problem = Problem("linear")
    weights, x, rate = problem.inputs()
    moved = descend(problem.inner, weights, (x,), rate, 0, graph)
    assert all(moved[k] is weights[k] for k in weights)


def test_steps_go_down() -> None:
    problem = Problem("conv4-batch")
    inner: InnerLoss = problem.inner
    losses = [
        inner(descend_detached(inner, problem.weights, (problem.x,), 0.2, k), (problem.x,)) for k in (0, 3, 9)
    ]
    assert losses[0] > losses[1] > losses[2]
