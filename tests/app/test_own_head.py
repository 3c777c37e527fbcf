"""`adapt --head own`: a method's own learner meets the support, is kept and names pictures as before."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import selftaught
from selftaught.app.classifier import Classifier
from selftaught.app.cli import main
from selftaught.app.config import Config
from selftaught.app.model import Model
from selftaught.app.own_head import OwnHead
from selftaught.artifacts.tensors import load_tensors
from selftaught.core.errors import RunError
from selftaught.core.functional import part, to_float
from selftaught.core.types import Examples, Params, merged
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import FLAT
from selftaught.methods import METHODS

STEPS = ("maml", "umtra", "reptile", "bmg", "imaml", "neuronml")
SOLVED = ("protonet", "r2d2", "metaopt", "simclr", "psco")


@pytest.fixture(scope="module")
def support() -> Pictures:
    """Three classes of 2, 3 and 4 pictures, not in the order of a task."""
    whole = draw_strokes(3, 4, size=16, seed=1)
    rows = torch.tensor([8, 0, 4, 9, 1, 5, 10, 6, 11])
    assert whole.y is not None
    return Pictures(whole.x[rows], tuple(f"p{i}" for i in rows.tolist()), whole.y[rows], ("a", "b", "c"))


def model_of(name: str, **options: Any) -> Model:
    views = dataclasses.asdict(FLAT)
    config = Config(
        name, options, "conv4", {"width": 8}, 16, 1, "flat", views, 1, 1e-3, 0, 0.0, seed=0, data={"pictures": 9}
    )
    net = config.build_network()
    return Model(net, merged(*config.build_method().init(net)), config)


@pytest.mark.parametrize("name", STEPS + SOLVED)
def test_adapt_save_load_predict_is_adapt_predict(name: str, support: Pictures, tmp_path: Path) -> None:
    model = model_of(name)
    before = {k: v.clone() for k, v in model.weights.items()}
    made = Classifier.fit(model, support, "own")
    made.save(tmp_path / "clf")
    again = selftaught.load(tmp_path / "clf")
    assert isinstance(again, Classifier) and again.head == "own"
    asked = draw_strokes(3, 4, size=16, seed=2)
    assert again.predict(asked) == made.predict(asked)
    assert all(torch.equal(before[k], model.weights[k]) for k in before)
    learner = model.learner
    adapted = learner.adapt(model.weights, Examples(to_float(support.x), support.y), 3)
    with torch.no_grad():
        expected = learner.predict(adapted, to_float(asked.x)).softmax(-1)
    found = [list(p.probabilities.values()) for p in again.predict(asked)]
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", STEPS)
def test_weights_after_the_steps_are_in_the_file(name: str, support: Pictures, tmp_path: Path) -> None:
    model = model_of(name)
    Classifier.fit(model, support, "own").save(tmp_path / "clf")
    kept = adapted_in(tmp_path / "clf")
    weight = next(kept[k] for k in kept if k.endswith("head.weight"))
    assert len(weight) == 3 and not torch.equal(weight[0], weight[1])
    first = next(k for k in kept if k.endswith("conv.weight") or k.endswith("0.weight"))
    assert not any(torch.equal(kept[first], v) for v in model.weights.values()), "the encoder has not moved"
    # What predicts is what was kept: other numbers there predict something else.
    other = OwnHead.restored(model, support, {k: torch.zeros_like(v) for k, v in kept.items()})
    assert np.allclose(other.probabilities(support.x), 1 / 3)


def adapted_in(folder: Path) -> Params:
    file = next(folder.glob("support*.safetensors"))
    return part(load_tensors(file)[0], "adapted")


def test_solved_heads_and_fixed_features_keep_no_weights(support: Pictures, tmp_path: Path) -> None:
    Classifier.fit(model_of("r2d2"), support, "own").save(tmp_path / "a")
    Classifier.fit(model_of("maml"), support).save(tmp_path / "b")
    assert adapted_in(tmp_path / "a") == adapted_in(tmp_path / "b") == {}
    assert Classifier.fit(model_of("maml"), support).head == "prototype", "the default has changed"


def test_weights_of_another_network_are_refused(support: Pictures) -> None:
    wide = OwnHead.fit(model_of("maml"), support)
    tensors = {k: torch.cat([v, v]) if v.ndim else v for k, v in wide.tensors.items()}
    with pytest.raises(RunError, match="do not fit the model"):
        OwnHead.restored(model_of("maml"), support, tensors)


def test_every_method_has_a_way_of_its_own(support: Pictures) -> None:
    """Those whose networks need another encoder or more options are met in their own tests."""
    for name in sorted(set(METHODS) - {"mae", "clip"}):
        p = OwnHead.fit(model_of(name), support).probabilities(support.x)
        assert p.shape == (9, 3) and np.allclose(p.sum(1), 1, atol=1e-5)


def test_on_the_command_line(support: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_of("maml").save(tmp_path / "model")
    assert support.y is not None
    for x, y, name in zip(support.x, support.y.tolist(), support.names, strict=True):
        folder = tmp_path / "labelled" / support.classes[y]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[0].numpy()).save(folder / f"{name}.png")
    labelled, out = str(tmp_path / "labelled"), str(tmp_path / "clf")
    assert main(["adapt", str(tmp_path / "model"), labelled, "--out", out, "--head", "own"]) == 0
    assert main(["predict", out, labelled]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}.png" in said for name in support.names) and "nearest" in said
