"""Does the exported model compute what the trained one does?"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from selftaught.core.errors import SaveError
from selftaught.export.network import Exportable, reference

TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest number of an output."""
_TINY = 1e-12
"""For outputs that are zero everywhere."""

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.floating[Any]]
Runner = Callable[[Bytes], Sequence[Numbers]]


def torch_runner(module: nn.Module) -> Runner:
    """A torch module on arrays."""

    @torch.no_grad()
    def run(pictures: Bytes) -> list[Numbers]:
        return [one.numpy() for one in module(torch.from_numpy(pictures))]

    return run


def trial_pictures(size: int) -> list[Bytes]:
    """Batches of one and of five [B S S 3]: noise, and among the five one black and one white picture."""
    draw = np.random.default_rng(0).integers
    five = draw(0, 256, (5, size, size, 3), dtype=np.uint8)
    five[0], five[1] = 0, 255
    return [draw(0, 256, (1, size, size, 3), dtype=np.uint8), five]


def difference(what: Exportable, run: Runner) -> float:
    """The largest relative difference between `run` and the trained model.

    Raises SaveError where it is above `TOLERANCE`, is no number, or shapes differ.
    """
    worst = 0.0
    expected = torch_runner(reference(what))
    for pictures in trial_pictures(what.size):
        for name, want, got in zip(what.outputs, expected(pictures), run(pictures), strict=True):
            found = np.asarray(got)
            if found.shape != want.shape:
                raise SaveError(f"nothing was exported: {name} has shape {found.shape} instead of {want.shape}")
            gap = float(np.abs(found - want).max() / max(_TINY, float(np.abs(want).max())))
            if not gap <= TOLERANCE:  # also for nan
                raise SaveError(
                    f"nothing was exported: {name} differs from the trained model by {gap:.2g} (relative; "
                    f"{TOLERANCE} is allowed). Try another --format, or other versions of what it needs."
                )
            worst = max(worst, gap)
    return worst
