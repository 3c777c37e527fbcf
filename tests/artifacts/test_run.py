"""A run folder: made once, opened often, written by one process, killed at any moment."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from selftaught.artifacts.checkpoint import load_state
from selftaught.artifacts.files import read_json, write_json
from selftaught.artifacts.run import Run
from selftaught.core.errors import RunError, SaveError
from selftaught.core.types import State

CONFIG = {"method": "simclr", "steps": 10, "lr": 0.1}


def a_state(step: int) -> State:
    return State({"w": torch.full((2,), float(step))}, {}, {}, torch.Generator().manual_seed(step), step)


def python(code: str, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "one", CONFIG)


def test_create_then_open(run: Run) -> None:
    assert Run.open(run.path) == run
    assert run.config == CONFIG
    assert not run.finished and not run.has_checkpoint and run.metrics() == []


def test_create_takes_an_empty_or_cut_short_folder(tmp_path: Path) -> None:
    (tmp_path / ".0123.selftaught-tmp").write_text("{")
    (tmp_path / "run.lock").touch()
    assert Run.create(tmp_path, CONFIG).config == CONFIG


def test_create_refuses_what_is_there(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"an unfinished run already\. Resume it"):
        Run.create(run.path, {})
    run.finish()
    with pytest.raises(RunError, match="a finished run already"):
        Run.create(run.path, {})
    assert Run.open(run.path).config == CONFIG
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(RunError, match=r"photos holds other files \(cat\.jpg, \.\.\.\)\. Choose a new"):
        Run.create(tmp_path / "photos", {})
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "file", {})
    with pytest.raises(SaveError):
        Run.create(tmp_path / "file" / "below", {})


def test_open_refuses_what_is_no_whole_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere is not a folder"):
        Run.open(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunError, match=r"config\.json is missing.*start again"):
        Run.open(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 1, "conf')
    with pytest.raises(RunError, match=r"config\.json is broken"):
        Run.open(tmp_path)
    write_json(tmp_path / "config.json", {"format": 1, "config": None})
    with pytest.raises(RunError, match=r"config\.json holds no configuration"):
        Run.open(tmp_path)


def test_open_names_the_version_that_wrote_another_format(run: Run) -> None:
    content = read_json(run.path / "config.json")
    write_json(run.path / "config.json", content | {"format": 99, "writer": "selftaught 9.9"})
    with pytest.raises(RunError, match=r"config\.json was written by selftaught 9\.9 in run format 99.*Install"):
        Run.open(run.path)


def test_finish(run: Run) -> None:
    run.finish({"accuracy": 0.5})
    assert Run.open(run.path).finished
    assert read_json(run.path / "finished.json")["summary"] == {"accuracy": 0.5}


def test_last_and_previous(run: Run) -> None:
    with pytest.raises(RunError, match=r"last\.safetensors is missing: nothing was saved"):
        run.load_checkpoint()
    for step in (1, 2, 3):
        run.save_checkpoint(a_state(step))
        assert run.load_checkpoint().step == step
    folder = run.path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["last.safetensors", "previous.safetensors"]
    assert load_state(folder / "previous.safetensors").step == 2


@pytest.mark.parametrize("harm", ["truncated", "empty", "gone"])
def test_a_broken_last_gives_way_to_previous_with_a_warning(
    run: Run, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    run.save_checkpoint(a_state(1))
    run.save_checkpoint(a_state(2))
    last = run.path / "checkpoints" / "last.safetensors"
    content = last.read_bytes()
    last.unlink()
    if harm != "gone":
        last.write_bytes(content[:-3] if harm == "truncated" else b"")
    restored = run.restore()
    assert restored.state.step == 1
    assert restored.warning and "previous.safetensors is used" in restored.warning
    assert "last.safetensors" in restored.warning
    assert run.load_checkpoint().step == 1
    assert "previous.safetensors is used" in caplog.text
    run.save_checkpoint(a_state(2))
    assert run.restore().state.step == 2 and run.restore().warning is None


def test_no_usable_checkpoint(run: Run) -> None:
    run.save_checkpoint(a_state(1))
    (run.path / "checkpoints" / "last.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"No checkpoint of .* can be used.*last\.safetensors"):
        run.load_checkpoint()


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_inside_a_save(run: Run, renames: int) -> None:
    """The process dies at the 1st, 2nd or 3rd rename of its third save; a whole checkpoint is there."""
    run.save_checkpoint(a_state(1))
    run.save_checkpoint(a_state(2))
    code = """
        import os, pathlib, sys
        import torch
        from selftaught.artifacts.run import Run
        from selftaught.core.types import State
        real, left = pathlib.Path.replace, int(sys.argv[2])
        def replace(self, target):
            global left
            if left == 0:
                os._exit(9)
            left -= 1
            return real(self, target)
        pathlib.Path.replace = replace
        state = State({"w": torch.full((2,), 3.0)}, {}, {}, torch.Generator(), 3)
        Run.open(sys.argv[1]).save_checkpoint(state)
    """
    process = python(code, run.path, renames)
    errors = process.communicate()[1]
    assert process.returncode == 9, errors
    restored = run.restore()
    assert restored.state.step == (2 if renames == 0 else 3)
    assert torch.equal(restored.state.params["w"], torch.full((2,), float(restored.state.step)))
    assert restored.warning is None
    with run.lock():
        run.save_checkpoint(a_state(4))
    names = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert run.restore().state.step == 4 and names == ["last.safetensors", "previous.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_killed_while_saving_again_and_again(run: Run) -> None:
    code = """
        import sys
        import torch
        from selftaught.artifacts.run import Run
        from selftaught.core.types import State
        run = Run.open(sys.argv[1])
        with run.lock():
            for step in range(1, 100_000):
                run.log(step, {"loss": 1.0})
                state = State({"w": torch.full((50_000,), float(step))}, {}, {}, torch.Generator(), step)
                run.save_checkpoint(state)
                print(step, flush=True)
    """
    process = python(code, run.path)
    assert process.stdout
    for line in process.stdout:
        if int(line) == 5:
            break
    with pytest.raises(RunError, match=f"written by process {process.pid}"), run.lock():
        pytest.fail("two processes hold one run")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with run.lock():  # the dead process's lock is no hindrance
        resumed = run.resume()
        assert resumed and resumed.state.step >= 5
        assert (resumed.state.params["w"] == resumed.state.step).all()
        assert [line["step"] for line in run.metrics()] == list(range(1, resumed.state.step + 1))
        assert not list(run.path.rglob("*.selftaught-tmp"))


def test_a_full_disk_keeps_the_checkpoint(run: Run) -> None:
    pytest.importorskip("resource")
    run.save_checkpoint(a_state(1))
    code = """
        import resource, sys
        import torch
        from selftaught.artifacts.run import Run
        from selftaught.core.errors import SaveError
        from selftaught.core.types import State
        run = Run.open(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            run.save_checkpoint(State({"w": torch.ones(50_000)}, {}, {}, torch.Generator(), 2))
        except SaveError as error:
            print(error)
            sys.exit(error.exit_code)
    """
    process = python(code, run.path)
    output, errors = process.communicate()
    assert process.returncode == SaveError.exit_code, errors
    assert "checkpoints" in output and "choose another folder" in output
    assert run.restore().state.step == 1 and run.restore().warning is None
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["last.safetensors"]


def test_resume_drops_the_lines_after_the_checkpoint(run: Run) -> None:
    for step in range(1, 6):
        run.log(step, {"loss": float(step)})
        if step == 3:
            run.save_checkpoint(a_state(step))
    resumed = run.resume()
    assert resumed and resumed.state.step == 3
    run.log(4, {"loss": 40.0})
    assert [(line["step"], line["loss"]) for line in run.metrics()] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]


def test_reading_a_checkpoint_leaves_the_log_alone(run: Run) -> None:
    run.save_checkpoint(a_state(1))
    run.log(2, {})
    run.load_checkpoint()
    assert run.metrics() == [{"step": 2}]


def test_resume_before_the_first_checkpoint_starts_the_log_anew(run: Run) -> None:
    run.log(1, {"loss": 1.0})
    assert run.resume() is None
    assert run.metrics() == []


def test_one_writer_at_a_time(run: Run) -> None:
    with run.lock():
        held = f"written by process {os.getpid()}.*choose another folder"
        with pytest.raises(RunError, match=held), Run.open(run.path).lock():
            pytest.fail("locked twice")
        run.log(1, {})
    with run.lock():
        pass
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    with run.lock():
        pass


def test_a_stale_lock_file_is_no_hindrance(run: Run) -> None:
    (run.path / "run.lock").write_text("")
    (run.path / "run.pid").write_text("999999\n")
    with run.lock():
        assert (run.path / "run.pid").read_text() == f"{os.getpid()}\n"


def test_train_log(run: Run) -> None:
    with run.logging():
        logging.getLogger("selftaught.somewhere").info("hello %s", "Größe")
    logging.getLogger("selftaught.somewhere").warning("too late")
    with run.logging():
        logging.getLogger("selftaught").info("again")
    first, second = (run.path / "train.log").read_text(encoding="utf-8").splitlines()
    assert "INFO selftaught.somewhere: hello Größe" in first and "again" in second
    assert logging.getLogger("selftaught").level == logging.NOTSET
