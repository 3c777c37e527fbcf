"""`pretrain(split=...)` and the effective rank in the log of a run."""

import json
import math
from pathlib import Path

import pytest
import torch

import selftaught
from selftaught.app import pretrain as training
from selftaught.app.config import Config, recipe
from selftaught.artifacts.run import Run
from selftaught.core.errors import ConfigError
from selftaught.core.functional import in_batches, part
from selftaught.core.types import merged
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.evaluate.geometry import effective_rank
from selftaught.methods import MAE, R2D2, LearnedAugmentation, MetaContrast
from selftaught.tasks.split import SplitTasks

METHOD = R2D2(ways=3, shots=1, queries=2)


def run_of(pictures: Pictures, out: Path, **changes: object) -> Run:
    options: dict[str, object] = {
        "method": METHOD,
        "size": 16,
        "channels": 1,
        "views": "glyph",
        "quiet": True,
        "steps": 4,
    }
    selftaught.pretrain(pictures, out=out, **(options | changes))  # type: ignore[arg-type]
    return Run.open(out)


@pytest.fixture(scope="module")
def strokes() -> Pictures:
    return draw_strokes(6, 4, size=16, seed=1)


def test_the_split_is_kept_used_and_told_apart(strokes: Pictures, tmp_path: Path) -> None:
    usual, union = run_of(strokes, tmp_path / "a"), run_of(strokes, tmp_path / "b", split="tr-tr")
    assert usual.config["split"] == "tr-val" and union.config["split"] == "tr-tr"
    configs = [Config.from_json(r.config, "here") for r in (usual, union)]
    plain, wrapped = (c.build_source(strokes) for c in configs)
    assert not isinstance(plain, SplitTasks) and isinstance(wrapped, SplitTasks) and wrapped.split == "tr-tr"
    task = wrapped(torch.Generator().manual_seed(0))
    assert torch.equal(task.support.x, task.query.x) and task.support.x.shape[1] == 9
    assert usual.metrics()[-1]["loss"] != union.metrics()[-1]["loss"]


def test_runs_from_before_the_option_still_load(strokes: Pictures, tmp_path: Path) -> None:
    content = dict(run_of(strokes, tmp_path / "a").config)
    del content["split"]
    assert Config.from_json(json.loads(json.dumps(content)), "here").split == "tr-val"


def test_the_last_rank_is_that_of_the_model(
    strokes: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    monkeypatch.setattr(training, "RANK_EVERY", 3)
    run = run_of(strokes, tmp_path / "run")
    ranks = {line["step"]: line.get("effective_rank") for line in run.metrics()}
    assert [step for step, rank in ranks.items() if rank is not None] == [3, 4]
    state, config = run.load_checkpoint(), Config.from_json(run.config, "here")
    net = config.build_network()
    z = in_batches(net.get_submodule("encoder"), part(merged(state.params, state.slow), "encoder"), strokes.x)
    assert math.isclose(ranks[4] or 0, effective_rank(z), rel_tol=1e-6)


def test_nonsense_is_refused_before_or_in_words(strokes: Pictures, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split"):
        run_of(strokes, tmp_path / "a", split="both")
    assert not (tmp_path / "a").exists()
    for method in (MetaContrast(batch=4), MAE(batch=4), LearnedAugmentation(batch=4)):
        with pytest.raises(ConfigError, match="split='tr-val'"):
            run_of(strokes, tmp_path / "b", split="tr-tr", method=method)
        assert not (tmp_path / "b").exists(), "a folder is left that the next attempt would stumble over"
    source = SplitTasks(MetaContrast(batch=4).source(strokes, recipe("glyph")), "tr-tr")
    with pytest.raises(ConfigError, match="mixed queries"):
        source(torch.Generator().manual_seed(0))
