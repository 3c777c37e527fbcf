"""Alignment and uniformity: views of a picture together, all pictures spread over the sphere.

Paper: Wang, Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere", ICML 2020, arXiv 2005.10242.

    loss = mean || z_a - z_b ||^2 + log mean_{i != j} exp(-2 || z_i - z_j ||^2),   z of length one

The paper's: both terms and the factor 2. Our choice: equal weights, a linear projector.

This is the example of a method added from outside: it is in no table, and every law holds for it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.functional import apply_update, buffers_of, params_of
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.prototype import PrototypeLearner
from selftaught.nets.heads import MLP, WithProjector, width_of
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class AlignmentUniformity:
    """`batch` pictures in two views; `out` is the width of the projector."""

    out: int = 64
    batch: int = 128

    def source(self, pictures: Pictures, views: Views) -> ViewTasks:
        return ViewTasks(pictures, views, 1, self.batch, 1, 1)

    def network(self, encoder: nn.Module) -> nn.Module:
        return WithProjector(encoder, MLP([width_of(encoder), self.out]))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        x = torch.cat([tasks.support.x, tasks.query.x]).flatten(0, 1)
        z, buffers = apply_update(net, params, slow, x)
        a, b = F.normalize(z, dim=-1).chunk(2)
        align = (a - b).square().sum(-1).mean()
        uniform = (torch.pdist(a).square().mul(-2).exp().mean() + torch.pdist(b).square().mul(-2).exp().mean()) / 2
        return align + uniform.log(), Aux({"align": align.detach()}, buffers)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        return aux.buffers

    def learner(self, net: nn.Module) -> PrototypeLearner:
        return PrototypeLearner(net, distance="cosine")
