"""UMTRA: MAML on tasks that are made of single pictures and their augmentations.

Paper: Khodadadeh, Boloni, Shah, "Unsupervised Meta-Learning for Few-Shot Image Classification", NeurIPS 2019,
arXiv 1811.11819.

    task: N random pictures, label = position; support = the pictures as they are, query = one view of each
    then MAML on these tasks: adapt on the support, ask the query

The paper's: tasks, second-order MAML, raw support. Our choice: the shared head row and the inductive
statistics of `maml.py`, mean losses (the paper's released code sums, so its rate is not ours), the view
recipe of the data at hand instead of the paper's.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from selftaught.core.functional import buffers_of, params_of, set_norm
from selftaught.core.over_tasks import Path
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.gradient import GradientLearner, norm_when
from selftaught.learners.inner import FusedGraph
from selftaught.methods.maml import adapted_query_loss
from selftaught.nets.heads import WithClassifier, width_of
from selftaught.nets.split import statistics_after
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class UMTRA:
    """`tasks` tasks of `ways` pictures a step, `queries` views of each; the inner loop as in `MAML`."""

    inner_steps: int = 1
    inner_rate: float = 0.05
    test_steps: int = 50
    moving: Literal["all", "head"] = "all"
    graph: FusedGraph = "auto"
    path: Path = "auto"
    memory_mib: float | None = None
    tasks: int = 8
    ways: int = 5
    queries: int = 1

    def source(self, pictures: Pictures, views: Views) -> ViewTasks:
        """Raw support, augmented queries."""
        return ViewTasks(pictures, views, self.tasks, self.ways, 1, self.queries, raw_support=True)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder and linear head."""
        return WithClassifier(encoder, width_of(encoder))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Mean query cross-entropy after adaptation to the raw pictures."""
        set_norm(net, "batch")
        return adapted_query_loss(self, net, params, tasks)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Running statistics move by one pass over the query views of all tasks."""
        return statistics_after(net, params, slow, tasks.query.x.flatten(0, 1))

    def learner(self, net: nn.Module) -> GradientLearner:
        """The same inner loop, with `test_steps` steps; statistics are the support's where the encoder moves."""
        return GradientLearner(net, self.test_steps, self.inner_rate, self.moving, norm_when(self.moving))
