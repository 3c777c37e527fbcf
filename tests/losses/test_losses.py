"""Losses against loops written out, torch's own functions, finite differences and another library."""

import math
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.losses.contrastive import (
    cross_entropy,
    info_nce,
    nt_xent,
    nt_xent_tasks,
    similarity_logits,
    squared_distance_logits,
    view_means,
)
from selftaught.losses.matching import half_squared_distance, kl_from_target, kl_to_target
from selftaught.losses.regression import cosine_regression


def normal(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def cosine(a: list[float], b: list[float]) -> float:
    inner = sum(x * y for x, y in zip(a, b, strict=True))
    return inner / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def slow_nt_xent(z: Tensor, temperature: float) -> float:
    """Every anchor, every positive, one at a time: -log(exp(s_ap) / sum over all others exp(s_ao))."""
    views, batch = z.shape[:2]
    rows = [(v, b) for v in range(views) for b in range(batch)]
    value = {row: z[row].tolist() for row in rows}
    total = 0.0
    for anchor in rows:
        below = sum(math.exp(cosine(value[anchor], value[o]) / temperature) for o in rows if o != anchor)
        positives = [r for r in rows if r[1] == anchor[1] and r != anchor]
        each = [-math.log(math.exp(cosine(value[anchor], value[p]) / temperature) / below) for p in positives]
        total += sum(each) / len(each)
    return total / len(rows)


# --- NT-Xent --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("views", [2, 3, 4])
def test_nt_xent_equals_the_loop(views: int, temperature: float) -> None:
    z = normal(views, 5, 3)
    assert float(nt_xent(z, temperature)) == pytest.approx(slow_nt_xent(z, temperature), rel=1e-12)


def test_nt_xent_of_two_views_is_a_cross_entropy() -> None:
    z = normal(2, 6, 4)
    rows = F.normalize(z.flatten(0, 1), dim=-1)
    logits = (rows @ rows.T / 0.2).fill_diagonal_(-torch.inf)
    partner = torch.arange(12).roll(6)
    torch.testing.assert_close(nt_xent(z, 0.2), F.cross_entropy(logits, partner))


def test_nt_xent_tasks_keeps_negatives_apart() -> None:
    z = normal(3, 2, 4, 5)
    expected = torch.stack([nt_xent(task, 0.3) for task in z]).mean()
    torch.testing.assert_close(nt_xent_tasks(z, 0.3), expected)
    pooled = nt_xent(z.transpose(0, 1).flatten(1, 2), 0.3)
    assert abs(float(pooled - expected)) > 0.1


def test_nt_xent_at_known_places() -> None:
    """All alike: chance over the others. Orthogonal pictures, equal views: the closed form."""
    assert float(nt_xent(torch.ones(2, 5, 3), 0.1)) == pytest.approx(math.log(9), rel=1e-5)
    z = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    positive = math.exp(1 / 0.5)
    assert float(nt_xent(z, 0.5)) == pytest.approx(-math.log(positive / (positive + 6)), rel=1e-12)


def test_nt_xent_sees_neither_scale_nor_order() -> None:
    z = normal(2, 6, 4)
    value = nt_xent(z, 0.2)
    torch.testing.assert_close(nt_xent(z * (1 + normal(2, 6, 1).abs()), 0.2), value)
    torch.testing.assert_close(nt_xent(z[:, torch.randperm(6)], 0.2), value)
    torch.testing.assert_close(nt_xent(z.flip(0), 0.2), value)
    assert abs(float(nt_xent(torch.stack([z[0], z[1].roll(1, 0)]), 0.2) - value)) > 1e-3


def test_nt_xent_needs_two_views() -> None:
    with pytest.raises(ValueError, match="two views"):
        nt_xent(normal(1, 4, 3), 0.1)


def test_nt_xent_stays_finite_in_single_precision() -> None:
    z = (normal(2, 8, 4).float() * 1e3).requires_grad_()
    loss = nt_xent(z, 0.005)
    (slope,) = torch.autograd.grad(loss, z, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), z)
    assert torch.isfinite(loss) and torch.isfinite(slope).all() and torch.isfinite(second).all()


# --- prototypes -----------------------------------------------------------------------------------------


def test_logits_equal_the_loops() -> None:
    z, prototypes = normal(2, 5, 3), normal(2, 4, 3, seed=1)
    alike = similarity_logits(z, prototypes, 0.3)
    far = squared_distance_logits(z, prototypes)
    assert alike.shape == far.shape == (2, 5, 4)
    for t in range(2):
        for q in range(5):
            for n in range(4):
                a, b = z[t, q], prototypes[t, n]
                assert float(alike[t, q, n]) == pytest.approx(cosine(a.tolist(), b.tolist()) / 0.3)
                assert float(far[t, q, n]) == pytest.approx(-float(((a - b) ** 2).sum()))


def test_logits_equal_torch() -> None:
    z, prototypes = normal(7, 3), normal(4, 3, seed=1)
    torch.testing.assert_close(
        similarity_logits(z, prototypes, 0.5), F.cosine_similarity(z[:, None], prototypes[None], dim=-1) / 0.5
    )
    torch.testing.assert_close(squared_distance_logits(z, prototypes), -(torch.cdist(z, prototypes) ** 2))


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_is_one_shot_protonet(temperature: float) -> None:
    """One-way InfoNCE = ProtoNet on one shot with squared distance / (2 temperature), gradients too."""
    anchors = normal(3, 6, 5).requires_grad_()
    support = normal(3, 6, 5, seed=1).requires_grad_()
    y = torch.arange(6).expand(3, 6)
    ours = info_nce(anchors, support, y, temperature)
    distance = -squared_distance_logits(F.normalize(anchors, dim=-1), F.normalize(support, dim=-1))
    protonet = F.cross_entropy((-distance / (2 * temperature)).flatten(0, 1), y.flatten())
    torch.testing.assert_close(ours, protonet, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours, (anchors, support)),
        torch.autograd.grad(protonet, (anchors, support)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    # NT-Xent, with both directions and same-view negatives, is another number.
    both = torch.stack([anchors, support], 1)
    assert abs(float(nt_xent_tasks(both, temperature).detach() - ours.detach())) > 0.05


def test_info_nce_equals_the_loop() -> None:
    z, prototypes, y = normal(5, 3), normal(4, 3, seed=1), torch.tensor([3, 0, 0, 2, 1])
    total = 0.0
    for q in range(5):
        weight = [math.exp(cosine(z[q].tolist(), prototypes[n].tolist()) / 0.2) for n in range(4)]
        total -= math.log(weight[int(y[q])] / sum(weight))
    assert float(info_nce(z, prototypes, y, 0.2)) == pytest.approx(total / 5)


def test_cross_entropy_is_the_mean_over_tasks() -> None:
    logits, y = normal(3, 5, 4), torch.randint(4, (3, 5))
    each = [F.cross_entropy(logits[t], y[t]) for t in range(3)]
    torch.testing.assert_close(cross_entropy(logits, y), torch.stack(each).mean())


def test_view_means_follow_the_order_of_tasks() -> None:
    """Rows are view, then picture: row v * ways + n is view v of picture n."""
    z = normal(2, 6, 3)
    means = view_means(z, ways=3)
    assert means.shape == (2, 3, 3)
    for t in range(2):
        for n in range(3):
            rows = [z[t, v * 3 + n] / z[t, v * 3 + n].norm() for v in range(2)]
            torch.testing.assert_close(means[t, n], (rows[0] + rows[1]) / 2)
    torch.testing.assert_close(view_means(z[:, :3], 3), F.normalize(z[:, :3], dim=-1))


# --- matching a target ----------------------------------------------------------------------------------


def test_kl_equals_torch_in_both_directions() -> None:
    p, q = normal(6, 4), normal(6, 4, seed=1)
    forward = F.kl_div(F.log_softmax(p, -1), F.softmax(q, -1), reduction="batchmean")
    backward = F.kl_div(F.log_softmax(q, -1), F.softmax(p, -1), reduction="batchmean")
    torch.testing.assert_close(kl_to_target(p, q), forward)
    torch.testing.assert_close(kl_from_target(p, q), backward)
    assert abs(float(forward - backward)) > 1e-2, "the example must tell the directions apart"


@pytest.mark.parametrize("kl", [kl_to_target, kl_from_target])
def test_kl_is_the_mean_over_all_rows(kl: Callable[[Tensor, Tensor], Tensor]) -> None:
    p, q = normal(3, 5, 4), normal(3, 5, 4, seed=1)
    torch.testing.assert_close(kl(p, q), torch.stack([kl(p[t], q[t]) for t in range(3)]).mean())
    torch.testing.assert_close(kl(p + 7, q - 3), kl(p, q))


@pytest.mark.parametrize("kl", [kl_to_target, kl_from_target])
def test_kl_to_itself_has_no_value_and_no_gradient(kl: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Zero bootstrap steps teach nothing; this is why they must be refused elsewhere."""
    p = normal(5, 4).requires_grad_()
    loss = kl(p, p)
    (slope,) = torch.autograd.grad(loss, p)
    assert abs(loss.item()) < 1e-15 and slope.abs().max() < 1e-15


@pytest.mark.parametrize("kl", [kl_to_target, kl_from_target])
def test_kl_of_extreme_logits_is_finite(kl: Callable[[Tensor, Tensor], Tensor]) -> None:
    p = torch.tensor([[1000.0, 0.0, -1000.0]], requires_grad=True)
    loss = kl(p, torch.tensor([[-1000.0, 0.0, 1000.0]]))
    loss.backward()
    assert p.grad is not None
    assert loss.item() == pytest.approx(2000) and torch.isfinite(p.grad).all()


def test_half_squared_distance() -> None:
    w = {"a": normal(2, 3).requires_grad_(), "b": normal(4, seed=1).requires_grad_()}
    target = {"a": normal(2, 3, seed=2), "b": normal(4, seed=3)}
    loss = half_squared_distance(w, target)
    both = [F.mse_loss(w[k], target[k], reduction="sum") for k in w]
    torch.testing.assert_close(loss, (both[0] + both[1]) / 2)
    for k, slope in zip(w, torch.autograd.grad(loss, list(w.values())), strict=True):
        torch.testing.assert_close(slope, w[k].detach() - target[k])


def test_one_bootstrap_step_is_maml() -> None:
    """Target = one step on the outer loss: the matching gradient is the step size times MAML's (BMG, L=1)."""
    start, goal, mixing = normal(4).requires_grad_(), normal(4, seed=1), normal(4, 4, seed=2)

    def outer(w: Tensor) -> Tensor:
        return (mixing @ w - goal).square().sum() + w.pow(4).sum()

    adapted = start - 0.1 * torch.autograd.grad(start.sin().sum() + outer(start), start, create_graph=True)[0]
    (maml,) = torch.autograd.grad(outer(adapted), start, retain_graph=True)
    zeta = 0.03
    target = adapted - zeta * torch.autograd.grad(outer(adapted), adapted, create_graph=True)[0]
    # The target still carries its graph: the loss itself must cut it.
    (matched,) = torch.autograd.grad(half_squared_distance({"w": adapted}, {"w": target}), start)
    torch.testing.assert_close(matched, zeta * maml, rtol=1e-10, atol=1e-12)


def test_cosine_regression() -> None:
    p, target = normal(3, 5, 4), normal(3, 5, 4, seed=1)
    apart = (F.normalize(p, dim=-1) - F.normalize(target, dim=-1)).square().sum(-1)
    torch.testing.assert_close(cosine_regression(p, target), apart.mean())
    torch.testing.assert_close(cosine_regression(3 * p, target / 2), apart.mean())
    assert float(cosine_regression(p, p)) == pytest.approx(0, abs=1e-12)
    assert float(cosine_regression(p, -p)) == pytest.approx(4)


def _distance(p: Tensor, target: Tensor) -> Tensor:
    return half_squared_distance({"w": p}, {"w": target})


@pytest.mark.parametrize("loss", [kl_to_target, kl_from_target, cosine_regression, _distance])
def test_targets_get_no_gradient(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    p, target = normal(5, 4).requires_grad_(), normal(5, 4, seed=1).requires_grad_()
    value = loss(p, target)
    slope, none = torch.autograd.grad(value, (p, target), allow_unused=True)
    assert slope.abs().max() > 1e-3 and none is None
    # A target that is the same tensor's own graph must count as a constant, too.
    (through,) = torch.autograd.grad(loss(p, 2 * p + 1), p)
    (constant,) = torch.autograd.grad(loss(p, (2 * p + 1).detach()), p)
    assert torch.equal(through, constant)


# --- derivatives of all ---------------------------------------------------------------------------------

Y = torch.tensor([0, 2, 1, 0])
SMOOTH: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "nt_xent": (lambda z: nt_xent(z, 0.5), (normal(2, 3, 2),)),
    "nt_xent_tasks": (lambda z: nt_xent_tasks(z, 0.5), (normal(2, 3, 2, 2),)),
    "info_nce": (lambda z, c: info_nce(z, c, Y, 0.5), (normal(4, 2), normal(3, 2, seed=1))),
    "squared_distance": (
        lambda z, c: cross_entropy(squared_distance_logits(z, c), Y),
        (normal(4, 2), normal(3, 2, seed=1)),
    ),
    "view_means": (lambda z: view_means(z, 2).square().sum(), (normal(4, 3),)),
    "kl_to_target": (lambda p: kl_to_target(p, normal(3, 4, seed=1)), (normal(3, 4),)),
    "kl_from_target": (lambda p: kl_from_target(p, normal(3, 4, seed=1)), (normal(3, 4),)),
    "half_squared_distance": (lambda p: _distance(p, normal(3, seed=1)), (normal(3),)),
    "cosine_regression": (lambda p: cosine_regression(p, normal(3, 4, seed=1)), (normal(3, 4),)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_first_and_second_derivatives(name: str) -> None:
    loss, inputs = SMOOTH[name]
    leaves = tuple(x.clone().requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


# --- another library ------------------------------------------------------------------------------------


@pytest.fixture
def torchvision_schemas() -> Iterator[None]:
    """torchvision's wheel registers kernels for two operators that a CPU torch does not know."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield
    library._destroy()


@pytest.mark.oracle
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_lightly(torchvision_schemas: None, temperature: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = pytest.importorskip("lightly.loss").NTXentLoss(temperature=temperature)
    z = normal(2, 16, 8)
    torch.testing.assert_close(nt_xent(z, temperature), reference(z[0], z[1]))
