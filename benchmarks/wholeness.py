"""Whether every file that a command left behind is whole, and whether two folders hold the same bits."""

import ast
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selftaught.app.loading import load
from selftaught.artifacts.checkpoint import load_state
from selftaught.artifacts.files import TEMPORARY_SUFFIX, read_json
from selftaught.artifacts.metrics import read_metrics
from selftaught.artifacts.run import Run
from selftaught.artifacts.tensors import load_tensors
from selftaught.core.errors import SelftaughtError

_CLOCK = "seconds"
"""The one figure of a log that may differ between two runs."""


def faults_in(folder: Path) -> list[str]:
    """What is not whole: files that do not load, are unknown, or end early. Temporaries do not count."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not temporary(p, folder)]
    return [fault for file in files if (fault := _fault(file))]


def temporaries(folder: Path) -> list[str]:
    """Names of unfinished files and folders below `folder`."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if temporary(p, folder))


def temporary(path: Path, folder: Path) -> bool:
    """Whether `path`, or a folder that it is in, is unfinished."""
    parts = path.relative_to(folder).parts
    return any(part.endswith(TEMPORARY_SUFFIX) for part in parts)


def _fault(file: Path) -> str | None:
    check = CHECKS.get(file.name) or CHECKS.get(file.suffix)
    if check is None:
        return f"{file.name}: nobody knows this file"
    try:
        check(file)
    except (SelftaughtError, ValueError, SyntaxError) as error:
        return f"{file.name}: {error}"
    return None


def _page(file: Path) -> None:
    if not file.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise ValueError("ends early")


def _script(file: Path) -> None:
    ast.parse(_text(file))


def _graph(file: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(onnx.load_model_from_string(file.read_bytes()))
    except Exception as error:  # of protobuf's own kind
        raise ValueError(str(error)) from error


def _archive(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            torn = archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    if torn is not None:
        raise ValueError(f"{torn} in it is broken")


def _text(file: Path) -> str:
    content = file.read_text(encoding="utf-8")
    if not content.endswith("\n"):
        raise ValueError("ends early")
    return content


def _anything(file: Path) -> None:
    """Lines of a log may be torn, a lock is empty, and the number of its holder is for messages only."""


CHECKS: Mapping[str, Callable[[Path], object]] = {
    ".safetensors": load_tensors,
    ".json": read_json,
    "metrics.jsonl": read_metrics,
    "report.html": _page,
    "README.md": _text,
    "predict.py": _script,
    ".onnx": _graph,
    ".pt2": _archive,
    "train.log": _anything,
    "run.lock": _anything,
    "run.pid": _anything,
}
"""How a file is read to the end, by name or ending."""


def run_numbers(folder: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on what happened to it on its way.

    Raises RunError when a part is missing or broken.
    """
    run = Run.open(folder)
    state = load_state(folder / "checkpoints" / "last.safetensors")
    weights, _ = load_tensors(run.model_path / "model.safetensors")
    return {
        "finished": run.finished,
        "model": weights,
        "params": dict(state.params),
        "slow": dict(state.slow),
        "opt": dict(state.opt),
        "generator": state.generator.get_state(),
        "step": state.step,
        "metrics": [{k: repr(v) for k, v in line.items() if k != _CLOCK} for line in run.metrics()],
    }


def classifier_numbers(folder: Path) -> dict[str, Any]:
    """Everything that decides the predictions of a classifier. Raises RunError when a part is broken."""
    found: Any = load(folder)
    support = found.support
    return {
        "model": dict(found.model.weights),
        "head": found.head,
        "classes": found.classes,
        "names": [Path(name).name for name in support.names],
        "support": {"x": support.x, "y": support.y, "vectors": found.vectors},
    }


def exported_numbers(folder: Path) -> dict[str, Any]:
    """Every file of an exported folder. safetensors writes its notes in an order that changes, so what they say.

    Raises RunError when a file of tensors is broken.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.name: list(load_tensors(p)) if p.suffix == ".safetensors" else p.read_bytes() for p in files}


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, in tensors as in everything else."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(_bytes(a), _bytes(b)))
    return bool(a == b)


def _bytes(x: Tensor) -> Tensor:
    """So that NaN equals itself and -0 is not 0."""
    return x.contiguous().flatten().view(torch.uint8) if x.numel() else x.flatten()
