"""Implicit MAML: learn the start near which a task is solved, without looking at how it was solved.

Paper: Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019, arXiv 1909.04630.

    phi*(theta) = argmin over phi of CE(phi; support) + lambda/2 ||phi - theta||^2     (K gradient steps)
    (I + H/lambda) g = grad CE(phi*; query)     H: Hessian of CE(.; support) at phi*   (conjugate gradient)
    theta <- theta - beta * mean over tasks of g

The paper's: both equations, gradient steps and conjugate gradient as their solvers, lambda = 2 and 5 steps of
conjugate gradient for characters. The authors' published example differs from the equations in three ways that we
do not follow: it takes the gradient steps without the pull to theta and one step of the pull at the end, adds
a second I to the matrix, and solves new tasks without the pull.
Our choice: new tasks are solved as in training; a rule for negative curvature in conjugate gradient;
`moving="head"`, where the encoder gets its exact gradient as well; one learned head row and inductive
statistics as in MAML.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.functional import buffers_of, params_of, set_norm
from selftaught.core.over_tasks import Path, over_tasks
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.closed_form import closed_form, features_of, loss_and_logits, rules_for
from selftaught.learners.gradient import norm_when, spread_head
from selftaught.learners.implicit import Proximal, ProximalLearner, descend_implicit
from selftaught.nets.heads import WithClassifier, width_of
from selftaught.nets.split import statistics_after
from selftaught.tasks.episodes import EpisodeSource


@dataclass(frozen=True)
class IMAML:
    """K = `inner_steps` at `inner_rate`, lambda = `strength`. Needs labelled pictures.

    Raises ConfigError for a `strength` not above 0 and for fewer than one step of any kind.
    """

    inner_steps: int = 16
    inner_rate: float = 0.1
    strength: float = 2.0
    cg_steps: int = 5
    test_steps: int = 16
    moving: Literal["all", "head"] = "all"
    path: Path = "auto"
    tasks: int = 4
    ways: int = 5
    shots: int = 1
    queries: int = 15

    def __post_init__(self) -> None:
        self._proximal(self.inner_steps)
        self._proximal(self.test_steps)

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
        """Mean query cross-entropy of the tasks' solutions.

        `inner_gradient` in the figures is the norm of what should be zero at a solution.
        """
        set_norm(net, "batch")
        proximal = self._proximal(self.inner_steps)
        solved_loss = _head_alone if self.moving == "head" else _everything

        def one_task(net: nn.Module, params: Params, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
            assert task.query.y is not None
            loss, logits, gap = solved_loss(proximal, net, spread_head(params, task.ways), task)
            accuracy = (logits.argmax(-1) == task.query.y).float().mean()
            return loss, {"query_accuracy": accuracy, "inner_gradient": gap}

        loss, figures = over_tasks(one_task, net, params, tasks, path=self.path)
        return loss, Aux(figures)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Running statistics move by one pass over the query pictures of all tasks."""
        return statistics_after(net, params, slow, tasks.query.x.flatten(0, 1))

    def learner(self, net: nn.Module) -> ProximalLearner:
        """The same problem, with `test_steps` steps; statistics are the support's where the encoder moves."""
        return ProximalLearner(net, self._proximal(self.test_steps), self.moving, norm_when(self.moving))

    def _proximal(self, steps: int) -> Proximal:
        return Proximal(self.strength, self.inner_rate, steps, self.cg_steps)


def _everything(proximal: Proximal, net: nn.Module, weights: Params, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, logits and what is left of the inner gradient; in closed form where the network has rules for it."""
    x, y, query_x, query_y = _labelled(task)

    def inner(moving: Params, outer: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(functional_call(net, moving, (outer[0],)), outer[1])

    rules = rules_for("auto", net, x, y)
    solved, gap = descend_implicit(inner, weights, (x, y), proximal, rules)
    if rules is not None:
        return (*loss_and_logits(closed_form(net, query_x, query_y), solved), gap)
    logits = functional_call(net, solved, (query_x,))
    return F.cross_entropy(logits, query_y), logits, gap


def _head_alone(proximal: Proximal, net: nn.Module, weights: Params, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """The encoder stays: its features are made once, and a gradient reaches it through them."""
    x, y, query_x, query_y = _labelled(task)
    f, asked = features_of(net, weights, x), features_of(net, weights, query_x)

    def inner(head: Params, outer: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(F.linear(outer[0], head["head.weight"], head["head.bias"]), outer[1])

    start = {k: v for k, v in weights.items() if k.startswith("head.")}
    head, gap = descend_implicit(inner, start, (f, y), proximal)
    logits = F.linear(asked, head["head.weight"], head["head.bias"])
    return F.cross_entropy(logits, query_y), logits, gap


def _labelled(task: Task) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert task.support.y is not None and task.query.y is not None
    return task.support.x, task.support.y, task.query.x, task.query.y
