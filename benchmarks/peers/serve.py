"""The far side of `Worker`: `python -m benchmarks.peers.serve MODULE:FUNCTION FOLDER`, not started by hand.

FUNCTION takes a `Work` and hands back a step. FOLDER holds `work.npz`; where there is a `tiny.npz`, a first step
on it loads the kernels; where there is a `check.npz`, gradients are asked on it. Lines on standard input are
commands, each answered by one line of JSON: "go" takes a step and answers its wall and cpu seconds and the growth
of the memory peak; "gradient FILE" takes a step in float64 and writes its gradients, if it has any.
"""

import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.meters import read
from benchmarks.peers.work import Build, Work, save_tensors


def main() -> None:
    """Build once, then answer until the input ends."""
    # What a peer prints must not run into the answers: from here on it joins the error output.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, function = sys.argv[1].partition(":")
    folder = Path(sys.argv[2])
    build: Build = getattr(importlib.import_module(module), function)
    for answer in _answers(build, folder):
        print(json.dumps(answer), file=answers, flush=True)


def _answers(build: Build, folder: Path) -> Iterator[dict[str, Any]]:
    if (folder / "tiny.npz").exists():
        build(Work.load(folder / "tiny.npz"))()
    work = Work.load(folder / "work.npz")
    step = build(work)
    yield {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "go":
            yield asdict(read(step))
        elif command == "gradient":
            other = folder / "check.npz"
            found = build((Work.load(other) if other.exists() else work).double())() or {}
            save_tensors(Path(argument), found)
            yield {"tensors": len(found)}
        else:
            raise ValueError(f"commands are 'go' and 'gradient FILE', got {line!r}")


if __name__ == "__main__":
    main()
