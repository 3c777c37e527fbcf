"""Update rules in both directions: backpropagation is one of them, and any of them fits any network."""

from dataclasses import replace
from itertools import product
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.types import Params
from selftaught.learners.bidirectional import (
    Genome,
    Rule,
    Synapses,
    backprop_genome,
    from_vector,
    init_state,
    predict,
    run_backward,
    run_forward,
    step,
    to_vector,
    updated,
)

SIZES = ((4, 2), (3, 5, 4), (2, 7, 6, 3), (64, 9, 8, 7, 10))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_genome(rule: Rule, seed: int = 0) -> Genome:
    return from_vector(rule, 0.5 * torch.randn(rule.size, generator=generator(seed), dtype=torch.float64))


def batch(inputs: int, classes: int, rows: int = 11) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, inputs, generator=generator(1), dtype=torch.float64)
    return x, torch.randint(classes, (rows,), generator=generator(2))


def plain_network(state: Synapses, x: Tensor) -> Tensor:
    """Logits of a tanh network with the same weights and biases."""
    weights = [v[0] for k, v in state.items() if k.startswith("forward.")]
    for place, w in enumerate(weights):
        x = x @ w[:-1] + w[-1]
        x = x.tanh() if place < len(weights) - 1 else x
    return x


def with_biases(state: Synapses) -> Synapses:
    """Biases start at zero, which would hide an error in them."""
    return {k: v if k == "reference" else v + 0.1 for k, v in state.items()}


# ------------------------------------------------------------------------------------------- the passport


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_backprop_genome_is_autograd(sizes: tuple[int, ...], reduction: Literal["mean", "sum"]) -> None:
    """Steps of both over five batches; the weights never part."""
    genome = backprop_genome(0.1, reduction, torch.float64)
    state = with_biases(init_state(sizes, genome, generator()))
    twin = {k: v.clone() for k, v in state.items()}
    for round_ in range(5):
        x, y = batch(sizes[0], sizes[-1], rows=7 + round_)
        state = step(state, genome, x, y)
        leaves = {k: v.detach().requires_grad_() for k, v in twin.items() if k != "reference"}
        loss = F.cross_entropy(plain_network(leaves, x), y, reduction=reduction)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        twin = {k: v.detach() - 0.1 * g for (k, v), g in zip(leaves.items(), slopes, strict=True)}
        for k, v in twin.items():
            assert torch.allclose(state[k], v, rtol=0, atol=1e-12), k
        assert torch.allclose(predict(state, genome, x), plain_network(twin, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
def test_what_comes_back_to_the_inputs_is_their_gradient(sizes: tuple[int, ...]) -> None:
    """For any slope handed to the last layer, not that of cross-entropy alone."""
    genome = backprop_genome(0.1, dtype=torch.float64)
    state = with_biases(init_state(sizes, genome, generator()))
    x, _ = batch(sizes[0], sizes[-1])
    told = torch.randn(len(x), sizes[-1], generator=generator(3), dtype=torch.float64)
    back = run_backward(state, genome, run_forward(state, genome, x), told)
    leaf = x.clone().requires_grad_()
    plain_network(state, leaf).backward(told)
    assert leaf.grad is not None and torch.allclose(back[0][1], leaf.grad, rtol=0, atol=1e-12)


def test_in_single_precision_too() -> None:
    genome = backprop_genome(1.0)
    state = init_state((3, 5, 4), genome, generator())
    x, y = batch(3, 4)
    leaves = {k: v.clone().requires_grad_() for k, v in state.items() if k != "reference"}
    F.cross_entropy(plain_network(leaves, x.float()), y, reduction="sum").backward()
    new = step(state, genome, x.float(), y)
    for k, v in leaves.items():
        assert v.grad is not None and torch.allclose(state[k] - new[k], v.grad, atol=1e-5)


# ------------------------------------------------------------------------------------- the formula, slowly


def slow_step(state: Synapses, genome: Genome, x: Tensor, y: Tensor) -> Params:
    """Equations 5 to 8 with loops over layers, states and neurons; additive, multi-state, asymmetric, no norm."""
    g: dict[str, Any] = {n: v.tolist() for n, v in genome.numbers.items()}
    k = genome.rule.states
    layers = sum(n.startswith("forward.") for n in state)
    a = [[[x[:, i] if c == 0 else torch.zeros(len(x)).double() for c in range(k)] for i in range(x.shape[1])]]
    one = torch.ones(len(x)).double()
    for layer in range(layers):
        w = state[f"forward.{layer}"]
        senders = [*a[-1], [one] * k]
        a.append([
            [torch.tanh(g["eta"] * sum((w[c, i, j] * g["nu"][d][c] * senders[i][d]
             for i in range(len(senders)) for d in range(k)), 0 * one)) for c in range(k)]
            for j in range(w.shape[2])
        ])  # fmt: skip
    for j, neuron in enumerate(a[-1]):
        told = torch.where(y == j, one, -one)
        a[-1][j] = [neuron[0], told, *[0 * one] * (k - 2)]
    for layer in reversed(range(layers)):
        w = state[f"backward.{layer}"]
        a[layer] = [
            [torch.tanh(g["f"] * neuron[c] + g["eta"] * sum((w[c, j, i] * g["mu"][d][c] * a[layer + 1][j][d]
             for j in range(w.shape[1]) for d in range(k)), 0 * one)) for c in range(k)]
            for i, neuron in enumerate(a[layer])
        ]  # fmt: skip

    def hebb(w: Tensor, pre: list[list[Tensor]], post: list[list[Tensor]]) -> Tensor:
        out = g["f_synapse"] * w
        for c, i, j, e, d in product(range(k), range(len(pre)), range(len(post)), range(k), range(k)):
            both = pre[i][e] * g["nu_synapse"][e][c] * g["mu_synapse"][c][d] * post[j][d]
            out[c, i, j] += g["eta_synapse"] * (both.mean() if genome.rule.reduction == "mean" else both.sum())
        return out

    new: Params = {}
    for layer in range(layers):
        new[f"forward.{layer}"] = hebb(state[f"forward.{layer}"], [*a[layer], [one] * k], a[layer + 1])
        new[f"backward.{layer}"] = hebb(state[f"backward.{layer}"], a[layer + 1], a[layer])
    return new


@pytest.mark.parametrize(("states", "reduction"), [(2, "mean"), (2, "sum"), (3, "mean")])
def test_a_step_is_the_paper_s_equations(states: int, reduction: Literal["mean", "sum"]) -> None:
    genome = some_genome(Rule(states=states, normalise=False, reduction=reduction))
    state = with_biases(init_state((2, 3, 2), genome, generator()))
    x, y = batch(2, 2, rows=4)
    new, slow = step(state, genome, x, y), slow_step(state, genome, x, y)
    assert new.keys() == slow.keys() | {"reference"}
    for k, v in slow.items():
        assert torch.allclose(new[k], v, rtol=1e-10, atol=1e-12), k


def test_sizes_of_the_genome() -> None:
    """4 k^2 + 4 of the paper, the starting deviation, and mean and deviation of k states in two directions."""
    for k in (2, 3, 5):
        assert Rule(states=k, normalise=False).size == 4 * k * k + 4 + 1
        assert Rule(states=k).size == 4 * k * k + 4 + 1 + 4 * k


# ---------------------------------------------------------------------------------------- what holds for all

RULES = [
    Rule(), Rule(states=3), Rule(symmetric=True), Rule(synapse_states="single"), Rule(normalise_synapses=True),
    Rule(backward="multiplicative"), Rule(reduction="sum"), backprop_genome(0.1).rule,
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_one_genome_fits_every_width_depth_and_class_count(rule: Rule) -> None:
    genome = some_genome(rule)
    for sizes in SIZES:
        x, y = batch(sizes[0], sizes[-1])
        state = init_state(sizes, genome, generator())
        for _ in range(3):
            state = step(state, genome, x, y)
        logits = predict(state, genome, x)
        assert logits.shape == (11, sizes[-1]) and logits.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
def test_vector_and_back(rule: Rule) -> None:
    genome = some_genome(rule)
    again = from_vector(rule, to_vector(genome))
    assert list(again.numbers) == list(rule.shapes())
    assert all(torch.equal(again.numbers[k], v) for k, v in genome.numbers.items())


@pytest.mark.parametrize("rule", RULES)
def test_learning_needs_no_autograd(rule: Rule) -> None:
    genome = some_genome(rule)
    x, y = batch(3, 4)
    with torch.no_grad():
        state = init_state((3, 5, 4), genome, generator())
        before = {k: v.clone() for k, v in state.items()}
        new = step(state, genome, x, y)
        logits = predict(new, genome, x)
    assert not any(v.requires_grad for v in [*new.values(), *genome.numbers.values(), logits])
    assert all(torch.equal(state[k], before[k]) for k in before), "a step changes nothing that it was given"
    assert not torch.equal(new["forward.0"], state["forward.0"])


def test_gradients_reach_every_number_through_the_steps() -> None:
    for rule in (Rule(), Rule(symmetric=True, states=3, normalise_synapses=True)):
        leaf = to_vector(some_genome(rule)).requires_grad_()
        genome = from_vector(rule, leaf)
        x, y = batch(3, 4)
        state = init_state((3, 5, 4), genome, generator())
        for _ in range(3):
            state = step(state, genome, x, y)
        slope = torch.autograd.grad(predict(state, genome, x[:5]).square().sum(), leaf)[0]
        assert slope.isfinite().all() and (slope != 0).all()


def test_mean_and_sum_differ_by_the_batch() -> None:
    genome = some_genome(Rule())
    summed = Genome(replace(genome.rule, reduction="sum"), genome.numbers | {
        "eta_synapse": genome.numbers["eta_synapse"] / 11
    })  # fmt: skip
    x, y = batch(3, 4)
    state = init_state((3, 5, 4), genome, generator())
    one, other = step(state, genome, x, y), step(state, summed, x, y)
    assert all(torch.allclose(one[k], other[k]) for k in one)
    assert not torch.allclose(
        step(state, summed, x[:5], y[:5])["forward.0"], step(state, genome, x[:5], y[:5])["forward.0"]
    )


def test_symmetric_synapses_have_no_way_back_of_their_own() -> None:
    genome = some_genome(Rule(symmetric=True))
    assert not any(k.startswith("backward") for k in init_state((3, 5, 4), genome, generator()))
    asymmetric = init_state((3, 5, 4), some_genome(Rule()), generator())
    assert not torch.allclose(asymmetric["forward.1"][:, :-1], asymmetric["backward.1"].transpose(1, 2))


def test_new_pictures_do_not_see_each_other() -> None:
    genome = some_genome(Rule())
    x, y = batch(3, 4)
    state = step(init_state((3, 5, 4), genome, generator()), genome, x, y)
    alone = torch.cat([predict(state, genome, row[None]) for row in x])
    assert torch.allclose(alone, predict(state, genome, x), atol=1e-12)


def test_the_order_of_a_batch_does_not_matter() -> None:
    genome = some_genome(Rule())
    x, y = batch(3, 4)
    state, order = init_state((3, 5, 4), genome, generator()), torch.randperm(11, generator=generator())
    one, other = step(state, genome, x, y), step(state, genome, x[order], y[order])
    assert all(torch.allclose(one[k], other[k], atol=1e-12) for k in one if k != "reference")


def test_renamed_classes_with_renamed_synapses_are_the_same_learning() -> None:
    """A label is told to the neuron of its class alone."""
    genome, order = some_genome(Rule()), torch.tensor([2, 0, 3, 1])
    x, y = batch(3, 4)
    state = init_state((3, 5, 4), genome, generator())
    renamed = state | {"forward.1": state["forward.1"][:, :, order], "backward.1": state["backward.1"][:, order]}
    logits = predict(step(state, genome, x, y), genome, x)
    assert torch.allclose(predict(step(renamed, genome, x, order.argsort()[y]), genome, x), logits[:, order])


def test_normalised_synapses_forget_their_length() -> None:
    genome = some_genome(Rule(normalise_synapses=True))
    x, _ = batch(3, 4)
    state = init_state((3, 5, 4), genome, generator())
    longer = {k: v if k == "reference" else 3 * v for k, v in state.items()}
    assert torch.allclose(predict(state, genome, x), predict(longer, genome, x), atol=1e-3)


def test_zero_rate_keeps_the_synapses() -> None:
    genome = some_genome(Rule())
    numbers = genome.numbers | {"f_synapse": torch.tensor(1.0).double(), "eta_synapse": torch.tensor(0.0).double()}
    still = Genome(genome.rule, numbers)
    state = init_state((3, 5, 4), still, generator())
    neurons = run_forward(state, still, batch(3, 4)[0])
    assert all(torch.equal(v, state[k]) for k, v in updated(state, still, neurons).items())


def test_what_does_not_fit_is_refused() -> None:
    genome = some_genome(Rule())
    state = init_state((3, 5, 4), genome, generator())
    with pytest.raises(ConfigError, match="flatten"):
        step(state, genome, torch.zeros(2, 1, 3, 3).double(), torch.zeros(2).long())
    with pytest.raises(ConfigError, match="inputs"):
        predict(state, genome, torch.zeros(2, 4).double())
    with pytest.raises(ConfigError, match="states"):
        Rule(states=1)
    with pytest.raises(ConfigError, match="vector of 29"):
        from_vector(Rule(), torch.zeros(20))
    with pytest.raises(ConfigError, match="numbers"):
        Genome(Rule(states=3), genome.numbers)
    with pytest.raises(ConfigError, match="sizes"):
        init_state((3,), genome, generator())
