"""Conditional neural processes and neural processes: what FCRL is measured against, on the same encoder and sets.

CNP: Garnelo, Rosenbaum, Maddison et al., "Conditional Neural Processes", ICML 2018, arXiv 1807.01613.
NP: Garnelo, Schwarz, Rosenbaum et al., "Neural Processes", 2018, arXiv 1807.01622.

    CNP: r = encoder(context),  loss = - mean log N(y; decoder(r, x)) over all points of the function
    NP:  q(z | set) = N of posterior(encoder(set)),  z ~ q(z | all points),
         loss = - mean log N(y; decoder(z, x)) + KL(q(z | all points) || q(z | context)) / number of points

The papers': both, with all points as targets, and the deviations' floors of 0.1. Our choice: every view is context
in turn, so that the encoder is shown exactly the sets that FCRL shows it; one draw of z; no deterministic path in
NP. They are not in METHODS, for they need outputs to predict at inputs, which an encoder of pictures has not.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from selftaught.core.functional import apply, buffers_of, params_of, part
from selftaught.core.types import Aux, Params, Task
from selftaught.data.functions import Functions
from selftaught.data.views import Views
from selftaught.learners.prototype import PrototypeLearner
from selftaught.losses.function_contrast import divergence, likelihood_loss
from selftaught.nets.sets import SetEncoder, WithPointDecoder
from selftaught.tasks.disjoint import DisjointSets


@dataclass(frozen=True)
class CNP:
    """`hidden` is the decoder's width; the rest as in FCRL."""

    hidden: int = 128
    batch: int = 64
    views: int = 2
    points: int = 0

    def source(self, pictures: Functions, views: Views | None = None) -> DisjointSets:
        """FCRL's tasks: every set is context in turn."""
        return DisjointSets(pictures, self.views, self.batch, self.points)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Set encoder and decoder. Raises ConfigError for an encoder of pictures."""
        return WithPointDecoder(encoder, self.hidden)

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Mean over contexts of the loss at all points of their functions."""
        sets = sets_of(tasks, 0)
        codes = apply(net, params | slow, sets.flatten(0, 1)).unflatten(0, sets.shape[:2])  # [V B D]
        everything = rearrange(sets, "v b p e -> b (v p) e").expand(len(sets), -1, -1, -1)
        return predicted_loss(net, params, codes, everything), Aux()

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Nothing moves."""
        return slow

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the encoder's output."""
        return PrototypeLearner(net, distance="cosine")


@dataclass(frozen=True)
class NP:
    """`latent` numbers z; the rest as in `CNP`."""

    hidden: int = 128
    latent: int = 64
    batch: int = 64
    views: int = 2
    points: int = 0

    def source(self, pictures: Functions, views: Views | None = None) -> DisjointSets:
        """FCRL's tasks, with the draws of z beside the first set's points."""
        return DisjointSets(pictures, self.views, self.batch, self.points, noise=self.latent)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Set encoder, posterior and decoder. Raises ConfigError for an encoder of pictures."""
        return WithPointDecoder(encoder, self.hidden, self.latent)

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """The negative evidence bound a point, mean over functions and contexts."""
        sets = sets_of(tasks, self.latent)
        everything = rearrange(sets, "v b p e -> b (v p) e")
        context = posterior(apply(net, params | slow, sets.flatten(0, 1)).unflatten(0, sets.shape[:2]))
        whole = posterior(apply(net, params | slow, everything))
        z = whole.mean + whole.stddev * tasks.support.x[0, :, 0, -self.latent :]
        far = divergence(Normal(whole.mean.expand_as(context.mean), whole.stddev.expand_as(context.mean)), context)
        told = predicted_loss(net, params, z, everything)
        return told + far / everything.shape[1], Aux({"divergence": far.detach()})

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Nothing moves."""
        return slow

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the encoder's output."""
        return PrototypeLearner(net, distance="cosine")


def sets_of(tasks: Task, noise: int) -> Tensor:
    """All sets of the one task as [V B p I+O], without the `noise` numbers beside the first."""
    support = tasks.support.x[..., : tasks.support.x.shape[-1] - noise]
    return torch.cat([support, tasks.query.x], 1)[0].unflatten(0, (-1, tasks.ways))


def posterior(numbers: Tensor) -> Normal:
    """A Gaussian [... L] of numbers [... 2 L]; its deviation is between 0.1 and 1."""
    mean, raw = numbers.chunk(2, -1)
    return Normal(mean, 0.1 + 0.9 * torch.sigmoid(raw))


def predicted_loss(net: nn.Module, params: Params, codes: Tensor, points: Tensor) -> Tensor:
    """Mean loss at `points` [... p I+O] of functions with `codes` [... D]; the deviation is 0.1 or more."""
    encoder = net.get_submodule("encoder")
    assert isinstance(encoder, SetEncoder)
    x, y = points.split([encoder.inputs, encoder.outputs], -1)
    given = torch.cat([codes[..., None, :].expand(*x.shape[:-1], -1), x], -1)
    told = apply(net.get_submodule("decoder"), part(params, "decoder"), given.flatten(0, -2))
    mean, raw = told.unflatten(0, given.shape[:-1]).chunk(2, -1)
    return likelihood_loss(mean, 0.1 + 0.9 * F.softplus(raw), y)
