"""Leave out the steps that cannot be taken, and say so in the log."""

from dataclasses import dataclass

import torch

from selftaught.core.types import Aux, LossFn, Optimizer, Params
from selftaught.optimizers.gradient import NotFiniteError


@dataclass(frozen=True)
class SkipNotFinite:
    """`inner`, but a step whose loss or gradient is NaN or infinite changes nothing and counts as `skipped` = 1.

    For objectives that blow up now and then and recover with other tasks (long unrolled learning rules). After
    `patience` such steps in a row the error is raised after all: a run that never moves should not look alive.
    """

    inner: Optimizer
    patience: int = 50

    def init(self, params: Params) -> Params:
        """The state of `inner`, and how many steps in a row were left out."""
        return {**self.inner.init(params), "skipped_in_a_row": torch.zeros(())}

    def step(self, loss_fn: LossFn, params: Params, opt: Params) -> tuple[Params, Params, Aux]:
        """One step of `inner`, or none. Raises NotFiniteError when patience ends."""
        own = {k: v for k, v in opt.items() if k != "skipped_in_a_row"}
        before = opt["skipped_in_a_row"]
        try:
            new, moved, aux = self.inner.step(loss_fn, params, own)
        except NotFiniteError:
            if before + 1 >= self.patience:
                raise
            return params, opt | {"skipped_in_a_row": before + 1}, Aux({"skipped": torch.ones(())})
        figures = {**aux.metrics, "skipped": torch.zeros(())}
        return new, moved | {"skipped_in_a_row": torch.zeros(())}, Aux(figures, aux.buffers, aux.carry)
