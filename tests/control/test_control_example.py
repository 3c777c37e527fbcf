"""The example of control runs, goes on where it was stopped, and is short."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "control.py"


def run(iterations: int, folder: Path) -> list[str]:
    command = [sys.executable, str(EXAMPLE), str(iterations), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_example_runs_and_goes_on(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40
    first = run(1, tmp_path)
    assert first[0].startswith("1 return ") and len(first) == 2
    again = run(1, tmp_path)
    assert again == first[1:] and "purity of components" in again[0]
