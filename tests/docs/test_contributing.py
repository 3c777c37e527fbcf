"""The method on the contributor's page is real: it trains, learns, repeats itself and keeps the house style."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from selftaught.core.train import start, train
from selftaught.core.types import Examples, State
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import GLYPH
from selftaught.nets import build_encoder
from selftaught.optimizers.gradient import Gradient

_ROOT = Path(__file__).parents[2]
_NAME = "selftaught.methods.simsiam"


def _blocks() -> list[str]:
    page = (_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def simsiam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The first block of the page, imported under the name the page gives it."""
    file = tmp_path / "simsiam.py"
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
    method = module.SimSiam(batch=24)
    net = _network(method)
    source = method.source(draw_strokes(6, 8, size=16), GLYPH)
    optimizer = Gradient(rate=3e-3, steps=steps)
    begin = start(method, net, optimizer, seed=0)
    states, log = [begin], []
    for state, figures in train(method, net, source, optimizer, begin, steps):
        states.append(state)
        log.append(figures)
    return begin, states[-1], log, net


def test_the_method_on_the_page_trains_two_steps(simsiam: ModuleType) -> None:
    begin, end, log, net = _trained(simsiam, 2)
    assert end.step == len(log) == 2
    assert 0 < log[0]["loss"] <= 4 and log[0]["spread"] > 0.01
    same = [k for k, v in end.params.items() if torch.equal(v, begin.params[k])]
    assert not same, f"no gradient reached {same}"
    assert list(end.slow) == list(begin.slow) == [k for k, _ in net.named_buffers()]
    assert not torch.equal(end.slow["predictor.layers.1.running_var"], torch.ones(16))


def test_it_learns_and_repeats_itself(simsiam: ModuleType) -> None:
    _, end, log, _ = _trained(simsiam, 25)
    assert sum(f["loss"] for f in log[-5:]) < 0.8 * sum(f["loss"] for f in log[:5])
    _, again, _, _ = _trained(simsiam, 25)
    assert all(torch.equal(v, again.params[k]) for k, v in end.params.items())


def test_its_target_is_held_constant(simsiam: ModuleType) -> None:
    """Its gradient is that of the formula written out with a constant z, and not that of one that flows."""
    method = simsiam.SimSiam(batch=8)
    net = _network(method)
    params, slow = method.init(net)
    tasks = method.source(draw_strokes(4, 4, size=16), GLYPH)(torch.Generator().manual_seed(0))
    leaves = {k: v.requires_grad_() for k, v in params.items()}
    loss, _ = method.loss(net, leaves, slow, tasks)
    found = torch.autograd.grad(loss, list(leaves.values()))

    net.train()
    z = net.projector(net.encoder(torch.cat([tasks.support.x[0], tasks.query.x[0]])))  # type: ignore[operator]
    p = net.predictor(z)  # type: ignore[operator]
    swapped = z.roll(8, 0)
    for target, agrees in ((swapped.detach(), True), (swapped, False)):
        direct = (2 - 2 * torch.nn.functional.cosine_similarity(p, target)).mean()
        assert torch.allclose(direct, loss, atol=1e-5)
        grads = torch.autograd.grad(direct, list(net.parameters()), retain_graph=True)
        close = [torch.allclose(a, b, atol=1e-5, rtol=1e-3) for a, b in zip(found, grads, strict=True)]
        assert all(close) == agrees


def test_its_learner_leaves_the_weights_alone(simsiam: ModuleType) -> None:
    _, end, _, net = _trained(simsiam, 1)
    weights = end.params | end.slow
    before = {k: v.clone() for k, v in weights.items()}
    x = torch.rand(10, 1, 16, 16)
    learner = simsiam.SimSiam().learner(net)
    logits = learner.predict(learner.adapt(weights, Examples(x[:5]), 5), x[5:])
    assert logits.shape == (5, 5) and torch.isfinite(logits).all()
    assert all(torch.equal(v, before[k]) for k, v in weights.items())


def test_the_two_steps_shown_run_as_written(simsiam: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
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
    name = "src/selftaught/methods/simsiam.py"
    for command in (["check"], ["format", "--check"]):
        run = [str(ruff), *command, "--stdin-filename", name, "-"]
        done = subprocess.run(run, cwd=_ROOT, input=block, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
