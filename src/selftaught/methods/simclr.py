"""SimCLR: agree with the other view of the same picture, differ from every other picture.

Paper: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020, arXiv 2002.05709.

    z = projector(encoder(view)),  loss = mean over anchors i of
        -log exp(cos(z_i, z_j) / tau) / sum_{k != i} exp(cos(z_i, z_k) / tau),   j the other view of i

The paper's: the loss (eq. 1), a two-layer projector that is dropped afterwards, normalised embeddings.
Our choice: the temperature for small batches, all views of a `Task` (support and query of every task) as one
batch, with more than two views the average over positives outside the logarithm (SupCon's L_out), and
`precision` "bfloat16" for network and gradient, the loss always in the pictures' own type.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from selftaught.core.functional import apply_update, buffers_of, params_of
from selftaught.core.precision import Precision, encoding
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.prototype import PrototypeLearner
from selftaught.losses.contrastive import nt_xent
from selftaught.nets.heads import MLP, WithProjector, width_of
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class SimCLR:
    """`temperature` divides the cosine; `hidden` and `out` are the projector's widths; `batch` pictures."""

    temperature: float = 0.2
    hidden: int = 256
    out: int = 64
    batch: int = 128
    views: int = 2
    precision: Precision = "float32"

    def source(self, pictures: Pictures, views: Views) -> ViewTasks:
        """One task of the whole batch: one support view, the others as queries."""
        return ViewTasks(pictures, views, 1, self.batch, 1, self.views - 1)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder and projector."""
        return WithProjector(encoder, MLP([width_of(encoder), self.hidden, self.out]))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """NT-Xent over the whole meta-batch as one batch of T*N pictures in S + Q views."""
        x = views_of(tasks)
        with encoding(self.precision, x.device):
            z, buffers = apply_update(net, params, slow, x.flatten(0, 1))
        return nt_xent(z.to(x.dtype).unflatten(0, x.shape[:2]), self.temperature), Aux(buffers=buffers)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the forward pass left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the encoder's output."""
        return PrototypeLearner(net, distance="cosine")


def views_of(tasks: Task) -> Tensor:
    """All views of a meta-batch as [V, T*N, C, H, W], support views first."""
    parts = (tasks.support.x, tasks.query.x)
    return torch.cat([rearrange(x, "t (v n) c h w -> v (t n) c h w", n=tasks.ways) for x in parts])
