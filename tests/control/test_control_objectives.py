"""MoSS's objectives against numbers worked out by hand and slow versions with loops."""

import math

import pytest
import torch
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)
from torch.nn import functional as F

from selftaught.control.networks import Belief, TwinCritic, gaussian_action
from selftaught.control.objectives import (
    categorical_kl,
    component_kl,
    mean_categorical_kl,
    soft_target,
    task_contrast,
)


def test_the_categorical_part_by_hand() -> None:
    y = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64).log()
    # 0.5 log 1.5 + 2 * 0.25 log 0.75
    assert categorical_kl(y).tolist() == pytest.approx([0.5 * math.log(1.5) + 0.5 * math.log(0.75), 0.0])
    sure = torch.tensor([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01], [0.01, 0.01, 0.98]], dtype=torch.float64).log()
    assert categorical_kl(sure).min() > 0.9 and mean_categorical_kl(sure).item() == pytest.approx(0, abs=1e-12)
    collapsed = sure[:1].expand(3, 3)
    assert mean_categorical_kl(collapsed).item() == pytest.approx(categorical_kl(sure[0]).item())


def test_the_components_part_is_torchs() -> None:
    g = torch.Generator().manual_seed(0)
    mean, log_var, prior = (torch.randn(2, 3, 4, generator=g, dtype=torch.float64) for _ in range(3))
    wanted = kl_divergence(Normal(mean, (log_var / 2).exp()), Normal(prior[0], math.exp(-0.7))).sum(-1)
    assert torch.allclose(component_kl(mean, log_var, prior[0], -1.4), wanted)
    assert torch.allclose(component_kl(mean, log_var, prior[0], torch.tensor(-1.4, dtype=torch.float64)), wanted)


def slow_contrast(a: torch.Tensor, b: torch.Tensor, task: list[int], valid: list[bool], t: float) -> float:
    rows = [i for i, ok in enumerate(valid) if ok]
    losses = []
    for anchors, others in ((a, b), (b, a)):
        for i in rows:

            def score(j: int, i: int = i, x: torch.Tensor = anchors, y: torch.Tensor = others) -> float:
                return math.exp(F.cosine_similarity(x[i], y[j], dim=0).item() / t)

            below = score(i) + sum(score(j) for j in rows if task[j] != task[i])
            losses.append(-math.log(score(i) / below))
    return sum(losses) / len(losses)


def test_the_contrast_is_the_slow_one_and_same_tasks_are_no_negatives() -> None:
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 6, 5, generator=g, dtype=torch.float64)
    task, valid = [0, 1, 0, 2, 1, 3], [True, True, True, True, False, True]
    ids = torch.tensor(task)
    same = ids[:, None] == ids
    found = task_contrast(a, b, same, torch.tensor(valid), 0.3)
    assert found.item() == pytest.approx(slow_contrast(a, b, task, valid, 0.3))
    unmasked = task_contrast(a, b, torch.eye(6, dtype=torch.bool), torch.tensor(valid), 0.3)
    assert unmasked > found
    a.requires_grad_()
    task_contrast(a, b, same, torch.tensor(valid), 0.3).backward()
    assert a.grad is not None and torch.isfinite(a.grad).all() and not a.grad[4].any()
    assert task_contrast(a, b, same, torch.zeros(6, dtype=torch.bool), 0.3).item() == 0


def test_sacs_target_by_hand() -> None:
    q = torch.tensor([[2.0, -1.0], [1.5, 4.0]])
    found = soft_target(torch.tensor([1.0, 0.5]), q, torch.tensor([-0.5, 2.0]), 0.2, 0.9)
    # 1 + 0.9 (1.5 + 0.1) and 0.5 + 0.9 (-1 - 0.4)
    assert found.tolist() == pytest.approx([2.44, -0.76])


def test_the_actions_density_is_torchs() -> None:
    g = torch.Generator().manual_seed(2)
    out, noise = torch.randn(7, 4, generator=g, dtype=torch.float64), torch.randn(7, 2, generator=g).double()
    action, log_p = gaussian_action(out, noise)
    mean, log_std = out.chunk(2, -1)
    squashed = TransformedDistribution(Normal(mean, log_std.clamp(-5, 2).exp()), [TanhTransform()])
    assert torch.allclose(log_p, squashed.log_prob(action).sum(-1))
    far, density = gaussian_action(torch.full((1, 2), 60.0), torch.zeros(1, 1))
    assert far.item() == 1 and torch.isfinite(density).all()


def test_the_policy_sees_the_mixtures_moments() -> None:
    g = torch.Generator().manual_seed(3)
    log_y, mean = torch.randn(3, generator=g).log_softmax(-1), torch.randn(3, 2, generator=g)
    log_var = torch.randn(3, 2, generator=g)
    whole = MixtureSameFamily(Categorical(logits=log_y), Independent(Normal(mean, (log_var / 2).exp()), 1))
    wanted = torch.cat([log_y.exp(), whole.mean, whole.variance.log()])
    assert torch.allclose(Belief(log_y, mean, log_var).features(), wanted, atol=1e-5)


def test_both_critics_are_plain_networks() -> None:
    torch.manual_seed(0)
    net, x = TwinCritic(3, 5), torch.randn(4, 3)
    for k in range(2):
        y = x
        for i, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
            y = (y.relu() if i else y) @ w[k] + b[k]
        assert torch.allclose(net(x)[k], y[:, 0], atol=1e-6)
