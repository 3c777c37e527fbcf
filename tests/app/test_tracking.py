"""Trackers get every logged step once, never stop a run, and end as their library wants it."""

import importlib
import importlib.util
import json
import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import selftaught
from selftaught.app import pretrain as training
from selftaught.app import tracking
from selftaught.app.tracking import OPEN, told
from selftaught.artifacts.metrics import read_metrics
from selftaught.artifacts.run import Run
from selftaught.artifacts.tensors import load_tensors
from selftaught.core.errors import ConfigError
from selftaught.data.pictures import Pictures
from selftaught.data.strokes import draw_strokes
from selftaught.methods import SimCLR

Call = tuple[str, Any]


def train(out: Path, track: Any, steps: int = 4, resume: bool = False) -> None:
    selftaught.pretrain(
        pictures(), out=out, method=SimCLR(batch=6, hidden=8, out=8), encoder_options={"width": 8}, size=16,
        channels=1, views="glyph", steps=steps, resume=resume, quiet=True, track=track,
    )  # fmt: skip


def pictures() -> Pictures:
    return draw_strokes(6, 2, size=16, seed=1)


@pytest.fixture(autouse=True)
def log_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 1)


def test_a_callable_gets_what_is_logged(tmp_path: Path) -> None:
    got: list[dict[str, float]] = []
    train(tmp_path / "run", lambda step, figures: got.append({"step": step, **figures}))
    assert got == read_metrics(tmp_path / "run" / "metrics.jsonl") and [g["step"] for g in got] == [1, 2, 3, 4]


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    train(tmp_path / "with", lambda step, figures: None)
    train(tmp_path / "without", None)
    a, b = (load_tensors(tmp_path / n / "model" / "model.safetensors")[0] for n in ("with", "without"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert not (tmp_path / "without" / tracking.MARK).exists()


def test_a_tracker_that_fails_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    called = []

    def flaky(step: int, figures: Mapping[str, float]) -> None:
        called.append(step)
        if step == 2:
            raise ConnectionError("server gone")

    with caplog.at_level(logging.WARNING, "selftaught"):
        train(tmp_path / "run", flaky)
    said = [r.getMessage() for r in caplog.records if "tracker" in r.getMessage()]
    assert len(said) == 1 and "flaky" in said[0] and "server gone" in said[0]
    assert called == [1, 2] and len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 4


def cut(monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    """The process dies before it takes step `before`, and leaves the checkpoint of two steps earlier."""
    real, save = vars(training)["train"], Run.save_checkpoint

    def dying(*args: Any, **options: Any) -> Any:
        for state, figures in real(*args, **options):
            if state.step == before:
                raise RuntimeError("power cut")
            yield state, figures

    monkeypatch.setattr(training, "train", dying)
    keep = before - 3
    monkeypatch.setattr(Run, "save_checkpoint", lambda self, s: save(self, s) if s.step <= keep else None)


def test_a_resumed_run_hands_no_step_over_twice(tmp_path: Path) -> None:
    got: list[int] = []
    track = partial(noted, got)
    for before in (6, 4):  # the second process does not even come as far as the first
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "LOG_EVERY", 1)
            patch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
            cut(patch, before)
            with pytest.raises(RuntimeError, match="power cut"):
                train(tmp_path / "run", track, steps=8, resume=before == 4)
    assert got == [1, 2, 3, 4, 5]
    train(tmp_path / "run", track, resume=True)
    assert got == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [m["step"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 7, 8]


def noted(got: list[int], step: int, figures: Mapping[str, float]) -> None:
    got.append(step)


def test_a_spoilt_mark_is_as_good_as_none(tmp_path: Path) -> None:
    for spoilt in ("", "[]", '{"step": "x", "key": "a"}', '{"step": 3}'):
        (tmp_path / tracking.MARK).write_text(spoilt, "utf-8")
        got: list[int] = []
        with told(partial(noted, got), tmp_path) as tell:
            tell(1, {})
        assert got == [1] and json.loads((tmp_path / tracking.MARK).read_text("utf-8"))["step"] == 1


def test_close_is_called_and_may_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Closing:
        def __call__(self, step: int, figures: Mapping[str, float]) -> None: ...

        def close(self) -> None:
            raise OSError("cannot end")

    with caplog.at_level(logging.WARNING, "selftaught"), told(Closing(), tmp_path) as tell:
        tell(1, {"loss": 1.0})
    assert "Closing" in caplog.text and "cannot end" in caplog.text


def test_unknown_and_missing_trackers_are_refused_before_a_run_is_made(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(ConfigError, match="tensorboard, wandb, mlflow, trackio"):
        train(tmp_path / "run", "aim")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(ConfigError, match="pip install trackio"):
        train(tmp_path / "run", "trackio")
    assert not (tmp_path / "run").exists()


def noting(calls: list[Call], name: str) -> Callable[..., None]:
    return lambda *args, **options: calls.append((name, (*args, options)))


def fake_wandb(calls: list[Call]) -> ModuleType:
    def init(**options: Any) -> SimpleNamespace:
        calls.append(("init", options))
        return SimpleNamespace(log=noting(calls, "log"), finish=noting(calls, "finish"))

    return module("wandb", init=init)


def fake_trackio(calls: list[Call]) -> ModuleType:
    return module("trackio", **{n: noting(calls, n) for n in ("log", "finish")}, init=fake_wandb(calls).init)


def fake_mlflow(calls: list[Call]) -> ModuleType:
    runs: dict[str, str] = {}

    def search_runs(filter_string: str, output_format: str) -> list[SimpleNamespace]:
        key = filter_string.split("'")[1]
        return [SimpleNamespace(info=SimpleNamespace(run_id=runs[key]))] if key in runs else []

    def start_run(**options: Any) -> None:
        calls.append(("init", options))
        runs.update(dict.fromkeys(options.get("tags", {}).values(), "first"))

    def log_metrics(figures: Mapping[str, float], step: int) -> None:
        calls.append(("log", (figures, {"step": step})))

    return module(
        "mlflow", set_experiment=noting(calls, "experiment"), search_runs=search_runs, start_run=start_run,
        log_metrics=log_metrics, end_run=noting(calls, "finish"),
    )  # fmt: skip


def module(name: str, **names: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(names)
    return made


@pytest.mark.parametrize("fake", [fake_wandb, fake_trackio, fake_mlflow], ids=lambda f: f.__name__)
def test_the_calls_of_a_library(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Call] = []
    library = fake(calls)
    monkeypatch.setitem(sys.modules, library.__name__, library)
    train(tmp_path / "run", library.__name__, steps=3)
    logged = [c for n, c in calls if n == "log"]
    assert [c[-1] for c in logged] == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert {"loss", "seconds"} <= set(logged[0][0])
    assert calls[-1][0] == "finish" and [n for n, _ in calls].count("init") == 1
    first = next(c for n, c in calls if n == "init")
    with told(library.__name__, tmp_path / "run") as tell:
        tell(4, {"loss": 1.0})
    again = [c for n, c in calls if n == "init"][1]
    if library.__name__ == "mlflow":
        assert first["run_name"] == "run" and again == {"run_id": "first"}
    else:
        assert again == first and first["resume"] == "allow"


def test_a_library_that_cannot_start_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(**options: Any) -> None:
        raise RuntimeError("no account")

    monkeypatch.setitem(sys.modules, "wandb", module("wandb", init=init))
    with caplog.at_level(logging.WARNING, "selftaught"):
        train(tmp_path / "run", "wandb")
    assert caplog.text.count("tracker wandb failed") == 1 and Run.open(tmp_path / "run").finished


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (extra track)")
    reading = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path / "run", "tensorboard", steps=3)
    events = reading.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = {m["step"]: m["loss"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl")}
    assert {e.step: e.value for e in events.Scalars("loss")} == pytest.approx(logged)


def test_every_name_on_the_command_line_opens() -> None:
    from typing import get_args

    from selftaught.app.choices import TrackerName

    assert set(get_args(TrackerName)) == set(OPEN)
