"""All clients in one process: rounds, states that wait while a client is not chosen, personal accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn
from torch.func import vmap

from selftaught.core.errors import ConfigError, DataError
from selftaught.core.functional import to_float
from selftaught.core.types import Params
from selftaught.core.vmap_norm import BatchedNorms
from selftaught.federated.clients import UNLABELLED, ClientData, Clients, choose, generator_of
from selftaught.federated.corrections import Correction, NoCorrection, added
from selftaught.federated.local import LocalSteps, Trained, train_locally
from selftaught.federated.meta_models import MetaModel
from selftaught.federated.server import Record, ServerState, Update, aggregate, first_state


@final
@dataclass(frozen=True)
class FederatedState:
    """The whole of a run: the server's, and `states` [M ...], one row for each client in the order of names."""

    server: ServerState
    states: Params


@final
@dataclass(frozen=True)
class Federation:
    """`net` is a skeleton; `fraction` of the clients takes part in a round, chosen by `seed`.

    A round depends on the state before it, `seed` and the round's number alone, so continuing from a kept state is
    never having stopped. `at_once` bounds the clients that compute side by side.
    Raises DataError where clients cannot take part (see `usable`), ConfigError for a fraction outside (0, 1].
    """

    net: nn.Module
    clients: Clients
    model: MetaModel
    correction: Correction = field(default_factory=NoCorrection)
    local: LocalSteps = field(default_factory=LocalSteps)
    fraction: float = 1.0
    seed: int = 0
    at_once: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"the fraction of clients in a round must be above 0 and at most 1: {self.fraction}")
        if not self.clients:
            raise DataError("no clients: give at least one client_id -> (x_train, y_train, x_test, y_test)")
        if refused := usable(self.clients, self.model)[1]:
            name, reason = next(iter(refused.items()))
            raise DataError(
                f"{len(refused)} of {len(self.clients)} clients cannot take part, first {name!r}: {reason}. "
                "Keep the others with selftaught.federated.usable(clients, model)"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """All clients, in order."""
        return tuple(sorted(self.clients))

    def start(self) -> FederatedState:
        """The skeleton's numbers, and no client's state yet (zeros)."""
        server = first_state(self.correction, *self.model.init(self.net))
        each = self.correction.state(server.model)
        return FederatedState(server, {k: v.expand(len(self.clients), *v.shape).clone() for k, v in each.items()})

    def round(self, state: FederatedState, lost: Mapping[str, str] | None = None) -> tuple[FederatedState, Record]:
        """One round. States of clients that were not chosen, or were refused, are as they were.

        `lost` names clients from whom no answer comes this time, with the reason.
        """
        return rounds_together([self], [state], [lost or {}])[0]

    def accuracies(self, state: FederatedState) -> dict[str, float]:
        """Each client's accuracy on its own test pictures after making the averaged model its own."""
        weights = {**state.server.average, **state.server.slow}
        return personal_accuracies(self.net, self.model, weights, self.clients, self.at_once)


def rounds_together(
    federations: Sequence[Federation],
    states: Sequence[FederatedState],
    lost: Sequence[Mapping[str, str]] | None = None,
) -> list[tuple[FederatedState, Record]]:
    """A round of several federations, all their clients in one `vmap`: the same numbers as one after the other.

    They may differ in clients, seed and fraction, not in network, objective, correction, local steps or round;
    raises ConfigError where they do. Small models gain several times (seeds of one experiment, for example).
    """
    first, turn = federations[0], states[0].server.round + 1
    for other, state in zip(federations, states, strict=True):
        same = (other.model, other.correction, other.local) == (first.model, first.correction, first.local)
        if not same or state.server.round + 1 != turn:
            raise ConfigError("rounds together need one objective, correction, local steps and round number")
    chosen = [choose(f.names, f.fraction, f.seed, turn) for f in federations]
    rows = [torch.tensor([f.names.index(n) for n in c]) for f, c in zip(federations, chosen, strict=True)]
    each = list(zip(federations, states, chosen, strict=True))
    trained = train_locally(
        first.net,
        first.model,
        first.correction,
        first.local,
        [state.server.broadcast(f.correction) for f, state, names in each for _ in names],
        {k: torch.cat([s.states[k][r] for s, r in zip(states, rows, strict=True)]) for k in states[0].states},
        [f.clients[n] for f, _, names in each for n in names],
        [generator_of(f.seed, turn, n) for f, _, names in each for n in names],
        first.at_once,
    )
    found, at = [], 0
    nobody: Sequence[Mapping[str, str]] = [{} for _ in federations]
    for (federation, state, names), own_rows, missing in zip(each, rows, lost or nobody, strict=True):
        part = slice(at, at + len(names))
        own = Trained({k: v[part] for k, v in trained.params.items()}, trained.slow[part], trained.losses[part])
        found.append(_counted(federation, state, names, own_rows, own, missing))
        at += len(names)
    return found


def _counted(
    f: Federation,
    state: FederatedState,
    chosen: Sequence[str],
    rows: Tensor,
    trained: Trained,
    lost: Mapping[str, str],
) -> tuple[FederatedState, Record]:
    """What the server makes of the clients' work, and the states of those it accepted."""
    updates = {
        n: Update({k: v[i] for k, v in trained.params.items()}, trained.slow[i], float(trained.losses[i]))
        for i, n in enumerate(chosen)
        if n not in lost
    }
    missing = {n: reason for n, reason in lost.items() if n in chosen}
    server, record = aggregate(f.correction, f.local, state.server, chosen, updates, len(f.clients), missing)
    travelled = f.local.travelled(server.round)
    change = f.correction.change(trained.params, state.server.model, state.server.shared, travelled)
    after = added({k: v[rows] for k, v in state.states.items()}, change)
    counted = torch.tensor([n in record.accepted for n in chosen])
    states = {k: v.index_copy(0, rows[counted], after[k][counted]) for k, v in state.states.items()}
    return FederatedState(server, states), record


def usable(clients: Clients, model: MetaModel) -> tuple[dict[str, ClientData], dict[str, str]]:
    """The clients that can take part, and for the others name -> reason."""
    reasons = {name: model.refusal(data) for name, data in clients.items()}
    refused = {name: reason for name, reason in reasons.items() if reason}
    return {name: data for name, data in clients.items() if name not in refused}, refused


def personal_accuracies(
    net: nn.Module, model: MetaModel, weights: Params, clients: Clients, at_once: int | None = None
) -> dict[str, float]:
    """Share of right answers on each client's own test pictures; clients without test pictures are left out."""
    tested = {name: data for name, data in clients.items() if len(data.y_test)}
    if not model.batched:
        return {name: _accuracy(net, model, weights, data) for name, data in tested.items()}
    found: dict[str, float] = {}
    for names in _portions(sorted(tested), at_once):
        data = [tested[n] for n in names]
        x, y = _padded([d.x_train for d in data], 0), _padded([d.y_train for d in data], UNLABELLED)
        asked, answers = _padded([d.x_test for d in data], 0), _padded([d.y_test for d in data], UNLABELLED)
        with BatchedNorms():
            each = vmap(lambda a, b, c: model.personal_logits(net, weights, a, b, c))
            logits = each(to_float(x), y, to_float(asked)).detach()
        right = (logits.argmax(-1) == answers).sum(1) / (answers != UNLABELLED).sum(1)
        found |= dict(zip(names, right.tolist(), strict=True))
    return found


def mean_accuracy(accuracies: Mapping[str, float]) -> float:
    """Over clients, each counting alike. Raises DataError for none."""
    if not accuracies:
        raise DataError("no client has test pictures")
    return sum(accuracies.values()) / len(accuracies)


def _accuracy(net: nn.Module, model: MetaModel, weights: Params, data: ClientData) -> float:
    logits = model.personal_logits(net, weights, data.x_train, data.y_train, data.x_test)
    return float((logits.argmax(-1) == data.y_test).float().mean())


def _portions(names: Sequence[str], at_once: int | None) -> list[Sequence[str]]:
    size = at_once or max(1, len(names))
    return [names[i : i + size] for i in range(0, len(names), size)]


def _padded(rows: Sequence[Tensor], value: int) -> Tensor:
    """[C n ...] of tensors [n_c ...]; `value` where one is shorter."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
