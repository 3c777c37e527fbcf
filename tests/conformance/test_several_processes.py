"""Every method in two processes: the numbers after several steps are those of one process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from alignment_uniformity import AlignmentUniformity
from tiny_methods import build, tiny
from torch.multiprocessing.spawn import spawn
from torch.utils._pytree import tree_map

from selftaught.artifacts.tensors import load_tensors, save_tensors
from selftaught.core.distributed import Ranks
from selftaught.core.train import train
from selftaught.core.types import Params, Task
from selftaught.methods import METHODS
from selftaught.optimizers.gradient import Gradient

# CACTUs' clusters are called before training; what it then trains is a method that stands here itself.
KINDS: dict[str, type[Any]] = {k: v for k, v in METHODS.items() if k != "cactus"} | {
    "outsider": AlignmentUniformity
}
STEPS, PROCESSES = 2, 2
# Plain descent: Adam would turn the rounding of a gradient that is zero into a whole step.
DESCENT = Gradient(rate=0.05, algorithm="sgd", schedule="constant", momentum=0.5)


def after(name: str, ranks: Ranks | None) -> Params:
    """Parameters and all that is slow after some steps in float64."""
    toy = build(tiny(KINDS[name]), double=True)

    def source(generator: torch.Generator) -> Task:
        return tree_map(lambda x: x.double() if x.is_floating_point() else x, toy.source(generator))

    state = replace(toy.state, opt=DESCENT.init(toy.state.params))
    *_, (state, figures) = train(toy.method, toy.net, source, DESCENT, state, STEPS, ranks=ranks)
    held = {f"params/{k}": v for k, v in state.params.items()} | {f"slow/{k}": v for k, v in state.slow.items()}
    return held | {"figures/loss": torch.tensor(figures["loss"], dtype=torch.float64)}


def share(rank: int, folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    for name in names:
        found = after(name, Ranks(rank, PROCESSES))
        save_tensors(Path(folder) / f"{name}-{rank}.safetensors", found, {})
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("processes")
    spawn(share, args=(str(place), list(KINDS)), nprocs=PROCESSES)
    return place


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_end_where_one_does(name: str, folder: Path) -> None:
    alone = after(name, None)
    first, second = (load_tensors(folder / f"{name}-{rank}.safetensors")[0] for rank in range(PROCESSES))
    assert first.keys() == second.keys() == alone.keys()
    for k, v in alone.items():
        assert torch.equal(first[k], second[k]), k
        assert torch.allclose(first[k], v, rtol=1e-6, atol=1e-9), (k, float((first[k] - v).abs().max()))
