"""The vocabulary of the library: task source -> learner -> objective -> optimiser.

Shape legend, the same everywhere: T tasks, N ways, K shots, S = N*K support, Q queries, B batch, V views,
C H W picture, D features, M classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

Params = dict[str, Tensor]
"""Named tensors, as `torch.func.functional_call` takes them."""


@dataclass(frozen=True)
class Examples:
    """Pictures with or without labels: `x` [... C H W] float, `y` [...] int64 local to the task, or None.

    Mixed queries have soft labels, `y` [... N] float, rows that sum to one (`tasks.mixed`).
    """

    x: Tensor
    y: Tensor | None = None


@dataclass(frozen=True)
class Task:
    """One task, or a meta-batch of them when every tensor has a leading T axis.

    `support.x` [(T) S C H W], `query.x` [(T) Q C H W]; labels count from 0 to `ways` - 1 inside each task.
    Examples are ordered by shot, then class: row `k * ways + n` is shot k of class n. `index` [(T) N] holds
    the pictures' positions in their set where the source knows them (for collision counts), else None.
    """

    support: Examples
    query: Examples
    ways: int
    index: Tensor | None = None


def _flatten(thing: Any) -> tuple[list[Any], tuple[Any, ...]]:
    """Leaves are whatever is there: `vmap` refuses None, and puts axis numbers in place of tensors."""
    named = vars(thing)
    leaves = {k: v for k, v in named.items() if v is not None and k != "ways"}
    rest = tuple((k, v) for k, v in named.items() if k not in leaves)
    return list(leaves.values()), (tuple(leaves), rest)


def _unflatten(kind: type) -> Callable[[Any, Any], Any]:
    def build(leaves: Any, context: Any) -> Any:
        names, rest = context
        return kind(**dict(zip(names, leaves, strict=True)), **dict(rest))

    return build


# As pytrees, tasks pass through torch.func transforms.
register_pytree_node(Examples, _flatten, _unflatten(Examples))
register_pytree_node(Task, _flatten, _unflatten(Task))


@dataclass(frozen=True)
class Aux:
    """What a loss hands out beside its value: figures for the log, tensors that `refresh` needs.

    `metrics` are scalars; `buffers` are normalisation statistics after the step; `carry` is anything else
    (momentum keys, for example). None of it has a gradient.
    """

    metrics: dict[str, Tensor] = field(default_factory=dict)
    buffers: Params = field(default_factory=dict)
    carry: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class TaskSource(Protocol):
    """Where tasks come from. Pure in the generator: the same generator state gives the same tasks."""

    def __call__(self, generator: torch.Generator) -> Task: ...


@runtime_checkable
class Encoder(Protocol):
    """A module [B C H W] -> [B D] that says how wide its output is."""

    width: int

    def __call__(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Learner(Protocol):
    """How one task is learned: `adapt` to a support set, then `predict` [Q N] logits for new pictures.

    `weights` are parameters and buffers together. What `adapt` returns is the learner's own affair (weights,
    prototypes, a solved head); it never changes `weights`.
    """

    def adapt(self, weights: Params, support: Examples, ways: int) -> Any: ...

    def predict(self, adapted: Any, x: Tensor) -> Tensor: ...


@runtime_checkable
class Method(Protocol):
    """One paper in one file: a frozen dataclass that is its own configuration.

    The network is a skeleton that says how to compute; the numbers live in `params` (what the outer gradient
    moves) and `slow` (everything it must not touch: teachers, queues, running statistics).
    """

    def source(self, pictures: Any, views: Any) -> TaskSource:
        """Tasks from `data.Pictures` and a view recipe `data.Views` (this layer stands below both)."""
        ...

    def network(self, encoder: nn.Module) -> nn.Module:
        """The encoder with the heads this method trains, as `net.encoder` and others."""
        ...

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """Starting `params` and `slow`, copied from the skeleton."""
        ...

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """The outer objective on a meta-batch (leading T), and what goes to the log and to `refresh`."""
        ...

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """`slow` after the outer step."""
        ...

    def learner(self, net: nn.Module) -> Learner:
        """How this method meets a new labelled task."""
        ...


@runtime_checkable
class Optimizer(Protocol):
    """What improves the ability to learn. It takes a function, so that evolution fits as well as descent."""

    def init(self, params: Params) -> Params: ...

    def step(self, loss_fn: "LossFn", params: Params, opt: Params) -> tuple[Params, Params, Aux]: ...


@runtime_checkable
class LossFn(Protocol):
    """A scalar to make small, as a function of the parameters alone."""

    def __call__(self, params: Params) -> tuple[Tensor, Aux]: ...


@dataclass(frozen=True)
class State:
    """The whole of a training run: saving it and restoring it continues to the same bits (on CPU)."""

    params: Params
    slow: Params
    opt: Params
    generator: torch.Generator
    step: int


def merged(*parts: Mapping[str, Tensor]) -> Params:
    """One dictionary of several; later parts win."""
    out: Params = {}
    for part in parts:
        out.update(part)
    return out
