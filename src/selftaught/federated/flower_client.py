"""A client under Flower: answers with its model, keeps its correction's state on its own disk.

The state (g_i or c_i) never travels. Whether a round counted is the server's decision, so a client writes two
things: what it keeps, and the change it offered in which round. With the next model the server says which round of
this client it accepted last; the offer becomes part of the state if it was that one, and is dropped otherwise. So
killed processes, lost answers and refusals leave both sides with the same numbers.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn

from selftaught.artifacts.tensors import load_tensors, save_tensors
from selftaught.core.errors import ConfigError, DataError, SelftaughtError
from selftaught.core.functional import part, prefixed
from selftaught.core.types import Params
from selftaught.federated.clients import ClientData, as_clients, generator_of
from selftaught.federated.corrections import Correction, added
from selftaught.federated.federation import personal_accuracies
from selftaught.federated.local import Broadcast, LocalSteps, train_locally
from selftaught.federated.meta_models import MetaModel

try:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    INSTALLED = True
except ImportError:  # the extra is not installed: importing is fine, using raises
    INSTALLED = False

NAME, RUN, TURN, ACCEPTED = "client", "run", "round", "accepted-round"
MODEL, SHARED, SLOW, CONFIG, METRICS = "model", "shared", "slow", "config", "metrics"
LOSS, ACCURACY = "loss", "accuracy"


@final
@dataclass(frozen=True)
class Plan:
    """What server and clients agree on before the first round; fields as in `Federation`."""

    net: nn.Module
    model: MetaModel
    correction: Correction
    local: LocalSteps
    seed: int = 0


def need_flower() -> None:
    """Raises ConfigError where Flower is missing."""
    if not INSTALLED:
        raise ConfigError("Flower is not installed: pip install 'selftaught[flower]'")


def client_app(
    plan: Plan, data_of: Callable[[Any], tuple[str, ClientData]], states_of: Callable[[Any], Path]
) -> "ClientApp":
    """A Flower `ClientApp`; each node is one client.

    `data_of` gives name and pictures, `states_of` the folder of the node's state, both from Flower's `Context`
    (its `node_config` has what `--node-config` said). Clients that cannot take part answer with the reason.
    Raises ConfigError where Flower is missing.
    """
    need_flower()
    app = ClientApp()

    def named(context: Context) -> tuple[str, ClientData]:
        name, data = data_of(context)
        checked = as_clients({name: data})[name]
        if reason := plan.model.refusal(checked):
            raise DataError(f"client {name!r} cannot take part: {reason}")
        return name, checked

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return _answer(message, {CONFIG: ConfigRecord({NAME: data_of(context)[0]})})

    @app.train()
    def train(message: Message, context: Context) -> Message:
        try:
            name, data = named(context)
        except SelftaughtError as error:
            # An answer, not an exception: the server's record then has the reason in our words.
            return _answer(message, {CONFIG: ConfigRecord({NAME: "", "refused": str(error)})})
        path = state_file(states_of(context), name)
        sent, config = _broadcast(message)
        found, loss = one_round(plan, name, data, sent, str(config[RUN]), _whole(config, ACCEPTED), path)
        records: dict[str, Any] = {
            CONFIG: ConfigRecord({NAME: name, TURN: sent.turn}),
            METRICS: MetricRecord({LOSS: loss}),
            **{k: ArrayRecord(v) for k, v in found.items() if v},
        }
        return _answer(message, records)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        name, data = named(context)
        weights = {**_tensors(message, MODEL), **_tensors(message, SLOW)}
        found = personal_accuracies(plan.net, plan.model, weights, {name: data})
        return _answer(message, {METRICS: MetricRecord({ACCURACY: found.get(name, math.nan)})})

    return app


def one_round(
    plan: Plan, name: str, data: ClientData, sent: Broadcast, run: str, accepted: int, path: Path
) -> tuple[dict[str, Params], float]:
    """Local steps from `sent`; the state file is brought up to date first and gets the new offer.

    Gives {"model": ..., "slow": ...} and the last step's loss. Raises RunError for a damaged state file.
    """
    state = kept_state(plan, sent, run, accepted, path)
    generator = generator_of(plan.seed, sent.turn, name)
    rows = {k: v[None] for k, v in state.items()}
    trained = train_locally(plan.net, plan.model, plan.correction, plan.local, [sent], rows, [data], [generator])
    own = {k: v[0] for k, v in trained.params.items()}
    offer = plan.correction.change(own, sent.model, sent.shared, plan.local.travelled(sent.turn))
    marks = {NAME: name, RUN: run, TURN: str(sent.turn)}
    save_tensors(path, prefixed("kept", state) | prefixed("offered", offer), marks)
    return {MODEL: own, SLOW: dict(trained.slow[0])}, float(trained.losses[0])


def kept_state(plan: Plan, sent: Broadcast, run: str, accepted: int, path: Path) -> Params:
    """The client's state before this round: zeros at first (or after a run of another name)."""
    fresh = plan.correction.state(sent.model)
    if not path.exists():
        return fresh
    tensors, marks = load_tensors(path)
    if marks.get(RUN) != run:
        return fresh
    kept, offered = part(tensors, "kept"), part(tensors, "offered")
    if any(k not in kept or kept[k].shape != v.shape for k, v in fresh.items()):
        raise ConfigError(f"{path} belongs to another model or correction; move it away or name another run")
    return added(kept, offered) if int(marks[TURN]) == accepted else kept


def state_file(folder: Path, name: str) -> Path:
    """Where the state of client `name` lies; any name gives a plain file name."""
    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:60]
    return folder / f"{plain}-{zlib.crc32(name.encode()):08x}.safetensors"


def _broadcast(message: "Message") -> tuple[Broadcast, "ConfigRecord"]:
    config = message.content[CONFIG]
    assert isinstance(config, ConfigRecord)
    turn = _whole(config, TURN)
    return Broadcast(turn, _tensors(message, MODEL), _tensors(message, SHARED), _tensors(message, SLOW)), config


def _whole(config: "ConfigRecord", key: str) -> int:
    value = config[key]
    assert isinstance(value, int)
    return value


def _tensors(message: "Message", key: str) -> Params:
    found = message.content.get(key)
    return dict(found.to_torch_state_dict()) if isinstance(found, ArrayRecord) else {}


def _answer(message: "Message", records: dict[str, Any]) -> "Message":
    return Message(RecordDict(records), reply_to=message)
