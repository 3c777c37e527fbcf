"""Learning a task by a few steps of gradient descent from a learned start (MAML's learner)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.functional import apply, set_norm
from selftaught.core.types import Examples, Params
from selftaught.learners.inner import descend_detached
from selftaught.learners.prototype import LearnerNorm, apply_recorded


@dataclass(frozen=True)
class GradientLearner:
    """`steps` steps of size `rate` on the support's cross-entropy, from `WithClassifier` weights.

    `moving` "head" leaves the encoder as it is (ANIL). `norm` as in `PrototypeLearner`: under `running` the
    steps and the predictions use the statistics of training.
    """

    net: nn.Module
    steps: int = 10
    rate: float = 0.05
    moving: Literal["all", "head"] = "all"
    norm: LearnerNorm = "running"

    def adapt(self, weights: Params, support: Examples, ways: int) -> Params:
        """Weights after the steps, with one head row a class; `weights` keep their numbers."""
        weights = spread_head(weights, ways)
        y = support.y
        if y is None:
            y = torch.arange(ways, device=support.x.device).repeat(len(support.x) // ways)
        names = moving_names(self.net, self.moving)
        fixed = {k: v for k, v in weights.items() if k not in names}
        set_norm(self.net, "running" if self.norm == "running" else "batch")

        def loss(moving: Params, outer: tuple[Tensor, ...]) -> Tensor:
            return F.cross_entropy(functional_call(self.net, {**fixed, **moving}, (support.x,)), y)

        start = {k: weights[k] for k in names}
        adapted = fixed | descend_detached(loss, start, (), self.rate, self.steps)
        if self.norm == "support":
            adapted |= apply_recorded(self.net, adapted, support.x)[1]
        return {k: v.detach() for k, v in adapted.items()}

    def predict(self, adapted: Params, x: Tensor) -> Tensor:
        """Logits [Q N]."""
        return apply(self.net, adapted, x, "batch" if self.norm == "transductive" else "running").detach()


def norm_when(moving: Literal["all", "head"]) -> LearnerNorm:
    """The inductive statistics that go with an inner loop.

    Averages of training belong to the weights of training: where the steps move the encoder, its maps move away
    from them, and 5-way accuracy falls to chance. Those of the support, after the steps, belong to it.
    """
    return "support" if moving == "all" else "running"


def spread_head(weights: Params, ways: int) -> Params:
    """One learned head row for all classes, repeated `ways` times: labels are local to a task, so no class
    may own a row, and permuting classes permutes logits. Rows differ after the first step."""
    spread = {k: weights[k].expand(ways, *weights[k].shape[1:]) for k in ("head.weight", "head.bias")}
    return weights | spread


def moving_names(net: nn.Module, moving: Literal["all", "head"]) -> set[str]:
    """The parameters the inner loop may change."""
    return {k for k, _ in net.named_parameters() if moving == "all" or k.startswith("head.")}
