"""BMSSL: bootstrapped meta self-supervised learning, where the model a few steps ahead teaches itself.

Paper: Wang, Song, Qiang, Zheng, "Bootstrapped Meta Self-Supervised Learning", arXiv 2308.14267; the target
follows Flennerhag et al., "Bootstrapped Meta-Learning", ICLR 2022, arXiv 2109.04504.

    task i      N pictures, each its own class; S support views and Q query views of each
    level 1     w_0 = the learned start;  w_{k+1} = w_k - alpha * grad NT-Xent(w_k; support),  k < K
    target      from w_K: L - 1 more such steps, then one step on the query loss; a constant w~
    level 2     theta <- theta - beta * grad mean_i [ b * mu(w~_i, w_K,i(theta)) + c * contrast(w_K,i) ]
                mu = KL between the posteriors of query views over the task's N prototypes (mean support views);
                contrast = NT-Xent over all views, or InfoNCE of the query views against the prototypes

The paper's (abstract and introduction): tasks reconstructed from unlabelled pictures, the bi-level loop, and
the model's own meta-gradient target. Our choice, since its full text and code were not at hand: the formula
in exactly this form, what moves in level 1 (`adapt`), the contrastive term, all values, `precision` (encoder's).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.core.functional import buffers_of, params_of, set_norm
from selftaught.core.over_tasks import Path, over_tasks
from selftaught.core.precision import Precision, encoding
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.inner import Graph, InnerLoss, descend, descend_detached, runs_batched
from selftaught.learners.projector import AnyNet, Embedding, projector_of
from selftaught.learners.prototype import PrototypeLearner
from selftaught.losses.contrastive import cross_entropy, similarity_logits, view_means
from selftaught.losses.matching import half_squared_distance, kl_from_target, kl_to_target
from selftaught.nets.heads import MLP, WithProjector, width_of
from selftaught.nets.split import Adapt, adapted_part, shared_features, statistics_after
from selftaught.tasks.views import ViewTasks


@dataclass(frozen=True)
class BMSSL:
    """K = `inner_steps` at `inner_rate`; L = `bootstrap_steps`; mu = `matching`; c = `contrastive`.

    `target_rate` is the size of the last target step (None: the inner rate); `bootstrap` weighs mu. `graph` says
    how level 2 passes through level 1, `path` how tasks run (None: at once for a head, else by device). Raises
    ConfigError where no term has a gradient, and for a low `precision` where level 1 moves the encoder.
    """

    adapt: Adapt = "head"
    inner_steps: int = 1
    inner_rate: float = 0.01
    bootstrap_steps: int = 5
    target_rate: float | None = None
    matching: Literal["kl", "kl-reverse", "l2"] = "kl"
    bootstrap: float = 0.3
    contrastive: float = 1.0
    outer: Literal["info-nce", "nt-xent"] = "nt-xent"
    temperature: float = 0.1
    hidden: int = 256
    out: int = 64
    graph: Graph = "auto"
    path: Path | None = None
    tasks: int = 1
    ways: int = 32
    support_views: int = 2
    query_views: int = 2
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.bootstrap_steps < 0 or self.inner_steps < 0:
            raise ConfigError("BMSSL: steps cannot be negative")
        if self.contrastive == 0 and (self.bootstrap_steps == 0 or self.bootstrap == 0):
            raise ConfigError("BMSSL: the gradient is zero; use contrastive or bootstrap and bootstrap_steps > 0")
        if self.precision != "float32" and self.adapt != "head":
            raise ConfigError("BMSSL: steps of the encoder need precision='float32'; others go with adapt='head'")

    def source(self, pictures: Pictures, views: Views) -> ViewTasks:
        """`tasks` tasks of `ways` pictures, each in S support and Q query views."""
        return ViewTasks(pictures, views, self.tasks, self.ways, self.support_views, self.query_views)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder and projector."""
        return WithProjector(encoder, MLP([width_of(encoder), self.hidden, self.out]))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The skeleton's numbers; `slow` holds only normalisation statistics."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """What does not depend on the task runs once for all views, levels 1 and 2 per task (or all at once)."""
        x = torch.cat([tasks.support.x, tasks.query.x], 1)  # [T (S+Q)*N C H W]
        with encoding(self.precision, x.device):
            h, buffers = shared_features(net, params, slow, x.flatten(0, 1), self.adapt)
        h = h.to(x.dtype).unflatten(0, x.shape[:2])
        own, moving = adapted_part(net, params, self.adapt)
        set_norm(own, "batch")
        rows, batchable = tasks.support.x.shape[1], runs_batched(self.graph)
        head = projector_of(own) if self.adapt == "head" and batchable and self.path is None else None
        if head is not None:
            starts = {k: v.expand(len(h), *v.shape) for k, v in moving.items()}
            loss, figures = self.levels(head, starts, h[:, :rows], h[:, rows:], tasks.ways)
            return loss, Aux({k: v.detach() for k, v in figures.items()}, buffers)

        def one_task(own: nn.Module, start: Params, h: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return self.levels(AnyNet(own), start, h[:rows], h[rows:], tasks.ways)

        path = self.path or ("batched" if self.adapt == "head" and batchable else "auto")
        loss, figures = over_tasks(one_task, own, moving, h, path=path, batchable=batchable)
        return loss, Aux(figures, statistics_after(own, moving, buffers, h.flatten(0, 1)))

    def levels(
        self, own: Embedding, start: Params, support: Tensor, query: Tensor, ways: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Levels 1 and 2: features [*T S*N ...], [*T Q*N ...] -> outer loss and figures, means over T."""

        def posterior(w: Params, support: Tensor, query: Tensor) -> Tensor:
            centres = view_means(own.embed(w, support), ways)
            return similarity_logits(own.embed(w, query), centres, self.temperature)

        inner = own.nt_xent(ways, self.temperature)
        adapted = descend(inner, start, (support,), self.inner_rate, self.inner_steps, self.graph)
        logits = posterior(adapted, support, query)  # [*T Q*N N]
        count = logits[..., 0, 0].numel()
        y = torch.arange(ways, device=query.device).repeat(count * logits.shape[-2] // ways)
        contrast = cross_entropy(logits, y)
        if self.outer == "nt-xent":
            contrast = inner(adapted, (torch.cat([support, query], logits.ndim - 2),)) / count
        loss, figures = self.contrastive * contrast, {"contrastive": contrast}
        if self.bootstrap_steps:
            x = (support.detach(), query.detach())
            target = self._target(inner, lambda w, x: count * cross_entropy(posterior(w, *x), y), adapted, x)
            match = {"kl": kl_to_target, "kl-reverse": kl_from_target}.get(self.matching)
            gap = match(logits, posterior(target, *x)) if match else half_squared_distance(adapted, target) / count
            loss, figures = loss + self.bootstrap * gap, figures | {"bootstrap": gap}
        return loss, figures

    def _target(self, inner: InnerLoss, outer: InnerLoss, w: Params, fixed: tuple[Tensor, Tensor]) -> Params:
        """L - 1 more inner steps, then one on the query loss, which ties the target to what is asked."""
        w = descend_detached(inner, w, fixed[:1], self.inner_rate, self.bootstrap_steps - 1)
        rate = self.inner_rate if self.target_rate is None else self.target_rate
        return descend_detached(outer, w, fixed, rate, 1)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics as the loss left them."""
        return aux.buffers

    def learner(self, net: nn.Module) -> PrototypeLearner:
        """Nearest class mean by cosine on the encoder's output."""
        return PrototypeLearner(net, distance="cosine")
