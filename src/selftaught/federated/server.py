"""The server's part of a round, the same in process and under Flower: refuse, average, correct, count."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from selftaught.core.types import Params
from selftaught.federated.corrections import Correction, added
from selftaught.federated.local import Broadcast, LocalSteps


@final
@dataclass(frozen=True)
class ServerState:
    """After `round` rounds: `model` w starts the next one, `average` is what is made personal and evaluated.

    `shared` is the mean state over all clients (g for Dyn, c for Scaf); `slow` are averaged statistics.
    """

    round: int
    model: Params
    average: Params
    shared: Params
    slow: Params

    def broadcast(self, correction: Correction) -> Broadcast:
        """What goes to the clients of the next round."""
        shared = self.shared if correction.models_down > 1 else {}
        return Broadcast(self.round + 1, self.model, shared, self.slow)


@final
@dataclass(frozen=True)
class Update:
    """What one client sends back."""

    params: Params
    slow: Params = field(default_factory=dict)
    loss: float = math.nan


@final
@dataclass(frozen=True)
class Record:
    """What happened in round `round`: `models` tensors of the model's size travelled, both ways together.

    `refused` names every chosen client that did not count, with the reason; `loss` is the mean over accepted ones.
    """

    round: int
    chosen: Sequence[str]
    accepted: Sequence[str]
    refused: Mapping[str, str]
    models: int
    loss: float


def first_state(correction: Correction, params: Params, slow: Params) -> ServerState:
    """Before any round."""
    return ServerState(0, params, params, correction.state(params), slow)


def aggregate(
    correction: Correction,
    local: LocalSteps,
    server: ServerState,
    chosen: Sequence[str],
    updates: Mapping[str, Update],
    clients: int,
    missing: Mapping[str, str] | None = None,
) -> tuple[ServerState, Record]:
    """The state after the round, of the updates that can be used; `clients` counts all, active or not.

    Updates of wrong names or shapes or with numbers that are not finite are left out and named in the record,
    as are `missing` clients (name -> reason). Where nothing is left, the round changes nothing but the count.
    """
    turn, refused = server.round + 1, dict(missing or {})
    for name in chosen:
        if name in updates and (reason := refusal(updates[name], server)):
            refused[name] = reason
    accepted = [name for name in chosen if name in updates and name not in refused]
    models = correction.models_down * len(chosen) + len(updates)
    mean_loss = sum(updates[n].loss for n in accepted) / len(accepted) if accepted else math.nan
    record = Record(turn, tuple(chosen), tuple(accepted), refused, models, mean_loss)
    if not accepted:
        return ServerState(turn, server.model, server.average, server.shared, server.slow), record
    received = {k: torch.stack([updates[n].params[k] for n in accepted]) for k in server.model}
    change = correction.change(received, server.model, server.shared, local.travelled(turn))
    shared = added(server.shared, {k: v.sum(0) / clients for k, v in change.items()})
    average = {k: v.mean(0) for k, v in received.items()}
    slow = {k: _mean_statistic([updates[n].slow[k] for n in accepted]) for k in server.slow}
    return ServerState(turn, correction.mixed(average, shared), average, shared, slow), record


def refusal(update: Update, server: ServerState) -> str | None:
    """Why an update cannot be averaged with others, or None."""
    for got, wanted in ((update.params, server.model), (update.slow, server.slow)):
        if set(got) != set(wanted):
            odd = sorted(set(got) ^ set(wanted))[0]
            return f"its tensors are not the model's: {odd!r} is {'strange' if odd in got else 'missing'}"
        for name, like in wanted.items():
            value = got[name]
            if value.shape != like.shape or value.dtype != like.dtype:
                return f"{name} is {_form(value)}, the model's is {_form(like)}"
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                return f"{name} holds numbers that are not finite"
    return None


def _form(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"


def _mean_statistic(values: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(list(values))
    return stacked.mean(0) if stacked.is_floating_point() else stacked.amax(0)
