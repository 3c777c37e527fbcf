"""What a worker is given: named tensors and options, handed over as one file of plain arrays."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

OPTIONS = "options as JSON"
"""The array that holds the options; no tensor has this name."""


@final
@dataclass(frozen=True)
class Work:
    """`tensors` by name and `options` of plain values (numbers, words)."""

    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)

    def double(self) -> "Work":
        """The same with every floating tensor in float64."""
        wide = {k: v.double() if v.is_floating_point() else v for k, v in self.tensors.items()}
        return replace(self, tensors=wide)

    def save(self, path: Path) -> None:
        """Write `path`, an .npz file without Python objects."""
        save_tensors(path, self.tensors, **{OPTIONS: np.array(json.dumps(dict(self.options)))})

    @staticmethod
    def load(path: Path) -> "Work":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            tensors = {k: torch.from_numpy(arrays[k]) for k in arrays.files if k != OPTIONS}
            return Work(tensors, json.loads(str(arrays[OPTIONS])))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **arrays: Any) -> None:
    """Write named tensors as arrays."""
    np.savez(path, **arrays, **{k: v.detach().contiguous().numpy() for k, v in tensors.items()})  # type: ignore[arg-type]


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return {k: torch.from_numpy(arrays[k]) for k in arrays.files}


Step = Callable[[], Mapping[str, Tensor] | None]
"""Takes one step; hands back its gradients by name where it has some."""

Build = Callable[[Work], Step]
"""What a script offers: everything that users do once, then the step that they repeat."""
