"""Every method at toy size, on generated characters of 16 x 16 pixels."""

import functools
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from selftaught.core.train import start, train
from selftaught.core.types import Examples, Method, Optimizer, Params, State, Task, TaskSource
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import Views
from selftaught.nets import build_encoder
from selftaught.optimizers.gradient import Gradient

SIZES = {
    "tasks": 2, "ways": 4, "shots": 1, "queries": 2, "batch": 8, "hidden": 16, "out": 8, "queue": 16,
    "inner_steps": 2, "test_steps": 3, "bootstrap_steps": 2, "total_steps": 30, "prototypes": 8, "clusters": 4,
}  # fmt: skip
"""Small values for fields of these names; a method that calls its sizes otherwise keeps its own."""

VIEWS = Views(rotate=15, translate=0.1, scale=(0.8, 1.2))


def tiny(kind: type[Any], **changes: Any) -> Any:
    """A method of this class with its defaults, but small."""
    known = {f.name for f in fields(kind)}
    return kind(**({k: v for k, v in SIZES.items() if k in known} | changes))


@functools.cache
def pictures() -> Pictures:
    return draw_strokes(classes=6, per_class=6, size=16, seed=1)


@dataclass(frozen=True)
class Toy:
    """A method with everything it needs to train."""

    method: Method
    net: nn.Module
    source: TaskSource
    optimizer: Optimizer
    state: State

    def after(self, steps: int) -> State:
        run = train(self.method, self.net, self.source, self.optimizer, self.state, steps)
        return [state for state, _ in run][-1]

    def tasks(self, seed: int = 5) -> Task:
        tasks = self.source(torch.Generator().manual_seed(seed))
        dtype = next(self.net.parameters()).dtype
        return tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, tasks)

    def loss_and_gradients(self, tasks: Task) -> tuple[Tensor, Params]:
        leaves = {k: v.detach().clone().requires_grad_() for k, v in self.state.params.items()}
        loss, _ = self.method.loss(self.net, leaves, self.state.slow, tasks)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return loss.detach(), {k: g for k, g in zip(leaves, found, strict=True) if g is not None}


def build(method: Method, norm: str = "batch", *, seed: int = 0, skeleton: int = 0, double: bool = False) -> Toy:
    """`seed` is that of the training draws, `skeleton` that of the starting numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(skeleton)
        net = method.network(build_encoder("conv4", 1, 16, skeleton, width=16, norm=norm))
    net = net.double() if double else net
    optimizer = Gradient(rate=2e-3, schedule="constant")
    source = method.source(pictures(), VIEWS)
    return Toy(method, net, source, optimizer, start(method, net, optimizer, seed))


def labelled_task(
    ways: int = 3, shots: int = 2, seed: int = 0, double: bool = False
) -> tuple[Examples, torch.Tensor]:
    """Support of characters in order of shot, then class, and queries [6 1 16 16]."""
    x = pictures().x.float().div(255)
    x = x.double() if double else x
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randperm(6, generator=generator)
    own = torch.stack([n * 6 + pick for n in range(ways)])  # [ways 6]
    support = own[:, :shots].T.flatten()
    query = own[:, shots : shots + 2].T.flatten()
    return Examples(x[support], torch.arange(ways).repeat(shots)), x[query]


def choices(kind: type[Any]) -> dict[str, tuple[Any, ...]]:
    """The fields of a method that take one of a few named values, and those values."""
    found = {name: _literals(hint) for name, hint in get_type_hints(kind).items()}
    return {name: values for name, values in found.items() if values}


def _literals(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return tuple(value for part in get_args(hint) for value in _literals(part))
    return ()
