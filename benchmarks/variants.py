"""What is compared: groups of ways to take one step on the same pictures with the same network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from benchmarks.plain import one_graph_loop
from selftaught.core.functional import set_norm
from selftaught.core.types import Examples, Method, Params, Task
from selftaught.learners.inner import Graph
from selftaught.methods.bmssl import BMSSL
from selftaught.methods.maml import MAML
from selftaught.methods.simclr import SimCLR
from selftaught.nets.conv4 import Conv4
from selftaught.nets.split import Adapt

Step = Callable[[], tuple[Tensor, ...]]
"""Takes one step and hands back its gradients."""


@final
@dataclass(frozen=True)
class Shape:
    """Sizes of the work: `tasks` of `ways` classes with `shots` support and `queries` query pictures each (MAML)
    or of `pictures` pictures in 2 support and 2 query views (BMSSL); pictures of `channels` channels and `size`
    pixels through a Conv4 of `width` filters with batch normalisation."""

    tasks: int = 4
    ways: int = 5
    queries: int = 15
    pictures: int = 16
    size: int = 28
    width: int = 64
    channels: int = 1
    shots: int = 1


TINY = Shape(tasks=1, ways=2, queries=1, pictures=2, size=16, width=8)
"""Enough to load every kernel and nothing more."""


@final
@dataclass(frozen=True)
class Variant:
    """One way to take the step; `build` prepares it for a shape and a number of inner steps."""

    name: str
    build: Callable[[Shape, int], Step]


@final
@dataclass(frozen=True)
class Group:
    """Variants that do the same work; the first is the baseline of all ratios."""

    name: str
    title: str
    variants: tuple[Variant, ...]

    @property
    def baseline(self) -> Variant:
        return self.variants[0]


def episodes(shape: Shape, dtype: torch.dtype = torch.float32) -> Task:
    """Seeded random pictures as episodes with a leading T axis."""
    x = _pictures(shape, shape.tasks, (shape.shots + shape.queries) * shape.ways, dtype)
    y = torch.arange(shape.ways).repeat(shape.tasks, shape.shots + shape.queries)
    n = shape.ways * shape.shots
    return Task(Examples(x[:, :n], y[:, :n]), Examples(x[:, n:], y[:, n:]), shape.ways)


def view_tasks(shape: Shape) -> Task:
    """Seeded random pictures in place of 2 support and 2 query views, with a leading T axis."""
    x = _pictures(shape, shape.tasks, 4 * shape.pictures, torch.float32)
    half = 2 * shape.pictures
    return Task(Examples(x[:, :half]), Examples(x[:, half:]), shape.pictures)


def start(method: Method, shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Params, Params]:
    """Network, seeded parameters and buffers of `method` on a Conv4."""
    torch.manual_seed(0)
    net = method.network(Conv4(shape.channels, shape.size, shape.width)).to(dtype)
    params, slow = method.init(net)
    # A head that starts at zero would make the first inner gradient of the encoder zero as well.
    return net, {k: v if v.any() else 0.1 * torch.randn_like(v) for k, v in params.items()}, slow


def _pictures(shape: Shape, tasks: int, rows: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(tasks, rows, shape.channels, shape.size, shape.size, generator=generator).to(dtype)


def maml(shape: Shape, steps: int, graph: Graph, dtype: torch.dtype = torch.float32) -> Step:
    """The library's MAML, one task at a time: loss and gradient."""
    method = MAML(inner_steps=steps, graph=graph, path="loop", tasks=shape.tasks, ways=shape.ways)
    net, params, slow = start(method, shape, dtype)
    tasks = episodes(shape, dtype)
    return lambda: _gradient(method, net, params, slow, tasks)


def plain_maml(shape: Shape, steps: int, dtype: torch.dtype = torch.float32) -> Step:
    """The hand-written loop on the same network, start and pictures."""
    method = MAML()
    net, params, _ = start(method, shape, dtype)
    set_norm(net, "batch")
    tasks = episodes(shape, dtype)
    return lambda: one_graph_loop(net, params, tasks, method.inner_rate, steps)


def bmssl(shape: Shape, steps: int, adapt: Adapt) -> Step:
    """BMSSL on T tasks: loss, gradient and normalisation statistics, as in training."""
    return _training_step(BMSSL(adapt=adapt, inner_steps=steps, tasks=shape.tasks), shape)


def simclr(shape: Shape, steps: int) -> Step:
    """SimCLR on the same views as one batch; it has no inner steps."""
    return _training_step(SimCLR(), shape)


def _training_step(method: Method, shape: Shape) -> Step:
    net, params, slow = start(method, shape)
    tasks = view_tasks(shape)
    return lambda: _gradient(method, net, params, slow, tasks, refresh=True)


def _gradient(
    method: Method, net: nn.Module, params: Params, slow: Params, tasks: Task, refresh: bool = False
) -> tuple[Tensor, ...]:
    leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
    loss, aux = method.loss(net, leaves, slow, tasks)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    if refresh:
        method.refresh(net, slow, params, tasks, aux)
    return grads


GROUPS: dict[str, Group] = {
    "maml": Group(
        "maml",
        "MAML",
        (
            Variant("plain loop, one backward at the end", plain_maml),
            Variant("unrolled", lambda shape, steps: maml(shape, steps, "unrolled")),
            Variant("adjoint", lambda shape, steps: maml(shape, steps, "adjoint")),
            Variant("first-order", lambda shape, steps: maml(shape, steps, "first-order")),
        ),
    ),
    "bmssl": Group(
        "bmssl",
        "BMSSL, 5 bootstrap steps",
        (
            Variant("SimCLR, as many views", simclr),
            Variant("head", lambda shape, steps: bmssl(shape, steps, "head")),
            Variant("last", lambda shape, steps: bmssl(shape, steps, "last")),
            Variant("all", lambda shape, steps: bmssl(shape, steps, "all")),
        ),
    ),
}
"""Every comparison of `meta_step`."""
