"""Reptile: move the start towards where training on a task ends.

Paper: Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018, arXiv 1803.02999.

    w_0 = theta;  w_{k+1} = w_k - alpha * grad CE(w_k; batch k of the support),  k < K
    theta <- theta - beta * mean over tasks of (theta - w_K)

The paper's: the direction theta - w_K handed to an optimiser as if it were a gradient; several steps on different
batches of one task (one alone is joint training); no query in the learning. That direction is the gradient
of half || theta - w_K ||^2 with w_K held constant, and this is what is differentiated here.
Our choice: plain gradient steps (the paper takes Adam without its first moment); the support's shots in turn
as batches, every class in each; one learned head row shared by all classes and inductive evaluation, as in MAML;
the number logged as `loss` is the query's cross-entropy after adaptation, which the direction does not see.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import buffers_of, params_of, set_norm
from selftaught.core.over_tasks import Path, over_tasks
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.gradient import GradientLearner, norm_when, spread_head
from selftaught.learners.inner import descend_detached
from selftaught.losses.matching import half_squared_distance
from selftaught.losses.straight_through import straight_through
from selftaught.nets.heads import WithClassifier, width_of
from selftaught.nets.split import statistics_after
from selftaught.tasks.episodes import EpisodeSource


@dataclass(frozen=True)
class Reptile:
    """K = `inner_steps` at `inner_rate`, each on `step_shots` pictures a class. Needs labelled pictures.

    Raises ConfigError below two steps: from equal head rows the first one moves nothing but the head.
    """

    inner_steps: int = 5
    inner_rate: float = 0.1
    step_shots: int = 1
    test_steps: int = 10
    path: Path = "auto"
    memory_mib: float | None = None
    tasks: int = 5
    ways: int = 5
    shots: int = 5
    queries: int = 5

    def __post_init__(self) -> None:
        if self.inner_steps < 2 or self.step_shots < 1:
            raise ConfigError(
                f"Reptile needs inner_steps >= 2 and step_shots >= 1, got {self.inner_steps} and {self.step_shots}"
            )

    def source(self, pictures: Pictures, views: Views) -> EpisodeSource:
        """Labelled episodes; the views are not used, the queries only for the log and the running statistics."""
        return EpisodeSource(pictures, self.ways, self.shots, self.queries, self.tasks)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder and linear head."""
        return WithClassifier(encoder, width_of(encoder))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Value: mean query cross-entropy after adaptation. Gradient: mean of theta - w_K."""
        set_norm(net, "batch")

        def one_task(net: nn.Module, params: Params, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
            weights = spread_head(params, task.ways)
            end = trained(net, weights, task, self.inner_steps, self.inner_rate, self.step_shots)
            moved = half_squared_distance(weights, end)
            with torch.no_grad():
                logits = functional_call(net, end, (task.query.x,))
                assert task.query.y is not None
                asked = F.cross_entropy(logits, task.query.y)
                accuracy = (logits.argmax(-1) == task.query.y).float().mean()
            return straight_through(asked, moved), {"query_accuracy": accuracy, "moved": moved.detach()}

        loss, figures = over_tasks(one_task, net, params, tasks, path=self.path, memory_mib=self.memory_mib)
        return loss, Aux(figures)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Running statistics move by one pass over the query pictures of all tasks."""
        return statistics_after(net, params, slow, tasks.query.x.flatten(0, 1))

    def learner(self, net: nn.Module) -> GradientLearner:
        """The same steps on the whole support, `test_steps` of them; statistics are the support's."""
        return GradientLearner(net, self.test_steps, self.inner_rate, norm=norm_when("all"))


def trained(net: nn.Module, weights: Params, task: Task, steps: int, rate: float, step_shots: int) -> Params:
    """w_K, a constant: step k on `step_shots` shots of every class, where step k - 1 left off, round and round."""
    assert task.support.y is not None
    x, y = (rows.unflatten(0, (-1, task.ways)) for rows in (task.support.x, task.support.y))

    def inner(w: Params, batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(functional_call(net, w, (batch[0],)), batch[1])

    each = min(step_shots, len(x))
    for step in range(steps):
        shots = [i % len(x) for i in range(step * each, (step + 1) * each)]
        weights = descend_detached(inner, weights, (x[shots].flatten(0, 1), y[shots].flatten()), rate, 1)
    return weights
