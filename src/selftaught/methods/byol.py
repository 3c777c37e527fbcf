"""BYOL: predict what a slow copy of yourself sees in the other view.

Paper: Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020,
arXiv 2006.07733.

    p = predictor(projector(encoder(view a))),  t = slow projector(slow encoder(view b))
    loss = mean over ordered view pairs of 2 - 2 cos(p, stopgrad t)
    slow weights <- m * slow weights + (1 - m) * weights, after every step

The paper's: online and target networks, predictor, symmetric loss, batch normalisation in both heads, moving
average with m rising to 1 by a cosine (when `total_steps` is given). Our choice: all views of a `Task`
as one batch with every ordered pair averaged, small head widths, m = 0.99, and `precision` "bfloat16" for both
networks, the loss always in the pictures' own type.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftaught.core.functional import apply, apply_update, buffers_of, params_of, part, prefixed
from selftaught.core.precision import Precision, encoding
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.prototype import PrototypeLearner
from selftaught.losses.regression import cosine_regression
from selftaught.methods.simclr import views_of
from selftaught.nets.heads import MLP, WithPredictor, WithProjector, width_of
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class BYOL:
    """`momentum` is m at the start; `total_steps` > 0 lets it rise to 1. `batch` pictures in two views."""

    momentum: float = 0.99
    total_steps: int = 0
    hidden: int = 256
    out: int = 64
    batch: int = 128
    precision: Precision = "float32"

    def source(self, pictures: Pictures, views: Views) -> ViewTasks:
        """One task of the whole batch: one support and one query view."""
        return ViewTasks(pictures, views, 1, self.batch, 1, 1)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder, projector and predictor."""
        projector = MLP([width_of(encoder), self.hidden, self.out], norm=True)
        return WithPredictor(encoder, projector, MLP([self.out, self.hidden, self.out], norm=True))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """Online numbers; `slow` holds statistics, the target network and the step count."""
        params = params_of(net)
        target = {k: v.clone() for k, v in params.items() if not k.startswith("predictor.")}
        return params, buffers_of(net) | prefixed("target", target) | {"count": torch.zeros(())}

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Mean regression loss over ordered pairs of different views."""
        x = views_of(tasks)
        views, flat = len(x), x.flatten(0, 1)
        statistics = {k: v for k, v in slow.items() if k != "count" and not k.startswith("target.")}
        with encoding(self.precision, x.device):
            p, buffers = apply_update(net, params, statistics, flat)
        with torch.no_grad(), encoding(self.precision, x.device):
            target = WithProjector(net.get_submodule("encoder"), net.get_submodule("projector"))
            t = apply(target, part(slow, "target"), flat, "batch")
        p, t = (z.to(x.dtype).unflatten(0, x.shape[:2]) for z in (p, t))
        pairs = [cosine_regression(p[a], t[b]) for a in range(views) for b in range(views) if a != b]
        return torch.stack(pairs).mean(), Aux(buffers=buffers)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Move the target towards the online network."""
        done = min(1.0, float(slow["count"]) / self.total_steps) if self.total_steps else 0.0
        m = 1 - (1 - self.momentum) * (math.cos(math.pi * done) + 1) / 2
        target = {k: m * v + (1 - m) * params[k] for k, v in part(slow, "target").items()}
        return slow | aux.buffers | prefixed("target", target) | {"count": slow["count"] + 1}

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the online encoder's output."""
        return PrototypeLearner(net, distance="cosine")
