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
from selftaught.core.types import Aux, Examples, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.closed_form import closed_form, features_of, loss_and_logits, rules_for
from selftaught.learners.gradient import GradientLearner, norm_when, spread_head
from selftaught.learners.inner import FusedGraph, descend, runs_batched
from selftaught.nets.conv4_closed import laid_out
from selftaught.nets.heads import WithClassifier, width_of
from selftaught.nets.split import statistics_after
from selftaught.tasks.episodes import EpisodeSource


@dataclass(frozen=True)
class MAML:
    """K = `inner_steps` at `inner_rate` in training, `test_steps` on a new task. Needs labelled pictures.

    `graph` and `path` name implementations of the same gradient; `memory_mib` bounds what tasks hold together."""

    inner_steps: int = 5
    inner_rate: float = 0.1
    test_steps: int = 10
    moving: Literal["all", "head"] = "all"
    graph: FusedGraph = "auto"
    path: Path = "auto"
    memory_mib: float | None = None
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
        """The same inner loop, with `test_steps` steps; statistics are the support's where the encoder moves."""
        return GradientLearner(net, self.test_steps, self.inner_rate, self.moving, norm_when(self.moving))


class InnerLoop(Protocol):
    """What the bi-level loop needs to know; MAML and UMTRA both have it."""

    @property
    def inner_steps(self) -> int: ...
    @property
    def inner_rate(self) -> float: ...
    @property
    def moving(self) -> Literal["all", "head"]: ...
    @property
    def graph(self) -> FusedGraph: ...
    @property
    def path(self) -> Path: ...
    @property
    def memory_mib(self) -> float | None: ...


def adapted_query_loss(loop: InnerLoop, net: nn.Module, params: Params, tasks: Task) -> tuple[Tensor, Aux]:
    """Adapt to each task's support, ask its queries: mean loss and accuracy over tasks."""
    adapted_loss = _head_alone if loop.moving == "head" else _everything

    def one_task(net: nn.Module, params: Params, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logits = adapted_loss(loop, net, spread_head(params, task.ways), task)
        assert task.query.y is not None
        return loss, {"query_accuracy": (logits.argmax(-1) == task.query.y).float().mean()}

    batchable, limit = runs_batched(loop.graph), loop.memory_mib
    loss, figures = over_tasks(one_task, net, params, tasks, path=loop.path, batchable=batchable, memory_mib=limit)
    return loss, Aux(figures)


def _everything(loop: InnerLoop, net: nn.Module, weights: Params, task: Task) -> tuple[Tensor, Tensor]:
    """All weights move; in closed form where the network has rules for it."""
    support, query = _labelled(task.support), _labelled(task.query)

    def inner(moving: Params, outer: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(functional_call(net, moving, (support[0],)), support[1])

    rules = rules_for(loop.graph, net, *support)
    if rules is not None:
        weights = laid_out(weights)
    adapted = descend(inner, weights, (), loop.inner_rate, loop.inner_steps, loop.graph, rules)
    if rules is not None:
        return loss_and_logits(closed_form(net, *query), adapted)
    logits = functional_call(net, adapted, (query[0],))
    return F.cross_entropy(logits, query[1]), logits


def _head_alone(loop: InnerLoop, net: nn.Module, weights: Params, task: Task) -> tuple[Tensor, Tensor]:
    """The encoder stays: its features are made once, not at every step."""
    support, query = _labelled(task.support), _labelled(task.query)
    f, asked = features_of(net, weights, support[0]), features_of(net, weights, query[0])

    def inner(head: Params, outer: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(F.linear(outer[0], head["head.weight"], head["head.bias"]), support[1])

    start = {k: v for k, v in weights.items() if k.startswith("head.")}
    head = descend(inner, start, (f,), loop.inner_rate, loop.inner_steps, loop.graph)
    logits = F.linear(asked, head["head.weight"], head["head.bias"])
    return F.cross_entropy(logits, query[1]), logits


def _labelled(examples: Examples) -> tuple[Tensor, Tensor]:
    assert examples.y is not None
    return examples.x, examples.y
