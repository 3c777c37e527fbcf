"""SwAV: predict the cluster of one view from the other, with clusters that a batch must share evenly.

Paper: Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, "Unsupervised Learning of Visual Features by Contrasting
Cluster Assignments", NeurIPS 2020, arXiv 2006.09882.

    s = cos(projector(encoder(view)), prototypes)                                   [B K]
    q = the [B K] matrix with rows of sum 1 and columns of sum B / K that maximises
        sum(q * s) + epsilon * entropy(q), by `sinkhorn_steps` of Sinkhorn-Knopp, without gradient
    loss = mean over ordered view pairs (a, b) and pictures of -sum_k q_k^a log softmax(s^b / tau)_k

The paper's: the loss, codes of each view by itself, tau = 0.1, epsilon = 0.05, three steps of Sinkhorn-Knopp.
Our choice: prototypes brought to length one inside the forward pass (the paper overwrites them after each step;
both move on the sphere), few of them, small heads, and `precision` "bfloat16" for network and gradient, scores and
loss always in the pictures' own type. Left out of the paper: multi-crop, the queue that helps when a batch is
smaller than the number of prototypes, and the prototypes at rest during the first epoch. Written from the paper;
its code was not read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftaught.core.functional import apply, apply_update, buffers_of, params_of, part
from selftaught.core.precision import Precision, encoding
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.prototype import PrototypeLearner
from selftaught.losses.clustering import entropy, sinkhorn_codes, swapped_prediction
from selftaught.methods.simclr import views_of
from selftaught.nets.heads import MLP, WithProjector, width_of
from selftaught.nets.prototypes import CosineScores, WithPrototypes
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class SwAV:
    """`prototypes` is K, `temperature` tau; `epsilon` how soft the codes are; `batch` pictures."""

    prototypes: int = 64
    temperature: float = 0.1
    epsilon: float = 0.05
    sinkhorn_steps: int = 3
    hidden: int = 256
    out: int = 64
    batch: int = 128
    views: int = 2
    precision: Precision = "float32"

    def source(self, pictures: Pictures, views: Views) -> ViewTasks:
        """One task of the whole batch: one support view, the others as queries."""
        return ViewTasks(pictures, views, 1, self.batch, 1, self.views - 1)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder, projector and prototypes."""
        projector = MLP([width_of(encoder), self.hidden, self.out], norm=True)
        return WithPrototypes(encoder, projector, CosineScores(self.out, self.prototypes))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Swapped prediction over ordered view pairs; all tasks are one batch of T*N pictures."""
        x = views_of(tasks)
        below = WithProjector(net.get_submodule("encoder"), net.get_submodule("projector"))
        own = {k: v for k, v in params.items() if not k.startswith("prototypes.")}
        with encoding(self.precision, x.device):
            z, buffers = apply_update(below, own, slow, x.flatten(0, 1))
        scores = apply(net.get_submodule("prototypes"), part(params, "prototypes"), z.to(x.dtype))
        scores = scores.unflatten(0, x.shape[:2])
        codes = sinkhorn_codes(scores, self.epsilon, self.sinkhorn_steps)
        loss = swapped_prediction(scores, codes, self.temperature)
        return loss, Aux(_figures(scores.detach() / self.temperature, codes), buffers)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the forward pass left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the encoder's output."""
        return PrototypeLearner(net, distance="cosine")


def _figures(logits: Tensor, codes: Tensor) -> dict[str, Tensor]:
    """`used`: how many prototypes the mean prediction is spread over; `code_entropy` in nats, log K if uniform."""
    used = entropy(torch.softmax(logits, dim=-1).mean((0, 1))).exp()
    return {"used": used, "code_entropy": entropy(codes).mean()}
