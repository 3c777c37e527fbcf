"""Gates: what opens, that masks on weights are gates on units, and why they stand behind the normalisation."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.functional import apply, buffers_of, params_of
from selftaught.core.types import merged
from selftaught.nets import build_encoder
from selftaught.nets.gates import Gated, gated_statistics, layers_of, masked, masks, opened, with_gates
from selftaught.nets.split import statistics_after


def network(name: str = "conv4", size: int = 32, **options: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = with_gates(build_encoder(name, 1, size, 0, **options), per_task=True).double()
        net.get_parameter("head.weight").data.normal_()
    return net


def pictures(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def count(net: nn.Module) -> int:
    return sum(layer.units for layer in layers_of(net.get_submodule("encoder")))


def some_gates(net: nn.Module, *tasks: int) -> Tensor:
    draw = torch.rand(*tasks, count(net), generator=torch.Generator().manual_seed(1))
    return (draw > 0.5).double()


def test_the_best_of_a_layer_within_the_budget_and_above_zero_are_open() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, -1.0], [-3.0, -1.0, -2.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
    expected = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]])
    assert torch.equal(opened(scores, 0.5), expected.float())


@pytest.mark.parametrize("budget", [1e-6, 0.1, 0.29, 0.5, 1.0])
def test_never_all_closed_and_never_beyond_the_budget(budget: float) -> None:
    g = torch.Generator().manual_seed(0)
    for shift in (-100.0, -1.0, 0.0, 1.0, 100.0):
        open_units = opened(torch.randn(50, 100, generator=g) + shift, budget).sum(-1)
        assert (open_units >= 1).all() and (open_units <= max(1, round(100 * budget))).all()
    assert opened(torch.full((7,), -5.0), budget).sum() == 1


@pytest.mark.parametrize(
    "options",
    [
        {"width": 8},
        {"width": 8, "readout": "mean"},
        {"width": 8, "norm": "group"},
        {"width": 8, "norm": "none"},
        {"name": "vit", "size": 16},
    ],
)
def test_masks_on_weights_are_gates_on_units(options: dict[str, object]) -> None:
    net = network(**options)  # type: ignore[arg-type]
    x = pictures(5, 1, 16, 16) if "name" in options else pictures(5, 1, 32, 32)
    weights = merged(params_of(net), buffers_of(net))
    gates = some_gates(net)
    layers = layers_of(net.get_submodule("encoder"))
    by_weights = apply(net, masked(weights, masks(gates, layers, weights)), x, "batch")
    gated = Gated(net)
    by_units = apply(gated, gated.own(weights) | {"open": gates}, x, "batch")
    assert torch.allclose(by_weights, by_units, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(by_units, apply(net, weights, x, "batch"), rtol=1e-3)


def test_a_row_of_gates_belongs_to_its_picture() -> None:
    net = network(width=8)
    weights, gated = merged(params_of(net), buffers_of(net)), Gated(net)
    rows = some_gates(net, 3)
    x = pictures(3, 1, 32, 32)
    together = apply(gated, gated.own(weights) | {"open": rows}, x)
    one_by_one = [apply(gated, gated.own(weights) | {"open": rows[i]}, x[i : i + 1]) for i in range(3)]
    assert torch.allclose(together, torch.cat(one_by_one), rtol=1e-9, atol=1e-12)


def test_a_gate_before_normalisation_neither_closes_nor_learns() -> None:
    z, gamma, beta = pictures(6, 3, 4, 4), torch.ones(3).double(), torch.full((3,), 0.5).double()

    def unit(gate: Tensor) -> Tensor:
        return F.relu(F.batch_norm(gate[:, None, None] * z, None, None, gamma, beta, training=True, eps=1e-12))

    gate = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(unit(gate).square().sum(), gate)
    assert slope.abs().max() < 1e-8
    closed = F.relu(F.batch_norm(0 * z, None, None, gamma, beta, training=True))
    assert torch.equal(closed, torch.full_like(closed, 0.5))


def test_statistics_with_all_open_are_the_plain_ones() -> None:
    net, x = network(width=8), pictures(2, 3, 1, 32, 32)
    params, slow = params_of(net), buffers_of(net)
    plain = statistics_after(net, params, slow, x.flatten(0, 1))
    gated = gated_statistics(net, params, slow, x, torch.ones(2, count(net)).double())
    assert gated.keys() == slow.keys()
    assert all(torch.allclose(gated[k], plain[k], rtol=1e-12) for k in slow)
    closed = gated_statistics(net, params, slow, x, some_gates(net, 2))
    assert not torch.allclose(
        closed["encoder.blocks.1.norm.running_mean"], plain["encoder.blocks.1.norm.running_mean"]
    )


def test_gates_begin_open_and_nearly_alike() -> None:
    gates = network(width=8).get_submodule("gates")
    summary = pictures(6, 32)
    scores = gates(summary)
    assert (scores > 0).all() and 0 < scores.std(0).max() < 0.2
