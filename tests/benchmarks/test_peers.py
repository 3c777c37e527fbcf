"""The table of environments, and what the meta-step's comparison counts."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from benchmarks.__main__ import main
from benchmarks.peers import environments, own
from benchmarks.peers.curves import at, curves, figure_of, growth, growth_lines
from benchmarks.peers.environments import PEERS, REFUSED, Failure, last_error, reason
from benchmarks.peers.flops import backward_too, convolutions, forward, meta_step
from benchmarks.peers.meta import (
    CONVOLUTION,
    OFFERS,
    PLAIN,
    PRODUCT,
    SCRIPTS,
    Contest,
    peer_programs,
    relative_error,
    rows,
    table,
)
from benchmarks.peers.meters import Reading
from benchmarks.peers.scripts import network, plain
from benchmarks.peers.work import Work
from benchmarks.peers.worker import Comparison, Program
from benchmarks.variants import TINY, Shape
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

SMALL = replace(TINY, tasks=2, ways=3, queries=2)


def test_every_pin_is_one_version() -> None:
    """No range anywhere: the figures belong to versions. Every peer has its whole environment written down."""
    pin = re.compile(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*")
    for name, peer in PEERS.items():
        lines = [s for s in environments._pins(name).read_text().splitlines() if not s.startswith("#")]
        assert lines and all(pin.fullmatch(s) for s in lines)
        written = {s.split("==")[0].lower().replace("_", "-") for s in lines}
        assert not written & {"torch", "numpy", "selftaught"}
        loose = [r for r in (*peer.pinned, *peer.bare) if not pin.fullmatch(r)]
        # A requirement without a version takes the one written down.
        assert {r.lower().replace("_", "-") for r in loose} <= written
        assert name in written and peer.proof.rpartition("import ")[2] and peer.name == name
    assert all(pin.fullmatch(r) for r in (*REFUSED.values(), environments.TORCHVISION, environments.NUMPY))
    assert not set(PEERS) & set(REFUSED)


def test_offers_have_scripts() -> None:
    """Every peer that is said to offer something has a function of that name; read as text, for the peers'
    packages are not installed here."""
    for algorithm, names in OFFERS.items():
        function = "maml" if algorithm == "first-order" else algorithm
        for name in names:
            file = Path(network.__file__).parent / f"{name.replace('-', '_')}.py"
            assert f"\ndef {function}(work: Work) -> Step:" in file.read_text() and name in PEERS


def test_failed_installations_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network: an installer that fails gives its last line, a peer that is no peer is named."""

    def refuse(command: list[Any]) -> str:
        raise environments._Refusal("Collecting x\nERROR: no matching x\nWARNING: old pip\n")

    monkeypatch.setattr(environments, "_run", refuse)
    assert environments.install("higher", tmp_path) == Failure("higher", "ERROR: no matching x")
    assert environments.install("torchmeta", tmp_path) == Failure("torchmeta", "ERROR: no matching x")
    assert environments.installed("higher", tmp_path) is None
    monkeypatch.setattr("benchmarks.peers.meta.install", lambda name: environments.install(name, tmp_path))
    programs, failures = peer_programs("anil", ("learn2learn", "higher", "nobody"))
    assert programs == {} and failures["learn2learn"] == "cannot be installed: ERROR: no matching x"
    assert failures["higher"] == "has no anil here" and failures["nobody"].startswith("not a peer; they are")


def test_installed_environments_know_their_pins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A finished environment is taken as it is, until a pin changes."""
    place = tmp_path / "higher"
    place.mkdir()
    identity = environments._identity(PEERS["higher"])
    (place / environments.MARK).write_text(json.dumps({"peer": identity, "versions": {"higher": "0.2.1"}}))
    found = environments.install("higher", tmp_path)
    assert not isinstance(found, Failure) and found.python == place / "bin" / "python"
    monkeypatch.setattr(environments, "TORCH", "torch==0.0.1")
    assert environments.installed("higher", tmp_path) is None


def test_the_last_error_is_found() -> None:
    """pip's own errors before its notices and its pointers; of a traceback the last line."""
    answer = (
        "    torchmeta 1.8.0 depends on torch<1.10.0 and >=1.4.0\n"
        "ERROR: Cannot install torchmeta\nERROR: ResolutionImpossible: for help visit\n[notice] new pip"
    )
    assert last_error(answer) == "ERROR: Cannot install torchmeta"
    assert reason(answer) == "(torchmeta 1.8.0 depends on torch<1.10.0 and >=1.4.0)"
    assert (
        reason("x: 0.2.1 Requires-Python >=3.6,<3.11; 0.2.0 Requires-Python >=3")
        == "(Requires-Python >=3.6,<3.11)"
    )
    assert reason("x 1 depends on torch\n") == ""
    assert last_error("Traceback\n  File\nImportError: no x\n") == "ImportError: no x" and last_error("") == ""


def convolution_flops(call: Any) -> int:
    """torch's own count of the convolutions in `call`."""
    with FlopCounterMode(display=False) as counter:
        call()
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if "convolution" in str(op))


@pytest.mark.parametrize("algorithm", ["maml", "first-order", "anil"])
@pytest.mark.parametrize("channels", [1, 3])
def test_flop_formula_counts_what_torch_counts(algorithm: str, channels: int) -> None:
    """The plain loop repeats nothing, so its convolutions are those of the formula; but torch's second derivative
    (2.13) also convolves for the first layer's pictures, whose derivative nobody asks for."""
    shape = Shape(tasks=2, ways=3, queries=2, size=16, width=8, channels=channels, shots=2)
    work = own.meta_work(shape, 2, algorithm)
    build = plain.anil if algorithm == "anil" else plain.maml
    spare = shape.tasks * 2 * shape.ways * shape.shots * convolutions(shape)[0] if algorithm == "maml" else 0
    assert convolution_flops(build(work)) - meta_step(shape, 2, algorithm) in (0, spare)


def test_flop_formula_of_one_picture() -> None:
    """Conv4-64 on 28x28x1: 19.6 million operations forward."""
    f = convolutions(Shape())
    assert forward(f) == 18 * (64 * 28 * 28 + 64 * 64 * (14 * 14 + 7 * 7 + 3 * 3))
    assert backward_too(f) == 3 * forward(f) - f[0]


@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_ours_agrees_with_the_plain_loop(algorithm: str) -> None:
    """In float64, whatever the installed library offers; our one head row is the sum of the others' rows."""
    work = own.meta_work(SMALL, 3, algorithm)
    build = plain.anil if algorithm == "anil" else plain.maml
    reference = build(work.double())()
    assert reference is not None and sum(float(g.abs().sum()) for g in reference.values()) > 1e-3
    programs = own.programs(algorithm)
    assert "unrolled, loop" in programs
    for name, program in programs.items():
        if "batched" in name:
            continue
        settled = replace(work, options={**work.options, **program.options}).double()
        found = own.maml(settled)()
        assert found is not None and relative_error(found, reference) < 1e-10, name


def test_first_order_differs() -> None:
    """So that the comparison above could fail."""
    second = plain.maml(own.meta_work(SMALL, 3, "maml").double())()
    first = plain.maml(own.meta_work(SMALL, 3, "first-order").double())()
    assert first is not None and second is not None and relative_error(first, second) > 1e-2


def test_relative_error_counts_what_is_missing() -> None:
    """A gradient that is not there is as wrong as a zero."""
    g = {"head.weight": torch.ones(2, 1), "a": torch.tensor([0.0])}
    assert relative_error({"head.weight": torch.full((1, 1), 2.0), "a": torch.tensor([0.0])}, g) == 0
    assert relative_error({"a": torch.tensor([0.0])}, g) == 1


def test_names_that_the_library_does_not_know_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table line for a later version does no harm."""
    unknown = own.Implementation("later", "no-such-graph", "loop")
    monkeypatch.setattr(own, "IMPLEMENTATIONS", (*own.IMPLEMENTATIONS, unknown))
    assert "later" not in own.programs("maml") and "adjoint, loop" in own.programs("maml")
    assert list(own.programs("maml", ("adjoint, loop",))) == ["adjoint, loop"]


def test_evaluations_agree() -> None:
    """Our few-shot evaluation on the drawn episodes against a loop over them."""
    plan = own.EpisodePlan(3, 1, 4, 20)
    for distance in ("euclidean", "cosine"):
        work = own.evaluation_work(plan, 6, 5, 8, distance)
        found = own.evaluate(work)()
        t, percent = work.tensors, []
        for s, q in zip(t["support"], t["query"], strict=True):
            a, b = t["features"][s], t["features"][q]
            if distance == "cosine":
                a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (a, b))
            percent.append((torch.cdist(b, a).argmin(-1) == t["query_y"]).double().mean() * 100)
        assert found is not None and torch.equal(found["percent"], torch.stack(percent))
        assert 40 < float(found["percent"].mean()) < 100


CONTEST = Contest("maml", ("learn2learn",), SMALL, 2, 3, 9.0, 1)


def content() -> dict[str, Any]:
    """Rows as a run would give them, from readings made up here."""
    one = [Reading(2.0, 2.0, 0.0)] * 3
    half = [Reading(1.0, 1.5, 0.0)] * 3
    wrong, right = {"a": torch.tensor([1.01])}, {"a": torch.tensor([1.0])}
    gradients: dict[str, dict[str, Tensor]] = {"learn2learn": right, "ours": wrong, PLAIN: right}
    found = Comparison({"learn2learn": one, "ours": half}, {"learn2learn": 100.0, "ours": 50.0}, gradients, {})
    programs = {name: Program("x:y") for name in ("learn2learn", "ours", "dead")}
    peaks = {CONVOLUTION: meta_step(SMALL, 2, "maml") / 1e9, PRODUCT: 1.0}
    lines = list(rows(CONTEST, programs, found, "learn2learn", peaks))
    flop = meta_step(SMALL, 2, "maml")
    return {
        "algorithm": "maml", "shape": vars(SMALL), "steps": 2, "threads": 1, "baseline": "learn2learn",
        "flop": flop, "peaks_gflop_per_s": peaks, "rows": lines, "failures": {"dead": "dead: gone"},
    }  # fmt: skip


def test_rows_and_table() -> None:
    """Ratios within rounds, shares of the peak, memory and error; those that died stand below with their words."""
    found = content()
    base, ours = found["rows"]
    assert base["wall_ratio"] == 1 and ours["wall_ratio"] == 0.5 and ours["cpu_ratio"] == 0.75
    assert ours["of_convolution_peak"] == 1.0 and base["of_convolution_peak"] == 0.5
    assert ours["peak_ratio"] == 0.5 and ours["relative_error"] == pytest.approx(0.01, rel=1e-5)
    printed = "\n".join(table(found))
    assert "ratio to learn2learn" in printed and "1e-02" in printed and "dead: dead: gone" in printed


def test_curves_are_drawn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One contest for each value, all else equal, and a row of panels for each axis."""
    asked: list[Contest] = []

    def fake(contest: Contest) -> dict[str, Any]:
        asked.append(contest)
        return content()

    monkeypatch.setattr("benchmarks.peers.curves.run", fake)
    found = list(curves(CONTEST, ("tasks", "steps"), {"tasks": (4, 16), "steps": (1, 5)}))
    assert [c.shape.tasks for c in asked] == [4, 16, 2, 2] and [c.steps for c in asked] == [2, 2, 1, 5]
    assert found[0]["growth"]["ours"]["peak_mib"] == 1 and at(CONTEST, "shots", 5).shape.shots == 5
    assert at(CONTEST, "size", 84).shape == replace(SMALL, size=84) and "learn2learn" in capsys.readouterr().out
    drawn = figure_of({"curves": found, "command": "c", "environment": {"threads": 1, "torch": "2"}})
    labels = "".join(ElementTree.fromstring(drawn).itertext())
    assert "tasks in a meta-batch" in labels and "inner steps" in labels and "ours" in labels


def test_growth_is_the_last_value_over_the_first() -> None:
    """Per variant; one that died on the way is left out."""
    few, many = content(), content()
    for row, peak, wall in zip(many["rows"], (300.0, 51.0), (16.0, 4.0), strict=True):
        row |= {"peak_mib": peak, "wall_s": wall}
    grown = growth([few, content(), many])
    assert grown["learn2learn"] == {"wall_s": 8.0, "cpu_s": 1.0, "peak_mib": 3.0}
    assert grown["ours"]["peak_mib"] == 1.02 and grown["ours"]["wall_s"] == 4.0
    many["rows"].pop()
    assert list(growth([few, many])) == ["learn2learn"]
    printed = growth_lines("tasks", (4, 64), grown)
    assert "64 over 4" in printed[0] and printed[2].split() == ["ours", "4.00", "1.00", "1.02"]


def here(programs: dict[str, Program], work: Work, **given: Any) -> Comparison:
    """`compare` without processes: every target built and run in this one."""
    found: dict[str, Any] = {}
    for name, program in programs.items():
        module, _, function = program.target.partition(":")
        check = given["check"] or work
        settled = replace(check, options={**check.options, **program.options}).double()
        found[name] = getattr(importlib.import_module(module), function)(settled)()
    readings = {name: [Reading(1.0, 1.0, 1.0)] * given["rounds"] for name in programs}
    return Comparison(readings, dict.fromkeys(programs, 1.0), found, {})


def test_meta_step_against_a_peer_writes_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command as a user gives it, with the plain loop in the place of a peer, which would need a network."""
    stand_in = environments.Environment("learn2learn", Path(sys.executable), {"learn2learn": "0"})
    monkeypatch.setattr("benchmarks.peers.meta.install", lambda name: stand_in)
    monkeypatch.setattr("benchmarks.peers.meta.CEILINGS", {})
    monkeypatch.setattr("benchmarks.peers.meta._target", lambda name, algorithm: f"{SCRIPTS}.plain:maml")
    monkeypatch.setattr("benchmarks.peers.meta.compare", here)
    out = tmp_path / "m.json"
    sizes = ["--shape.tasks", "2", "--shape.queries", "2", "--shape.size", "16", "--shape.width", "8"]
    asked = ["--peers", "learn2learn", "--only", "unrolled, loop", *sizes]
    main(["meta_step", "--steps", "2", "--rounds", "2", *asked, "--out", str(out)])
    found = json.loads(out.read_text())
    contest = found["contests"][0]
    assert [r["variant"] for r in contest["rows"]] == ["learn2learn", PLAIN, "unrolled, loop"]
    assert contest["failures"] == {} and all(r["relative_error"] < 1e-10 for r in contest["rows"])
    assert "ratio to learn2learn" in capsys.readouterr().out
    assert "--peers learn2learn" in found["command"] and str(tmp_path) not in out.read_text()


def test_episodes_against_a_peer_write_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ProtoNet's step and both evaluations; here our own programs alone."""
    monkeypatch.setattr("benchmarks.episodes.compare", lambda p, w, **k: here(p, w, **{"check": None, **k}))
    out = tmp_path / "e.json"
    sizes = ["--shape.tasks", "1", "--shape.queries", "2", "--shape.size", "16", "--shape.width", "8"]
    main(["episodes", "--peers", "--episodes", "10", "--rounds", "1", *sizes, "--out", str(out)])
    groups = json.loads(out.read_text())["groups"]
    assert [len(g["rows"]) for g in groups] == [1, 1, 3] and "nearest class mean" in capsys.readouterr().out
    assert all(20 <= r["percent"] <= 100 for g in groups[1:] for r in g["rows"])


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation that a test forgot to replace fails at once."""
    real = environments._run

    def local(command: Any) -> str:
        assert "pip" not in [str(c) for c in command], "a test would ask the network"
        return real(command)

    monkeypatch.setattr(environments, "_run", local)
    yield
