"""Flower for real, on loopback: a SuperLink and two SuperNodes as processes, one of them killed in a round."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr")

from federated import flower_app
from selftaught.artifacts.files import read_json
from selftaught.artifacts.tensors import load_tensors
from selftaught.federated import FederatedState

_PATIENCE = 240.0
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "pfl-test"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "selftaught"
[tool.flwr.app.components]
serverapp = "pfl_test.app:server"
clientapp = "pfl_test.app:client"
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class Processes:
    """Everything started here, each in a process group of its own, with one folder for all that Flower writes."""

    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        here = str(Path(sys.executable).parent)
        return {
            **os.environ,
            "PATH": os.pathsep.join([here, os.environ.get("PATH", "")]),
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PFL_TEST_FOLDER": str(self.folder),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        log = (self.folder / "log").open("ab")
        process = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
        )
        log.close()
        self.running.append(process)
        return process

    def node(self, name: str, superlink: int) -> subprocess.Popen[bytes]:
        return self.start(
            "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{superlink}", "--host", "127.0.0.1",
            "--port", str(free_port()), "--node-config", f'client="{name}"',
        )  # fmt: skip

    def kill(self, process: subprocess.Popen[bytes], first: signal.Signals = signal.SIGKILL) -> None:
        """The process, and whatever it started."""
        process.send_signal(first)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def wait(self, what: str, done: Callable[[], bool]) -> None:
        until = time.monotonic() + _PATIENCE
        while not done():
            if time.monotonic() > until:
                pytest.fail(f"{what}: not in {_PATIENCE:g} s\n{(self.folder / 'log').read_text()[-4000:]}")
            time.sleep(0.1)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    found = Processes(tmp_path)
    yield found
    for process in reversed(found.running):
        found.kill(process)


def submit(processes: Processes, port: int) -> None:
    """What `flwr run` sends: the app as one bundle."""
    app = processes.folder / "pfl-test"
    (app / "pfl_test").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (app / "pfl_test" / "__init__.py").touch()
    shutil.copy(Path(flower_app.__file__), app / "pfl_test" / "app.py")
    home = processes.folder / "home"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    done = processes.start("flwr", "run", str(app), "here")
    processes.wait("flwr run", lambda: done.poll() is not None)
    assert done.returncode == 0, (processes.folder / "log").read_text()[-4000:]


def is_open(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def in_process(rounds: list[dict[str, object]]) -> FederatedState:
    """The same schedule, whoever was missing."""
    state = flower_app.FEDERATION.start()
    for record in rounds:
        refused = record["refused"]
        assert isinstance(refused, dict)
        state, _ = flower_app.FEDERATION.round(state, refused)
    return state


@pytest.mark.slow
def test_a_killed_client_comes_back_with_its_state_and_the_numbers_are_those_in_process(
    processes: Processes,
) -> None:
    folder, port = processes.folder, free_port()
    processes.start("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
    processes.wait("the SuperLink", lambda: is_open(port))
    processes.node("a", port)
    b = processes.node("b", port)
    submit(processes, port)
    processes.wait("b in round 2", (folder / "hanging-b").exists)
    # A farewell tells the SuperLink at once; without one it takes Flower a minute of missed heartbeats.
    processes.kill(b, signal.SIGTERM)
    processes.wait("the end of round 2", (folder / "come-back").exists)
    processes.node("b", port)
    processes.wait("the end", (folder / "result.json").exists)
    records = read_json(folder / "result.json")["records"]
    assert [r["accepted"] for r in records] == [["a", "b"], ["a"], ["a", "b"]]
    assert list(records[1]["refused"]) == ["b"] and records[1]["models"] in (3, 4)
    found, _ = load_tensors(folder / "result.safetensors")
    state = in_process(records)
    for kind, expected in (("model", state.server.model), ("average", state.server.average)):
        for k, v in expected.items():
            assert torch.allclose(found[f"{kind}.{k}"], v, atol=1e-5), (kind, k)
    # b's state is in these numbers: without it round 3 would have ended elsewhere.
    forgetful = flower_app.FEDERATION.start()
    for turn, record in enumerate(records):
        if turn == 2:
            row = torch.tensor([1.0, 0.0])
            states = {k: v * row.view(-1, *[1] * (v.ndim - 1)) for k, v in forgetful.states.items()}
            forgetful = FederatedState(forgetful.server, states)
        forgetful, _ = flower_app.FEDERATION.round(forgetful, record["refused"])
    gap = max(float((found[f"model.{k}"] - v).abs().max()) for k, v in forgetful.server.model.items())
    assert gap > 1e-3


@pytest.mark.filterwarnings("ignore")  # ray's own: of later versions, and of sockets it leaves open
def test_the_simulation_takes_the_same_apps(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Flower's simulation needs ray: pip install 'flwr[simulation]'")
    from flwr.simulation import run_simulation

    from selftaught.federated.flower import CorrectedStrategy, client_app, plan_of, server_app

    plan, names = plan_of(flower_app.FEDERATION), sorted(flower_app.FEDERATION.clients)
    strategy = CorrectedStrategy(plan, names, patience=240, run="simulation")
    app = client_app(
        plan,
        lambda context: (names[int(context.node_config["partition-id"])],
                         flower_app.FEDERATION.clients[names[int(context.node_config["partition-id"])]]),
        lambda context: tmp_path / "states",
    )  # fmt: skip
    run_simulation(server_app(strategy, 2), app, num_supernodes=2)
    state = flower_app.FEDERATION.start()
    for _ in range(2):
        state, _ = flower_app.FEDERATION.round(state)
    assert strategy.state is not None
    for k, v in state.server.model.items():
        assert torch.allclose(strategy.state.model[k], v, atol=1e-5)
