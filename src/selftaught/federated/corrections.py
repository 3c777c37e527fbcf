"""How local steps are kept from drifting apart: the correction of the meta-gradient, and of nothing else.

Paper: Acar, Zhao, Zhu, Matas, Mattina, Whatmough, Saligrama, "Debiasing Model Updates for Improving Personalized
Federated Training", ICML 2021. Client i has the meta-objective F_i; a round starts from w, K steps each:

    w_i <- w_i - beta * ( grad F_i(w_i) + R_i(w_i) )                    beta the rate of this round

    none    R_i = 0                          w <- avg                     avg: mean of the w_i that came
    Dyn     R_i = - g_i + alpha (w_i - w)    g_i <- g_i - alpha (w_i - w)
                                             w <- avg - 1/alpha * mean of g over all clients
    Scaf    R_i = - c_i + c                  c_i <- c_i - c + (w - w_i) / (K beta)
                                             w <- avg,  c the mean of c_i over all clients

Dyn's rules are FedDyn's (Acar et al., ICLR 2021, arXiv 2111.04263), Scaf's those of SCAFFOLD's second option
(Karimireddy et al., ICML 2020, arXiv 1910.06378), both on the meta-objective. The paper's text was not at
hand; the rules follow its authors' public code. Ours: (K beta) is the way really travelled where the rate decays,
and the server works out from w_i alone how much g_i and c_i changed, so no client sends more than its model.
"""

from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.core.types import Params


class Correction(Protocol):
    """One rule. All tensors may have leading client axes; `start` and `shared` come without them."""

    @property
    def models_down(self) -> int:
        """How many tensors of the model's size travel to a client in a round; one comes back."""
        ...

    def state(self, params: Params) -> Params:
        """A client's state (and the mean of all) before the first round; empty where there is none."""
        ...

    def direction(self, gradient: Params, own: Params, start: Params, state: Params, shared: Params) -> Params:
        """grad F_i + R_i at `own`; `start` is w, `shared` the mean state."""
        ...

    def change(self, own: Params, start: Params, shared: Params, travelled: float) -> Params:
        """What the round adds to the client's state; `travelled` is K beta."""
        ...

    def mixed(self, average: Params, shared: Params) -> Params:
        """The next w, of the average and the mean state after the round."""
        ...


@final
@dataclass(frozen=True)
class NoCorrection:
    """Plain averaging: FedAvg, or with a meta-model Per-FedAvg."""

    @property
    def models_down(self) -> int:
        return 1

    def state(self, params: Params) -> Params:
        return {}

    def direction(self, gradient: Params, own: Params, start: Params, state: Params, shared: Params) -> Params:
        return gradient

    def change(self, own: Params, start: Params, shared: Params, travelled: float) -> Params:
        return {}

    def mixed(self, average: Params, shared: Params) -> Params:
        return average


@final
@dataclass(frozen=True)
class Dyn:
    """A linear and a quadratic term; the mean state stays with the server. Raises ConfigError for `alpha` <= 0."""

    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ConfigError(f"Dyn divides by alpha: it must be above 0, got {self.alpha}")

    @property
    def models_down(self) -> int:
        return 1

    def state(self, params: Params) -> Params:
        return _zeros(params)

    def direction(self, gradient: Params, own: Params, start: Params, state: Params, shared: Params) -> Params:
        return {k: g - state[k] + self.alpha * (own[k] - start[k]) for k, g in gradient.items()}

    def change(self, own: Params, start: Params, shared: Params, travelled: float) -> Params:
        return {k: -self.alpha * (w - start[k]) for k, w in own.items()}

    def mixed(self, average: Params, shared: Params) -> Params:
        return {k: w - shared[k] / self.alpha for k, w in average.items()}


@final
@dataclass(frozen=True)
class Scaf:
    """Control variates; their mean travels down with the model."""

    @property
    def models_down(self) -> int:
        return 2

    def state(self, params: Params) -> Params:
        return _zeros(params)

    def direction(self, gradient: Params, own: Params, start: Params, state: Params, shared: Params) -> Params:
        return {k: g - state[k] + shared[k] for k, g in gradient.items()}

    def change(self, own: Params, start: Params, shared: Params, travelled: float) -> Params:
        return {k: (start[k] - w) / travelled - shared[k] for k, w in own.items()}

    def mixed(self, average: Params, shared: Params) -> Params:
        return average


def added(state: Params, change: Params) -> Params:
    """A client's state after a round that the server accepted."""
    return {k: v + change[k] for k, v in state.items()}


def _zeros(params: Params) -> dict[str, Tensor]:
    return {k: torch.zeros_like(v) for k, v in params.items()}
