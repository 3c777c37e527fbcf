"""MetaOptNet: the classifier of a task is the optimum of a convex problem, and the gradient passes through it.

Paper: Lee, Maji, Ravichandran, Soatto, "Meta-Learning with Differentiable Convex Optimization", CVPR 2019,
arXiv 1904.03758.

    z = encoder(support),  W, b = argmin sum_s CE(z_s W + b; y_s) + lambda/2 ||W||^2
    loss = mean over queries of CE(alpha (encoder(query) W + b); y)
    learned: the encoder, alpha and lambda

The paper's: a convex base learner on the features, differentiated at its optimum whatever the way there, a learned
scale of its scores. Its headline base learner is a multiclass support vector machine; with ridge regression it is
`r2d2`. Our choice: logistic regression as the convex problem (its loss is the queries' own, and it needs no
quadratic program); lambda learned too, both as logarithms; a free intercept; tasks made of views; all tasks go
through the encoder in one pass, so batch statistics are shared.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply_update, buffers_of, params_of
from selftaught.core.types import Aux, Params, Task, TaskSource
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.convex import LogisticLearner, Newton, solve_logistic
from selftaught.learners.ridge import WithRidge
from selftaught.losses.contrastive import cross_entropy
from selftaught.tasks.episodes import EpisodeSource
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class MetaOptNet:
    """`penalty` is lambda and `scale` alpha at the start; at most `newton_steps`, each by `cg_steps` products.

    Under `episodes="views"` classes are single pictures, with `shots` support and `queries` query views of each.
    Raises ConfigError for a penalty or scale not above 0 and for fewer than one step.
    """

    penalty: float = 1.0
    scale: float = 1.0
    newton_steps: int = 15
    cg_steps: int = 30
    episodes: Literal["labels", "views"] = "labels"
    tasks: int = 1
    ways: int = 20
    shots: int = 1
    queries: int = 5

    def __post_init__(self) -> None:
        if min(self.penalty, self.scale) <= 0 or min(self.newton_steps, self.cg_steps) < 1:
            raise ConfigError(
                "MetaOptNet: use penalty and scale above 0, and newton_steps and cg_steps of 1 or more"
            )

    def source(self, pictures: Pictures, views: Views) -> TaskSource:
        """Labelled episodes, or views of single pictures."""
        if self.episodes == "views":
            return ViewTasks(pictures, views, self.tasks, self.ways, self.shots, self.queries)
        return EpisodeSource(pictures, self.ways, self.shots, self.queries, self.tasks)

    def network(self, encoder: nn.Module) -> nn.Module:
        """The encoder and the logarithms of scale and penalty."""
        return WithRidge(encoder, self.scale, self.penalty)

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Mean cross-entropy of the queries under each task's optimum.

        `inner_gradient` in the figures is the norm of what should be zero at an optimum.
        """
        assert tasks.query.y is not None
        x, rows = torch.cat([tasks.support.x, tasks.query.x], 1), tasks.support.x.shape[1]
        z, buffers = apply_update(net, params, slow, x.flatten(0, 1))
        support, query = z.unflatten(0, x.shape[:2]).tensor_split([rows], 1)
        head, gap = solve_logistic(params, support, tasks.ways, tasks.support.y, self._newton())
        logits = head.logits(query)
        figures = {
            "query_accuracy": (logits.argmax(-1) == tasks.query.y).float().mean(),
            "inner_gradient": gap,
            "scale": params["log_scale"].detach().exp(),
            "penalty": params["log_penalty"].detach().exp(),
        }
        return cross_entropy(logits, tasks.query.y), Aux(figures, buffers)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the forward pass left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> LogisticLearner:
        """The same problem with the learned scale and penalty."""
        return LogisticLearner(net, self._newton())

    def _newton(self) -> Newton:
        return Newton(self.newton_steps, self.cg_steps)
