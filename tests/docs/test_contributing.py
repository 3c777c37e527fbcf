"""The method on the contributor's page is real: it trains, learns, repeats itself and keeps the house style."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

from selftaught.core.functional import apply
from selftaught.core.train import start, train
from selftaught.core.types import Examples, State
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import GLYPH
from selftaught.nets import build_encoder
from selftaught.optimizers.gradient import Gradient

_ROOT = Path(__file__).parents[2]
_NAME = "selftaught.methods.alignment"


def _blocks() -> list[str]:
    page = (_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def alignment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The first block of the page, imported under the name the page gives it."""
    file = tmp_path / "alignment.py"
    file.write_text(_blocks()[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(_NAME, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, _NAME, module)
    spec.loader.exec_module(module)
    return module


def _network(method: Any) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return method.network(build_encoder("conv4", channels=1, size=16, seed=0, width=16))


def _trained(module: ModuleType, steps: int) -> tuple[State, State, list[dict[str, float]], torch.nn.Module]:
    method = module.AlignmentUniformity(batch=24)
    net = _network(method)
    source = method.source(draw_strokes(6, 8, size=16), GLYPH)
    optimizer = Gradient(rate=3e-3, steps=steps)
    begin = start(method, net, optimizer, seed=0)
    states, log = [begin], []
    for state, figures in train(method, net, source, optimizer, begin, steps):
        states.append(state)
        log.append(figures)
    return begin, states[-1], log, net


def test_the_method_on_the_page_trains_two_steps(alignment: ModuleType) -> None:
    begin, end, log, net = _trained(alignment, 2)
    assert end.step == len(log) == 2
    assert all(-4 < f["loss"] < 4 and 0 < f["align"] <= 4 for f in log)
    same = [k for k, v in end.params.items() if torch.equal(v, begin.params[k])]
    assert not same, f"no gradient reached {same}"
    assert list(end.slow) == list(begin.slow) == [k for k, _ in net.named_buffers()]
    assert not torch.equal(end.slow["encoder.blocks.0.norm.running_var"], torch.ones(16))


def test_it_learns_and_repeats_itself(alignment: ModuleType) -> None:
    _, end, log, _ = _trained(alignment, 25)
    assert sum(f["loss"] for f in log[-5:]) < sum(f["loss"] for f in log[:5]) - 0.5
    _, again, _, _ = _trained(alignment, 25)
    assert all(torch.equal(v, again.params[k]) for k, v in end.params.items())


def test_its_loss_is_the_formula(alignment: ModuleType) -> None:
    """Picture by picture and pair by pair, in float64."""
    method = alignment.AlignmentUniformity(batch=6, out=5)
    net = _network(method).double()
    params, slow = method.init(net)
    tasks = method.source(draw_strokes(4, 4, size=16), GLYPH)(torch.Generator().manual_seed(0))
    tasks = tree_map(lambda x: x.double() if x.is_floating_point() else x, tasks)
    loss, aux = method.loss(net, params, slow, tasks)
    z = apply(net, params | slow, torch.cat([tasks.support.x[0], tasks.query.x[0]]), "batch")
    views = [[row / row.square().sum().sqrt() for row in view] for view in z.split(6)]
    align = torch.stack([(a - b).square().sum() for a, b in zip(*views, strict=True)]).mean()
    uniform = [
        torch.stack([(-2 * (v[i] - v[j]).square().sum()).exp() for i in range(6) for j in range(6) if i != j])
        for v in views
    ]
    assert torch.allclose(aux.metrics["align"], align, rtol=1e-10)
    assert torch.allclose(loss, align + torch.stack(uniform).mean().log(), rtol=1e-10)


def test_the_laws_are_tested_on_the_same_code() -> None:
    """But for the docstrings, the page's file is the one that the conformance tests run."""
    outside = (_ROOT / "tests" / "conformance" / "alignment_uniformity.py").read_text(encoding="utf-8")
    assert _code(_blocks()[0]) == _code(outside)
    assert _code("x = 1") != _code("x = 2")


def _code(text: str) -> str:
    """The syntax tree without docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [b for b in body if not (isinstance(b, ast.Expr) and isinstance(b.value, ast.Constant))]  # type: ignore[attr-defined]
    return ast.dump(tree)


def test_its_learner_leaves_the_weights_alone(alignment: ModuleType) -> None:
    _, end, _, net = _trained(alignment, 1)
    weights = end.params | end.slow
    before = {k: v.clone() for k, v in weights.items()}
    x = torch.rand(10, 1, 16, 16)
    learner = alignment.AlignmentUniformity().learner(net)
    logits = learner.predict(learner.adapt(weights, Examples(x[:5]), 5), x[5:])
    assert logits.shape == (5, 5) and torch.isfinite(logits).all()
    assert all(torch.equal(v, before[k]) for k, v in weights.items())


def test_the_two_steps_shown_run_as_written(alignment: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(_blocks()[1], "CONTRIBUTING.md", "exec"), {"__name__": "page"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 {'loss'") and lines[1].startswith("2 ")
    assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d %", lines[2])


def test_the_file_on_the_page_keeps_the_house_rules() -> None:
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    block = _blocks()[0]
    assert len(block.splitlines()) <= 150
    name = "src/selftaught/methods/alignment.py"
    for command in (["check"], ["format", "--check"]):
        run = [str(ruff), *command, "--stdin-filename", name, "-"]
        done = subprocess.run(run, cwd=_ROOT, input=block, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
