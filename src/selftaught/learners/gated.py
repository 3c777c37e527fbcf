"""Gradient steps in which closed units stay closed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from selftaught.core.functional import apply, part
from selftaught.core.types import Examples, Params
from selftaught.learners.gradient import GradientLearner, norm_when
from selftaught.learners.inner import Rules, descend_detached
from selftaught.nets.gates import Gated, Layer, by_layer, layers_of, masked, opened


@dataclass(frozen=True)
class MaskedRules:
    """`rules` of an inner loss on weights where some are held at zero: gradient and product are zero there too."""

    rules: Rules
    mask: Params

    @property
    def tape_mib(self) -> float:
        return self.rules.tape_mib

    def slope(self, weights: Params) -> tuple[Params, Any]:
        found, tape = self.rules.slope(weights)
        return masked(found, self.mask), tape

    def curvature(self, tape: Any, along: Params) -> Params:
        return masked(self.rules.curvature(tape, masked(along, self.mask)), self.mask)


@torch.no_grad()
def task_summary(net: nn.Module, weights: Params, x: Tensor) -> Tensor:
    """Mean features [T D] of support pictures [T S C H W], all units open, by the statistics of training.

    A mean knows neither the order of the pictures nor their labels.
    """
    f = apply(net.get_submodule("encoder"), part(weights, "encoder"), x.flatten(0, 1), "running")
    return f.unflatten(0, x.shape[:2]).mean(1)


def task_scores(net: nn.Module, weights: Params, summary: Tensor) -> Tensor:
    """Scores [T U] of all units; differentiable in the weights of `gates`."""
    return functional_call(net.get_submodule("gates"), part(weights, "gates"), (summary,))


def unit_slopes(loss: Callable[[Params], Tensor], weights: Params, layers: tuple[Layer, ...]) -> Tensor:
    """Mean |slope| [U] of `loss` at `weights` over what leaves each unit, open or closed; a constant."""
    at = {layer.weight: weights[layer.weight].detach() for layer in layers}
    rest = {k: v.detach() for k, v in weights.items()}
    # One step of size one from zero is minus the gradient, exactly, with `vmap` and without.
    moved = descend_detached(
        lambda w, outer: loss(rest | {k: at[k] + v for k, v in w.items()}),
        {k: torch.zeros_like(v) for k, v in at.items()}, (), 1.0, 1,
    )  # fmt: skip
    return torch.cat([layer.gathered(moved[layer.weight].abs()) for layer in layers])


@dataclass(frozen=True)
class GatedLearner:
    """Sets the gates from the support pictures, then takes `steps` steps of size `rate` with the open units.

    `net` is an encoder, a head and `gates` (`with_gates`); `budget` is the largest share of open units in a layer.
    """

    net: nn.Module
    budget: float
    steps: int = 10
    rate: float = 0.05

    def adapt(self, weights: Params, support: Examples, ways: int) -> Params:
        """Weights after the steps with the gates as `open`; `weights` keep their numbers."""
        gated = Gated(self.net)
        own = gated.own(weights) | {"open": self.gates(weights, support.x)}
        return self._steps(gated).adapt(own, support, ways)

    def predict(self, adapted: Params, x: Tensor) -> Tensor:
        """Logits [Q N]."""
        return self._steps(Gated(self.net)).predict(adapted, x)

    @torch.no_grad()
    def gates(self, weights: Params, x: Tensor) -> Tensor:
        """Gates [U], 0 or 1, for support pictures [S C H W]."""
        scores = task_scores(self.net, weights, task_summary(self.net, weights, x[None]))[0]
        layers = layers_of(self.net.get_submodule("encoder"))
        return torch.cat([opened(s, self.budget) for s in by_layer(scores, layers)])

    def _steps(self, gated: Gated) -> GradientLearner:
        return GradientLearner(gated, self.steps, self.rate, norm=norm_when("all"))
