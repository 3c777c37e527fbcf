"""What a client's local step is about: the meta-objective F_i, and how the averaged model becomes personal.

    fine-tune   F_i(w) = CE(w; batch)                                   then a few steps on the client's pictures
    MAML        F_i(w) = CE(w - a grad CE(w; support); query)           the same steps, differentiated through
    Proto       F_i(w) = CE of softmax(-|f_w(query) - class mean|^2)    class means of all the client's pictures

MAML's second-order step and support and query as two batches drawn apart are the paper's (Acar et al., ICML 2021,
after its authors' code), as is Proto on the layer before the head. Ours: pictures of clients that have too few for
a batch come again; Proto draws such that every class asked has support.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import buffers_of, params_of, part, to_float
from selftaught.core.types import Aux, Examples, Params, Task
from selftaught.federated.clients import UNLABELLED, ClientData
from selftaught.learners.heads import distance_logits
from selftaught.learners.inner import Graph, descend, descend_detached


class MetaModel(Protocol):
    """What a client asks of the model, and how it makes the model its own."""

    @property
    def batched(self) -> bool:
        """Whether `loss` and `personal_logits` run for many clients in one `vmap`."""
        ...

    def refusal(self, data: ClientData) -> str | None:
        """Why this client cannot take part, or None."""
        ...

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """What travels: parameters, which are corrected, and statistics, which are only averaged."""
        ...

    def draw(self, data: ClientData, generator: torch.Generator) -> Task:
        """The pictures of one local step; of one shape for all clients where `batched`."""
        ...

    def loss(self, net: nn.Module, params: Params, slow: Params, task: Task) -> tuple[Tensor, Aux]:
        """F_i on one draw."""
        ...

    def refresh(self, net: nn.Module, slow: Params, params: Params, task: Task, aux: Aux) -> Params:
        """Statistics after the step."""
        ...

    def personal_logits(self, net: nn.Module, weights: Params, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """Logits [m N] for `asked` [m ...] after learning from x [n ...], y [n]; a label of -1 teaches nothing."""
        ...


@final
@dataclass(frozen=True)
class FineTuneModel:
    """Ordinary training; personal by `steps` full-batch steps of size `rate`. FedAvg's objective."""

    classes: int
    batch: int = 40
    rate: float = 0.1
    steps: int = 1

    @property
    def batched(self) -> bool:
        return True

    def refusal(self, data: ClientData) -> str | None:
        return _label_refusal(data, self.classes)

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        return travelling(net)

    def draw(self, data: ClientData, generator: torch.Generator) -> Task:
        """`batch` pictures, all of them asked."""
        order = torch.randperm(len(data.y_train), generator=generator)
        batch = examples(data, cycled(order, self.batch))
        return Task(batch, batch, self.classes)

    def loss(self, net: nn.Module, params: Params, slow: Params, task: Task) -> tuple[Tensor, Aux]:
        return cross_entropy(functional_call(net, params, (task.query.x,)), labels(task.query)), Aux()

    def refresh(self, net: nn.Module, slow: Params, params: Params, task: Task, aux: Aux) -> Params:
        return slow

    def personal_logits(self, net: nn.Module, weights: Params, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        return _fine_tuned(net, weights, x, y, asked, self.rate, self.steps)


@final
@dataclass(frozen=True)
class MAMLModel:
    """Second-order MAML of all weights: `steps` of size `rate` on `support` pictures, asked on `query` others.

    `personal_steps` (None: `steps`) of the same size on all of a client's pictures make the model personal.
    """

    classes: int
    support: int = 20
    query: int = 20
    rate: float = 0.1
    steps: int = 1
    first_order: bool = False
    personal_steps: int | None = None

    @property
    def batched(self) -> bool:
        return True

    def refusal(self, data: ClientData) -> str | None:
        if len(data.y_train) < 2:
            return "it has one picture, and MAML needs one to adapt to and another to ask"
        return _label_refusal(data, self.classes)

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        return travelling(net)

    def draw(self, data: ClientData, generator: torch.Generator) -> Task:
        """Support and query without a picture in common; a small client's are shared out in proportion."""
        count = len(data.y_train)
        order = torch.randperm(count, generator=generator)
        cut = self.support
        if count < self.support + self.query:
            cut = min(max(1, round(count * self.support / (self.support + self.query))), count - 1)
        support, query = cycled(order[:cut], self.support), cycled(order[cut:], self.query)
        return Task(examples(data, support), examples(data, query), self.classes)

    def loss(self, net: nn.Module, params: Params, slow: Params, task: Task) -> tuple[Tensor, Aux]:
        def inner(weights: Params, outer: tuple[Tensor, ...]) -> Tensor:
            return cross_entropy(functional_call(net, weights, (task.support.x,)), labels(task.support))

        graph: Graph = "first-order" if self.first_order else "unrolled"
        adapted = descend(inner, params, (), self.rate, self.steps, graph)
        return cross_entropy(functional_call(net, adapted, (task.query.x,)), labels(task.query)), Aux()

    def refresh(self, net: nn.Module, slow: Params, params: Params, task: Task, aux: Aux) -> Params:
        return slow

    def personal_logits(self, net: nn.Module, weights: Params, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        steps = self.steps if self.personal_steps is None else self.personal_steps
        return _fine_tuned(net, weights, x, y, asked, self.rate, steps)


@final
@dataclass(frozen=True)
class ProtoModel:
    """Class means of `net.encoder` on `support` pictures, asked on `query` others by squared distance."""

    classes: int
    support: int = 20
    query: int = 20

    @property
    def batched(self) -> bool:
        return True

    def refusal(self, data: ClientData) -> str | None:
        if not _repeated(data.y_train).any():
            return "no class of it has two pictures: there is no overlap between support and query classes"
        return _label_refusal(data, self.classes)

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        if not isinstance(getattr(net, "encoder", None), nn.Module):
            raise ConfigError(f"{type(net).__name__} has no part `encoder`, on which Proto takes class means")
        params, slow = travelling(net)
        # What lies behind the encoder has no gradient and would only make the parcels larger.
        return {k: v for k, v in params.items() if k.startswith("encoder.")}, slow

    def draw(self, data: ClientData, generator: torch.Generator) -> Task:
        """Every class asked is in the support, no picture in both; classes of one picture are left out."""
        order = torch.randperm(len(data.y_train), generator=generator)
        order = order[_repeated(data.y_train)[order]]
        y = data.y_train[order]
        new = (y[:, None] == y[None, :]).long().argmax(1) == torch.arange(len(y))
        order = torch.cat([order[new], order[~new]])  # the first picture of each class before all others
        share = round(len(order) * self.support / (self.support + self.query))
        cut = min(self.support, max(int(new.sum()), min(share, len(order) - 1)))
        support, rest = order[:cut], order[cut:]
        rest = rest[torch.isin(data.y_train[rest], data.y_train[support])]
        support, rest = cycled(support, self.support), cycled(rest, self.query)
        return Task(examples(data, support), examples(data, rest), self.classes)

    def loss(self, net: nn.Module, params: Params, slow: Params, task: Task) -> tuple[Tensor, Aux]:
        logits = self.personal_logits(net, params, task.support.x, labels(task.support), task.query.x)
        return cross_entropy(logits, labels(task.query)), Aux()

    def refresh(self, net: nn.Module, slow: Params, params: Params, task: Task, aux: Aux) -> Params:
        return slow

    def personal_logits(self, net: nn.Module, weights: Params, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        encoder = net.encoder
        assert isinstance(encoder, nn.Module)
        own = part(weights, "encoder")
        z, queries = (functional_call(encoder, own, (v,)) for v in (x, asked))
        member = (y[:, None] == torch.arange(self.classes, device=y.device)).to(z.dtype)
        count = member.sum(0)
        centres = (member.mT @ z) / count.clamp_min(1)[:, None]
        return distance_logits(queries, centres, "squared").masked_fill(count == 0, -torch.inf)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over the rows [n N] whose label is not -1. torch's own is several times slower under `vmap`."""
    known = (y != UNLABELLED).to(logits.dtype)
    found = F.log_softmax(logits, -1).gather(-1, y.clamp_min(0)[:, None])[:, 0]
    return -(found * known).sum() / known.sum()


def examples(data: ClientData, index: Tensor) -> Examples:
    """The training pictures at `index`, as float."""
    return Examples(to_float(data.x_train[index]), data.y_train[index])


def cycled(index: Tensor, count: int) -> Tensor:
    """The first `count` of `index`, which starts again where it is shorter."""
    return index.repeat(-(-count // len(index)))[:count]


def labels(given: Examples) -> Tensor:
    assert given.y is not None
    return given.y


def travelling(net: nn.Module) -> tuple[Params, Params]:
    """Parameters, no buffers. Raises ConfigError for networks that have buffers."""
    buffers: Iterable[str] = buffers_of(net)
    if found := sorted(buffers):
        raise ConfigError(
            f"the network keeps {found[0]}: batch statistics of different clients do not go together. "
            "Use group or layer normalisation, for example build_encoder('conv4', ..., norm='group')"
        )
    return params_of(net), {}


def _fine_tuned(
    net: nn.Module, weights: Params, x: Tensor, y: Tensor, asked: Tensor, rate: float, steps: int
) -> Tensor:
    def loss(own: Params, outer: tuple[Tensor, ...]) -> Tensor:
        return cross_entropy(functional_call(net, own, (x,)), y)

    return functional_call(net, descend_detached(loss, weights, (), rate, steps), (asked,))


def _repeated(y: Tensor) -> Tensor:
    """[n] whether a picture's class has another picture."""
    return (y[:, None] == y[None, :]).sum(1) > 1


def _label_refusal(data: ClientData, classes: int) -> str | None:
    if bool((data.y_train == UNLABELLED).any()):
        return "it has pictures without a label; use SelfSupervised, or leave these pictures out"
    top = int(torch.cat([data.y_train, data.y_test]).max())
    return f"it has class {top}, and the head only 0 to {classes - 1}" if top >= classes else None
