"""The CIFAR-10 benchmark's bookkeeping: what is trained on, what is scored, and that a table goes on."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.cifar import MAKERS, Cifar, Table, as_table, differences, protocol

from benchmarks import cifar
from selftaught.core.errors import ConfigError
from selftaught.data.pictures import Pictures
from selftaught.data.views import PHOTO


def noise(count: int, size: int = 32) -> Pictures:
    generator = torch.Generator().manual_seed(count)
    x = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return Pictures(x, tuple(str(n) for n in range(count)), torch.arange(count) % 10, tuple("abcdefghij"))


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sets of the right numbers of tiny pictures; gives the list of the parts that were read."""
    asked: list[str] = []

    def read(path: Path, split: str) -> Pictures:
        asked.append(split)
        count = 50_000 if split == "train" else 10_000
        x = torch.zeros(count, 1, 1, 1, dtype=torch.uint8)
        return Pictures(x, tuple(f"{split}/{n}" for n in range(count)), torch.arange(count) % 10)

    monkeypatch.setattr(cifar, "read_cifar10", read)
    return asked


def test_tuning_reads_no_test_picture_and_scores_on_none_that_a_report_trains_on(sets: list[str]) -> None:
    few, held_out = cifar.load(Path("-"), 500, "tuning", 2000)
    assert sets == ["train"] and len(held_out) == 2000
    most, scored = cifar.load(Path("-"), 40_000, "report", 3000)
    assert set(few.names) < set(most.names) and not set(most.names) & set(held_out.names)
    assert len(scored) == 3000 and all(n.startswith("test/") for n in scored.names)
    assert len(cifar.load(Path("-"), 0, "report", 10)[0]) == 50_000
    for pictures, split in ((40_001, "report"), (-1, "report"), (0, "tuning")):
        with pytest.raises(ConfigError, match="--pictures"):
            cifar.load(Path("-"), pictures, split, 10)


@pytest.mark.parametrize("name", MAKERS)
def test_every_method_sees_two_views_of_a_batch(name: str) -> None:
    task = MAKERS[name](8).source(noise(20, 8), PHOTO)(torch.Generator().manual_seed(0))
    assert sum(x.shape[0] * x.shape[1] for x in (task.support.x, task.query.x)) == 16


def test_options_reach_the_methods_that_have_them() -> None:
    asked = Cifar(Path("-"), bf16=True, heads=(40, 24), batch=32)
    found: dict[str, Any] = {name: vars(asked.made(name)) for name in MAKERS}
    assert all(f["hidden"] == 40 and f["out"] == 24 for f in found.values())
    assert {found[name]["precision"] for name in ("simclr", "byol", "bmssl")} == {"bfloat16"}
    assert found["bmssl"]["ways"] == 16
    assert vars(Cifar(Path("-")).made("vicreg"))["out"] == 256


def test_a_stopped_table_goes_on_under_the_same_protocol_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cifar, "load", lambda *_: (noise(24), noise(30)))
    trained: list[tuple[str, int]] = []
    real = Cifar._one

    def counted(self: Cifar, name: str, train_set: Pictures, held_out: Pictures, steps: int, seed: int) -> Any:
        trained.append((name, seed))
        return real(self, name, train_set, held_out, steps, seed)

    monkeypatch.setattr(Cifar, "_one", counted)
    asked: dict[str, Any] = {
        "data": tmp_path / "c.npz", "out": tmp_path / "t.json", "width": 8, "batch": 8, "steps": 2,
        "method": ("simclr", "bmssl"),
    }  # fmt: skip
    Cifar(**asked, seeds=(0,)).run()
    first = json.loads((tmp_path / "t.json").read_text())
    Cifar(**asked, seeds=(0, 1)).run()
    assert trained == [("simclr", 0), ("bmssl", 0), ("simclr", 1), ("bmssl", 1)]
    kept = json.loads((tmp_path / "t.json").read_text())
    assert kept["runs"].items() >= first["runs"].items()
    assert kept["runs"]["simclr|0"]["views"] == 32 and "raw pixels" in kept["runs"]
    assert str(tmp_path) not in json.dumps(kept["protocol"]["data"])
    assert "| raw pixels |" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"begun with another rate.*--out"):
        Cifar(**asked, rate=3e-3).run()
    with pytest.raises(ConfigError, match="there are simclr"):
        Cifar(**asked | {"method": ("simsiam",)}).run()


def test_time_is_shared_out_by_what_a_step_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "load", lambda *_: (noise(24), noise(30)))
    monkeypatch.setattr(Cifar, "_seconds_per_step", lambda self, names, p: {"simclr": 0.5, "bmssl": 2.0})
    asked = Cifar(
        tmp_path / "c", tmp_path / "t.json", ("simclr", "bmssl"), seeds=(0,), seconds=2.0, width=8, batch=8
    )
    asked.run()
    runs = Table(asked.out, protocol(asked)).section("runs")
    assert (runs["simclr|0"]["steps"], runs["bmssl|0"]["steps"]) == (4, 1)


def test_differences_are_paired_and_the_table_shows_the_spread() -> None:
    runs: dict[str, Any] = {"raw pixels": {"name": "raw pixels", "linear": [30.0, 1.0], "knn": [31.0, 1.0]}}
    for seed in range(3):
        for name, lead in (("bmssl", 2.0), ("simclr", 0.0)):
            figures = {"linear": [50 + 10 * seed + lead, 1], "knn": [40 + lead, 1], "steps": 5, "seconds": 1.0}
            runs[f"{name}{seed}"] = {"name": name, "seed": seed, **figures}
    (line,) = differences(runs, "bmssl")
    assert line == "bmssl minus simclr: linear +2.0 ± 0.0, knn +2.0 ± 0.0 (3 seeds)"
    text = as_table(runs)
    assert "| raw pixels | 30.0 ± 1.0 | 31.0 ± 1.0 | - | - | 1 |" in text
    assert any(re.match(r"\| simclr \| 60\.0 ± 24\.8 \| 40\.0 ± 0\.0 \| 5 \| 1 \| 3 \|", t) for t in text)


def test_views_and_losses_stay_where_the_pictures_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's `meta` device, which like a GPU refuses tensors of another one, but computes nothing."""
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: torch.zeros(x.shape) if x.is_meta else real(x))
    views = dataclasses.replace(PHOTO, blur=0.0)  # which pictures are blurred is data, and there is none
    for name in ("byol", "vicreg", "bmssl"):
        run = Cifar(Path("-"), device="meta", width=8, batch=8)._started(name, noise(24), 2, 0)
        task = run.method.source(run.pictures, views)(run.state.generator)
        leaves = {k: v.requires_grad_() for k, v in run.state.params.items()}
        loss, aux = run.method.loss(run.net, leaves, run.state.slow, task)
        assert loss.is_meta and all(g.is_meta for g in torch.autograd.grad(loss, list(leaves.values())))
        slow = run.method.refresh(run.net, run.state.slow, run.state.params, task, aux)
        assert all(v.is_meta for k, v in slow.items() if k != "count")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", MAKERS)
def test_pictures_views_and_network_are_on_the_gpu(name: str) -> None:
    run = Cifar(Path("-"), device="cuda", bf16=True, width=16, batch=8)._started(name, noise(24), 2, 0)
    task = run.method.source(run.pictures, PHOTO)(run.state.generator)
    assert task.support.x.is_cuda and all(v.is_cuda for v in run.state.params.values())
    _, weights = run.trained(2)
    assert all(v.is_cuda and v.isfinite().all() for v in weights.values() if v.is_floating_point())
