"""Strategy and ClientApp together, without network: the trajectory of `Federation`, whatever is lost."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr")
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from federated.federated_clients import blobs, small_net
from federated.flower_loop import LoopGrid, grid_of
from selftaught.core.errors import ConfigError
from selftaught.federated import (
    Correction,
    Dyn,
    FederatedState,
    Federation,
    LocalSteps,
    MAMLModel,
    NoCorrection,
    Scaf,
    generator_of,
)
from selftaught.federated.flower import CorrectedStrategy, plan_of, server_app, state_file
from selftaught.federated.server import ServerState


@pytest.fixture(autouse=True)
def in_a_task(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Flower's messages ask in which task they are made; its log goes to the console otherwise."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


def federation(correction: Correction, fraction: float = 0.6) -> Federation:
    return Federation(small_net(), blobs(), MAMLModel(3, 6, 6), correction, LocalSteps(3, 0.1), fraction)


def strategy(f: Federation, **options: float) -> CorrectedStrategy:
    return CorrectedStrategy(plan_of(f), f.names, f.fraction, patience=0.0, run="test", **options)  # type: ignore[arg-type]


def rounds(s: CorrectedStrategy, grid: LoopGrid, count: int = 1) -> ServerState:
    s.start(grid, s.initial_arrays(), count, timeout=0.6)  # type: ignore[arg-type]
    assert s.state is not None
    return s.state


def assert_equal(one: ServerState, other: FederatedState) -> None:
    assert one.round == other.server.round
    for k, v in other.server.model.items():
        assert torch.allclose(one.model[k], v, atol=1e-10), k
        assert torch.allclose(one.average[k], other.server.average[k], atol=1e-10), k


@pytest.mark.parametrize("correction", [NoCorrection(), Dyn(), Scaf()], ids=lambda c: type(c).__name__)
def test_the_trajectory_is_that_of_the_federation(correction: Correction, tmp_path: Path) -> None:
    f = federation(correction)
    s, state = strategy(f), f.start()
    found = rounds(s, grid_of(f, tmp_path), 4)
    for turn in range(4):
        state, record = f.round(state)
        ours = s.records[turn]
        assert (ours.chosen, ours.models) == (record.chosen, record.models)
        assert ours.loss == pytest.approx(record.loss, abs=1e-10)
    assert_equal(found, state)


def test_a_lost_answer_a_dead_client_and_its_return_cost_nobody_the_state(tmp_path: Path) -> None:
    f = federation(Dyn(), 1.0)
    grid, s, state = grid_of(f, tmp_path), strategy(f), f.start()
    rounds(s, grid, 2)
    for _ in range(2):
        state, _ = f.round(state)
    # c has trained and written its offer, the answer is lost, the process dies.
    grid.spoil = lambda name, message: None if name == "c" else message
    rounds(s, grid)
    state, _ = f.round(state, {"c": "lost"})
    assert s.records[-1].refused == {"c": "no answer from it"}
    del grid.nodes[3]
    grid.spoil = lambda name, message: message
    rounds(s, grid)
    state, _ = f.round(state, {"c": "away"})
    assert s.records[-1].refused == {"c": "it is not connected"} and "c" not in s.records[-1].chosen
    # It comes back as another node, with the same disk.
    grid.add(99, "c")
    found = rounds(s, grid, 2)
    for _ in range(2):
        state, _ = f.round(state)
    assert_equal(found, state)
    # That its state mattered: without the disk the numbers are others.
    state_file(tmp_path, "c").unlink()
    other = rounds(s, grid)
    state, _ = f.round(state)
    assert not torch.allclose(other.model["head.weight"], state.server.model["head.weight"], atol=1e-5)


def spoiled(key: str, change: str) -> RecordDict:
    good = {k: v.clone() for k, v in small_net().state_dict().items()}
    bad = {
        "shape": lambda: good | {key: torch.zeros(1, dtype=torch.float64)},
        "nan": lambda: good | {key: torch.full_like(good[key], torch.nan)},
        "names": lambda: {k: v for k, v in good.items() if k != key},
    }[change]()
    return RecordDict({"model": ArrayRecord(bad)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [("shape", "the model's is"), ("nan", "not finite"), ("names", "missing"), ("empty", "no model")],
)
def test_a_client_that_sends_nonsense_is_refused_by_name(
    change: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    f = federation(Scaf(), 1.0)
    grid, s = grid_of(f, tmp_path), strategy(f)

    def spoil(name: str, message: Message) -> Message:
        if name == "b":
            content = RecordDict() if change == "empty" else spoiled("head.bias", change)
            message.content.clear()
            message.content.update(content)
        return message

    grid.spoil = spoil
    logging.getLogger("flwr").setLevel(logging.WARNING)
    logging.getLogger("flwr").propagate = True
    try:
        with caplog.at_level(logging.WARNING, "flwr"):
            found = rounds(s, grid)
    finally:
        logging.getLogger("flwr").propagate = False
    assert reason in s.records[0].refused["b"] and s.records[0].accepted == ("a", "c", "d", "e")
    assert any("'b'" in r.getMessage() and reason in r.getMessage() for r in caplog.records)
    state, _ = f.round(f.start(), {"b": "refused"})
    assert_equal(found, state)
    # b took its offer back: the next round is that of a client that was never there.
    grid.spoil = lambda name, message: message
    assert_equal(rounds(s, grid), f.round(state)[0])


def test_clients_that_cannot_take_part_say_why(tmp_path: Path) -> None:
    f = federation(Dyn(), 1.0)
    grid = grid_of(f, tmp_path, {"a": 0, "b": 0})
    one = f.clients["a"]
    grid.add(1, "a", one._replace(x_train=one.x_train[:1], y_train=one.y_train[:1]))
    grid.add(2, "b", one._replace(x_train=one.x_train * torch.nan))
    s = strategy(f)
    rounds(s, grid)
    assert s.records[0].accepted == ("c", "d", "e")
    refused = s.records[0].refused
    assert "NaN" in refused["b"] and ("one picture" in refused["a"] or "no training picture" in refused["a"])


def test_a_client_that_raises_is_named_too(tmp_path: Path) -> None:
    f = federation(Dyn(), 1.0)
    grid, s = grid_of(f, tmp_path), strategy(f)
    rounds(s, grid)
    state_file(tmp_path, "d").write_bytes(b"no tensors")
    rounds(s, grid)
    assert list(s.records[1].refused) == ["d"] and "safetensors" in s.records[1].refused["d"]


def test_a_run_of_another_name_starts_from_nothing(tmp_path: Path) -> None:
    f = federation(Dyn(), 1.0)
    rounds(strategy(f), grid_of(f, tmp_path), 2)
    again = CorrectedStrategy(plan_of(f), f.names, 1.0, patience=0.0, run="another")
    assert_equal(rounds(again, grid_of(f, tmp_path)), f.round(f.start())[0])
    other = federation(Dyn(), 1.0)
    other = replace(other, net=small_net(width=6, classes=4), model=MAMLModel(4, 6, 6))
    s = CorrectedStrategy(plan_of(other), f.names, 1.0, patience=0.0, run="another")
    rounds(s, grid_of(other, tmp_path))
    assert len(s.records[0].refused) == 5 and "another model" in s.records[0].refused["a"]


def test_personal_accuracy_is_asked_of_the_average(tmp_path: Path) -> None:
    f = federation(Dyn(), 0.6)
    s = strategy(f, fraction_evaluate=1.0)
    result = s.start(grid_of(f, tmp_path), s.initial_arrays(), 2, timeout=5)  # type: ignore[arg-type]
    state = f.round(f.round(f.start())[0])[0]
    expected = sum(f.accuracies(state).values()) / 5
    assert result.evaluate_metrics_clientapp[2]["accuracy"] == pytest.approx(expected)
    assert result.train_metrics_clientapp[2]["models"] == 6


def test_nobody_there_changes_nothing_but_the_count(tmp_path: Path) -> None:
    f = federation(Dyn(), 1.0)
    s = strategy(f)
    found = rounds(s, LoopGrid(f, tmp_path))
    assert found.round == 1 and not s.records[0].accepted and s.records[0].models == 0
    assert all(torch.equal(found.model[k], v) for k, v in f.start().server.model.items())


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    plan = plan_of(federation(Dyn()))
    for clients in ([], ["a", "a"]):
        with pytest.raises(ConfigError, match="once"):
            CorrectedStrategy(plan, clients)
    with pytest.raises(ConfigError, match="fractions"):
        CorrectedStrategy(plan, ["a"], 0.0)
    assert state_file(tmp_path, "a/../b").parent == tmp_path
    assert state_file(tmp_path, "a/b") != state_file(tmp_path, "a_b")
    assert server_app(CorrectedStrategy(plan, ["a"]), 1) is not None
    assert generator_of(0, 1, "a").initial_seed() != generator_of(0, 1, "b").initial_seed()


def test_a_client_that_leaves_in_a_round_is_not_waited_for(tmp_path: Path) -> None:
    """Without a limit of time: the round ends because the node is gone."""
    f = federation(Dyn(), 1.0)
    grid, s = grid_of(f, tmp_path), strategy(f)

    def leave(name: str, message: Message) -> Message | None:
        if name != "e":
            return message
        del grid.nodes[5]
        return None

    grid.spoil = leave
    s.start(grid, s.initial_arrays(), 1, timeout=None)  # type: ignore[arg-type]
    assert s.records[0].refused == {"e": "no answer from it"} and len(s.records[0].accepted) == 4
