"""NNCLR: the nearest neighbour of one view, among pictures seen before, is the positive of the other view.

Paper: Dwibedi, Aytar, Tompson, Sermanet, Zisserman, "With a Little Help from My Friends: Nearest-Neighbor
Contrastive Learning of Visual Representations", ICCV 2021, arXiv 2104.14548.

    z = projector(encoder(view)),  p = predictor(z),  n(z) = argmax over q in the queue of cos(z, q)
    loss = mean over ordered view pairs (a, b) and pictures i of
        -log exp(cos(n(z_i^a), p_i^b) / tau) / sum_k exp(cos(n(z_i^a), p_k^b) / tau)
    queue <- the newest `queue` embeddings z of first views, after every step

The paper's: the loss with its sum over the predictions of the batch, both directions, the predictor, tau = 0.1,
the first-in first-out queue that starts from random directions and takes one view's z. Our choice: a queue and
heads for small sets, random directions from a fixed seed of their own, no batch normalisation of the
projector's output, and `precision` "bfloat16" for network and gradient, the loss always in the pictures' own
type. Written from the paper; its code was not read.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply_update, buffers_of, params_of, part, prefixed
from selftaught.core.precision import Precision, encoding
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.prototype import PrototypeLearner
from selftaught.losses.contrastive import info_nce
from selftaught.methods.simclr import views_of
from selftaught.nets.heads import MLP, WithPredictor, WithProjector, width_of
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class NNCLR:
    """`temperature` is tau, `queue` the past embeddings kept, `batch` pictures in two views.

    Raises ConfigError for a queue smaller than the batch: it would hold nothing but the step before.
    """

    temperature: float = 0.1
    queue: int = 2048
    hidden: int = 256
    out: int = 64
    batch: int = 128
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.queue < self.batch:
            raise ConfigError(
                f"queue={self.queue} is smaller than batch={self.batch}; use a queue of at least that"
            )

    def source(self, pictures: Pictures, views: Views) -> ViewTasks:
        """One task of the whole batch: one support and one query view."""
        return ViewTasks(pictures, views, 1, self.batch, 1, 1)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder, projector and predictor."""
        projector = MLP([width_of(encoder), self.hidden, self.out], norm=True)
        return WithPredictor(encoder, projector, MLP([self.out, self.hidden, self.out], norm=True))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds statistics and the queue [queue out] of unit vectors."""
        some = next(net.parameters())
        drawn = torch.randn(self.queue, self.out, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        queue = F.normalize(drawn, dim=-1).to(some.device, some.dtype)
        return params_of(net), buffers_of(net) | {"queue": queue}

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Mean InfoNCE over ordered pairs of different views; all tasks are one batch of T*N pictures."""
        x = views_of(tasks)
        with encoding(self.precision, x.device):
            z, p, buffers = _project_and_predict(net, params, slow, x.flatten(0, 1))
        z, p = (each.to(x.dtype).unflatten(0, x.shape[:2]) for each in (z.detach(), p))
        near = nearest(z, slow["queue"])
        same = torch.arange(x.shape[1], device=x.device)
        pairs = [(a, b) for a in range(len(x)) for b in range(len(x)) if a != b]
        losses = [info_nce(near[a], p[b], same, self.temperature) for a, b in pairs]
        metrics = {"neighbour_cosine": F.cosine_similarity(z, near, dim=-1).mean()}
        return torch.stack(losses).mean(), Aux(metrics, buffers, {"newest": F.normalize(z[0], dim=-1)})

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """The first view's embeddings enter the queue, the oldest leave."""
        return slow | aux.buffers | {"queue": torch.cat([slow["queue"], aux.carry["newest"]])[-self.queue :]}

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the encoder's output."""
        return PrototypeLearner(net, distance="cosine")


def nearest(z: Float[Tensor, "*V B D"], queue: Float[Tensor, "L D"]) -> Float[Tensor, "*V B D"]:
    """For each embedding, of any length, the row of `queue` (of unit vectors) of largest cosine, as a constant."""
    return queue[(z @ queue.mT).argmax(-1)].detach()


def _project_and_predict(net: nn.Module, params: Params, slow: Params, x: Tensor) -> tuple[Tensor, Tensor, Params]:
    """Projections, predictions, and the statistics after the pass."""
    below = WithProjector(net.get_submodule("encoder"), net.get_submodule("projector"))
    statistics = {k: slow[k] for k, _ in below.named_buffers()}
    z, moved = apply_update(
        below, {k: v for k, v in params.items() if not k.startswith("predictor.")}, statistics, x
    )
    p, own = apply_update(net.get_submodule("predictor"), part(params, "predictor"), part(slow, "predictor"), z)
    return z, p, moved | prefixed("predictor", own)
