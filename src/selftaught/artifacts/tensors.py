"""Named tensors on disk in the safetensors format, which holds numbers only and cannot run code."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from selftaught.artifacts.files import write_bytes
from selftaught.core.errors import RunError, SaveError

_ORDER = "selftaught.order"
"""Metadata key for the order of names: the format sorts them, and sums over parameters depend on it."""


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write dense tensors of any shape and device as one safetensors file, atomically.

    Tensors that share memory or are views are written out in full, each under its own name.
    Raises SaveError when the disk refuses or a tensor has no form in safetensors (sparse, quantised, meta).
    """
    order = json.dumps(list(tensors))
    try:
        plain = {name: _plain(tensor) for name, tensor in tensors.items()}
        content = save(plain, {**metadata, _ORDER: order})
    except (SafetensorError, RuntimeError, NotImplementedError, ValueError, TypeError, KeyError) as error:
        raise SaveError(
            f"{path} was not written: {error}. Only dense tensors of the usual number types can be saved, "
            "with text as metadata."
        ) from error
    write_bytes(path, content)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU, in the order they were saved) and the metadata of a safetensors file.

    Nothing in the file is ever executed. Raises RunError when the file is missing, truncated, hostile or of
    another format.
    """
    tensors, metadata = _read(Path(path))
    order = metadata.pop(_ORDER, None)
    if order is None:  # written by another library
        return tensors, metadata
    names = _names(Path(path), order)
    if sorted(names) != sorted(tensors):
        raise RunError(f"{path} lacks tensors that it says it holds. {_WAY_OUT}")
    return {name: tensors[name] for name in names}, metadata


_WAY_OUT = (
    "Use an intact copy, or save it again with selftaught. Pickled files (.pt, .pth, .pkl) are never "
    "opened; convert one where you trust it, by safetensors.torch.save_file."
)


def _plain(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU that shares memory with nothing."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ValueError(f"a tensor is {'meta' if tensor.is_meta else 'quantised or sparse'}")
    here = tensor.detach().resolve_conj().resolve_neg().cpu()
    return here.clone(memory_format=torch.contiguous_format)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise RunError(f"{path} is missing. Check the name of the file or folder.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Copies, since the file is mapped to memory and may be replaced while we still compute.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}. {_WAY_OUT}") from error
    except Exception as error:
        # A hostile header can fail in safetensors and in torch with errors of many kinds.
        raise RunError(f"{path} is not a whole safetensors file ({error}). {_WAY_OUT}") from error


def _names(path: Path, order: str) -> list[str]:
    try:
        names = json.loads(order)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RunError(f"{path} has a broken list of names. {_WAY_OUT}")
    return names
