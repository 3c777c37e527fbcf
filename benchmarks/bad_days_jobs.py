"""The commands that `bad_days` disturbs: runs of several methods, classifiers, exports in every format."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import torch

from benchmarks import faults
from benchmarks.faults import Fault, Lived
from benchmarks.wholeness import classifier_numbers, exported_numbers, faults_in, run_numbers, same
from selftaught.core.errors import SelftaughtError

METHODS = ("simclr", "moco", "bmssl")
"""Whose runs are killed in turn: plain, with a queue and a teacher in `slow`, with an inner loop."""
FORMATS = ("onnx", "torch", "hf")
"""In which a classifier is exported."""


@final
@dataclass(frozen=True)
class Job:
    """A command on a folder of its own that can be disturbed and given again.

    `begin` makes the ground it starts from; `command` gives what to type now, as far as it came; `check` names
    what deviates in the folder after a disturbance; `numbers` is what counts in the end. `done` tells where a
    killed try had come to its end, so that giving it again would be refused; `each` whether it is also disturbed
    at its operations one by one, which one of several that write by the same code is enough for.
    """

    name: str
    begin: Callable[[Path], None]
    command: Callable[[Path], list[str]]
    check: Callable[[Path], list[str]]
    numbers: Callable[[Path], dict[str, Any]]
    done: Callable[[Path], bool] = lambda root: False
    each: bool = True

    def give(self, root: Path, fault: Fault | None = None) -> Lived:
        """One try at it."""
        return faults.run(self.command(root), root, fault, often)


def often() -> None:
    """In the copy: every step is logged and saved, so that most moments are moments of writing."""
    from selftaught.app import pretrain

    pretrain.CHECKPOINT_SECONDS, pretrain.LOG_EVERY = 0.0, 1


def jobs(work: Path, steps: int, methods: Sequence[str], formats: Sequence[str]) -> Iterator[Job]:
    """Runs of several methods, a classifier made anew and in place of another, and its exports."""
    data, labelled = _pictures(work / "data", 24), _labelled(work / "labelled")
    for turn, method in enumerate(methods):
        yield _pretraining(data, method, steps, each=turn == 0)
    for name, count in (("one", 1), ("two", 2)):
        must(faults.run(_pretrain(data, "simclr", count, work / name), work / name, prepare=often))
    known = [_adapted(work, labelled, *how) for how in (("one", "prototype"), ("two", "ridge"))]
    yield _adapting(work, labelled, "adapt", known, replace=False)
    yield _adapting(work, labelled, "adapt over another", known, replace=True)
    must(faults.run(_adapt(work, labelled, "two", "ridge", work), work))
    for format in formats:
        yield _exporting(work / "clf", format)


def _pretrain(data: Path, method: str, steps: int, out: Path) -> list[str]:
    small = {"bmssl": ["tasks=2", "ways=3"], "simclr": ["batch=8"], "moco": ["batch=8", "queue=16"]}[method]
    told = f"--method {method} --size 16 --steps {steps} --views photo".split()
    return ["pretrain", str(data), "--out", str(out), *told, "--no-report", "--set", *small]


def _pretraining(data: Path, method: str, steps: int, *, each: bool) -> Job:
    def command(root: Path) -> list[str]:
        begun = (root / "run" / "config.json").is_file()
        return _pretrain(data, method, steps, root / "run") + ["--resume"] * begun

    def numbers(root: Path) -> dict[str, Any]:
        return run_numbers(root / "run")

    return Job(f"pretrain ({method})", _nothing, command, faults_in, numbers, each=each)


def _adapt(work: Path, labelled: Path, model: str, head: str, root: Path) -> list[str]:
    return ["adapt", str(work / model), str(labelled), "--out", str(root / "clf"), "--head", head]


def _adapted(work: Path, labelled: Path, model: str, head: str) -> dict[str, Any]:
    with TemporaryDirectory(dir=work) as name:
        (root := Path(name) / "root").mkdir()
        must(faults.run(_adapt(work, labelled, model, head, root), root))
        return classifier_numbers(root / "clf")


def _adapting(work: Path, labelled: Path, name: str, known: Sequence[dict[str, Any]], *, replace: bool) -> Job:
    def begin(root: Path) -> None:
        if replace:
            must(faults.run(_adapt(work, labelled, "one", "prototype", root), root))

    def command(root: Path) -> list[str]:
        return _adapt(work, labelled, "two", "ridge", root)

    def check(root: Path) -> list[str]:
        """The old one or the new one, whole; or none where there was none."""
        if not replace and not (root / "clf" / "classifier.json").is_file():
            return faults_in(root)
        try:
            found = classifier_numbers(root / "clf")
        except SelftaughtError as error:
            return [f"neither the old nor the new classifier: {error}"]
        mixed = [] if any(same(found, one) for one in known) else ["a mixture of old and new"]
        return faults_in(root) + mixed

    return Job(name, begin, command, check, lambda root: classifier_numbers(root / "clf"))


def _exporting(classifier: Path, format: str) -> Job:
    def command(root: Path) -> list[str]:
        return ["export", str(classifier), "--out", str(root / "exported"), "--format", format]

    def numbers(root: Path) -> dict[str, Any]:
        return exported_numbers(root / "exported")

    def done(root: Path) -> bool:
        return (root / "exported").is_dir()

    # The torch format is written by the same code as the ONNX one, and is the faster of the two.
    return Job(f"export ({format})", _nothing, command, faults_in, numbers, done, each=format != "onnx")


def must(lived: Lived) -> None:
    """Raise RuntimeError for an undisturbed command that failed."""
    if lived.status:
        raise RuntimeError(f"failed undisturbed: {lived.words}")


def _nothing(root: Path) -> None:
    """A command that starts in an empty folder."""


def _pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """Small pictures of noise."""
    from PIL import Image

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for i in range(count):
        x = torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(x.numpy()).save(folder / f"{i:02d}.png")
    return folder


def _labelled(folder: Path) -> Path:
    for seed, name in enumerate(("this", "that")):
        _pictures(folder / name, 2, seed)
    return folder
