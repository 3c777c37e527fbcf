"""The loss of function contrast against loops, and the two terms of neural processes against closed forms."""

import math

import pytest
import torch
from torch.distributions import Normal
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.losses.function_contrast import cross_view_info_nce, divergence, likelihood_loss
from selftaught.losses.image_text import symmetric_info_nce


def embeddings(views: int, functions: int = 5) -> torch.Tensor:
    return torch.randn(views, functions, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("views", [2, 3])
def test_it_is_the_formula_function_by_function(views: int) -> None:
    z = embeddings(views)
    terms = []
    for a in range(views):
        for b in range(views):
            for k in range(5):
                if a != b:
                    s = [math.exp(F.cosine_similarity(z[a, k], z[b, m], dim=0) / 0.3) for m in range(5)]
                    terms.append(-math.log(s[k] / sum(s)))
    assert float(cross_view_info_nce(z, 0.3)) == pytest.approx(sum(terms) / len(terms), rel=1e-12)


def test_two_views_are_the_symmetric_loss_with_negatives_of_the_other_view_only() -> None:
    z = embeddings(2)
    logits = F.normalize(z[0], dim=-1) @ F.normalize(z[1], dim=-1).T / 0.07
    right = torch.arange(5)
    both = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    assert torch.allclose(cross_view_info_nce(z, 0.07), both, rtol=1e-12)
    assert torch.allclose(symmetric_info_nce(z[0], z[1], 1 / 0.07), both, rtol=1e-12), "CLIP's"
    # Two sets of one view that coincide are no reason to move: they are never compared.
    twin = z.clone()
    twin[0, 1] = twin[0, 0]
    logits = F.normalize(twin[0], dim=-1) @ F.normalize(twin[1], dim=-1).T / 0.07
    both = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    assert torch.allclose(cross_view_info_nce(twin, 0.07), both, rtol=1e-12)


def test_what_must_not_matter() -> None:
    z = embeddings(3)
    loss = cross_view_info_nce(z, 0.2)
    assert torch.allclose(cross_view_info_nce(z[[2, 0, 1]], 0.2), loss)
    assert torch.allclose(cross_view_info_nce(z[:, [4, 2, 0, 1, 3]], 0.2), loss)
    assert torch.allclose(cross_view_info_nce(z * torch.rand(3, 5, 1).double(), 0.2), loss)
    assert float(cross_view_info_nce(torch.ones_like(z), 0.2)) == pytest.approx(math.log(5))
    with pytest.raises(ConfigError, match="two views"):
        cross_view_info_nce(z[:1], 0.2)


def test_likelihood_and_divergence_are_the_closed_forms() -> None:
    mean, y = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(1)).double()
    deviation = torch.full_like(mean, 0.5)
    each = (y - mean).square() / (2 * 0.25) + math.log(0.5) + 0.5 * math.log(2 * math.pi)
    assert torch.allclose(likelihood_loss(mean, deviation, y), each.sum(-1).mean(), rtol=1e-12)
    q, p = Normal(mean, deviation), Normal(y, 2 * deviation)
    each = math.log(2) + (0.25 + (mean - y).square()) / (2 * 1.0) - 0.5
    assert torch.allclose(divergence(q, p), each.sum(-1).mean(), rtol=1e-12)
    assert float(divergence(q, q)) == pytest.approx(0)
