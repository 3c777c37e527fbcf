"""The benchmark of first-order steps: equal work in both variants, and a result file that says what it holds."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks.measure import Seconds
from benchmarks.ssl_step import LOW, OURS, PLAIN, SslStep, relative_error, rows_of, step

from benchmarks import ssl_step
from selftaught.core import precision
from selftaught.nets import winograd


@pytest.mark.parametrize("method", ssl_step.METHODS)
@pytest.mark.parametrize("net", ["conv4", "resnet18"])
def test_both_variants_take_the_same_gradient(net: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_measured_cpu", lambda: True)
    grads = [step(net, method, name, 3, 16, torch.float64)() for name in (OURS, PLAIN)]
    assert 0 < relative_error(*grads) < 1e-10


def test_a_plain_net_asks_for_no_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("selftaught.nets.resnet.channels_last", lambda x: asked.append("layout") or x)
    monkeypatch.setattr(winograd, "suits", lambda *_: bool(asked.append("winograd")))
    step("resnet18", "simclr", PLAIN, 2, 16)()
    assert not asked
    step("resnet18", "simclr", OURS, 2, 16)()
    assert {"layout", "winograd"} <= set(asked)


def test_rows_are_ratios_to_the_plain_net() -> None:
    found = {PLAIN: [Seconds(4.0, 4.0), Seconds(8.0, 6.0)], OURS: [Seconds(2.0, 2.0), Seconds(4.0, 3.0)]}
    plain, ours = rows_of(found, {PLAIN: 200.0, OURS: 100.0}, {PLAIN: 0.0, OURS: 1.234e-6}, 90.0, 60.0)
    assert (plain["speedup"], ours["speedup"]) == (1.0, 2.0)
    assert ours["gflops"] == 30.0 and ours["of_convolution_peak"] == 0.5
    assert ours["peak_ratio"] == 0.5 and ours["gradient_error"] == 1.2e-6


def test_bfloat16_is_a_row_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl_step, "has_bfloat16", lambda device: False)
    assert ssl_step.variants() == (PLAIN, OURS)
    monkeypatch.setattr(ssl_step, "has_bfloat16", lambda device: True)
    assert ssl_step.variants() == (PLAIN, OURS, LOW)
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    low, exact = (step("conv4", "simclr", name, 4, 16)() for name in (LOW, PLAIN))
    assert 1e-4 < relative_error(low, exact) < 0.3


def test_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process and without meters: a copy of a process that has used autograd cannot use it."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(ssl_step, "in_fork", lambda call: 10.0)
    monkeypatch.setattr(ssl_step, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(ssl_step, "has_bfloat16", lambda device: False)
    out = tmp_path / "ssl_step.json"
    try:
        SslStep(nets=("conv4",), pictures=2, size=16, rounds=1, out=out).run()
    finally:
        torch.set_num_threads(threads)
    found = json.loads(out.read_text())
    assert [(g["net"], g["method"]) for g in found["groups"]] == [("conv4", "simclr"), ("conv4", "byol")]
    assert all(g["gflop"] > 0 and len(g["rows"]) == 2 for g in found["groups"])
    assert found["not_measured"] == {LOW: ssl_step.NO_BFLOAT16}
    assert found["work"]["views"] == 4
