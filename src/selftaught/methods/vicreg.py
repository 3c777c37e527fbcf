"""VICReg: views agree, every feature keeps its spread, and no two features say the same.

Paper: Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
Learning", ICLR 2022, arXiv 2105.04906.

    z = expander(encoder(view)), one matrix Z [B D] a view,  C(Z) = covariance of the features over the batch
    s = mean (z_a - z_b)^2,  v(Z) = mean_j max(0, 1 - sqrt(C_jj + 1e-4)),  c(Z) = sum_{i != j} C_ij^2 / D
    loss = invariance * s + variance * (v(Z_a) + v(Z_b)) + covariance * (c(Z_a) + c(Z_b))

The paper's: the three terms, the weights 25, 25, 1, and an expander of three linear layers, batch normalisation in
the first two. The mean over features in s is that of its algorithm 1 (equation 5 sums). Our choice: a narrow
expander, all views of a `Task` as one batch in network and normalisation, with more than two views the mean over
unordered pairs, and `precision` "bfloat16" for network and gradient, the loss always in the pictures' type.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from selftaught.core.functional import apply_update, buffers_of, params_of
from selftaught.core.precision import Precision, encoding
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.prototype import PrototypeLearner
from selftaught.losses.redundancy import vicreg_terms
from selftaught.methods.simclr import views_of
from selftaught.nets.heads import MLP, WithProjector, width_of
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class VICReg:
    """Weights of the three terms; `hidden` and `out` are the expander's widths; `batch` pictures in `views`."""

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    hidden: int = 256
    out: int = 256
    batch: int = 128
    views: int = 2
    precision: Precision = "float32"

    def source(self, pictures: Pictures, views: Views) -> ViewTasks:
        """One task of the whole batch: one support view, the others as queries."""
        return ViewTasks(pictures, views, 1, self.batch, 1, self.views - 1)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder and expander."""
        return WithProjector(encoder, expander(width_of(encoder), self.hidden, self.out))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """The weighted terms over the whole meta-batch as one batch of T*N pictures in S + Q views."""
        x = views_of(tasks)
        with encoding(self.precision, x.device):
            z, buffers = apply_update(net, params, slow, x.flatten(0, 1))
        distance, spread, shared = vicreg_terms(z.to(x.dtype).unflatten(0, x.shape[:2]))
        # The terms are means over views; the paper adds up its two.
        loss = self.invariance * distance + 2 * self.variance * spread + 2 * self.covariance * shared
        metrics = {"invariance": distance, "variance": spread, "covariance": shared}
        return loss, Aux({k: v.detach() for k, v in metrics.items()}, buffers)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the forward pass left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the encoder's output."""
        return PrototypeLearner(net, distance="cosine")


def expander(width: int, hidden: int, out: int) -> MLP:
    """Three linear layers [B width] -> [B out]. The last has no bias: losses of centred features cannot see it."""
    head = MLP([width, hidden, hidden, out], norm=True)
    head.layers[-1] = nn.Linear(hidden, out, bias=False)
    return head
