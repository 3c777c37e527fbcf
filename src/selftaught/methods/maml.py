"""MAML: learn the start from which a few gradient steps solve a task.

Paper: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017,
arXiv 1703.03400. ANIL: Raghu et al., "Rapid Learning or Feature Reuse?", ICLR 2020, arXiv 1909.09157.

    w_0 = theta;  w_{k+1} = w_k - alpha * grad CE(w_k; support),  k < K
    theta <- theta - beta * grad_theta mean over tasks of CE(w_K(theta); query)

The paper's: both levels, first order as an option (`graph="first-order"`), statistics of the batch at hand
inside a task. ANIL's: only the head moves in the inner loop (`moving="head"`).
Our choice: one learned head row shared by all classes (labels are local to a task); inductive evaluation
with running statistics, re-estimated on every meta-batch; losses are means over pictures.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.functional import buffers_of, params_of, set_norm
from selftaught.core.over_tasks import Path, over_tasks
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.gradient import GradientLearner, moving_names, spread_head
from selftaught.learners.inner import Graph, descend
from selftaught.nets.heads import WithClassifier, width_of
from selftaught.nets.split import statistics_after
from selftaught.tasks.episodes import EpisodeSource


@dataclass(frozen=True)
class MAML:
    """K = `inner_steps` at `inner_rate` in training, `test_steps` on a new task. Needs labelled pictures."""

    inner_steps: int = 5
    inner_rate: float = 0.1
    test_steps: int = 10
    moving: Literal["all", "head"] = "all"
    graph: Graph = "unrolled"
    path: Path = "threads"
    tasks: int = 4
    ways: int = 5
    shots: int = 1
    queries: int = 15

    def source(self, pictures: Pictures, views: Views) -> EpisodeSource:
        """Labelled episodes; the views are not used."""
        return EpisodeSource(pictures, self.ways, self.shots, self.queries, self.tasks)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder and linear head."""
        return WithClassifier(encoder, width_of(encoder))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Mean query cross-entropy after adaptation."""
        set_norm(net, "batch")
        return adapted_query_loss(self, net, params, tasks)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Running statistics move by one pass over the query pictures of all tasks."""
        return statistics_after(net, params, slow, tasks.query.x.flatten(0, 1))

    def learner(self, net: nn.Module) -> GradientLearner:
        """The same inner loop, with `test_steps` steps."""
        return GradientLearner(net, self.test_steps, self.inner_rate, self.moving)


class InnerLoop(Protocol):
    """What the bi-level loop needs to know; MAML and UMTRA both have it."""

    @property
    def inner_steps(self) -> int: ...
    @property
    def inner_rate(self) -> float: ...
    @property
    def moving(self) -> Literal["all", "head"]: ...
    @property
    def graph(self) -> Graph: ...
    @property
    def path(self) -> Path: ...


def adapted_query_loss(loop: InnerLoop, net: nn.Module, params: Params, tasks: Task) -> tuple[Tensor, Aux]:
    """Adapt to each task's support, ask its queries: mean loss and accuracy over tasks."""
    names = moving_names(net, loop.moving)

    def one_task(net: nn.Module, params: Params, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
        weights = spread_head(params, task.ways)
        fixed = {k: v for k, v in weights.items() if k not in names}
        assert task.support.y is not None and task.query.y is not None
        support_y, query_y = task.support.y, task.query.y

        def inner(moving: Params, outer: tuple[Tensor, ...]) -> Tensor:
            below = dict(zip(fixed, outer, strict=True))
            return F.cross_entropy(functional_call(net, below | moving, (task.support.x,)), support_y)

        start = {k: weights[k] for k in names}
        adapted = descend(inner, start, tuple(fixed.values()), loop.inner_rate, loop.inner_steps, loop.graph)
        logits = functional_call(net, fixed | adapted, (task.query.x,))
        accuracy = (logits.argmax(-1) == query_y).float().mean()
        return F.cross_entropy(logits, query_y), {"query_accuracy": accuracy}

    loss, figures = over_tasks(one_task, net, params, tasks, path=loop.path)
    return loss, Aux(figures)
