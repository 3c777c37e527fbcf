"""The benchmarks run, compare equal work, and count what they say they count."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from benchmarks.__main__ import main
from benchmarks.drawing import Curve, Panel, Row, draw, level_marks
from benchmarks.measure import Seconds, paired_rounds, summary
from benchmarks.variants import GROUPS, TINY, maml, plain_maml

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--shape.tasks", "2", "--shape.queries", "2", "--shape.pictures", "3", "--shape.size", "16",
         "--shape.width", "8"]  # fmt: skip


def test_meta_step_writes_numbers_and_drawing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command as a user gives it, from another folder."""
    monkeypatch.chdir(tmp_path)
    out, figure = tmp_path / "numbers" / "m.json", tmp_path / "m.svg"
    command = ["meta_step", "--steps", "1", "3", "--rounds", "1", "--limit", "5", *SMALL]
    main([*command, "--out", str(out), "--figure", str(figure)])
    printed, content = capsys.readouterr().out, json.loads(out.read_text())
    assert str(tmp_path) not in out.read_text() + figure.read_text()
    assert content["command"] == " ".join(["python -m benchmarks", *command])
    assert content["environment"]["torch"] == torch.__version__
    assert [g["name"] for g in content["groups"]] == ["maml", "bmssl"]
    for group in content["groups"]:
        assert f"ratio to '{group['baseline']}'" in printed
        names = [v.name for v in GROUPS[group["name"]].variants]
        assert [(r["steps"], r["variant"]) for r in group["rows"]] == [(k, n) for k in (1, 3) for n in names]
        for row in group["rows"]:
            assert row["cpu_s"] > 0 and row["wall_s"] > 0 and row["peak_mib"] > 0 and row["rounds"] == 1
            if row["variant"] == group["baseline"]:
                assert row["cpu_ratio"] == row["wall_ratio"] == row["peak_ratio"] == 1
    labels = "".join(ElementTree.parse(figure).getroot().itertext())
    assert all(v.name in labels for g in GROUPS.values() for v in g.variants)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["m.json", "m.svg", "numbers"]


@pytest.mark.parametrize("graph", ["unrolled", "adjoint"])
def test_exact_variants_do_the_baselines_work(graph: str) -> None:
    """A variant that computes something else would make its ratio worthless."""
    shape = replace(TINY, tasks=2, ways=3, queries=2)
    expected = plain_maml(shape, 3, torch.float64)()
    found = maml(shape, 3, graph, torch.float64)()  # type: ignore[arg-type]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert max(float(g.abs().max()) for g in expected) > 1e-3


def test_first_order_is_another_gradient() -> None:
    """With steps that matter, so that the comparison above could fail."""
    shape = replace(TINY, tasks=2, ways=3, queries=2)
    exact, approximate = plain_maml(shape, 3, torch.float64)(), maml(shape, 3, "first-order", torch.float64)()
    assert any(not torch.allclose(a, b, rtol=1e-2) for a, b in zip(exact, approximate, strict=True))


COPIES = """
import json, os, torch
from benchmarks.measure import in_fork, peak_growth
torch.set_num_threads(1)
torch.ones(2**26).sum()
found = [in_fork(lambda m=m: peak_growth(lambda: torch.ones(m * 2**18).sum())) for m in (64, 8)]
try:
    in_fork(lambda: os._exit(3))
except RuntimeError as error:
    print(json.dumps([*found, str(error)]))
"""


def test_peak_growth_in_copies_of_a_process() -> None:
    """Counts what lives only during the call, whatever was held before; a copy that dies is an error.

    In a process of its own: this one may have used threads, and its copies could wait for them for ever.
    """
    command = [sys.executable, "-c", COPIES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    large, small, message = json.loads(done.stdout)
    assert large == pytest.approx(64, abs=6) and small == pytest.approx(8, abs=6)
    assert "died" in message


def test_rounds_alternate() -> None:
    """Every call once a round, with another one first each time."""
    order: list[str] = []
    found = paired_rounds({n: lambda n=n: order.append(n) for n in "abc"}, 3)  # type: ignore[misc]
    assert "".join(order) == "abc" + "bca" + "cab"
    assert {n: len(s) for n, s in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_rounds_stop_at_the_limit() -> None:
    """The round that passes the limit is the last; a limit of nothing still gives one."""
    assert len(paired_rounds({"a": lambda: sum(range(100_000))}, 50, 0.0)["a"]) == 1
    assert len(paired_rounds({"a": lambda: None}, 50, 1000.0)["a"]) == 50


def test_ratio_is_taken_within_a_round() -> None:
    """A slow spell of the machine that hits a whole round leaves the ratio alone."""
    own = [Seconds(2.0, 1.0), Seconds(20.0, 10.0), Seconds(2.0, 4.0)]
    base = [Seconds(1.0, 1.0), Seconds(10.0, 10.0), Seconds(1.0, 2.0)]
    found = summary(own, base)
    assert (found["wall_ratio"], found["cpu_ratio"]) == (2.0, 1.0)
    assert found["cpu_ratio_range"] == [1.0, 2.0] and found["rounds"] == 3 and found["wall_s"] == 2.0


def test_pipelines_make_views_of_one_shape() -> None:
    """Both start from the same uint8 pictures and end in float views in 0..1 that are not the pictures."""
    from benchmarks.pipeline import pipelines

    a, b = (call() for call in pipelines(4, 16).values())
    assert a.shape == b.shape == (4, 3, 16, 16) and a.dtype == b.dtype == torch.float32
    for x in (a, b):
        assert x.min() >= 0 and x.max() <= 1 and x.std() > 0.01


@pytest.mark.parametrize(
    ("low", "high", "marks"), [(0.3, 4, [0.2, 0.5, 1, 2, 5]), (1, 1, [1, 2]), (20, 100, [20, 50, 100])]
)
def test_marks_enclose(low: float, high: float, marks: list[float]) -> None:
    """Also at round ends and where all values are equal."""
    assert level_marks(low, high) == pytest.approx(marks)


def test_drawing_escapes_and_leaves_out_zeros() -> None:
    """Names are text, and a logarithm of zero is not drawn."""
    curve = Curve("a < b & c", (1, 5), (0.0, 2.0))
    text = draw([Row("<title>", (Panel("s", (curve,)),))], "steps", "note")
    root = ElementTree.fromstring(text)
    assert "a < b & c" in "".join(root.itertext()) and "nan" not in text and "inf" not in text
