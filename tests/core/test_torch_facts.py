"""Facts about torch that the library is built around. When one of these fails, torch has changed: rejoice."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch.nn import functional as F

Normalise = Callable[[Tensor, Tensor], Tensor]
"""(x [8 3 4], scale [3]) -> [8 3 4]; the shift is sin(scale)."""

MEAN = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)


def by_channel(w: Tensor) -> Tensor:
    return w[:, None]


def written_out(x: Tensor, w: Tensor) -> Tensor:
    gap = x - x.mean((0, 2), keepdim=True)
    return gap / (gap.square().mean((0, 2), keepdim=True) + 1e-5).sqrt() * by_channel(w) + by_channel(w.sin())


NORMS: dict[str, Normalise] = {
    "batch": lambda x, w: F.batch_norm(x, None, None, w, w.sin(), training=True),
    "instance": lambda x, w: F.instance_norm(x, None, None, w, w.sin()),
    "layer": lambda x, w: F.layer_norm(x.mT, (3,), w, w.sin()).mT,
    "batch without affine": lambda x, w: F.batch_norm(x, None, None, training=True) * by_channel(w),
    "instance without affine": lambda x, w: F.instance_norm(x) * by_channel(w),
    "layer without affine": lambda x, w: F.layer_norm(x, (3, 4)) * by_channel(w),
    "batch by running statistics": lambda x, w: F.batch_norm(x, MEAN, MEAN + 0.5, w, w.sin()),
    "group": lambda x, w: F.group_norm(x, 1, w, w.sin()),
    "group without affine": lambda x, w: F.group_norm(x, 3) * by_channel(w),
    "root mean square": lambda x, w: F.rms_norm(x.mT.contiguous(), (3,), w).mT,
    "none": lambda x, w: x * by_channel(w) + by_channel(w.sin()),
    "batch written out": written_out,
}
WRONG = ("batch", "instance", "layer")


def meta_loss(scale: Tensor, x: Tensor, normalise: Normalise) -> Tensor:
    """Query loss of one task after one inner step on the scale of a normalisation; x [8 3 4], scale [3]."""
    y = torch.arange(3).repeat(3)[:8]

    def inner(w: Tensor) -> Tensor:
        # The pictures depend on the parameter too, as everywhere but in the first layer.
        return F.cross_entropy(normalise((x * by_channel(w)).tanh(), w).tanh().sum(2), y)

    moved = scale - 0.5 * torch.func.grad(inner)(scale)
    return F.cross_entropy(normalise((x.flip(0) * by_channel(moved)).tanh(), moved).tanh().sum(2), y)


@functools.cache
def error(name: str, batched: bool) -> float:
    """Relative error of the gradient of the mean over three tasks, against finite differences."""
    torch.manual_seed(0)
    x = torch.randn(3, 8, 3, 4, dtype=torch.float64)
    scale = torch.rand(3, dtype=torch.float64) + 0.5

    def mean(w: Tensor, batched: bool = False) -> Tensor:
        if batched:
            return torch.func.vmap(lambda x: meta_loss(w, x, NORMS[name]))(x).mean()
        return torch.stack([meta_loss(w, one, NORMS[name]) for one in x]).mean()

    def slopes(step: float) -> Tensor:
        eye = torch.eye(3, dtype=torch.float64) * step
        return torch.stack([(mean(scale + e) - mean(scale - e)) / (2 * step) for e in eye])

    expected = (4 * slopes(1e-4) - slopes(2e-4)) / 3
    leaf = scale.clone().requires_grad_()
    (found,) = torch.autograd.grad(mean(leaf, batched), leaf)
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", list(NORMS))
def test_outside_of_vmap_every_normalisation_is_right(name: str) -> None:
    assert error(name, batched=False) < 1e-7


@pytest.mark.parametrize("name", [name for name in NORMS if name not in WRONG])
def test_under_vmap_these_are_right(name: str) -> None:
    """`core.vmap_norm` leaves them as they are, or builds on them."""
    assert error(name, batched=True) < 1e-7, f"{name} has become wrong: treat it in core.vmap_norm.BatchedNorms"


@pytest.mark.parametrize("name", WRONG)
def test_under_vmap_these_are_wrong_at_second_order(name: str) -> None:
    """The gradient outside `vmap` through statistics of the batch with scale and shift (torch 2.13)."""
    assert error(name, batched=True) > 1e-3, (
        f"torch has mended {name} normalisation: once the oldest torch we allow is right, take it out of "
        "core.vmap_norm.BatchedNorms, and move its name here from WRONG to the test above"
    )


@pytest.mark.parametrize("name", WRONG[::2])
def test_what_is_wrong_is_the_gradient_of_the_scale(name: str) -> None:
    """Its derivative by the input, and nothing else: that is why the scale is applied apart."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    scale, along = torch.rand(3, dtype=torch.float64), torch.randn(2, 8, 3, 4, dtype=torch.float64)

    def slope(x: Tensor, w: Tensor, by: int) -> Tensor:
        return torch.func.grad(lambda x, w: NORMS[name](x, w).tanh().square().sum(), by)(x, w)

    def second(by: int, wrt: int, batched: bool) -> Tensor:
        leaves = x.clone().requires_grad_(), scale.clone().requires_grad_()
        if batched:
            first = torch.func.vmap(lambda x: slope(x, leaves[1], by))(leaves[0])
        else:
            first = torch.stack([slope(one, leaves[1], by) for one in leaves[0]])
        return torch.autograd.grad((first * (along if by == 0 else along[:, 0, :, 0])).sum(), leaves[wrt])[0]

    def gap(by: int, wrt: int) -> float:
        right = second(by, wrt, batched=False)
        return float((second(by, wrt, batched=True) - right).norm() / right.norm())

    assert gap(by=1, wrt=0) > 1e-2
    assert max(gap(0, 0), gap(0, 1), gap(1, 1)) < 1e-10


def test_weight_normalisation_is_wrong_at_second_order_everywhere() -> None:
    """Not only under `vmap`.

    If this fails, torch has been mended. Then: once the oldest torch we allow is right, drop
    `write_out_weight_norm` and what calls it.
    """
    torch.manual_seed(0)
    v = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    g = torch.rand(3, 1, dtype=torch.float64).add(0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, g: torch._weight_norm(v, g, 0), (v, g))
    with pytest.raises(GradcheckError):
        torch.autograd.gradgradcheck(lambda v, g: torch._weight_norm(v, g, 0), (v, g))
    assert torch.autograd.gradgradcheck(lambda v, g: v * (g / v.norm(dim=1, keepdim=True)), (v, g))


def test_saved_tensors_hooks_are_refused_around_torch_func() -> None:
    """Which is why `core.peak_bytes` counts the results of operations."""
    x = torch.rand(3, requires_grad=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
        pytest.raises(RuntimeError, match="hooks"),
    ):
        torch.func.grad(lambda x: x.pow(3).sum())(x)
