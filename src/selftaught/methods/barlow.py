"""Barlow Twins: a feature agrees with itself in the other view, and with no other feature.

Paper: Zbontar, Jing, Misra, LeCun, Deny, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
ICML 2021, arXiv 2103.03230.

    z = projector(encoder(view)), each feature standardised over the batch in its own view
    C = z_a^T z_b / B,  loss = sum_i (1 - C_ii)^2 + off_diagonal * sum_{i != j} C_ij^2

The paper's: the loss and its weight, and a projector of three linear layers, batch normalisation in the first
two. Our choice: a narrow projector, all views of a `Task` as one batch in network and normalisation, with more
than two views the mean over unordered pairs, and `precision` "bfloat16" for network and gradient, the loss always
in the pictures' type.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from selftaught.core.functional import apply_update, buffers_of, params_of
from selftaught.core.precision import Precision, encoding
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.prototype import PrototypeLearner
from selftaught.losses.redundancy import barlow_twins_terms
from selftaught.methods.simclr import views_of
from selftaught.methods.vicreg import expander
from selftaught.nets.heads import WithProjector, width_of
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class BarlowTwins:
    """`off_diagonal` weighs redundancy; `hidden` and `out` are the projector's widths; `batch` pictures."""

    off_diagonal: float = 0.005
    hidden: int = 256
    out: int = 256
    batch: int = 128
    views: int = 2
    precision: Precision = "float32"

    def source(self, pictures: Pictures, views: Views) -> ViewTasks:
        """One task of the whole batch: one support view, the others as queries."""
        return ViewTasks(pictures, views, 1, self.batch, 1, self.views - 1)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder and projector."""
        return WithProjector(encoder, expander(width_of(encoder), self.hidden, self.out))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Both terms over the whole meta-batch as one batch of T*N pictures in S + Q views."""
        x = views_of(tasks)
        with encoding(self.precision, x.device):
            z, buffers = apply_update(net, params, slow, x.flatten(0, 1))
        on, off = barlow_twins_terms(z.to(x.dtype).unflatten(0, x.shape[:2]))
        metrics = {"on_diagonal": on.detach(), "off_diagonal": off.detach()}
        return on + self.off_diagonal * off, Aux(metrics, buffers)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the forward pass left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the encoder's output."""
        return PrototypeLearner(net, distance="cosine")
