"""A Flower grid without network: nodes are ClientApps called in this process. Answers can be lost or spoiled."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

pytest.importorskip("flwr")
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from selftaught.federated import ClientData, Federation
from selftaught.federated.flower import client_app, plan_of


class LoopGrid:
    """`nodes` map node id -> app; `spoil(name, message)` may change a train answer or lose it (None)."""

    def __init__(self, federation: Federation, states: Path) -> None:
        self.federation, self.states = federation, states
        self.nodes: dict[int, tuple[str, ClientApp]] = {}
        self.answers: dict[str, Message] = {}
        self.spoil: Callable[[str, Message], Message | None] = lambda name, message: message

    def add(self, node: int, name: str, data: ClientData | None = None) -> None:
        """A node that holds client `name`."""
        own = self.federation.clients[name] if data is None else data
        app = client_app(plan_of(self.federation), lambda context: (name, own), lambda context: self.states)
        self.nodes[node] = (name, app)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = []
        for message in messages:
            sent.append(f"m{len(sent)}")
            message.metadata.__dict__["_message_id"] = sent[-1]
            node = message.metadata.dst_node_id
            name, app = self.nodes[node]
            context = Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
            try:
                answer: Message | None = app(message, context)
            except Exception as error:
                answer = Message(Error(0, str(error)), reply_to=message)
            if message.metadata.message_type == "train" and answer is not None:
                answer = self.spoil(name, answer)
            if answer is not None:
                self.answers[sent[-1]] = answer
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.answers.pop(i) for i in list(message_ids) if i in self.answers]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))


def grid_of(federation: Federation, states: Path, without: Mapping[str, object] | None = None) -> LoopGrid:
    """Every client on a node of its own, ids from 1."""
    grid = LoopGrid(federation, states)
    for node, name in enumerate(federation.names, start=1):
        if name not in (without or {}):
            grid.add(node, name)
    return grid
