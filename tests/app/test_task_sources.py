"""Any method of few-shot tasks runs on any task source; what means nothing is refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch
from PIL import Image

import selftaught
from selftaught.app import task_sources
from selftaught.app.choices import TasksFrom
from selftaught.app.cli import main
from selftaught.app.config import Config
from selftaught.app.task_sources import UNLABELLED, options_for, source_of, takes_any_tasks, two_loops
from selftaught.artifacts.run import Run
from selftaught.core.errors import ConfigError, DataError
from selftaught.core.types import Method, Task, TaskSource
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.data.views import GLYPH
from selftaught.methods import LASIUM, MAML, METHODS, UMTRA, CACTUs, ProtoNet
from selftaught.nets import build_encoder
from selftaught.tasks.clusters import ClusterTasks
from selftaught.tasks.episodes import EpisodeSource
from selftaught.tasks.interpolation import InterpolationTasks
from selftaught.tasks.neighbours import NeighbourTasks, mutual_neighbours
from selftaught.tasks.views import ViewTasks

SMALL = {"tasks": 2, "ways": 3, "shots": 2, "support_views": 2, "queries": 2, "query_views": 2, "inner_steps": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "clusters": {"clusters": 4, "partitions": 2},
    "latent": {"vae_epochs": 1, "vae_hidden": 8, "latent": 2},
    "neighbours": {"neighbours": 3, "own": 0.0},
}
FITTING = [name for name, kind in METHODS.items() if takes_any_tasks(kind)]


@pytest.fixture(scope="module")
def strokes() -> Pictures:
    return draw_strokes(6, 8, size=16, seed=1)


def small(name: str) -> Method:
    kind: Any = METHODS[name]
    return cast(Method, kind(**{f.name: SMALL[f.name] for f in dataclasses.fields(kind) if f.name in SMALL}))


def drawn(name: str, method: Method, pictures: Pictures, tasks: Any) -> Task:
    source = source_of(name, method, pictures, GLYPH, tasks, OPTIONS.get(tasks))
    return source(torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tasks", [t for t in get_args(TasksFrom) if t != "own"])
@pytest.mark.parametrize("name", FITTING)
def test_every_method_of_tasks_learns_from_every_source(name: str, tasks: str, strokes: Pictures) -> None:
    given = strokes if tasks == "labels" else Pictures(strokes.x, strokes.names)
    method = small(name)
    task = drawn(name, method, given, tasks)
    assert task.ways == 3 and task.support.x.shape[:2] == (2, 3 * (1 if name in ("umtra", "protoclr") else 2))
    assert task.query.x.shape[:2] == (2, 6) and task.query.y is not None
    net = method.network(build_encoder("conv4", 1, 16, 0, width=4))
    params, slow = method.init(net)
    params = {k: v.requires_grad_() for k, v in params.items()}
    loss, _ = method.loss(net, params, slow, task)
    slopes = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    assert loss.isfinite() and any(g is not None and bool(g.any()) for g in slopes)


def test_the_sources_are_those_of_the_library(strokes: Pictures) -> None:
    sizes: dict[str, Any] = {"tasks": 2, "ways": 3, "shots": 1, "queries": 2}
    maml = MAML(**sizes)
    kinds = {"labels": EpisodeSource, "views": ViewTasks, "clusters": ClusterTasks, "latent": InterpolationTasks}
    for tasks, kind in kinds.items():
        assert isinstance(source_of("maml", maml, strokes, GLYPH, cast(TasksFrom, tasks)), kind)
    same: dict[str, TaskSource] = {
        "own": maml.source(strokes, GLYPH),
        "labels": EpisodeSource(strokes, 3, 1, 2, 2),
        "views": UMTRA(tasks=2, ways=3, queries=2).source(strokes, GLYPH),
        "clusters": CACTUs(**sizes, **OPTIONS["clusters"]).source(strokes, GLYPH),
        "latent": LASIUM(**sizes, **OPTIONS["latent"]).source(strokes, GLYPH),
        "neighbours": NeighbourTasks(
            strokes, GLYPH, mutual_neighbours(strokes.x.flatten(1).float(), 3), 2, 3, 1, 2, own=0.0
        ),
    }
    for tasks, source in same.items():
        mine, theirs = drawn("maml", maml, strokes, tasks), source(torch.Generator().manual_seed(0))
        assert torch.equal(mine.query.x, theirs.query.x) and torch.equal(mine.support.x, theirs.support.x)
    # With more shots than one a raw picture would only be repeated.
    views = drawn("maml", MAML(tasks=1, ways=3, shots=2, queries=1), strokes, "views")
    raw = drawn("maml", MAML(tasks=1, ways=3, shots=1, queries=1), strokes, "views")
    assert len(raw.support.x.unique()) < len(views.support.x.unique())


def test_two_loops_are_known_by_their_options() -> None:
    one = "simclr byol vicreg barlow moco nnclr swav dino simsiam psco mae clip fcrl"
    assert {name for name, kind in METHODS.items() if not two_loops(kind)} == set(one.split())
    assert {"cactus", "lasium", "maxl", "learnaug", "metacontrast"} & set(FITTING) == set()
    assert set(FITTING) <= {name for name, kind in METHODS.items() if two_loops(kind)}


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("simclr", {"split": "tr-tr"}, r"simclr has one loop.*--split tr-val.*bmssl.*maml"),
        ("simclr", {"tasks": "clusters"}, r"simclr learns from batches.*--tasks own.*protonet.*or metaopt"),
        ("cactus", {"tasks": "views"}, r"cactus is a task source.*--method protonet --tasks views"),
        ("maml", {"tasks": "dreams"}, r"unknown tasks 'dreams'; known: own, labels"),
        ("maml", {"tasks": "views", "options": {"embeddings": "pixels"}}, r"maml has no option embeddings"),
        ("maml", {"tasks": "neighbours", "options": {"neighbours": 0}}, r"neighbours=0.*at least 1"),
    ],
)
def test_what_means_nothing_is_refused_by_name(
    method: str, changes: dict[str, Any], said: str, strokes: Pictures, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        selftaught.pretrain(strokes, out=tmp_path / "run", method=method, size=16, channels=1, **changes)
    assert not (tmp_path / "run").exists()


def test_without_labels_the_other_sources_are_named(strokes: Pictures, tmp_path: Path) -> None:
    plain = Pictures(strokes.x, strokes.names)
    with pytest.raises(DataError, match=f"--labelled.*--tasks {', '.join(UNLABELLED)}"):
        selftaught.pretrain(plain, out=tmp_path / "run", method="protonet", size=16, channels=1)


def test_a_run_on_clusters_is_kept_and_resumed(strokes: Pictures, tmp_path: Path) -> None:
    plain = Pictures(strokes.x, strokes.names)
    how: dict[str, Any] = {
        "method": "protonet", "tasks": "clusters", "size": 16, "channels": 1, "views": "glyph", "quiet": True,
        "options": {"ways": 3, "queries": 2, "clusters": 4, "partitions": 2},
    }  # fmt: skip
    whole = selftaught.pretrain(plain, out=tmp_path / "whole", steps=4, **how)
    config = whole.config
    assert (config.tasks, config.tasks_options) == ("clusters", {"clusters": 4, "partitions": 2})
    assert config.method_options == dataclasses.asdict(ProtoNet(ways=3, queries=2))
    before = dict(Run.open(tmp_path / "whole").config)
    del before["tasks"], before["tasks_options"]  # a run from before the option
    assert Config.from_json(json.loads(json.dumps(before)), "here").tasks == "own"

    selftaught.pretrain(plain, out=tmp_path / "part", steps=4, **how)
    (tmp_path / "part" / "finished.json").unlink()
    again = selftaught.pretrain(plain, out=tmp_path / "part", resume=True, quiet=True)
    assert all(torch.equal(whole.weights[k], again.weights[k]) for k in whole.weights)


def test_options_go_where_they_belong() -> None:
    assert options_for("own") == options_for("labels") == options_for("views") == ()
    assert "embeddings" in options_for("clusters") and "ways" not in options_for("clusters")
    assert "amount" in options_for("latent") and "inner_rate" not in options_for("latent")
    options = {"inner_steps": 3, "ways": 4, "embeddings": "a", "latent": 2}
    mine, theirs = task_sources.divided(MAML, "clusters", options)
    assert mine == {"inner_steps": 3, "ways": 4, "latent": 2} and theirs == {"embeddings": "a"}


def test_on_the_command_line(strokes: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    for number, x in enumerate(strokes.x[:12]):
        Image.fromarray(x[0].numpy()).save(tmp_path / "data" / f"{number}.png")
    place = str(tmp_path / "data")
    common = ["--size", "16", "--channels", "1", "--steps", "2", "--views", "flat", "--no-report"]
    assert main(["pretrain", place, "--method", "simclr", "--out", str(tmp_path / "a"), *common]) == 0
    given = ["--set", f"embeddings={tmp_path / 'a'}", "tasks=1", "ways=3", "queries=2", "neighbours=2"]
    told = ["--method", "umtra", "--tasks", "neighbours", "--out", str(tmp_path / "b"), *given]
    assert main(["pretrain", place, *told, *common]) == 0
    kept = Run.open(tmp_path / "b").config
    assert kept["tasks"] == "neighbours" and kept["tasks_options"]["neighbours"] == 2
    told = ["--method", "simclr", "--split", "tr-tr", "--out", str(tmp_path / "c")]
    assert main(["pretrain", place, *told, *common]) == ConfigError.exit_code
    assert "one loop" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["tr-val", "tr-tr"])
def test_neighbours_are_sought_once_at_the_start(
    split: Any, strokes: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sought: list[int] = []

    def counted(*given: Any, **options: Any) -> Any:
        sought.append(1)
        return mutual_neighbours(*given, **options)

    monkeypatch.setattr(task_sources, "mutual_neighbours", counted)
    how: Any = {
        "method": "protonet",
        "tasks": "neighbours",
        "split": split,
        "size": 16,
        "channels": 1,
        "quiet": True,
    }
    sizes = {"tasks": 1, "ways": 3, "shots": 1, "queries": 1}
    selftaught.pretrain(strokes, out=tmp_path / "run", steps=2, options=sizes, **how)
    assert len(sought) == 1
