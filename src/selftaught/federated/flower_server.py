"""The server under Flower: a Strategy whose aggregation is ours, for clients known by name."""

import logging
import math
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from selftaught.core.errors import ConfigError
from selftaught.core.types import Params
from selftaught.federated.clients import choose
from selftaught.federated.flower_client import (
    ACCEPTED,
    ACCURACY,
    CONFIG,
    INSTALLED,
    LOSS,
    METRICS,
    MODEL,
    NAME,
    RUN,
    SHARED,
    SLOW,
    TURN,
    Plan,
    need_flower,
)
from selftaught.federated.server import Record, ServerState, Update, aggregate, first_state

if INSTALLED:
    from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import Strategy
else:
    Strategy = object  # type: ignore[assignment,misc]

_log = logging.getLogger("flwr")
_POLL = 0.5


@final
class _Attentive:
    """A grid that stops waiting for nodes that have left, and looks more often than Flower's own wait."""

    def __init__(self, grid: "Grid") -> None:
        self._grid = grid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(self, messages: Iterable["Message"], *, timeout: float | None = None) -> list["Message"]:
        """Answers that came before `timeout` seconds (None: no limit), or before all who owe one were gone."""
        sent = list(messages)
        owed = dict(zip(self._grid.push_messages(sent), (m.metadata.dst_node_id for m in sent), strict=True))
        until = math.inf if timeout is None else time.monotonic() + timeout
        found: list[Message] = []
        while owed and time.monotonic() < until:
            # Asked before pulling: who leaves after answering is still heard.
            present = set(self._grid.get_node_ids())
            for reply in self._grid.pull_messages(set(owed)):
                owed.pop(reply.metadata.reply_to_message_id, None)
                found.append(reply)
            if not present & set(owed.values()):
                break
            time.sleep(_POLL)
        return found


@final
class CorrectedStrategy(Strategy):
    """Rounds of `Federation` over Flower: the same clients are chosen, the same numbers come out.

    `clients` names all who may take part, connected or not: the mean state is over all of them. Before its first
    round it waits `patience` seconds for them; later it goes on without those who are away. `run` names the run in
    the clients' state files. `state` and `records` can be read after every round.
    Raises ConfigError for no or doubled names, or where Flower is missing.
    """

    def __init__(
        self,
        plan: Plan,
        clients: Sequence[str],
        fraction: float = 1.0,
        fraction_evaluate: float = 0.0,
        patience: float = 60.0,
        run: str | None = None,
    ) -> None:
        need_flower()
        if not clients or len(set(clients)) != len(clients):
            raise ConfigError(f"name every client once, got {list(clients)}")
        if not 0 < fraction <= 1 or not 0 <= fraction_evaluate <= 1:
            raise ConfigError(f"fractions of clients lie between 0 and 1: {fraction}, {fraction_evaluate}")
        self.plan, self.clients = plan, tuple(sorted(clients))
        self.fraction, self.fraction_evaluate, self.patience = fraction, fraction_evaluate, patience
        self.run = run or secrets.token_hex(8)
        self.state: ServerState | None = None
        self.records: list[Record] = []
        self._nodes: dict[str, int] = {}
        self._accepted: dict[str, int] = {}
        self._asked: tuple[str, ...] = ()
        self._away: dict[str, str] = {}

    def start(self, grid: "Grid", *arguments: Any, **options: Any) -> Any:
        """Flower's loop of rounds, which does not wait for clients that have left."""
        return super().start(_Attentive(grid), *arguments, **options)  # type: ignore[arg-type]

    def initial_arrays(self) -> "ArrayRecord":
        """The skeleton's parameters, for `start`."""
        return ArrayRecord(self.plan.model.init(self.plan.net)[0])

    def connect(self, grid: "Grid", patience: float) -> Sequence[str]:
        """Ask unknown nodes for their names; wait up to `patience` seconds for all. Gives the names present."""
        until = time.monotonic() + patience
        while True:
            present = set(grid.get_node_ids())
            self._nodes = {name: node for name, node in self._nodes.items() if node in present}
            strangers = sorted(present - set(self._nodes.values()))
            asked = [Message(RecordDict(), node, MessageType.QUERY) for node in strangers]
            for reply in grid.send_and_receive(asked, timeout=max(patience, 10.0)) if asked else ():
                if not reply.has_error() and (name := _text(reply, NAME)) in self.clients:
                    # A client that came back is the younger node; the older may not have timed out yet.
                    self._nodes[name] = reply.metadata.src_node_id
            if len(self._nodes) == len(self.clients) or time.monotonic() >= until:
                return sorted(self._nodes)
            time.sleep(_POLL)

    def configure_train(
        self, server_round: int, arrays: "ArrayRecord", config: "ConfigRecord", grid: "Grid"
    ) -> Iterable["Message"]:
        """Messages to the chosen clients that are connected; the round's number is the state's own."""
        if self.state is None:
            slow = self.plan.model.init(self.plan.net)[1]
            self.state = first_state(self.plan.correction, dict(arrays.to_torch_state_dict()), slow)
        self.connect(grid, self.patience if self.state.round == 0 else 0.0)
        turn = self.state.round + 1
        chosen = choose(self.clients, self.fraction, self.plan.seed, turn)
        self._asked = tuple(name for name in chosen if name in self._nodes)
        self._away = {name: "it is not connected" for name in chosen if name not in self._nodes}
        sent = self.state.broadcast(self.plan.correction)
        parts = _arrays({MODEL: sent.model, SHARED: sent.shared, SLOW: sent.slow})
        return [
            Message(RecordDict({**parts, CONFIG: self._config(name, turn)}), self._nodes[name], MessageType.TRAIN)
            for name in self._asked
        ]

    def _config(self, name: str, turn: int) -> "ConfigRecord":
        return ConfigRecord({NAME: name, RUN: self.run, TURN: turn, ACCEPTED: self._accepted.get(name, 0)})

    def aggregate_train(
        self, server_round: int, replies: Iterable["Message"]
    ) -> tuple["ArrayRecord | None", "MetricRecord | None"]:
        """The average, which is what clients make their own; refusals are logged and stand in the record."""
        assert self.state is not None
        by_node = {self._nodes[name]: name for name in self._asked}
        updates: dict[str, Update] = {}
        missing = dict(self._away)
        for reply in replies:
            if (name := by_node.get(reply.metadata.src_node_id)) is not None:
                found = _update(reply)
                if isinstance(found, str):
                    missing[name] = found
                else:
                    updates[name] = found
        missing |= {n: "no answer from it" for n in self._asked if n not in updates and n not in missing}
        plan = self.plan
        self.state, record = aggregate(
            plan.correction, plan.local, self.state, self._asked, updates, len(self.clients), missing
        )
        self.records.append(record)
        self._accepted |= dict.fromkeys(record.accepted, record.round)
        for name, reason in record.refused.items():
            _log.warning("round %d goes on without client %r: %s", record.round, name, reason)
        figures = {"accepted": len(record.accepted), "refused": len(record.refused), "models": record.models}
        loss = {} if math.isnan(record.loss) else {LOSS: record.loss}
        return ArrayRecord(self.state.average), MetricRecord({**figures, **loss})

    def configure_evaluate(
        self, server_round: int, arrays: "ArrayRecord", config: "ConfigRecord", grid: "Grid"
    ) -> Iterable["Message"]:
        """The average to `fraction_evaluate` of the clients, as far as they are connected."""
        assert self.state is not None
        if not self.fraction_evaluate:
            return []
        chosen = choose(self.clients, self.fraction_evaluate, self.plan.seed, -self.state.round % 2**31)
        parts = _arrays({MODEL: self.state.average, SLOW: self.state.slow})
        return [
            Message(RecordDict(dict(parts)), self._nodes[name], MessageType.EVALUATE)
            for name in chosen
            if name in self._nodes
        ]

    def aggregate_evaluate(self, server_round: int, replies: Iterable["Message"]) -> "MetricRecord | None":
        """Mean personal accuracy, each client counting alike."""
        found = []
        for reply in replies:
            metrics = None if reply.has_error() else reply.content.get(METRICS)
            value = metrics.get(ACCURACY) if isinstance(metrics, MetricRecord) else None
            if isinstance(value, float) and math.isfinite(value):
                found.append(value)
        return MetricRecord({ACCURACY: sum(found) / len(found), "clients": len(found)}) if found else None

    def summary(self) -> None:
        """One line in Flower's log."""
        _log.info("%s, %d clients, fraction %g", self.plan.correction, len(self.clients), self.fraction)


def server_app(strategy: CorrectedStrategy, rounds: int, timeout: float = 600.0) -> "ServerApp":
    """A Flower `ServerApp` of `rounds` rounds; a client gets `timeout` seconds to answer."""
    app = ServerApp()

    @app.main()
    def main(grid: Any, context: Any) -> None:
        strategy.start(grid, strategy.initial_arrays(), rounds, timeout)

    return app


def _arrays(parts: Mapping[str, Params]) -> dict[str, Any]:
    return {key: ArrayRecord(tensors) for key, tensors in parts.items() if tensors}


def _text(reply: "Message", key: str) -> str:
    config = reply.content.get(CONFIG)
    return str(config.get(key, "")) if isinstance(config, ConfigRecord) else ""


def _update(reply: "Message") -> Update | str:
    """What a client sent, or why there is nothing to be had of it."""
    if reply.has_error():
        return f"it failed: {reply.error.reason}"
    if reason := _text(reply, "refused"):
        return reason
    model, slow, metrics = (reply.content.get(key) for key in (MODEL, SLOW, METRICS))
    if not isinstance(model, ArrayRecord):
        return "its answer holds no model"
    try:
        params = dict(model.to_torch_state_dict())
        statistics = dict(slow.to_torch_state_dict()) if isinstance(slow, ArrayRecord) else {}
    except (ValueError, TypeError, OSError) as error:
        return f"its arrays cannot be read: {error}"
    loss = metrics.get(LOSS) if isinstance(metrics, MetricRecord) else None
    return Update(params, statistics, float(loss) if isinstance(loss, int | float) else math.nan)
