"""Nearest class mean where only the query passes the predictor: the learner of a network with two ends."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from selftaught.core.functional import apply
from selftaught.core.types import Examples, Params
from selftaught.learners.heads import distance_logits, normalise, prototypes
from selftaught.learners.prototype import Prototypes
from selftaught.nets.heads import WithProjector


@dataclass(frozen=True)
class AsymmetricLearner:
    """Support by encoder and projector, queries by encoder, projector and predictor; cosine to the class mean.

    For networks with the parts `encoder`, `projector` and `predictor`, trained to predict a projection (PsCo,
    arXiv 2303.00996, compares so at test time). Batch normalisation uses the statistics of training.
    """

    net: nn.Module

    def adapt(self, weights: Params, support: Examples, ways: int) -> Prototypes:
        """Means of the normalised projections of one support set; `y` None if ordered by shot, then class."""
        below = WithProjector(self.net.get_submodule("encoder"), self.net.get_submodule("projector"))
        z = apply(below, _named(weights, ("encoder.", "projector.")), support.x)
        own = _named(weights, ("encoder.", "projector.", "predictor."))
        return Prototypes(prototypes(normalise(z), ways, support.y).detach(), own)

    def predict(self, adapted: Prototypes, x: Float[Tensor, "Q C H W"]) -> Float[Tensor, "Q N"]:
        """Cosines [Q N]."""
        return distance_logits(apply(self.net, adapted.weights, x), adapted.centres, "cosine").detach()


def _named(weights: Params, starts: tuple[str, ...]) -> Params:
    return {k: v for k, v in weights.items() if k.startswith(starts)}
