"""Runs on one list of episodes: what `evaluate` says of each, differences episode by episode, a whole picture."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from selftaught.app.cli import main
from selftaught.app.comparing import as_json, compared, drawing, loaded, names, said
from selftaught.app.pretrain import pretrain
from selftaught.core.errors import DataError
from selftaught.data.strokes import draw_strokes
from selftaught.evaluate.fewshot import few_shot_learner, summarise
from selftaught.learners.gradient import GradientLearner
from selftaught.methods import MAML
from selftaught.tasks.episodes import EpisodePlan

PICTURES = draw_strokes(6, 6, size=16)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Two runs of equal pictures and one of larger ones."""
    root = tmp_path_factory.mktemp("runs")
    made = []
    for name, size, seed in (("a", 16, 0), ("b", 16, 1), ("large", 32, 0)):
        pretrain(
            PICTURES, out=root / name, method="simclr", options={"batch": 8}, size=size, channels=1, views="glyph",
            steps=2, seed=seed, quiet=True,
        )  # fmt: skip
        made.append(root / name)
    return tuple(made)


def test_figures_are_those_of_evaluate_and_pairs_are_by_episode(runs: tuple[Path, ...]) -> None:
    from selftaught.app.evaluation import evaluate

    models = loaded(runs[:2])
    found = compared(models, PICTURES, 5, 1, 2, 30, 7, "prototype")
    rows = evaluate(models, PICTURES, ways=(5,), shots=(1,), queries=2, episodes=30, seed=7)
    assert {r.name: r.mean for r in rows if r.name in models} == {n: a.mean for n, a in found.accuracy.items()}
    gap = found.differences["a", "b"]
    assert gap.mean == pytest.approx(found.accuracy["a"].mean - found.accuracy["b"].mean)
    own, other = found.accuracy["a"].per_episode, found.accuracy["b"].per_episode
    assert torch.equal(gap.per_episode, own - other)
    assert as_json(found, runs[:2])["differences"][0]["half_width"] == pytest.approx(gap.half_width_95)


def test_the_command_writes_picture_and_figures(
    runs: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for n, (label, picture) in enumerate(zip(PICTURES.y.tolist(), PICTURES.x, strict=True)):  # type: ignore[union-attr]
        file = tmp_path / "labelled" / f"class{label}" / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0].numpy()).save(file)
    out, figures = tmp_path / "c.svg", tmp_path / "c.json"
    call = ["compare", *map(str, runs[:2]), "--labelled", str(tmp_path / "labelled"), "--episodes", "10"]
    assert main([*call, "--out", str(out), "--json", str(figures)]) == 0
    text = capsys.readouterr().out
    assert "accuracy %" in text and "points (paired 95 %)" in text and out.name in text
    stored = json.loads(figures.read_text())
    assert [r["name"] for r in stored["runs"]] == ["a", "b"] and stored["plan"]["episodes"] == 10
    assert ElementTree.fromstring(out.read_text()).attrib["role"] == "img"
    assert main([*call, "--out", str(tmp_path / "c.png")]) == 5
    assert ".svg" in capsys.readouterr().err


def test_the_picture_holds_every_run_and_pair(runs: tuple[Path, ...]) -> None:
    found = compared(loaded(runs[:2]), PICTURES, 3, 1, 1, 5, 0, "ridge")
    texts = [t.text for t in ElementTree.fromstring(drawing(found)).iter() if t.text]
    assert {"a", "b", "a minus b", "paired differences, points"} <= set(texts)
    one = compared(loaded(runs[:2]), PICTURES, 3, 1, 1, 1, 0, "prototype")  # one episode has no interval
    assert "nan" not in drawing(one) and as_json(one, runs[:2])["runs"][0]["half_width"] is None


def test_own_is_the_learner_that_was_trained(runs: tuple[Path, ...], tmp_path: Path) -> None:
    """SimCLR's is the nearest class mean; MAML's are its gradient steps from the head it has learned."""
    from selftaught.app.evaluation import evaluate

    means, own = (compared(loaded(runs[:2]), PICTURES, 3, 1, 2, 20, 0, head) for head in ("prototype", "own"))
    assert {n: a.mean for n, a in own.accuracy.items()} == {n: a.mean for n, a in means.accuracy.items()}
    method = MAML(ways=3, queries=2, test_steps=4, inner_rate=0.4, tasks=2)
    model = pretrain(
        PICTURES, out=tmp_path / "maml", method=method, size=16, channels=1, views="glyph", steps=3, quiet=True
    )
    expected = few_shot_learner(
        GradientLearner(model.net, 4, 0.4, norm="support"), model.weights, PICTURES, EpisodePlan(3, 1, 2, 20)
    )
    rows = evaluate({"maml": model}, PICTURES, ways=(3,), shots=(1,), queries=2, episodes=20, head="own")
    assert (rows[0].mean, rows[0].head, rows[0].norm) == (expected.mean, "own", "support")
    assert [r.head for r in rows[1:]] == ["prototype"] * 2
    pair = compared({"maml": model, **loaded(runs[:2])}, PICTURES, 3, 1, 2, 20, 0, "own")
    assert pair.accuracy["maml"].mean == expected.mean
    with pytest.raises(DataError, match="running"):
        evaluate({"maml": model}, PICTURES, head="own", norm="support")


def test_what_is_said_needs_the_interval() -> None:
    plan = EpisodePlan(5, 1, 1, 3)
    clear, touching = torch.tensor([5.0, 6.0, 7.0]).double(), torch.tensor([-9.0, 1.0, 9.0]).double()
    assert said(summarise(clear, plan)) == "first ahead" and said(summarise(-clear, plan)) == "second ahead"
    assert said(summarise(touching, plan)) == "level"
    assert said(summarise(torch.tensor([5.0]).double(), plan)) == "level"


@pytest.mark.parametrize(
    ("chosen", "code", "says"),
    [((0,), 5, "two or more"), ((0, 0), 5, "twice"), ((0, 2), 4, "32 pixels"), ((0, None), 4, "nowhere")],
    ids=["one", "twice", "sizes", "missing"],
)
def test_clear_errors(
    runs: tuple[Path, ...], chosen: tuple[int | None, ...], code: int, says: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folders = [str(tmp_path / "nowhere" if n is None else runs[n]) for n in chosen]
    out = tmp_path / "c.svg"
    assert main(["compare", *folders, "--labelled", "emoji:test", "--out", str(out)]) == code
    assert says in capsys.readouterr().err and not out.exists()


def test_an_unfinished_run_is_named(runs: tuple[Path, ...], capsys: pytest.CaptureFixture[str]) -> None:
    mark = runs[1] / "finished.json"
    kept = mark.read_bytes()
    mark.unlink()
    try:
        assert main(["compare", str(runs[0]), str(runs[1]), "--labelled", "emoji:test"]) == 4
        assert "--resume" in capsys.readouterr().err
    finally:
        mark.write_bytes(kept)


def test_short_names_tell_runs_apart() -> None:
    assert names([Path("x/a"), Path("x/b")]) == ["a", "b"]
    assert names([Path("x/a"), Path("y/a")]) == ["x/a", "y/a"]
