"""Learned augmentation strength: how far views may differ is learned by what training on them leads to.

Paper: Mounsaveng, Laradji, Ben Ayed, Vázquez, Pedersoli, "Learning Data Augmentation with Online Bilevel
Optimization for Image Classification", WACV 2021, arXiv 2006.14699; that a meta-learner guides self-supervision is
one of the combinations in Peng's review, arXiv 2103.00845.

    a       strengths of six differentiable changes, a = limit * sigmoid(speed * r), r learned
    inner   w'(a) = w - alpha * grad_w NT-Xent(w; two views of each picture with strengths a), `inner_steps` times
    outer   r <- r - rate * d V(w'(a)) / dr,   through the inner step
    beside  w <- w - rate * grad_w NT-Xent(w; the same views), a held constant

    V = NT-Xent of two views by the recipe, of pictures the inner step did not see    (`question` "views")
        cross-entropy of query pictures over the cosines with their class means       (`question` "labels")

The paper's (from its abstract, all that was read): transformations learned online and jointly with the network,
by the gradient of a validation loss through the network's update. Our choice is all else: self-supervision inside,
six strengths in place of a network that makes transformations, their bounds, both questions, and one optimiser and
rate for w and r (`speed` says how much faster r is). Labels never move w.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply, apply_update, buffers_of, params_of, part
from selftaught.core.types import Aux, Params, Task, TaskSource
from selftaught.data.differentiable import LIMITS, NOISE_CHANNELS, differentiable_view
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.heads import prototypes
from selftaught.learners.inner import descend
from selftaught.learners.prototype import PrototypeLearner
from selftaught.losses.contrastive import cross_entropy, nt_xent, similarity_logits
from selftaught.nets.heads import MLP, WithProjector, width_of
from selftaught.tasks.episodes import EpisodeSource
from selftaught.tasks.noise import NoiseBeside, without_noise
from selftaught.tasks.views import ViewTasks

STRENGTHS = "strengths"
"""The name of r [6] among the parameters, in the order of `LIMITS`."""


@dataclass(frozen=True)
class LearnedAugmentation:
    """alpha = `inner_rate`; strengths begin at `start` of their limits. Half of `batch` pictures validate.

    With `question` "labels" a step is an episode of `ways`, `shots` and `queries`: support pictures train, and
    validate as class means. Raises ConfigError for a start outside (0, 1) and less than one inner step.
    """

    question: Literal["views", "labels"] = "views"
    inner_steps: int = 1
    inner_rate: float = 0.03
    start: float = 0.3
    speed: float = 10.0
    temperature: float = 0.2
    hidden: int = 256
    out: int = 64
    graph: Literal["auto", "unrolled", "adjoint"] = "auto"
    batch: int = 128
    ways: int = 16
    shots: int = 4
    queries: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.start < 1 or self.inner_steps < 1:
            raise ConfigError("learnaug: use 0 < start < 1 and inner_steps >= 1; else no strength has a gradient")

    def source(self, pictures: Pictures, views: Views) -> TaskSource:
        """One task: support as it is with noise for two views, queries in two views of the recipe or labelled."""
        if self.question == "labels":
            tasks: TaskSource = EpisodeSource(pictures, self.ways, self.shots, self.queries, 1)
        else:
            tasks = ViewTasks(pictures, views, 1, self.batch, 1, 2, raw_support=True)
        return NoiseBeside(tasks, 2 * NOISE_CHANNELS)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder and projector; the strengths are no part of it."""
        return WithProjector(encoder, MLP([width_of(encoder), self.hidden, self.out]))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers and r; `slow` holds only normalisation statistics."""
        params = params_of(net)
        like = next(iter(params.values()))
        raw = like.new_full((len(LIMITS),), math.log(self.start / (1 - self.start)) / self.speed)
        return params | {STRENGTHS: raw}, buffers_of(net)

    def strengths(self, params: Params) -> Tensor:
        """a [6] in the units of `LIMITS`."""
        raw = params[STRENGTHS]
        return raw.new_tensor(list(LIMITS.values())) * torch.sigmoid(self.speed * raw)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """The sum of both losses, arranged so that w sees only the inner one and r only the outer one."""
        a = self.strengths(params)
        x, validation = self._parts(net, tasks)
        pictures, noise = without_noise(x, 2 * NOISE_CHANNELS)
        pair = torch.cat([differentiable_view(pictures, n, a) for n in noise.chunk(2, 1)])  # [2*B C H W]

        def contrast(w: Params, outer: tuple[Tensor, ...]) -> Tensor:
            return self._contrast(apply(net, w, outer[0], "batch"))

        w = {k: v for k, v in params.items() if k != STRENGTHS}
        fixed = {k: v.detach() for k, v in w.items()}
        outer = validation(descend(contrast, fixed, (pair,), self.inner_rate, self.inner_steps, self.graph))
        z, buffers = apply_update(net, w, slow, pair.detach())
        train = self._contrast(z)
        figures = {"train": train, "validation": outer, **dict(zip(LIMITS, a, strict=True))}
        return train + outer, Aux({k: v.detach() for k, v in figures.items()}, buffers)

    def _contrast(self, z: Tensor) -> Tensor:
        """NT-Xent of embeddings [2*B D], all first views before all second ones."""
        return nt_xent(z.unflatten(0, (2, -1)), self.temperature)

    def _parts(self, net: nn.Module, tasks: Task) -> tuple[Tensor, Callable[[Params], Tensor]]:
        """Pictures with noise [B C+4 H W] that the inner step sees, and V."""
        x, query = tasks.support.x[0], tasks.query.x[0]
        if self.question == "views":
            half = len(x) // 2
            others = query.unflatten(0, (2, -1))[:, half:].flatten(0, 1)
            return x[:half], lambda w: self._contrast(apply(net, w, others, "batch"))
        encoder, both = net.get_submodule("encoder"), torch.cat([without_noise(x, 2 * NOISE_CHANNELS)[0], query])
        assert tasks.support.y is not None and tasks.query.y is not None
        own, asked = tasks.support.y[0], tasks.query.y[0]

        def validation(w: Params) -> Tensor:
            support, q = apply(encoder, part(w, "encoder"), both, "batch").split([len(x), len(query)])
            return cross_entropy(
                similarity_logits(q, prototypes(support, tasks.ways, own), self.temperature), asked
            )

        return x, validation

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the training pass left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the encoder's output."""
        return PrototypeLearner(net, distance="cosine")
