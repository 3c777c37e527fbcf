"""Nearest-prototype classification with a frozen encoder: the learner of every metric method.

Prototypical networks, Snell et al. 2017 (arXiv 1703.05175). The cosine distance and the three treatments of
batch normalisation are our choice of options; the default is inductive.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply, part
from selftaught.core.types import Examples, Params
from selftaught.learners.heads import Distance, distance_logits, normalise, prototypes
from selftaught.learners.norms import LearnerNorm as LearnerNorm


@dataclass(frozen=True)
class Prototypes:
    """An adapted prototype learner: `centres` [N D], and the `weights` that embed the queries."""

    centres: Float[Tensor, "N D"]
    weights: Params


@dataclass(frozen=True)
class PrototypeLearner:
    """Classifies by the nearest class mean of `net.encoder` (or of `net` with its heads).

    `norm` says which statistics batch normalisation uses; without it all three are the same.
    `running`: those of training. `support`: those of the support set, for support and queries alike.
    `transductive`: support and query batch by their own, so a prediction depends on the other queries, and a
    batch of one class falls to chance. Raises ConfigError where the named statistics do not exist.
    """

    net: nn.Module
    norm: LearnerNorm = "running"
    distance: Distance = "squared"
    embed_with: Literal["encoder", "net"] = "encoder"

    def __post_init__(self) -> None:
        if self.norm not in ("running", "support", "transductive"):
            raise ConfigError(f"norm must be running, support or transductive, got {self.norm!r}")
        if self.embed_with not in ("encoder", "net"):
            raise ConfigError(f"embed_with must be 'encoder' or 'net', got {self.embed_with!r}")
        if self.embed_with == "encoder" and not isinstance(getattr(self.net, "encoder", None), nn.Module):
            raise ConfigError(f"{type(self.net).__name__} has no part `encoder`; use embed_with='net'")

    def adapt(self, weights: Params, support: Examples, ways: int) -> Prototypes:
        """Prototypes of one support set: `x` [S C H W], `y` [S] or None if ordered by shot, then class."""
        own = part(weights, "encoder") if self.embed_with == "encoder" else dict(weights)
        net = self._embedder()
        if self.norm == "running":
            _need_statistics(net, own)
        z, own = embed_support(net, own, support.x, self.norm)
        if self.distance == "cosine":
            z = normalise(z)
        return Prototypes(prototypes(z, ways, support.y), own)

    def predict(self, adapted: Prototypes, x: Float[Tensor, "Q ..."]) -> Float[Tensor, "Q N"]:
        """Logits of pictures [Q C H W] or sets [Q P d]: cosines, or minus squared distances."""
        norm: Literal["batch", "running"] = "batch" if self.norm == "transductive" else "running"
        z = apply(self._embedder(), adapted.weights, x, norm)
        return distance_logits(z, adapted.centres, self.distance)

    def _embedder(self) -> nn.Module:
        found = self.net.encoder if self.embed_with == "encoder" else self.net
        assert isinstance(found, nn.Module)
        return found


def _batch_norms(net: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in net.named_modules() if isinstance(module, _BatchNorm)]


def _need_statistics(net: nn.Module, weights: Params) -> None:
    """Without these, torch falls back in silence on the query batch or on the skeleton's starting values."""
    for name, module in _batch_norms(net):
        key = f"{name}.running_mean" if name else "running_mean"
        if key not in weights:
            where = "the net keeps none" if module.running_mean is None else "`weights` lacks it"
            raise ConfigError(
                f"norm='running' needs the statistic {key}, but {where}; pass parameters and buffers "
                "together, or use norm='support'"
            )


def embed_support(net: nn.Module, weights: Params, x: Tensor, norm: LearnerNorm) -> tuple[Tensor, Params]:
    """`net(x)` of a support set under the named statistics, and the weights for its queries."""
    if norm == "support":
        z, found = apply_recorded(net, weights, x)
        return z, {**weights, **found}
    return apply(net, weights, x, "running" if norm == "running" else "batch"), weights


def apply_recorded(net: nn.Module, weights: Params, x: Tensor) -> tuple[Tensor, Params]:
    """`net(x)` normalised by the batch, and that batch's statistics under the names of the running ones.

    With them in place of the running statistics, `net` treats other pictures exactly as it treated `x`:
    the variance is the biased one that normalisation uses, not the unbiased one that torch would remember.
    """
    found: Params = {}
    handles = [
        module.register_forward_pre_hook(partial(_record, found, f"{name}." if name else ""))
        for name, module in _batch_norms(net)
    ]
    try:
        z = apply(net, weights, x, "batch")
    finally:
        for handle in handles:
            handle.remove()
    return z, found


def _record(found: Params, prefix: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    x: Tensor = inputs[0]
    over = [axis for axis in range(x.ndim) if axis != 1]
    found[f"{prefix}running_mean"] = x.mean(over)
    found[f"{prefix}running_var"] = x.var(over, correction=0)
