"""MoCo v2+: find your own key, made by a slow copy of yourself, among the keys of earlier batches.

Paper: He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning",
CVPR 2020, arXiv 1911.05722; version 2: Chen, Fan, Girshick, He, arXiv 2003.04297.

    q = projector(encoder(view a)),  k = slow projector(slow encoder(view b)),  both of length one
    loss = mean over ordered view pairs and pictures of
        -log exp(q k / tau) / (exp(q k / tau) + sum over the queue of exp(q k' / tau))
    slow weights <- m * slow weights + (1 - m) * weights,  queue <- the newest keys, after every step

The paper's: the loss with negatives from the queue alone, the key network, a first-in first-out queue; of version
2 the two-layer projector and tau = 0.2. Our choice: the symmetric loss (the "+": Chen and He repeat version 2 so,
arXiv 2011.10566), the keys of all views in one queue of any length, a queue that starts empty and grows, not one
of random directions (the first step takes its own batch's keys in its place), m and queue for short runs, key
statistics from the whole batch (shuffling between devices has nothing to shuffle on one), and `precision`
"bfloat16" for both networks, the loss always in the pictures' own type.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply, apply_update, buffers_of, params_of, part, prefixed
from selftaught.core.precision import Precision, encoding
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.prototype import PrototypeLearner
from selftaught.losses.momentum_contrast import queue_contrast
from selftaught.methods.simclr import views_of
from selftaught.nets.heads import MLP, WithProjector, width_of
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class MoCo:
    """`momentum` is m, `queue` the keys kept, `temperature` is tau; `batch` pictures in two views.

    Raises ConfigError for a queue of less than one key or a momentum outside [0, 1].
    """

    momentum: float = 0.99
    queue: int = 1024
    temperature: float = 0.2
    hidden: int = 256
    out: int = 64
    batch: int = 128
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.queue < 1:
            raise ConfigError(f"queue={self.queue} holds no negatives; use a queue of at least 1 key")
        if not 0 <= self.momentum <= 1:
            raise ConfigError(f"momentum={self.momentum} is no average; use a momentum from 0 to 1")

    def source(self, pictures: Pictures, views: Views) -> ViewTasks:
        """One task of the whole batch: one support and one query view."""
        return ViewTasks(pictures, views, 1, self.batch, 1, 1)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder and projector."""
        return WithProjector(encoder, MLP([width_of(encoder), self.hidden, self.out]))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """Query numbers; `slow` holds statistics, the key network and the queue [0..queue out], oldest first."""
        params = params_of(net)
        queue = next(iter(params.values())).new_zeros((0, self.out))
        key = {k: v.clone() for k, v in params.items()}
        return params, buffers_of(net) | prefixed("key", key) | {"queue": queue}

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Mean contrast over ordered pairs of different views; all tasks are one batch of T*N pictures."""
        x = views_of(tasks)
        views, flat = len(x), x.flatten(0, 1)
        statistics = {k: slow[k] for k, _ in net.named_buffers()}
        with encoding(self.precision, x.device):
            q, buffers = apply_update(net, params, statistics, flat)
        with torch.no_grad(), encoding(self.precision, x.device):
            k = apply(net, part(slow, "key"), flat, "batch")
        q, k = (z.to(x.dtype).unflatten(0, x.shape[:2]) for z in (q, k))
        pairs = [(a, b) for a in range(views) for b in range(views) if a != b]
        newest = F.normalize(k, dim=-1).flatten(0, 1)
        queue = slow["queue"] if len(slow["queue"]) else newest
        losses = [queue_contrast(q[a], k[b], queue, self.temperature) for a, b in pairs]
        return torch.stack(losses).mean(), Aux(buffers=buffers, carry={"newest": newest})

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Move the key network towards the query network; the newest keys enter the queue, the oldest leave."""
        m = self.momentum
        key = {k: m * v + (1 - m) * params[k] for k, v in part(slow, "key").items()}
        queue = torch.cat([slow["queue"], aux.carry["newest"]])[-self.queue :]
        return slow | aux.buffers | prefixed("key", key) | {"queue": queue}

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the query network's encoder output."""
        return PrototypeLearner(net, distance="cosine")
