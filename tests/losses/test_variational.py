"""The evidence bound against torch's distributions, by hand, and the VAE it trains."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from selftaught.losses.variational import negative_elbo, normal_kl
from selftaught.nets.vae import VAE


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_divergence_is_that_of_torchs_distributions() -> None:
    mean, log_var = normal(4, 3), normal(4, 3, seed=1)
    expected = kl_divergence(Normal(mean, (log_var / 2).exp()), Normal(0.0, 1.0)).sum(-1)
    assert torch.allclose(normal_kl(mean, log_var), expected, rtol=1e-12)


def test_the_prior_itself_costs_nothing() -> None:
    assert not normal_kl(torch.zeros(2, 3), torch.zeros(2, 3)).any()
    assert float(normal_kl(torch.tensor([[2.0]]), torch.zeros(1, 1))) == 2.0


def test_the_bound_of_black_and_white_pictures() -> None:
    logits, mean, log_var = normal(4, 1, 2, 3), normal(4, 5, seed=1), normal(4, 5, seed=2)
    x = (normal(4, 1, 2, 3, seed=3) > 0).double()
    likelihood = Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    assert torch.allclose(negative_elbo(logits, x, mean, log_var), (normal_kl(mean, log_var) - likelihood).mean())


def test_the_bound_by_hand() -> None:
    """Two grey pixels at logit 0 cost log 2 each."""
    x = torch.full((1, 1, 1, 2), 0.5)
    found = negative_elbo(torch.zeros(1, 1, 1, 2), x, torch.ones(1, 1), torch.zeros(1, 1))
    assert float(found) == pytest.approx(2 * math.log(2) + 0.5)


def test_gradients() -> None:
    logits, mean, log_var = (t.requires_grad_() for t in (normal(2, 1, 2, 2), normal(2, 3), normal(2, 3, seed=1)))
    x = torch.rand(2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda a, b, c: negative_elbo(a, x, b, c), (logits, mean, log_var))


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 7, 5)])
def test_the_vae_goes_there_and_back(shape: tuple[int, int, int]) -> None:
    vae = VAE(*shape, hidden=6, latent=4)
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    mean, log_var = vae.encode(x)
    assert mean.shape == log_var.shape == (2, 4) and vae.decode(mean).shape == x.shape
    logits, again, spread = vae(x, torch.zeros(2, 4))
    assert torch.equal(logits, vae.decode(mean)) and torch.equal(again, mean) and torch.equal(spread, log_var)
    noise = torch.ones(2, 4)
    assert torch.allclose(vae(x, noise)[0], vae.decode(mean + (log_var / 2).exp()), atol=1e-6)
