"""A trained model as a folder that others can load: weights, configuration, model card."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selftaught.artifacts.files import (
    read_json,
    replace_folder,
    save_error,
    standing,
    temporary_beside,
    write_json,
    write_text,
    writer,
)
from selftaught.artifacts.tensors import load_tensors, save_tensors
from selftaught.core.errors import RunError
from selftaught.core.types import Params

MODEL_FORMAT = 1

_WEIGHTS, _CONFIG, _CARD, _EXTRA = "model.safetensors", "config.json", "README.md", "extra.json"


def save_model(
    folder: str | Path,
    weights: Params,
    config: Mapping[str, Any],
    card: str,
    extra_json: Mapping[str, Any] | None = None,
) -> None:
    """Write `model.safetensors`, `config.json`, `README.md` and, where given, `extra.json` into `folder`.

    `weights` are parameters and buffers together; `config` and `extra_json` are JSON-like. All is written to
    a temporary folder first, so that a model already there stays until the new one is whole.
    Raises RunError when `folder` holds anything but a model, SaveError when it cannot be written.
    """
    target = Path(folder)
    _refuse_foreign(target)
    temporary = temporary_beside(target)
    try:
        temporary.mkdir(parents=True)
        save_tensors(temporary / _WEIGHTS, weights, {"kind": "selftaught model", "writer": writer()})
        write_json(temporary / _CONFIG, {"format": MODEL_FORMAT, "writer": writer(), "config": dict(config)})
        write_text(temporary / _CARD, card)
        if extra_json is not None:
            write_json(temporary / _EXTRA, extra_json)
        replace_folder(temporary, target)
    except OSError as error:
        raise save_error(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_model(folder: str | Path) -> tuple[Params, dict[str, Any]]:
    """Weights and configuration from a model folder, or from the run folder that contains `model/`.

    Raises RunError when a part is missing, broken or of another format.
    """
    found = _find(Path(folder))
    file = found / _CONFIG
    content = read_json(file)
    if content.get("format") != MODEL_FORMAT or not isinstance(content.get("config"), dict):
        raise RunError(
            f"{file} was written by {content.get('writer', 'an unknown program')} in model format "
            f"{content.get('format', 'unknown')}; {writer()} reads format {MODEL_FORMAT}. "
            "Install the version that wrote it, or train the model again."
        )
    weights, _ = load_tensors(found / _WEIGHTS)
    return weights, content["config"]


def _find(folder: Path) -> Path:
    for candidate in (standing(folder), standing(folder / "model")):
        if (candidate / _WEIGHTS).is_file():
            return candidate
    if (folder / "metrics.jsonl").is_file() or (folder / "checkpoints").is_dir():
        raise RunError(f"{folder} is a run without a model yet. Resume its training to the end, then load it.")
    raise RunError(f"{folder / _WEIGHTS} is missing. Give the folder of a model, or of a finished run.")


def _refuse_foreign(target: Path) -> None:
    """RunError when replacing `target` would delete something that is not part of a model."""
    if not target.exists():
        return
    if not target.is_dir():
        raise RunError(f"{target} is a file. Choose another name for the model's folder.")
    try:
        foreign = sorted({p.name for p in target.iterdir()} - {_WEIGHTS, _CONFIG, _CARD, _EXTRA})
    except OSError as error:
        raise save_error(target, error) from error
    if foreign:
        raise RunError(f"{target} holds other files ({foreign[0]}, ...). Choose a new or empty folder.")
