"""CMA-ES behind the Optimizer protocol: it minimises, continues to the same bits, leaves global state alone."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.core.types import Aux, Optimizer, Params
from selftaught.optimizers.evolution import CMAES, unflattened
from selftaught.optimizers.gradient import Gradient, NotFiniteError
from selftaught.optimizers.skipping import SkipNotFinite

pytest.importorskip("cma", reason="the extra `blur`")

START: Params = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
GOAL: Params = {"a": torch.tensor([1.0, -2.0, 0.5]), "b": torch.tensor([[0.0, 1.0], [2.0, -1.0]])}


def bowl(params: Params) -> tuple[Tensor, Aux]:
    """A quadratic with its least value, zero, at GOAL."""
    value = sum((((params[k] - GOAL[k]).square()).sum() for k in GOAL), torch.zeros(()))
    return value, Aux({"far": value.sqrt()})


def run(
    optimizer: Optimizer, steps: int, params: Params = START, opt: Params | None = None
) -> tuple[Params, Params]:
    opt = optimizer.init(params) if opt is None else opt
    for _ in range(steps):
        params, opt, _ = optimizer.step(bowl, params, opt)
    return params, opt


def test_descent_and_evolution_share_one_loss_function() -> None:
    for optimizer, steps in ((CMAES(sigma=0.5), 120), (Gradient(0.1, schedule="constant"), 300)):
        assert isinstance(optimizer, Optimizer)
        found, _ = run(optimizer, steps)
        assert all(torch.allclose(found[k], GOAL[k], atol=1e-2) for k in GOAL)


def test_a_restored_search_is_the_search_to_the_same_bits() -> None:
    whole, opt = run(CMAES(sigma=0.5), 8)
    half, kept = run(CMAES(sigma=0.5), 3)
    again, other = run(CMAES(sigma=0.5), 5, half, kept)  # a new object: nothing but the tensors is left
    assert all(torch.equal(whole[k], again[k]) for k in whole) and torch.equal(opt["losses"], other["losses"])
    assert opt["losses"].shape == (8, 16)
    different, _ = run(CMAES(sigma=0.5, seed=1), 8)
    assert not torch.equal(different["a"], whole["a"])


def test_one_object_serves_two_runs_that_take_turns() -> None:
    both = CMAES(sigma=0.5)
    first, second = run(both, 2), run(both, 2, GOAL)
    first, second = run(both, 2, *first), run(both, 2, *second)
    assert torch.equal(first[0]["a"], run(CMAES(sigma=0.5), 4)[0]["a"])
    assert torch.equal(second[0]["a"], run(CMAES(sigma=0.5), 4, GOAL)[0]["a"])


def test_batched_is_one_by_one() -> None:
    a, b = run(CMAES(), 3), run(CMAES(batched=False), 3)
    assert torch.allclose(a[1]["losses"], b[1]["losses"]) and torch.allclose(a[0]["b"], b[0]["b"])


def test_nothing_is_changed_and_no_global_generator_moves() -> None:
    numpy_before, torch_before = np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    run(CMAES(), 2)
    assert np.random.get_state()[1].tolist() == numpy_before  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert not START["a"].any() and (START["b"] == 1).all()


def test_a_candidate_that_is_not_finite_is_the_worst() -> None:
    def cliff(params: Params) -> tuple[Tensor, Aux]:
        value, aux = bowl(params)
        return torch.where(params["a"][0] > 0, value, torch.nan), aux

    optimizer = CMAES()
    params, opt, aux = optimizer.step(cliff, START, optimizer.init(START))
    assert opt["losses"].isfinite().all() and aux.metrics["far"].isfinite()
    assert params["a"][0] > 0, "the mean moves away from the cliff"


@pytest.mark.parametrize("inner", [CMAES(), Gradient()])
def test_steps_that_cannot_be_taken_are_left_out(inner: Optimizer) -> None:
    def broken(params: Params) -> tuple[Tensor, Aux]:
        return params["a"].sum() * torch.nan, Aux()

    optimizer = SkipNotFinite(inner, patience=3)
    opt = optimizer.init(START)
    params, opt, aux = optimizer.step(broken, START, opt)
    assert aux.metrics["skipped"] == 1 and all(torch.equal(params[k], START[k]) for k in START)
    fine, moved, aux = optimizer.step(bowl, params, opt)
    assert aux.metrics["skipped"] == 0 and moved["skipped_in_a_row"] == 0
    plain, _ = run(inner, 1)
    assert torch.equal(fine["a"], plain["a"]), "the step after is as if nothing had been left out"
    _, opt, _ = optimizer.step(broken, params, opt)
    with pytest.raises(NotFiniteError):
        optimizer.step(broken, params, opt)


def test_flat_and_back() -> None:
    vector = torch.arange(7.0)
    assert unflattened(vector, START)["b"].tolist() == [[3, 4], [5, 6]]


@pytest.mark.parametrize("make", [lambda: CMAES(population=2), lambda: CMAES(sigma=0.0)])
def test_what_cannot_be_is_refused(make: Callable[[], CMAES]) -> None:
    with pytest.raises(ConfigError):
        make()
