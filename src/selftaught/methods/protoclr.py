"""ProtoCLR: ProtoNet on tasks whose classes are single unlabelled pictures.

Paper: Medina, Devos, Grossglauser, "Self-Supervised Prototypical Transfer Learning for Few-Shot
Classification" (ProtoTransfer), 2020, arXiv 2006.11325.

    task: N random pictures; support = the picture as it is (its own prototype), query = Q views of each
    loss = ProtoNet's on this N-way 1-shot task

The paper's: N = 50, raw support, three queries, squared distance. Its ProtoTune (a linear layer started from
the prototypes at test time) is not in this file. Our choice: the view recipe of the data at hand, and
`precision` "bfloat16" for the encoder, the loss always in the pictures' own type.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from selftaught.core.functional import buffers_of, params_of
from selftaught.core.precision import Precision
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.prototype import PrototypeLearner
from selftaught.methods.protonet import prototype_loss
from selftaught.nets.heads import EncoderOnly
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class ProtoCLR:
    """`tasks` tasks of `ways` pictures a step, `queries` views of each."""

    tasks: int = 1
    ways: int = 50
    queries: int = 3
    precision: Precision = "float32"

    def source(self, pictures: Pictures, views: Views) -> ViewTasks:
        """Raw support, augmented queries."""
        return ViewTasks(pictures, views, self.tasks, self.ways, 1, self.queries, raw_support=True)

    def network(self, encoder: nn.Module) -> nn.Module:
        """The encoder alone."""
        return EncoderOnly(encoder)

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Mean cross-entropy of the views over the raw pictures' prototypes."""
        return prototype_loss(net, params, slow, tasks, self.precision)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the forward pass left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by squared distance, as in training."""
        return PrototypeLearner(net, distance="squared")
