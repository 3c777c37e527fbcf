"""Shares, what torchrun's environment means, and rows and statistics shared by two processes."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.multiprocessing.spawn import spawn

from selftaught.artifacts.tensors import load_tensors, save_tensors
from selftaught.core import distributed, launch
from selftaught.core.distributed import LostProcessError, Ranks
from selftaught.core.errors import ConfigError, RunError
from selftaught.core.functional import apply, apply_update
from selftaught.core.over_tasks import over_tasks
from selftaught.core.sharing import current, in_shares, shared_by
from selftaught.core.types import Params, State


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_all_rows_once_and_about_equal(count: int) -> None:
    for total in (count, count + 1, 5 * count + 3):
        shares = Ranks(0, count).rows(total)
        assert [i for s in shares for i in range(total)[s]] == list(range(total))
        sizes = [s.stop - s.start for s in shares]
        assert max(sizes) - min(sizes) <= 1
        assert Ranks(count - 1, count).own(total) == shares[-1]


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.joined() as ranks:
        assert ranks is None and not dist.is_initialized()
    assert launch.leads() and not distributed.any_of(None, False) and distributed.any_of(None, True)
    monkeypatch.setenv("RANK", "1")
    assert not launch.leads()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="let torchrun set them"), distributed.joined():
        pass


def test_nobody_to_meet_is_an_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LostProcessError, match="does not answer"), distributed.joined(patience=0.2):
        pass
    monkeypatch.setenv("SELFTAUGHT_PATIENCE", "long")
    with pytest.raises(ConfigError, match="SELFTAUGHT_PATIENCE"), distributed.joined():
        pass


def test_sharing_ends_with_its_block_and_is_off_within_none() -> None:
    ranks = Ranks(0, 2)
    with shared_by(ranks):
        assert current() is ranks
        with shared_by(None):
            assert current() is None
        assert current() is ranks
    assert current() is None


def test_fewer_rows_than_processes_are_computed_by_each() -> None:
    seen: list[int] = []

    def f(params: Params, x: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    with shared_by(Ranks(1, 4)):
        in_shares(f, {}, torch.zeros(3, 2))
    assert seen == [3]


# ------------------------------------------------------------------------------------------ two processes


class Rows(nn.Module):
    """Linear, batch normalisation, and the number of rows it met."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.met = 0

    def forward(self, x: Tensor) -> Tensor:
        self.met = len(x)
        return self.norm(self.linear(x)).tanh()


def net() -> Rows:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Rows().double()


def pictures() -> Tensor:
    return 5 + torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def numbers() -> dict[str, Tensor]:
    """Values, derivatives by parameters and by rows, second derivatives and moved statistics."""
    skeleton = net()
    params = {k: v.detach().clone().requires_grad_() for k, v in skeleton.named_parameters()}
    buffers, x = dict(skeleton.named_buffers()), pictures().requires_grad_()
    z, moved = apply_update(skeleton, params, buffers, x)
    met = skeleton.met
    loss = (z.mT @ z).square().sum() + z.exp().sum()
    first = torch.autograd.grad(loss, [*params.values(), x], create_graph=True)
    inner = {k: v - 0.1 * g for (k, v), g in zip(params.items(), first, strict=False)}
    after = apply(skeleton, inner, x, "batch").pow(3).sum()
    second = torch.autograd.grad(after, [*params.values(), x])
    with torch.no_grad():
        plain = apply(skeleton, params, x, "batch")

    def one_task(skeleton: nn.Module, params: Params, task: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out = functional_call(skeleton, params, (task,))
        return out.square().sum(), {"mean": out.mean(0)}

    tasks = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    mean, figures = over_tasks(one_task, skeleton, params, tasks, path="loop")
    of_tasks = torch.autograd.grad(mean, [*params.values(), tasks])
    found = [z, loss, *first, after, *second, plain, mean, figures["mean"], *of_tasks]
    named = {f"{n:02}": t.detach().clone() for n, t in enumerate(found)}
    return named | {f"moved/{k}": v for k, v in moved.items()} | {"met": torch.tensor(met)}


def two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    with shared_by(ranks):
        found = numbers()
    # From here on the second process is another one at each step.
    state = State({"w": torch.full((2,), float(rank))}, {}, {}, torch.Generator().manual_seed(rank), 3)
    same = distributed.of_the_first(ranks, state)
    found |= {"w": same.params["w"], "drawn": torch.rand(2, generator=same.generator)}
    distributed.check_together(ranks, 1, torch.tensor(1.0 + 1e-6 * rank))
    with pytest.raises(RunError, match="come apart"):
        distributed.check_together(ranks, 1, torch.tensor(float(rank)))
    longer = State({"w": torch.zeros(2 + rank)}, {}, {}, torch.Generator(), 3)
    with pytest.raises(RunError, match="different states"):
        distributed.of_the_first(ranks, longer)
    assert distributed.any_of(ranks, rank == 1) and not distributed.any_of(ranks, False)
    save_tensors(Path(folder) / f"{rank}.safetensors", found, {})
    dist.destroy_process_group()


def test_rows_tasks_and_statistics_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    """Values, first and second derivatives, 7 rows and 3 tasks in unequal shares."""
    spawn(two, args=(str(tmp_path),), nprocs=2)
    alone = numbers()
    first, second = (load_tensors(tmp_path / f"{rank}.safetensors")[0] for rank in range(2))
    assert (int(alone.pop("met")), int(first.pop("met")), int(second.pop("met"))) == (7, 3, 4)
    for k, v in alone.items():
        assert torch.equal(first[k], second[k]), k
        assert torch.allclose(first[k], v, rtol=1e-9, atol=1e-11), k
    for found in (first, second):
        assert torch.equal(found["w"], torch.zeros(2))
        assert torch.equal(found["drawn"], torch.rand(2, generator=torch.Generator().manual_seed(0)))


def dies(rank: int, folder: str, patience: float) -> None:
    torch.set_num_threads(1)
    environment: dict[str, Any] = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({k: str(v) for k, v in environment.items()})
    port = Path(folder) / "port"
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
        (Path(folder) / "writing").write_text(str(store.port))
        (Path(folder) / "writing").replace(port)
    while not port.exists():
        time.sleep(0.01)
    os.environ["MASTER_PORT"] = port.read_text()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # as under torchrun: the store is there already
    with distributed.joined(patience=patience) as ranks:
        assert ranks is not None
        distributed.any_of(ranks, False)
        if rank == 1:
            os._exit(0)  # without a word, as kill -9 does
        with pytest.raises(LostProcessError, match="--resume"):
            for _ in range(3):
                distributed.any_of(ranks, False)
        (Path(folder) / "noticed").touch()


def test_a_dead_process_is_noticed(tmp_path: Path) -> None:
    spawn(dies, args=(str(tmp_path), 20.0), nprocs=2)
    assert (tmp_path / "noticed").exists()
