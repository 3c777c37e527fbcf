"""Few-shot heads against slow loops and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.learners import heads


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_prototypes_are_class_means_of_the_promised_rows() -> None:
    z = features(4, 3 * 5, 7)
    got = heads.prototypes(z, 5)
    for e in range(4):
        for n in range(5):
            slow = torch.stack([z[e, k * 5 + n] for k in range(3)]).mean(0)
            assert torch.allclose(got[e, n], slow)
    y = torch.arange(5).repeat(3)
    assert torch.allclose(heads.prototypes(z, 5, y.expand(4, 15)), got)


def test_prototypes_with_unequal_counts() -> None:
    z = features(6, 3)
    y = torch.tensor([0, 2, 2, 1, 2, 0])
    got = heads.prototypes(z, 4, y)
    for n in range(3):
        assert torch.allclose(got[n], z[y == n].mean(0))
    assert got[3].isnan().all(), "a class without support must not look like a prototype at zero"
    with pytest.raises(ConfigError, match="pass their labels"):
        heads.prototypes(z, 4)


def test_distances_against_loops() -> None:
    support, query = features(2, 6, 5), features(2, 4, 5, seed=1)
    cosine = heads.prototype_logits(support, query, 3, distance="cosine")
    squared = heads.prototype_logits(support, query, 3, distance="squared")
    for e in range(2):
        for q in range(4):
            for n in range(3):
                rows = [support[e, n], support[e, 3 + n]]
                centre = torch.stack([r / r.norm() for r in rows]).mean(0)
                slow = torch.dot(query[e, q] / query[e, q].norm(), centre / centre.norm())
                assert torch.allclose(cosine[e, q, n], slow)
                gap = query[e, q] - torch.stack(rows).mean(0)
                assert torch.allclose(squared[e, q, n], -gap.square().sum())
    with pytest.raises(ConfigError, match="'cosine' or 'squared'"):
        heads.distance_logits(query, support, "euclid")  # type: ignore[arg-type]


def test_cosine_ignores_the_length_of_features() -> None:
    support, query = features(10, 5), features(8, 5, seed=1)
    one = heads.prototype_logits(support, query, 5)
    scale = torch.rand(10, 1, dtype=torch.float64) + 0.5
    assert torch.allclose(one, heads.prototype_logits(support * scale, query * 3, 5))


@pytest.mark.parametrize(("rows", "width"), [(6, 20), (30, 4)])
def test_ridge_is_scikit_learns_in_both_forms(rows: int, width: int) -> None:
    z, query = features(2, rows, width), features(2, 9, width, seed=1)
    y = torch.arange(3).repeat(rows // 3)
    target = heads.one_hot(rows, 3, None, z)
    weight, bias = heads.ridge(z, target.expand(2, rows, 3), penalty=0.7)
    for e in range(2):
        slow = Ridge(alpha=0.7).fit(z[e].numpy(), np.eye(3)[y.numpy()])
        assert np.allclose((query[e] @ weight[e] + bias[e]).numpy(), slow.predict(query[e].numpy()))


def test_ridge_has_a_gradient_and_refuses_no_penalty() -> None:
    z = features(6, 8).requires_grad_()
    heads.ridge_logits(z, features(4, 8, seed=1), 3).sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()
    with pytest.raises(ConfigError, match="above 0"):
        heads.ridge_logits(z, z, 3, penalty=0.0)


@pytest.mark.parametrize("ways", [2, 4])
def test_logistic_is_scikit_learns(ways: int) -> None:
    z, query = features(ways * 5, 8), features(20, 8, seed=1)
    y = torch.arange(ways).repeat(5)
    logits = heads.logistic_logits(z, query, ways, C=2.0)
    unit = heads.normalise(z).numpy()
    slow = LogisticRegression(C=2.0, max_iter=1000).fit(unit, y.numpy())
    wanted = slow.predict_proba(heads.normalise(query).numpy())
    assert np.allclose(logits.softmax(-1).numpy(), wanted, atol=1e-6)
    with pytest.raises(ConfigError, match="each of the"):
        heads.logistic_logits(z, query, ways, torch.zeros(ways * 5, dtype=torch.int64))


def test_heads_pass_through_vmap() -> None:
    support, query, y = features(3, 6, 5), features(3, 4, 5, seed=1), torch.arange(3).repeat(3, 2)
    for head in (heads.prototype_logits, heads.ridge_logits):

        def one(s: Tensor, q: Tensor, labels: Tensor) -> Tensor:
            return head(s, q, 3, labels)  # noqa: B023

        mapped = torch.vmap(one)(support, query, y)
        assert torch.allclose(mapped, head(support, query, 3, y))
