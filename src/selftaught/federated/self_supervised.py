"""Clients whose pictures have no labels: a method of the library is the local step, a few labels make it personal.

Any method of `selftaught.methods` that learns from `ViewTasks` fits: its `loss` is the client's meta-objective,
its task source draws the client's own pictures, its `learner` is the personal head, fitted on the few pictures of
the client that have a label. Corrections apply to its gradient as to any other. Ours throughout: the paper's
clients have labels.
"""

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from selftaught.core.functional import to_float
from selftaught.core.types import Aux, Examples, Method, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import GLYPH, Views
from selftaught.federated.clients import UNLABELLED, ClientData


@final
@dataclass(frozen=True)
class SelfSupervised:
    """`method` (SimCLR, BMSSL, ...) on each client's pictures; up to `shots` labels a class fit its own head.

    Statistics of batch normalisation travel with the model and are averaged, uncorrected (FedAvg's treatment).
    Clients compute one after the other: methods batch their own tasks.
    """

    method: Method
    views: Views = field(default_factory=lambda: GLYPH)
    shots: int = 5

    @property
    def batched(self) -> bool:
        return False

    def refusal(self, data: ClientData) -> str | None:
        if data.x_train.dtype != torch.uint8 or data.x_train.ndim != 4:
            return f"views are drawn from uint8 pictures [n C H W], it has {list(data.x_train.shape)}"
        if len(data.x_train) < 2:
            return "it has one picture, and telling pictures apart needs two"
        if len(data.y_test) and int(data.y_train.max()) == UNLABELLED:
            return "it is tested, but none of its training pictures has a label for the personal head"
        return None

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        return self.method.init(net)

    def draw(self, data: ClientData, generator: torch.Generator) -> Task:
        """Views as the method wants them; labels of the data are not looked at."""
        names = tuple(str(i) for i in range(len(data.x_train)))
        return self.method.source(Pictures(data.x_train, names), self.views)(generator)

    def loss(self, net: nn.Module, params: Params, slow: Params, task: Task) -> tuple[Tensor, Aux]:
        return self.method.loss(net, params, slow, task)

    def refresh(self, net: nn.Module, slow: Params, params: Params, task: Task, aux: Aux) -> Params:
        return self.method.refresh(net, slow, params, task, aux)

    def personal_logits(self, net: nn.Module, weights: Params, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """By the method's learner; logits [m N] over all classes 0 .. N - 1 up to the client's largest."""
        kinds = [k for k in sorted(set(y.tolist())) if k != UNLABELLED]
        chosen = torch.cat([(y == k).nonzero()[: self.shots, 0] for k in kinds])
        local = torch.searchsorted(torch.tensor(kinds), y[chosen])
        learner = self.method.learner(net)
        adapted = learner.adapt(weights, Examples(to_float(x[chosen]), local), len(kinds))
        logits = learner.predict(adapted, to_float(asked)).detach()
        every = logits.new_full((len(logits), max(kinds) + 1), -torch.inf)
        every[:, kinds] = logits
        return every
