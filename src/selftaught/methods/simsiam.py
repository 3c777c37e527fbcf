"""SimSiam: predict your own projection of the other view, without negatives and without a teacher.

Paper: Chen, He, "Exploring Simple Siamese Representation Learning", CVPR 2021, arXiv 2011.10566.

    z = projector(encoder(view)),  p = predictor(z)
    loss = mean over ordered view pairs (a, b) of 2 - 2 cos(p_a, stopgrad z_b)

The paper's: the stop-gradient, the symmetric loss (eq. 2), a predictor with a narrow middle and nothing after its
last layer, batch normalisation after every layer of the projector, its output included, and the `spread` figure
(section 4.1), near 1 / sqrt(`out`) while nothing collapses and 0 when everything has. Our choice: a two-layer
projector of small width, no scale and shift in its last normalisation, all views of a `Task` as one batch with
every ordered pair averaged, the loss at BYOL's scale (twice the paper's plus two: the same direction of the
gradient), and `precision` "bfloat16" for the network, the loss always in the pictures' own type. Its code was
not read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.functional import apply_update, buffers_of, params_of, part, prefixed
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
class SimSiam:
    """`hidden` and `out` are the projector's widths, `narrow` the predictor's middle; `batch` pictures."""

    hidden: int = 256
    out: int = 64
    narrow: int = 16
    batch: int = 128
    precision: Precision = "float32"

    def source(self, pictures: Pictures, views: Views) -> ViewTasks:
        """One task of the whole batch: one support and one query view."""
        return ViewTasks(pictures, views, 1, self.batch, 1, 1)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder, projector and predictor."""
        projector = MLP([width_of(encoder), self.hidden, self.out], norm=True)
        projector.layers.append(nn.BatchNorm1d(self.out, affine=False))
        return WithPredictor(encoder, projector, MLP([self.out, self.narrow, self.out], norm=True))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Mean regression loss over ordered pairs of different views."""
        x = views_of(tasks)  # [V B C H W]
        below = WithProjector(net.get_submodule("encoder"), net.get_submodule("projector"))
        head = net.get_submodule("predictor")
        with encoding(self.precision, x.device):
            z, moved = apply_update(below, _below(params), _below(slow), x.flatten(0, 1))
            p, own = apply_update(head, part(params, "predictor"), part(slow, "predictor"), z)
        z, p = (t.to(x.dtype).unflatten(0, x.shape[:2]) for t in (z, p))
        pairs = [cosine_regression(p[a], z[b]) for a in range(len(x)) for b in range(len(x)) if a != b]
        spread = F.normalize(z.detach(), dim=-1).std((0, 1)).mean()
        return torch.stack(pairs).mean(), Aux({"spread": spread}, moved | prefixed("predictor", own))

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the forward pass left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the encoder's output."""
        return PrototypeLearner(net, distance="cosine")


def _below(tensors: Params) -> Params:
    """Those of the encoder and the projector."""
    return {k: v for k, v in tensors.items() if not k.startswith("predictor.")}
