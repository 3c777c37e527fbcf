"""Decoders on frozen features: what they recover, and what they refuse."""

import pytest
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError, DataError
from selftaught.learners.decoders import fit_decoder, normalised_error


def features(count: int = 400) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0))


def test_linear_recovers_what_is_linear_and_only_the_network_what_is_not() -> None:
    z, new = features().split(300)
    plain, bent = (lambda x: 100 * x @ torch.tensor([[1.0], [2.0], [0.0]]) + 7), (lambda x: x[:, :1].abs())
    assert normalised_error(fit_decoder(z, plain(z), "linear")(new), plain(new)) < 1e-3
    straight, curved = (fit_decoder(z, bent(z), kind, epochs=200)(new) for kind in ("linear", "mlp"))
    assert straight.shape == curved.shape == (100, 1)
    assert normalised_error(straight, bent(new)) > 0.8
    assert normalised_error(curved, bent(new)) < 0.3


def test_the_seed_decides_and_the_global_generators_are_left_alone() -> None:
    z = features(100)
    before = torch.get_rng_state()
    a, b, c = (fit_decoder(z, z[:, :2], epochs=2, seed=s)(z) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(before, torch.get_rng_state())


def test_an_error_of_one_is_the_mean_of_every_target() -> None:
    targets = features() * torch.tensor([1.0, 10.0, 1000.0])
    assert normalised_error(targets.mean(0).expand_as(targets), targets) == pytest.approx(1, rel=1e-4)
    assert normalised_error(targets, targets) == 0


def test_what_cannot_be_fitted_is_refused() -> None:
    z = features(10)
    with pytest.raises(ConfigError, match="mlp or linear"):
        fit_decoder(z, z, "cubic")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"\[10, 3\] and \[9, 3\]"):
        fit_decoder(z, z[:9])
    broken = z.clone()
    broken[3, 1] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        fit_decoder(broken, z)
