"""ProtoNet: the class mean in an embedding is the classifier.

Paper: Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017, arXiv 1703.05175.

    c_n = mean of the support embeddings of class n
    loss = mean over queries of -log softmax_n( -|| f(x) - c_n ||^2 )[y]

The paper's: everything in the formula; training with more ways than testing helps (its section 3).
Our choice: support and query of an episode go through the encoder in one pass, so they share batch statistics.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftaught.core.functional import apply_update, buffers_of, params_of
from selftaught.core.over_tasks import over_tasks
from selftaught.core.precision import Precision, encoding
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.heads import prototypes
from selftaught.learners.prototype import PrototypeLearner
from selftaught.losses.contrastive import cross_entropy, squared_distance_logits
from selftaught.nets.heads import EncoderOnly
from selftaught.tasks.episodes import EpisodeSource


@dataclass(frozen=True)
class ProtoNet:
    """`tasks` episodes a step. Needs labelled pictures."""

    tasks: int = 1
    ways: int = 20
    shots: int = 1
    queries: int = 5

    def source(self, pictures: Pictures, views: Views) -> EpisodeSource:
        """Labelled episodes; the views are not used."""
        return EpisodeSource(pictures, self.ways, self.shots, self.queries, self.tasks)

    def network(self, encoder: nn.Module) -> nn.Module:
        """The encoder alone."""
        return EncoderOnly(encoder)

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Mean cross-entropy of the queries over the support's prototypes."""
        return prototype_loss(net, params, slow, tasks)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the forward pass left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by squared distance."""
        return PrototypeLearner(net, distance="squared")


def prototype_loss(
    net: nn.Module, params: Params, slow: Params, tasks: Task, precision: Precision = "float32"
) -> tuple[Tensor, Aux]:
    """The loss above for labelled episodes and for view tasks alike; each task is normalised by its own batch,
    and the running averages move by the mean over tasks."""

    def one_task(net: nn.Module, params: Params, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = torch.cat([task.support.x, task.query.x]), task.query.y
        assert y is not None
        with encoding(precision, x.device):
            z, moved = apply_update(net, params, slow, x)
        support, query = z.to(x.dtype).tensor_split([len(task.support.x)])
        logits = squared_distance_logits(query, prototypes(support, task.ways, task.support.y))
        right = (logits.argmax(-1) == y).float().mean()
        averages = {k: v for k, v in moved.items() if v.is_floating_point()}
        return cross_entropy(logits, y), {"query_accuracy": right} | averages

    loss, found = over_tasks(one_task, net, params, tasks, batchable=False)
    seen = {k: v + 1 for k, v in slow.items() if not v.is_floating_point()}  # batches counted by torch
    return loss, Aux({"query_accuracy": found.pop("query_accuracy")}, slow | found | seen)
