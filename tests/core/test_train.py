"""The loop itself, with a method and optimisers small enough to follow by hand."""

import gc
import threading
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selftaught.core.prefetch import THREAD
from selftaught.core.train import outer_step, start, train
from selftaught.core.types import Aux, Examples, LossFn, Params, State, Task


def source(generator: torch.Generator) -> Task:
    x = torch.randn(1, 2, 3, generator=generator)
    return Task(Examples(x), Examples(x), ways=2)


@dataclass(frozen=True)
class Follow:
    """Moves `w` towards the mean of what it sees; `slow` remembers what refresh was given."""

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        return {"w": torch.zeros(3)}, {"seen": torch.zeros(3), "calls": torch.zeros(())}

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        gap = params["w"] - tasks.query.x.mean((0, 1))
        return gap.square().sum() / 2, Aux({"calls": slow["calls"]}, carry={"gap": gap.detach()})

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        assert aux.carry["gap"].shape == (3,)
        return {"seen": params["w"].clone(), "calls": slow["calls"] + 1}


@dataclass(frozen=True)
class Halfway:
    """Gradient descent with step one half."""

    def init(self, params: Params) -> Params:
        return {"steps": torch.zeros(())}

    def step(self, loss_fn: LossFn, params: Params, opt: Params) -> tuple[Params, Params, Aux]:
        leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
        loss, aux = loss_fn(leaves)
        grads = torch.autograd.grad(loss, list(leaves.values()))
        moved = {k: (v - 0.5 * g).detach() for (k, v), g in zip(leaves.items(), grads, strict=True)}
        return moved, {"steps": opt["steps"] + 1}, replace(aux, metrics=aux.metrics | {"loss": loss.detach()})


@dataclass(frozen=True)
class Wander:
    """Takes a random step and keeps it if it helps: an optimiser that asks for no gradient at all."""

    def init(self, params: Params) -> Params:
        return {"draw": torch.zeros(())}

    def step(self, loss_fn: LossFn, params: Params, opt: Params) -> tuple[Params, Params, Aux]:
        draws = torch.Generator().manual_seed(int(opt["draw"]))
        tried = {k: v + 0.3 * torch.randn(v.shape, generator=draws) for k, v in params.items()}
        (old, _), (new, aux) = loss_fn(params), loss_fn(tried)
        return (tried if new < old else params), {"draw": opt["draw"] + 1}, aux


NET = nn.Identity()


def begin(seed: int = 0, optimizer: Any = None) -> State:
    return start(Follow(), NET, optimizer or Halfway(), seed)  # type: ignore[arg-type]


def run(state: State, steps: int, prefetch: int = 0) -> list[tuple[State, dict[str, float]]]:
    return list(train(Follow(), NET, source, Halfway(), state, steps, prefetch))  # type: ignore[arg-type]


def test_start_is_before_the_first_step() -> None:
    state = begin(7)
    assert state.step == 0 and not state.params["w"].any() and state.opt["steps"] == 0
    assert torch.equal(torch.rand(3, generator=state.generator), torch.rand(3, generator=_seeded(7)))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_step_is_yielded_until_the_count_is_reached() -> None:
    states = run(begin(), 4)
    assert [state.step for state, _ in states] == [1, 2, 3, 4]
    assert [figures["calls"] for _, figures in states] == [0, 1, 2, 3], "loss must see slow as refresh left it"
    assert all(isinstance(value, float) for _, figures in states for value in figures.values())
    assert run(states[-1][0], 4) == [] and run(states[-1][0], 2) == []


def test_the_numbers_are_those_of_the_loop_by_hand() -> None:
    draws, w = _seeded(3), torch.zeros(3)
    for _ in range(3):
        w = w - 0.5 * (w - source(draws).query.x.mean((0, 1)))
    last = run(begin(3), 3)[-1][0]
    assert torch.allclose(last.params["w"], w)
    assert torch.equal(last.slow["seen"], last.params["w"]), "refresh gets the parameters after the step"


def test_going_on_is_never_having_stopped() -> None:
    half = run(begin(), 2)[-1][0]
    assert torch.equal(run(half, 5)[-1][0].params["w"], run(begin(), 5)[-1][0].params["w"])


@pytest.mark.parametrize("prefetch", [1, 4])
def test_drawing_ahead_gives_the_same_states(prefetch: int) -> None:
    """After every step, and after going on from every step with or without it."""
    plain, ahead = run(begin(), 6), run(begin(), 6, prefetch)
    for (state, figures), (other, same) in zip(ahead, plain, strict=True):
        assert figures == same and torch.equal(state.params["w"], other.params["w"])
        assert torch.equal(state.generator.get_state(), other.generator.get_state())
    for step in range(5):
        for later in (0, prefetch):
            resumed = run(ahead[step][0], 6, later)[-1][0]
            assert torch.equal(resumed.params["w"], plain[-1][0].params["w"])


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_failed_draw_leaves_the_states_before_it(prefetch: int) -> None:
    calls = iter(range(10))

    def fails(generator: torch.Generator) -> Task:
        if next(calls) == 2:
            raise OSError("no more pictures")
        return source(generator)

    seen = []
    with pytest.raises(OSError, match="no more"):
        for state, _ in train(Follow(), NET, fails, Halfway(), begin(), 5, prefetch):  # type: ignore[arg-type]
            seen.append(state)
    assert [s.step for s in seen] == [1, 2]
    assert torch.equal(run(seen[-1], 5)[-1][0].params["w"], run(begin(), 5)[-1][0].params["w"])


def test_leaving_early_ends_the_thread() -> None:
    for _ in train(Follow(), NET, source, Halfway(), begin(), 1000, 2):  # type: ignore[arg-type]
        break
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith(THREAD)]


def test_a_step_leaves_the_state_it_started_from() -> None:
    state = begin()
    tasks = source(state.generator)
    after, aux = outer_step(Follow(), NET, Halfway(), state, tasks)  # type: ignore[arg-type]
    assert state.step == 0 and not state.params["w"].any() and state.slow["calls"] == 0
    assert after.step == 1 and after.params["w"].any() and "gap" in aux.carry


def test_an_optimiser_without_gradients_fits() -> None:
    """And finds what it looks for."""
    state = begin(optimizer=Wander())

    def fixed(generator: torch.Generator) -> Task:
        x = torch.ones(1, 2, 3)
        return Task(Examples(x), Examples(x), ways=2)

    *_, (last, _) = train(Follow(), NET, fixed, Wander(), state, 60)  # type: ignore[arg-type]
    assert (last.params["w"] - 1).norm() < 0.5 * 3**0.5
