"""A Flower app of two clients for `test_flower_processes`, which copies this file; the environment has the folder.

The server runs a round with both, one in whose middle client b hangs (and is killed from outside), and one more
after b has come back.
"""

import os
import time
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import ServerApp

from selftaught.artifacts.files import write_json
from selftaught.artifacts.tensors import save_tensors
from selftaught.core.functional import prefixed
from selftaught.federated import ClientData, Dyn, Federation, LocalSteps, MAMLModel, mlp_classifier
from selftaught.federated.flower import CorrectedStrategy, client_app, plan_of

FOLDER = Path(os.environ.get("PFL_TEST_FOLDER", "."))


def clients() -> dict[str, ClientData]:
    found = {}
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        y = torch.arange(3).repeat(8)
        x = torch.randn(len(y), 5, generator=generator) + 2 * torch.nn.functional.one_hot(y, 5)
        found[name] = ClientData(x, (y + seed) % 3, x, (y + seed) % 3)
    return found


FEDERATION = Federation(
    mlp_classifier(5, 8, 4, 3, 0), clients(), MAMLModel(3, 6, 6), Dyn(0.1), LocalSteps(10, 0.1)
)


def data_of(context: Any) -> tuple[str, ClientData]:
    name = str(context.node_config["client"])
    if (FOLDER / f"hang-{name}").exists():
        (FOLDER / f"hanging-{name}").touch()
        time.sleep(600)
    return name, FEDERATION.clients[name]


client = client_app(plan_of(FEDERATION), data_of, lambda context: FOLDER / "states")
server = ServerApp()


@server.main()
def main(grid: Any, context: Any) -> None:
    strategy = CorrectedStrategy(plan_of(FEDERATION), "ab", patience=120, run="test")

    def a_round() -> None:
        strategy.start(grid, strategy.initial_arrays(), 1, timeout=90)

    a_round()
    (FOLDER / "hang-b").touch()
    a_round()
    (FOLDER / "hang-b").unlink()
    (FOLDER / "come-back").touch()
    strategy.connect(grid, 120)
    a_round()
    assert strategy.state is not None
    tensors = prefixed("model", strategy.state.model) | prefixed("average", strategy.state.average)
    save_tensors(FOLDER / "result.safetensors", tensors, {})
    write_json(FOLDER / "result.json", {"records": [vars(r) for r in strategy.records]})
