"""A client's part of a round: K corrected steps from what the server sent, for many clients side by side."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_map

from selftaught.core.errors import ConfigError
from selftaught.core.types import Aux, Params, Task
from selftaught.core.vmap_norm import BatchedNorms, has_norms
from selftaught.federated.clients import ClientData
from selftaught.federated.corrections import Correction
from selftaught.federated.meta_models import MetaModel


@final
@dataclass(frozen=True)
class LocalSteps:
    """K = `steps` steps of size beta = `rate` * `decay` ** (round - 1); raises ConfigError for none.

    `clip` bounds the norm of gradient and correction together (0: no bound); `weight_decay` comes after it, as
    in torch's SGD, and never inside an inner step.
    """

    steps: int = 20
    rate: float = 0.1
    decay: float = 1.0
    clip: float = 10.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.rate > 0 or not self.decay > 0:
            raise ConfigError(f"local training needs steps >= 1, rate and decay above 0, got {self}")

    def rate_at(self, turn: int) -> float:
        """beta of round `turn`, counted from 1."""
        return self.rate * self.decay ** (turn - 1)

    def travelled(self, turn: int) -> float:
        """K beta of round `turn`."""
        return self.steps * self.rate_at(turn)


@final
@dataclass(frozen=True)
class Broadcast:
    """What reaches a client in round `turn` (from 1): w, the mean state (empty but for Scaf), statistics."""

    turn: int
    model: Params
    shared: Params
    slow: Params


@final
@dataclass(frozen=True)
class Trained:
    """What the clients [C] have come to: `params` [C ...], statistics and the last step's loss of each."""

    params: Params
    slow: Sequence[Params]
    losses: Tensor


def train_locally(
    net: nn.Module,
    model: MetaModel,
    correction: Correction,
    local: LocalSteps,
    sent: Sequence[Broadcast],
    states: Params,
    data: Sequence[ClientData],
    generators: Sequence[torch.Generator],
    at_once: int | None = None,
) -> Trained:
    """K steps of every client in `data` [C] from what was `sent` to each; `states` [C ...] are only read.

    All are in the same round. `at_once` bounds the clients in one `vmap`. A client whose numbers leave the finite
    ones does not touch the others.
    """
    start = stacked([s.model for s in sent])
    shared = stacked([s.shared for s in sent])
    own, slow = start, [s.slow for s in sent]
    rate, losses = local.rate_at(sent[0].turn), torch.zeros(len(data))
    for _ in range(local.steps):
        tasks = [model.draw(d, g) for d, g in zip(data, generators, strict=True)]
        gradient, losses, auxes = gradients(net, model, own, slow, tasks, at_once)
        towards = _clipped(correction.direction(gradient, own, start, states, shared), local.clip)
        own = {k: w - rate * (towards[k] + local.weight_decay * w) for k, w in own.items()}
        if auxes:
            rows = ({k: w[i] for k, w in own.items()} for i in range(len(data)))
            each = zip(slow, rows, tasks, auxes, strict=True)
            slow = [model.refresh(net, s, p, t, a) for s, p, t, a in each]
    return Trained(own, slow, losses)


def stacked(rows: Sequence[Params]) -> Params:
    """[C ...] of C dictionaries of the same names."""
    return {k: torch.stack([row[k] for row in rows]) for k in rows[0]}


def gradients(
    net: nn.Module,
    model: MetaModel,
    own: Params,
    slow: Sequence[Params],
    tasks: Sequence[Task],
    at_once: int | None = None,
) -> tuple[Params, Tensor, list[Aux]]:
    """grad F_i [C ...] at `own` [C ...], losses [C], and what `refresh` needs (nothing where batched)."""
    leaves = {k: v.detach().requires_grad_() for k, v in own.items()}
    if not model.batched:
        return _one_by_one(net, model, leaves, slow, tasks)
    together = tree_map(lambda *rows: torch.stack(rows), *tasks)
    norms = BatchedNorms() if has_norms(net) else nullcontext()
    with norms:
        losses = vmap(lambda p, t: model.loss(net, p, {}, t)[0], chunk_size=at_once)(leaves, together)
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True)), losses.detach(), []


def _one_by_one(
    net: nn.Module, model: MetaModel, leaves: Params, slow: Sequence[Params], tasks: Sequence[Task]
) -> tuple[Params, Tensor, list[Aux]]:
    """For methods that bring their own batching and cannot be inside another."""
    found, losses, auxes = [], [], []
    for i, (task, statistics) in enumerate(zip(tasks, slow, strict=True)):
        mine = {k: v[i].detach().requires_grad_() for k, v in leaves.items()}
        loss, aux = model.loss(net, mine, statistics, task)
        found.append(torch.autograd.grad(loss, list(mine.values()), materialize_grads=True))
        losses.append(loss.detach())
        auxes.append(aux)
    columns = (torch.stack(column) for column in zip(*found, strict=True))
    return dict(zip(leaves, columns, strict=True)), torch.stack(losses), auxes


def _clipped(towards: Params, clip: float) -> Params:
    """Each client's direction [C ...] with a norm of at most `clip`."""
    if not clip:
        return towards
    norm = torch.stack([v.flatten(1).square().sum(1) for v in towards.values()]).sum(0).sqrt()
    factor = (clip / (norm + 1e-12)).clamp(max=1)
    return {k: v * factor.view(-1, *[1] * (v.ndim - 1)) for k, v in towards.items()}
