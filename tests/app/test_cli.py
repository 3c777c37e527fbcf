"""The commands end to end, as a user types them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.app.cli import COMMANDS, main

TINY = ["--size", "16", "--steps", "4", "--set", "ways=6", "hidden=8", "out=8"]


def draw(path: Path, seed: int, hue: int = 0) -> Path:
    """A small noisy picture whose left half has the class's brightness."""
    pixels = np.random.default_rng(seed).integers(0, 60, (20, 20, 3), dtype=np.uint8)
    pixels[:, :10, hue % 3] += 60 + 40 * (hue // 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ (nested, unlabelled), labelled/ (unequal counts), a finished run, a classifier."""
    root = tmp_path_factory.mktemp("world")
    for i in range(12):
        draw(root / "photos" / ("deep" if i % 2 else "") / f"p{i}.png", i, i % 4)
    for c, count in enumerate((3, 4, 5)):
        for i in range(count):
            draw(root / "labelled" / f"class{c}" / f"{i}.png", 100 * c + i, c)
    assert main(["pretrain", str(root / "photos"), "--out", str(root / "run"), *TINY]) == 0
    assert main(["adapt", str(root / "run"), str(root / "labelled"), "--out", str(root / "clf")]) == 0
    return root


def test_run_folder_is_complete(world: Path) -> None:
    run = world / "run"
    for name in ("config.json", "metrics.jsonl", "train.log", "report.html", "finished.json"):
        assert (run / name).stat().st_size > 0, name
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (run / "model" / name).stat().st_size > 0, name
    assert (run / "checkpoints" / "last.safetensors").is_file()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 4


def test_predict_json(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = world / "labelled" / "class1" / "0.png"
    assert main(["predict", str(world / "clf"), str(picture), str(world / "photos"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 1 + 12
    assert lines[0]["label"] == "class1"
    assert sum(lines[0]["probabilities"].values()) == pytest.approx(1)
    assert lines[0]["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert lines[0]["neighbours"][0]["name"].endswith("0.png")


def test_predict_table(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(world / "clf"), str(world / "labelled" / "class2" / "1.png")]) == 0
    out = capsys.readouterr().out
    assert "class2" in out and "nearest:" in out


def test_embed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = world / "vectors.npz"
    assert main(["embed", str(world / "run"), str(world / "photos"), "--out", str(out)]) == 0
    with np.load(out, allow_pickle=False) as stored:
        assert stored["vectors"].shape == (12, 64)
        assert stored["vectors"].dtype == np.float32
        assert len(stored["names"]) == 12


def test_embed_wants_npz(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", str(world / "run"), str(world / "photos"), "--out", str(world / "v.csv")]) == 5
    assert ".npz" in capsys.readouterr().err


def test_evaluate_shows_baselines_and_reaches_the_report(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["evaluate", str(world / "run"), str(world / "labelled"), "--ways", "3", "--shots", "1", "2"]
    assert main([*call, "--episodes", "20", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {r["name"] for r in rows} == {"bmssl", "raw pixels", "untrained encoder"}
    assert {(r["ways"], r["shots"]) for r in rows} == {(3, 1), (3, 2)}
    assert all(r["episodes"] == 20 and r["queries"] >= 1 for r in rows)
    assert main(["report", str(world / "run")]) == 0
    page = (world / "run" / "report.html").read_text()
    assert "raw pixels" in page and "untrained encoder" in page
    assert "raw pixels" in (world / "run" / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    "extra", [["--head", "steps"], ["--head", "own"], ["--norm", "support"], ["--head", "ridge"]]
)
def test_evaluate_other_heads(world: Path, extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    call = ["evaluate", str(world / "run"), str(world / "labelled"), "--ways", "3", "--shots", "1"]
    assert main([*call, "--episodes", "5", "--json", *extra]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["head" if "--head" in extra else "norm"] == extra[1]


def test_evaluate_probes(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["evaluate", str(world / "run"), str(world / "labelled"), "--ways", "3", "--shots", "1"]
    assert main([*call, "--episodes", "5", "--json", "--probes"]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)
    for word in ("effective rank", "linear probe", "5 nearest neighbours", "N=5"):
        assert word in streams.err


def test_evaluate_class_too_small(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["evaluate", str(world / "run"), str(world / "labelled"), "--ways", "3", "--shots", "3"]
    assert main(call) == 3
    err = capsys.readouterr().err
    assert "class0" in err and "--shots" in err


def test_methods_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    from selftaught.methods import METHODS

    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in METHODS)


def test_doctor(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(world / "photos")]) == 0
    assert "12 pictures" in capsys.readouterr().out


def test_existing_run_is_not_overwritten(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (world / "run" / "model" / "model.safetensors").read_bytes()
    assert main(["pretrain", str(world / "photos"), "--out", str(world / "run"), *TINY]) == 4
    assert (world / "run" / "model" / "model.safetensors").read_bytes() == before
    assert str(world / "run") in capsys.readouterr().err


def test_broken_picture_is_reported_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        draw(tmp_path / "photos" / f"{i}.png", i)
    (tmp_path / "photos" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    assert main(["pretrain", str(tmp_path / "photos"), "--out", str(tmp_path / "run"), *TINY]) == 0
    streams = capsys.readouterr()
    assert "bad.png" in streams.err and "1 file(s) skipped" in streams.err


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (lambda p: p.mkdir(), 2, "photos"),
        (lambda p: draw(p / "one.png", 0), 3, "at least 2"),
        (lambda p: (p.mkdir(), (p / "notes.txt").write_text("x")), 2, "notes.txt"),
        (lambda p: None, 2, "photos"),
    ],
    ids=["empty", "one picture", "no pictures", "missing"],
)
def test_bad_folders(tmp_path: Path, make, code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "photos")
    assert main(["pretrain", str(tmp_path / "photos"), "--out", str(tmp_path / "run"), *TINY]) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--method", "nosuch"], "bmssl"),
        (["--set", "nosuch=1"], "inner_steps"),
        (["--set", "ways"], "name=value"),
        (["--encoder", "nosuch"], "conv4"),
        (["--method", "maml"], "label"),
    ],
)
def test_bad_options(
    world: Path, tmp_path: Path, extra: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["pretrain", str(world / "photos"), "--out", str(tmp_path / "run"), "--size", "16", *extra])
    assert code in (2, 5)
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_half_written_run(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert main(["embed", str(tmp_path / "run"), str(world / "photos")]) == 4
    assert str(tmp_path / "run") in capsys.readouterr().err


def test_not_a_classifier(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(world / "run"), str(world / "photos")]) == 4
    assert "selftaught adapt" in capsys.readouterr().err


def test_adapt_needs_two_classes(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "labelled" / "only" / "0.png", 0)
    assert main(["adapt", str(world / "run"), str(tmp_path / "labelled"), "--out", str(tmp_path / "clf")]) == 2
    assert "two" in capsys.readouterr().err
    assert not (tmp_path / "clf").exists()


def test_option_count_stays_small() -> None:
    """The command line is a promise: a new option is a decision, not an accident."""
    import inspect

    named = {name for f in COMMANDS.values() for name in inspect.signature(f).parameters}
    assert len(named) <= 45, sorted(named)
    assert set(COMMANDS) == {
        "pretrain", "adapt", "predict", "embed", "evaluate", "report", "methods", "doctor", "demo", "claim",
        "compare", "search", "export", "play",
    }  # fmt: skip
