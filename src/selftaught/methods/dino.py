"""DINO: match a slow copy of yourself in how it sorts the other view, kept from collapse by centre and sharpness.

Paper: Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, "Emerging Properties in Self-Supervised Vision
Transformers", ICCV 2021, arXiv 2104.14294.

    s = cos(projector(encoder(view)), prototypes),  t = the same with the teacher's weights      [B K]
    loss = mean over ordered view pairs (a, b) and pictures of
        -sum_k softmax((t^a - c) / tau_t)_k log softmax(s^b / tau)_k,   no gradient through t
    after every step: teacher weights <- m * teacher weights + (1 - m) * weights
                      c <- m_c * c + (1 - m_c) * mean t

The paper's: the loss, both moving averages, the centre from teacher outputs before it is taken off, tau = 0.1,
tau_t = 0.04, m_c = 0.9, m rising to 1 by a cosine (when `total_steps` is given), a last layer of unit prototypes
on a normalised bottleneck. Our choice: few outputs and small heads with batch normalisation inside (the paper has
none on vision transformers), the teacher normalised by the batch as BYOL's is here, m = 0.99, and `precision`
"bfloat16" for both encoders, scores and loss always in the pictures' own type. Left out of the paper: multi-crop,
the rising tau_t, the last layer at rest during the first epoch, and the teacher as the encoder of evaluation.
Written from the paper; its code was not read.
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
from selftaught.losses.clustering import centred_targets, entropy, swapped_prediction
from selftaught.methods.simclr import views_of
from selftaught.nets.heads import MLP, WithProjector, width_of
from selftaught.nets.prototypes import CosineScores, WithPrototypes
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class DINO:
    """`prototypes` is K; `temperature` tau, `teacher_temperature` tau_t; `momentum` m, `centre_momentum` m_c."""

    prototypes: int = 256
    temperature: float = 0.1
    teacher_temperature: float = 0.04
    momentum: float = 0.99
    centre_momentum: float = 0.9
    total_steps: int = 0
    hidden: int = 256
    out: int = 64
    batch: int = 128
    views: int = 2
    precision: Precision = "float32"

    def source(self, pictures: Pictures, views: Views) -> ViewTasks:
        """One task of the whole batch: one support view, the others as queries."""
        return ViewTasks(pictures, views, 1, self.batch, 1, self.views - 1)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder, projector (to the bottleneck) and prototypes."""
        projector = MLP([width_of(encoder), self.hidden, self.hidden, self.out], norm=True)
        return WithPrototypes(encoder, projector, CosineScores(self.out, self.prototypes))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The student's numbers; `slow` holds statistics, the teacher, the centre [K] and the step count."""
        params = params_of(net)
        centre = torch.zeros_like(params["prototypes.weight"][:, 0])
        teacher = prefixed("teacher", {k: v.clone() for k, v in params.items()})
        return params, buffers_of(net) | teacher | {"centre": centre, "count": torch.zeros(())}

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Mean cross-entropy over ordered view pairs; all tasks are one batch of T*N pictures."""
        x = views_of(tasks)
        s, buffers = self._scores(net, params, {k: slow[k] for k, _ in net.named_buffers()}, x)
        with torch.no_grad():
            t, _ = self._scores(net, part(slow, "teacher"), None, x)
        targets = centred_targets(t, slow["centre"], self.teacher_temperature)
        loss = swapped_prediction(s, targets, self.temperature)
        return loss, Aux(_figures(targets), buffers, {"mean": t.mean((0, 1))})

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Move the teacher towards the student and the centre towards the teacher's mean output."""
        done = min(1.0, float(slow["count"]) / self.total_steps) if self.total_steps else 0.0
        m = 1 - (1 - self.momentum) * (math.cos(math.pi * done) + 1) / 2
        teacher = {k: m * v + (1 - m) * params[k] for k, v in part(slow, "teacher").items()}
        centre = self.centre_momentum * slow["centre"] + (1 - self.centre_momentum) * aux.carry["mean"]
        return slow | aux.buffers | prefixed("teacher", teacher) | {"centre": centre, "count": slow["count"] + 1}

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the student's encoder output."""
        return PrototypeLearner(net, distance="cosine")

    def _scores(self, net: nn.Module, weights: Params, buffers: Params | None, x: Tensor) -> tuple[Tensor, Params]:
        """Cosines [V B K] of views [V B C H W] with the prototypes; without `buffers` no statistics are moved."""
        below = WithProjector(net.get_submodule("encoder"), net.get_submodule("projector"))
        own = {k: v for k, v in weights.items() if not k.startswith("prototypes.")}
        moved: Params = {}
        with encoding(self.precision, x.device):
            if buffers is None:
                z = apply(below, own, x.flatten(0, 1), "batch")
            else:
                z, moved = apply_update(below, own, buffers, x.flatten(0, 1))
        scores = apply(net.get_submodule("prototypes"), part(weights, "prototypes"), z.to(x.dtype))
        return scores.unflatten(0, x.shape[:2]), moved


def _figures(targets: Tensor) -> dict[str, Tensor]:
    """`used`: how many outputs the mean target is spread over; `target_entropy` in nats, log K if uniform."""
    return {"used": entropy(targets.mean((0, 1))).exp(), "target_entropy": entropy(targets).mean()}
