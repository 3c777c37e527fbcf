"""Small float64 networks and meta-batches for comparing methods with their formulas."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from selftaught.core.types import Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import Views
from selftaught.nets import build_encoder

VIEWS = Views(rotate=15, translate=0.1, scale=(0.8, 1.2))


def pictures() -> Pictures:
    return draw_strokes(classes=6, per_class=6, size=16, seed=1)


def small(method: Any, norm: str = "batch", views: Views = VIEWS) -> tuple[nn.Module, Params, Params, Task]:
    """Network, params, slow and one meta-batch of the method's own source."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = method.network(build_encoder("conv4", 1, 16, 0, width=8, norm=norm)).double()
    tasks = method.source(pictures(), views)(torch.Generator().manual_seed(2))
    tasks = tree_map(lambda x: x.double() if x.is_floating_point() else x, tasks)
    params, slow = method.init(net)
    return net, params, slow, tasks


def leaves_of(params: Params) -> Params:
    return {k: v.detach().clone().requires_grad_() for k, v in params.items()}


def gradient(method: Any, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Params]:
    """The outer loss and its gradient, zero where the loss does not know a parameter."""
    leaves = leaves_of(params)
    loss, _ = method.loss(net, leaves, slow, tasks)
    found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return loss.detach(), dict(zip(leaves, found, strict=True))


def distance(a: Params, b: Params) -> float:
    """Relative distance of two gradients, over all parameters together."""
    assert a.keys() == b.keys()
    gap = torch.cat([(a[k] - b[k]).flatten() for k in a]).norm()
    return float(gap / torch.cat([v.flatten() for v in b.values()]).norm())
