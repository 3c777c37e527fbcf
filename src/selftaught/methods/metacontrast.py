"""MetaContrast: contrastive learning written as meta-learning, with a choice of base learner and its tricks.

Paper: Ni, Shu, Souri, Goldblum, Goldstein, "The Close Relationship Between Contrastive Learning and
Meta-Learning", ICLR 2022. Parts: ProtoNet (arXiv 1703.05175), R2D2 (arXiv 1805.08136), CutMix (arXiv 1905.04899).

    task: every picture in four orientations is four classes; one view each as support, one as query
    z = projector(encoder(view)) / |.|,  some queries mixed: a window of query j in query i, with label
        y = share * e_i + (1 - share) * e_j
    proto   logits_n = -|z - c_n|^2 / (2 tau),  c_n the mean support view of class n
    ridge   logits = alpha (z W + b),  W, b ridge regression of the support onto its classes
    loss = mean over queries of -sum_n y_n log softmax(logits)_n

The paper's: instance tasks for ProtoNet and R2D2 heads on normalised embeddings, large rotations as task
augmentation, CutMix of queries only. With one support view and neither trick, `proto` is InfoNCE in one direction.
In the authors' code features are divided by the root of a temperature t, so distances by t; our `temperature`
divides the cosine as everywhere here, which is tau = t / 2 (their 0.1 is 0.05).
Our choice: all four orientations in one task (predicting the rotation by a head of its own, which their code has
too, is left out); a query is mixed or not by lot, with a window of its own (they mix all, with one window, in a
second pass, and keep the first); alpha and lambda learned as in `r2d2` (they fix lambda); every default.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply_update, buffers_of, params_of
from selftaught.core.types import Aux, Params, Task, TaskSource
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.heads import normalise, prototypes
from selftaught.learners.prototype import PrototypeLearner
from selftaught.learners.ridge import solve_ridge
from selftaught.losses.contrastive import squared_distance_logits
from selftaught.losses.soft import soft_cross_entropy
from selftaught.nets.heads import MLP, WithProjector, width_of
from selftaught.tasks.mixed import MixedQueries
from selftaught.tasks.rotated import RotatedClasses
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class MetaContrast:
    """`batch` pictures, with `rotations` four times as many classes; `cutmix` is a query's chance to be mixed.

    `temperature` serves `proto`, `scale` and `penalty` (where alpha and lambda start) serve `ridge`. Raises
    ConfigError for numbers that are not above 0 and a `cutmix` outside 0..1.
    """

    head: Literal["proto", "ridge"] = "proto"
    temperature: float = 0.2
    scale: float = 10.0
    penalty: float = 1.0
    rotations: bool = True
    cutmix: float = 0.5
    hidden: int = 256
    out: int = 64
    batch: int = 32
    support_views: int = 1
    query_views: int = 1

    def __post_init__(self) -> None:
        if min(self.temperature, self.scale, self.penalty) <= 0 or not 0 <= self.cutmix <= 1:
            raise ConfigError("MetaContrast: use temperature, scale and penalty above 0, and cutmix in 0..1")

    def source(self, pictures: Pictures, views: Views) -> TaskSource:
        """One task of the whole batch; rotations and mixing around it."""
        tasks: TaskSource = ViewTasks(pictures, views, 1, self.batch, self.support_views, self.query_views)
        tasks = RotatedClasses(tasks) if self.rotations else tasks
        return MixedQueries(tasks, self.cutmix) if self.cutmix else tasks

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder and projector; for `ridge` also the logarithms of alpha and lambda."""
        net = WithProjector(encoder, MLP([width_of(encoder), self.hidden, self.out]))
        if self.head == "ridge":
            net.register_parameter("log_scale", nn.Parameter(torch.tensor(math.log(self.scale))))
            net.register_parameter("log_penalty", nn.Parameter(torch.tensor(math.log(self.penalty))))
        return net

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Cross-entropy of the queries' shares under the base learner of each task."""
        x, rows = torch.cat([tasks.support.x, tasks.query.x], 1), tasks.support.x.shape[1]
        z, buffers = apply_update(net, params, slow, x.flatten(0, 1))
        support, query = normalise(z).unflatten(0, x.shape[:2]).tensor_split([rows], 1)
        target, logits = shares(tasks, query), self._logits(params, support, query, tasks)
        right = (logits.argmax(-1) == target.argmax(-1)).float().mean()
        return soft_cross_entropy(logits, target), Aux({"query_accuracy": right}, buffers)

    def _logits(self, params: Params, support: Tensor, query: Tensor, tasks: Task) -> Tensor:
        """[T Q N]."""
        if self.head == "ridge":
            return solve_ridge(params, support, tasks.ways, tasks.support.y).logits(query)
        centres = prototypes(support, tasks.ways, tasks.support.y)
        return squared_distance_logits(query, centres) / (2 * self.temperature)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the forward pass left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the encoder's output."""
        return PrototypeLearner(net, distance="cosine")


def shares(tasks: Task, like: Tensor) -> Tensor:
    """What share of each query shows which class [T Q N]: soft labels as they are, numbers as one-hot rows."""
    y = tasks.query.y
    assert y is not None
    if y.is_floating_point():
        return y.to(like.dtype)
    return (y.unsqueeze(-1) == torch.arange(tasks.ways, device=y.device)).to(like.dtype)
