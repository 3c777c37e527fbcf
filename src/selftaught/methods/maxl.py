"""MAXL: learn beside an auxiliary task whose labels are made so that the primary task gains.

Paper: Liu, Davison, Johns, "Self-Supervised Generalisation with Meta Auxiliary Learning", NeurIPS 2019,
arXiv 1901.08933.

    a(x, y)  = masked softmax of the generator's logits: a label among the `subclasses` of the primary class y
    step 1     theta1 <- theta1 - rate * grad [ focal(primary(x), y) + focal(auxiliary(x), a(x, y)) ]
    look ahead theta1+ = theta1 - alpha * that gradient, as a function of theta2 through a
    step 2     theta2 <- theta2 - rate * grad [ focal(primary(x'; theta1+), y') + lambda * H ]
               H = sum_k m_k log m_k,  m = mean label of the batch

theta1 is the multi-task network, theta2 the label generator; both are `params`, and the loss is the sum of both
objectives, each with the other's numbers held constant, so that one backward pass composes the two gradients.
The paper's: the two steps, the mask, focal loss for both tasks, H and lambda, alpha, a generator of the same
architecture. Its text takes x' from a tenth of the training set that is held out, its released code from the
same training set: `data`. The released code's second form takes a central difference in place of the second
derivative, and there loses the gradient of H; here both forms have it.
Our choice: both steps from the same point on the same batch, so that the look-ahead is from where step 1
starts (the code alternates epochs); one optimiser for both, no weight decay of its own for the generator;
a mask of -inf; generated labels normalised by their batch.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply, apply_update, buffers_of, params_of, part, prefixed
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.differences import look_ahead_by_differences
from selftaught.learners.inner import descend
from selftaught.learners.prototype import PrototypeLearner
from selftaught.losses.auxiliary import focal_loss, masked_softmax, mean_label_negentropy, subclass_mask
from selftaught.nets.multi_task import MultiTask
from selftaught.tasks.batches import LabelledBatches


@dataclass(frozen=True)
class MAXL:
    """psi = `subclasses` of each primary class, alpha = `inner_rate`, lambda = `entropy`, gamma = `focal`.

    `classes` is at least the number of primary classes of the pictures. Needs labelled pictures.
    """

    classes: int = 20
    subclasses: int = 5
    inner_rate: float = 0.01
    entropy: float = 0.2
    focal: float = 2.0
    hypergradient: Literal["second-order", "finite-difference"] = "second-order"
    data: Literal["held-out", "same"] = "same"
    held_out: float = 0.1
    batch: int = 100

    def __post_init__(self) -> None:
        if self.classes < 2 or self.subclasses < 1:
            raise ConfigError(f"MAXL: use classes >= 2 and subclasses >= 1, got {self.classes}, {self.subclasses}")

    def source(self, pictures: Pictures, views: Views) -> LabelledBatches:
        """Batches with the labels of the whole set. Raises ConfigError where it has more than `classes`."""
        held_out = self.held_out if self.data == "held-out" else 0.0
        source = LabelledBatches(pictures, views, self.batch, held_out)
        if source.classes > self.classes:
            raise ConfigError(
                f"the pictures have {source.classes} classes: use maxl with classes={source.classes}"
            )
        return source

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder, primary and auxiliary head; the generator on an encoder of its own."""
        return MultiTask(encoder, self.classes, self.classes * self.subclasses)

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Step 1's objective plus step 2's. The first has a gradient for theta1 alone, the second for theta2."""
        assert tasks.support.y is not None and tasks.query.y is not None
        x, y = tasks.support.x.flatten(0, 1), tasks.support.y.flatten()
        labels, generated = self.generate(net, params, slow, x, y)
        theta = _without_generator(params)
        logits, moved = apply_update(net, theta, _without_generator(slow), x)
        primary, auxiliary = self.primary(logits, y), self.auxiliary(logits, labels.detach())
        query = tasks.query.x.flatten(0, 1), tasks.query.y.flatten()
        ahead = self.look_ahead(net, {k: v.detach() for k, v in theta.items()}, (x, y, labels), query)
        negentropy = mean_label_negentropy(labels)
        right = (logits[:, : self.classes].argmax(-1) == y).float().mean()
        figures = {"primary": primary, "auxiliary": auxiliary, "ahead": ahead, "label_entropy": -negentropy}
        metrics = {k: v.detach() for k, v in figures.items()} | {"primary_accuracy": right}
        loss = primary + auxiliary + ahead + self.entropy * negentropy
        return loss, Aux(metrics, moved | prefixed("generator", generated))

    def generate(
        self, net: nn.Module, params: Params, slow: Params, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Params]:
        """Labels [B K] for pictures [B C H W] of classes `y` [B], and the generator's statistics afterwards."""
        own = net.get_submodule("generator")
        logits, moved = apply_update(own, part(params, "generator"), part(slow, "generator"), x)
        return masked_softmax(logits, subclass_mask(y, self.classes, self.subclasses)), moved

    def look_ahead(
        self, net: nn.Module, theta: Params, train: tuple[Tensor, Tensor, Tensor], query: tuple[Tensor, Tensor]
    ) -> Tensor:
        """focal(primary(x'), y') at theta1+, from a constant theta1; a gradient for the labels in `train` alone.

        Every pass is normalised by its batch and leaves the running statistics where they are.
        """
        x, y, labels = train

        def inner(w: Params, outer: tuple[Tensor, ...]) -> Tensor:
            logits = apply(net, w, x, "batch")
            return self.primary(logits, y) + self.auxiliary(logits, outer[0])

        def asked(w: Params, outer: tuple[Tensor, ...]) -> Tensor:
            return self.primary(apply(net, w, query[0], "batch"), query[1])

        if self.hypergradient == "finite-difference":
            return look_ahead_by_differences(inner, asked, theta, (labels,), self.inner_rate)
        return asked(descend(inner, theta, (labels,), self.inner_rate, 1, "unrolled"), ())

    def primary(self, logits: Tensor, y: Tensor) -> Tensor:
        """Focal loss of the first `classes` logits [B M+K]."""
        target = subclass_mask(y, self.classes, 1).to(logits.dtype)
        return focal_loss(logits[:, : self.classes], target, self.focal)

    def auxiliary(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Focal loss of the other logits against generated labels [B K]; the softmax is over all K."""
        return focal_loss(logits[:, self.classes :], labels, self.focal)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as step 1 and the generator left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the encoder's output; the generator and both heads are left behind."""
        return PrototypeLearner(net, distance="cosine")


def _without_generator(tensors: Params) -> Params:
    return {k: v for k, v in tensors.items() if not k.startswith("generator.")}
