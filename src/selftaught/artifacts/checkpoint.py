"""The whole of a training run in one file: parameters, slow state, optimiser, generator, step."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from selftaught.artifacts.files import writer
from selftaught.artifacts.tensors import load_tensors, save_tensors
from selftaught.core.errors import RunError
from selftaught.core.types import Params, State

CHECKPOINT_FORMAT = "1"

_KIND = "selftaught checkpoint"
_PARTS = ("params", "slow", "opt")
_EXTRA = "extra/"
_WAY_OUT = "Use an intact checkpoint, or train again into a new folder."


def save_state(path: str | Path, state: State, extra: Mapping[str, str] | None = None) -> None:
    """Write `state` as one safetensors file, atomically; `extra` is text kept beside it.

    Tensors keep values, types and order, not device or memory layout: a loaded state lies on the CPU.
    Raises SaveError when the file cannot be written.
    """
    parts = {"params": state.params, "slow": state.slow, "opt": state.opt}
    tensors: dict[str, Tensor] = {
        f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()
    }
    tensors["generator"] = state.generator.get_state()
    metadata = {
        "kind": _KIND,
        "format": CHECKPOINT_FORMAT,
        "writer": writer(),
        "step": str(state.step),
        "generator_device": state.generator.device.type,
        "counts": json.dumps({part: len(named) for part, named in parts.items()}),
    }
    save_tensors(path, tensors, metadata | {_EXTRA + key: text for key, text in (extra or {}).items()})


def load_state(path: str | Path) -> State:
    """The state in `path`, tensors on the CPU, the generator where it was.

    Raises RunError when the file is missing or broken, is no checkpoint, was written in another format, or
    needs a device that this machine lacks.
    """
    tensors, metadata = _load_checked(path)
    parts = {part: _below(part, tensors) for part in _PARTS}
    _check_counts(path, parts, metadata)
    return State(
        params=parts["params"],
        slow=parts["slow"],
        opt=parts["opt"],
        generator=_generator(path, tensors, metadata),
        step=_step(path, metadata),
    )


def load_extra(path: str | Path) -> dict[str, str]:
    """The text saved beside the state in `path`; raises RunError as `load_state` does."""
    _, metadata = _load_checked(path)
    return {key[len(_EXTRA) :]: text for key, text in metadata.items() if key.startswith(_EXTRA)}


def _load_checked(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != _KIND:
        raise RunError(f"{path} is no checkpoint of selftaught, it holds other tensors. {_WAY_OUT}")
    if metadata.get("format") != CHECKPOINT_FORMAT:
        raise RunError(
            f"{path} was written by {metadata.get('writer', 'an unknown version')} in checkpoint format "
            f"{metadata.get('format', 'unknown')}; {writer()} reads format {CHECKPOINT_FORMAT}. "
            "Install the version that wrote it to continue, or train again into a new folder."
        )
    return tensors, metadata


def _below(part: str, tensors: Mapping[str, Tensor]) -> Params:
    cut = part + "/"
    return {name[len(cut) :]: tensor for name, tensor in tensors.items() if name.startswith(cut)}


def _check_counts(path: str | Path, parts: Mapping[str, Params], metadata: Mapping[str, str]) -> None:
    try:
        counts = json.loads(metadata.get("counts", ""))
    except (ValueError, RecursionError):
        counts = None
    if not isinstance(counts, dict):
        raise RunError(f"{path} does not say what it holds. {_WAY_OUT}")
    for part, named in parts.items():
        if counts.get(part) != len(named):
            raise RunError(
                f"{path}, written by {metadata.get('writer')}, holds {len(named)} tensors of {part!r} "
                f"where {counts.get(part)} belong. {_WAY_OUT}"
            )


def _step(path: str | Path, metadata: Mapping[str, str]) -> int:
    step = metadata.get("step", "")
    if not (step.isascii() and step.isdigit() and len(step) < 19):
        raise RunError(f"{path} does not say at which step it was written. {_WAY_OUT}")
    return int(step)


def _generator(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> torch.Generator:
    if "generator" not in tensors:
        raise RunError(f"{path} lacks the state of the random generator. {_WAY_OUT}")
    device = metadata.get("generator_device", "cpu")
    try:
        generator = torch.Generator(device=device)
        generator.set_state(tensors["generator"])
    except (RuntimeError, TypeError, AssertionError) as error:
        raise RunError(
            f"{path} holds a random generator for {device!r} that does not work here ({error}). "
            f"Continue on a machine with {device!r}. If that is this one, the file is broken. {_WAY_OUT}"
        ) from error
    return generator
