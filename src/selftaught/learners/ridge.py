"""Learning a task by ridge regression onto its labels, in closed form, with learned scale and penalty.

Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form solvers", ICLR 2019,
arXiv 1805.08136: the solver, and that scale and penalty are learned. The intercept free of the penalty (see
`heads.ridge`), features as the encoder gives them, and the three treatments of batch normalisation are ours.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply, part
from selftaught.core.types import Examples, Params
from selftaught.learners.heads import one_hot, ridge
from selftaught.learners.prototype import LearnerNorm, embed_support


class WithRidge(nn.Module):
    """An encoder, and the two numbers of a ridge classifier as logarithms: `log_scale` and `log_penalty` [].

    Raises ConfigError unless both starting values are above zero.
    """

    def __init__(self, encoder: nn.Module, scale: float = 1.0, penalty: float = 1.0) -> None:
        super().__init__()
        if scale <= 0 or penalty <= 0:
            raise ConfigError(f"a ridge head needs scale and penalty above 0, got {scale} and {penalty}")
        self.encoder = encoder
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty)))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


@dataclass(frozen=True)
class Ridge:
    """A solved head: `weight` [... D N] and `bias` [... N], the scale included, for raw features."""

    weight: Float[Tensor, "... D N"]
    bias: Float[Tensor, "... N"]

    def logits(self, z: Float[Tensor, "... Q D"]) -> Float[Tensor, "... Q N"]:
        """scale * (z W + b)."""
        return z @ self.weight + self.bias.unsqueeze(-2)


def solve_ridge(
    weights: Params, z: Float[Tensor, "... S D"], ways: int, y: Int64[Tensor, "... S"] | None = None
) -> Ridge:
    """The head for support features `z`, with `log_scale` and `log_penalty` of `weights`; differentiable.

    Rows are ordered by shot, then class, unless `y` is given (ConfigError where they do not divide).
    """
    scale, shrink = weights["log_scale"].exp(), (-weights["log_penalty"] / 2).exp()
    # Penalty l on features z is penalty 1 on z / sqrt(l): so the penalty can be a tensor with a gradient.
    weight, bias = ridge(z * shrink, one_hot(z.shape[-2], ways, y, z))
    return Ridge(scale * shrink * weight, scale * bias)


@dataclass(frozen=True)
class SolvedRidge:
    """An adapted ridge learner: the `head`, and the `weights` that embed the queries."""

    head: Ridge
    weights: Params


@dataclass(frozen=True)
class RidgeLearner:
    """Solves a ridge head on `net.encoder` with the weights' `log_scale` and `log_penalty`.

    `norm` as in `PrototypeLearner`: statistics of training (`running`), of the support set for support and
    queries alike (`support`), or of each batch by itself (`transductive`). Raises ConfigError for other names.
    """

    net: nn.Module
    norm: LearnerNorm = "running"

    def __post_init__(self) -> None:
        if self.norm not in ("running", "support", "transductive"):
            raise ConfigError(f"norm must be running, support or transductive, got {self.norm!r}")

    @torch.no_grad()
    def adapt(self, weights: Params, support: Examples, ways: int) -> SolvedRidge:
        """The head of one support set: `x` [S C H W], `y` [S] or None if ordered by shot, then class."""
        net, own = self.net.get_submodule("encoder"), part(weights, "encoder")
        z, own = embed_support(net, own, support.x, self.norm)
        return SolvedRidge(solve_ridge(weights, z, ways, support.y), own)

    @torch.no_grad()
    def predict(self, adapted: SolvedRidge, x: Float[Tensor, "Q C H W"]) -> Float[Tensor, "Q N"]:
        """Logits: the regression onto one-hot labels times the learned scale."""
        norm: Literal["running", "batch"] = "batch" if self.norm == "transductive" else "running"
        return adapted.head.logits(apply(self.net.get_submodule("encoder"), adapted.weights, x, norm))
