"""BMG: bootstrapped meta-gradients, a wrapper that gives MAML's learner its own later self as target.

Paper: Flennerhag, Schroecker, Zahavy, van Hasselt, Silver, Singh, "Bootstrapped Meta-Learning", ICLR 2022,
arXiv 2109.04504.

    w_0 = theta;  w_{k+1} = w_k - alpha * grad CE(w_k; support),  k < K
    target: from w_K, L - 1 more such steps, then one of size zeta on CE(.; query); a constant w~
    theta <- theta - beta * grad_theta mean over tasks of mu(w~, w_K(theta))
    mu = KL(p~ || p_K) or KL(p_K || p~) of the query posteriors, or half || w_K - w~ ||^2

The paper's: the target, made by the learner's own rule and ended by one step on the outer loss; that it is held
constant; both kinds of matching. At L = 1 with the squared distance the gradient is zeta times MAML's, exactly
(`moving="all"`). Our choice, since its full text was not at hand: the values below; `target_on="query"`, which
takes all L steps on the query; MAML's head row, statistics and graphs; that a task may be made of
views; the number logged as `loss` is the query's cross-entropy after adaptation, its gradient is mu's
(mu itself, in the log as `bootstrap`, need not fall: its target moves along).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import buffers_of, params_of, set_norm
from selftaught.core.over_tasks import Path, over_tasks
from selftaught.core.types import Aux, Params, Task, TaskSource
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.closed_form import features_of, rules_for
from selftaught.learners.gradient import GradientLearner, norm_when, spread_head
from selftaught.learners.inner import FusedGraph, InnerLoss, descend, descend_detached, runs_batched
from selftaught.losses.matching import half_squared_distance, kl_from_target, kl_to_target
from selftaught.losses.straight_through import straight_through
from selftaught.nets.conv4_closed import laid_out
from selftaught.nets.heads import WithClassifier, width_of
from selftaught.nets.split import statistics_after
from selftaught.tasks.episodes import EpisodeSource
from selftaught.tasks.views import ViewTasks

Rows = tuple[Tensor, Tensor]
Problem = tuple[Params, Callable[[Params, Tensor], Tensor], Rows, Rows]


@dataclass(frozen=True)
class BMG:
    """K = `inner_steps` at `inner_rate`; L = `bootstrap_steps`; zeta = `target_rate` (None: the inner rate).

    Under `episodes="views"` classes are single pictures, with `shots` support and `queries` query views of each.
    Raises ConfigError for K or L below 1 and a zeta not above 0, where the gradient would be zero.
    """

    inner_steps: int = 5
    inner_rate: float = 0.1
    bootstrap_steps: int = 5
    target_rate: float | None = None
    target_on: Literal["support", "query"] = "support"
    matching: Literal["kl", "kl-reverse", "l2"] = "kl"
    test_steps: int = 10
    moving: Literal["all", "head"] = "all"
    graph: FusedGraph = "auto"
    path: Path = "auto"
    memory_mib: float | None = None
    episodes: Literal["labels", "views"] = "labels"
    tasks: int = 4
    ways: int = 5
    shots: int = 1
    queries: int = 15

    def __post_init__(self) -> None:
        zeta = self.inner_rate if self.target_rate is None else self.target_rate
        if self.inner_steps < 1 or self.bootstrap_steps < 1 or zeta <= 0:
            raise ConfigError("BMG: use inner_steps >= 1, bootstrap_steps >= 1 and a target rate above 0")

    def source(self, pictures: Pictures, views: Views) -> TaskSource:
        """Labelled episodes, or views of single pictures."""
        if self.episodes == "views":
            return ViewTasks(pictures, views, self.tasks, self.ways, self.shots, self.queries)
        return EpisodeSource(pictures, self.ways, self.shots, self.queries, self.tasks)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder and linear head."""
        return WithClassifier(encoder, width_of(encoder))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Value: mean query cross-entropy after adaptation. Gradient: that of mean mu."""
        set_norm(net, "batch")
        batchable = runs_batched(self.graph)
        loss, figures = over_tasks(
            self._one_task, net, params, tasks, path=self.path, batchable=batchable, memory_mib=self.memory_mib
        )
        return loss, Aux(figures)

    def _one_task(self, net: nn.Module, params: Params, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
        start, respond, support, query = _problem(self.moving, net, spread_head(params, task.ways), task)

        def ce(w: Params, rows: tuple[Tensor, ...]) -> Tensor:
            return F.cross_entropy(respond(w, rows[0]), rows[1])

        rules = rules_for(self.graph, net, *support) if self.moving == "all" else None
        start = start if rules is None else laid_out(start)
        adapted = descend(ce, start, support, self.inner_rate, self.inner_steps, self.graph, rules)
        target, logits = self._target(ce, adapted, support, query), respond(adapted, query[0])
        if self.matching == "l2":
            gap = half_squared_distance(adapted, target)
        else:
            match = kl_to_target if self.matching == "kl" else kl_from_target
            gap = match(logits, respond(target, query[0]))
        figures = {"query_accuracy": (logits.argmax(-1) == query[1]).float().mean(), "bootstrap": gap.detach()}
        return straight_through(F.cross_entropy(logits.detach(), query[1]), gap), figures

    def _target(self, ce: InnerLoss, w: Params, support: Rows, query: Rows) -> Params:
        """A constant: the last step is on the query, which ties the target to what is asked."""
        rows = support if self.target_on == "support" else query
        w = descend_detached(ce, w, rows, self.inner_rate, self.bootstrap_steps - 1)
        return descend_detached(ce, w, query, self.target_rate or self.inner_rate, 1)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Running statistics move by one pass over the query pictures of all tasks."""
        return statistics_after(net, params, slow, tasks.query.x.flatten(0, 1))

    def learner(self, net: nn.Module) -> GradientLearner:
        """The same inner loop, with `test_steps` steps; statistics are the support's where the encoder moves."""
        return GradientLearner(net, self.test_steps, self.inner_rate, self.moving, norm_when(self.moving))


def _problem(moving: str, net: nn.Module, weights: Params, task: Task) -> Problem:
    """What moves, its logits, and its rows: pictures, or for the head features made once."""
    assert task.support.y is not None and task.query.y is not None
    support, query = (task.support.x, task.support.y), (task.query.x, task.query.y)
    if moving == "all":
        return weights, lambda w, x: functional_call(net, w, (x,)), support, query
    f, asked = (features_of(net, weights, x) for x in (support[0], query[0]))
    start = {k: v for k, v in weights.items() if k.startswith("head.")}
    return start, _linear, (f, support[1]), (asked, query[1])


def _linear(w: Params, z: Tensor) -> Tensor:
    return F.linear(z, w["head.weight"], w["head.bias"])
