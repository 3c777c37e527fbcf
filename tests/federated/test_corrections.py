"""What the three corrections promise: exact identities, and where they come to rest on quadratics."""

import pytest
import torch

from federated.federated_clients import blobs, small_net
from selftaught.claims.pfl_quadratics import Point, Quadratic, meta_gradients, quadratic_clients
from selftaught.core.errors import ConfigError
from selftaught.federated import (
    Correction,
    Dyn,
    FederatedState,
    Federation,
    LocalSteps,
    MAMLModel,
    NoCorrection,
    Scaf,
)

CORRECTIONS: list[Correction] = [NoCorrection(), Dyn(0.1), Scaf()]


def after(federation: Federation, rounds: int) -> FederatedState:
    state = federation.start()
    for _ in range(rounds):
        state, _ = federation.round(state)
    return state


def quadratics(correction: Correction, fraction: float = 1.0) -> Federation:
    return Federation(Point(4), quadratic_clients(), Quadratic(), correction, LocalSteps(5, 0.3), fraction)


@pytest.mark.parametrize(("correction", "rounds"), [(Dyn(1.0), 40), (Scaf(), 40)])
def test_corrected_rounds_rest_where_the_sum_of_meta_gradients_is_zero(
    correction: Correction, rounds: int
) -> None:
    federation = quadratics(correction)
    state = after(federation, rounds)
    each = meta_gradients(federation, state.server.average)
    assert each.norm(dim=1).min() > 0.5  # every single client would like to go elsewhere
    assert each.sum(0).norm() < 1e-6
    # What a client keeps has become its own meta-gradient there.
    assert torch.allclose(state.states["w"], each, atol=1e-5)
    if isinstance(correction, Dyn):
        assert state.states["w"].mean(0).norm() < 1e-6
        assert torch.allclose(state.server.model["w"], state.server.average["w"], atol=1e-6)


def test_uncorrected_rounds_rest_elsewhere() -> None:
    federation = quadratics(NoCorrection())
    one, two = after(federation, 40), after(federation, 41)
    assert torch.allclose(one.server.average["w"], two.server.average["w"], atol=1e-9)
    assert meta_gradients(federation, one.server.average).sum(0).norm() > 0.5


def test_corrections_come_to_rest_with_a_part_of_the_clients_too() -> None:
    federation = quadratics(Dyn(1.0), fraction=0.4)
    state = after(federation, 50)
    assert meta_gradients(federation, state.server.average).sum(0).norm() < 1e-3


@pytest.mark.parametrize("correction", [Dyn(0.1), Scaf()])
def test_the_servers_mean_is_the_mean_of_all_clients(correction: Correction) -> None:
    federation = Federation(
        small_net(), blobs(), MAMLModel(3, 6, 6), correction, LocalSteps(3, 0.1, decay=0.9), 0.4
    )
    state = after(federation, 6)
    assert any(v.abs().max() > 1e-4 for v in state.server.shared.values())
    for k, mean in state.server.shared.items():
        assert torch.allclose(mean, state.states[k].mean(0), atol=1e-12)


def test_of_identical_clients_scaf_is_per_fedavg() -> None:
    one = next(iter(quadratic_clients().values()))
    clients = dict.fromkeys("abc", one)
    found = [
        after(Federation(Point(4), clients, Quadratic(), c, LocalSteps(5, 0.1)), 7).server.average["w"]
        for c in CORRECTIONS
    ]
    assert torch.allclose(found[0], found[2], atol=1e-12)
    assert not torch.allclose(found[0], found[1], atol=1e-3)  # Dyn shares only the place of rest


def test_the_first_round_of_all_three_differs_only_by_the_quadratic_term() -> None:
    """States are zero, so Scaf's first average is Per-FedAvg's, and Dyn's clients stay nearer to the start."""
    found = [after(quadratics(c), 1).server.average["w"] for c in CORRECTIONS]
    assert torch.equal(found[0], found[2])
    assert 0 < found[1].norm() < found[0].norm()


def test_formulas_by_hand() -> None:
    """One client, one step, w = 2, gradient 3, g = c_i = 0.5, mean state 0.2, rate 0.1."""
    w, gradient, state, shared = ({"w": torch.tensor([v])} for v in (2.0, 3.0, 0.5, 0.2))
    dyn, scaf = Dyn(0.5), Scaf()
    away = {"w": torch.tensor([1.0])}
    assert dyn.direction(gradient, away, w, state, shared)["w"].item() == pytest.approx(3 - 0.5 + 0.5 * (1 - 2))
    assert dyn.change(away, w, shared, 0.1)["w"].item() == pytest.approx(-0.5 * (1 - 2))
    assert dyn.mixed(away, shared)["w"].item() == pytest.approx(1 - 0.2 / 0.5)
    assert scaf.direction(gradient, away, w, state, shared)["w"].item() == pytest.approx(3 - 0.5 + 0.2)
    assert scaf.change(away, w, shared, 0.1)["w"].item() == pytest.approx(-0.2 + (2 - 1) / 0.1)
    assert scaf.mixed(away, shared) is away
    assert (NoCorrection().models_down, dyn.models_down, scaf.models_down) == (1, 1, 2)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_dyn_needs_a_positive_alpha(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        Dyn(alpha)
