"""NeuronML: MAML in which every task opens its own units, as many as a budget allows.

Paper: Wang, Guo, Qiang, Li, Zheng, Xiong, Hua, "Neuromodulated Meta-Learning", 2024, arXiv 2411.06746.

    w_0 = M theta;  w_{k+1} = w_k - alpha M grad CE(w_k; support),  k < K;  M = M(phi; support) a constant here
    level 1   theta <- theta - beta grad_theta mean over tasks of CE(w_K; query)                  M held fixed
    level 2   phi <- phi - beta grad_phi [the same + l_fr L_fr + l_pl L_pl + l_se L_se]           theta held fixed

The paper's: masked weights, both levels, frugality, plasticity and sensitivity, with weights in [0.1, 1]. Its text
was known second-hand only; as written it cannot be trained. Our choice, repair by repair:

1. Sensitivity: log(s / S) is nan for negative slopes. Ours: magnitudes with a floor; a unit's is the mean over the
   weights that leave it, at w_K on the support (at w_0 all classes share a head row: no slope below it).
2. Frugality: the bound max(C, gamma d log(N_i / d)) is C for any network with more weights than pictures. Ours: a
   constant `budget`, the largest share of open units in a layer.
3. Plasticity: the indicator "open in both" has no gradient, and one M for all tasks cannot differ between them.
   Ours: the product M_i M_j, gates from each task's mean support features, importance as a running mean.
4. L_structure alone is least with all closed. Ours: the task's loss stays in level 2, the budget is a hard top-k,
   a layer's best unit is always open. M = 1 where score > 0 and in the budget, with sigmoid(score / tau)'s slope.
5. Masks on units, behind normalisation and ReLU, not on weights: feature maps of Conv4, features of any other
   encoder. Biases, normalisation and the classes' rows have no gates.
6. L_fr is the share of open gates. The L1 norm of M theta would shrink weights and close nothing.

Both levels are taken in one step, from one pass. Head, statistics and graphs are MAML's.
"""

from dataclasses import dataclass
from typing import Literal

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
from selftaught.learners.closed_form import closed_form, loss_and_logits, rules_for
from selftaught.learners.gated import GatedLearner, MaskedRules, task_scores, task_summary, unit_slopes
from selftaught.learners.gradient import spread_head
from selftaught.learners.inner import FusedGraph, descend, runs_batched
from selftaught.losses.straight_through import straight_through
from selftaught.losses.structure import frugality, overlap, plasticity, relative_sensitivity, sensitivity
from selftaught.nets.conv4_closed import laid_out
from selftaught.nets.gates import by_layer, gated_statistics, layers_of, masked, masks, opened, with_gates
from selftaught.tasks.episodes import EpisodeSource


@dataclass(frozen=True)
class NeuronML:
    """K = `inner_steps` at `inner_rate`; `gates` for each task, one set `shared` by all, or a `fixed` random one.

    Raises ConfigError for a budget outside (0, 1] or a temperature (tau) not above 0."""

    inner_steps: int = 5
    inner_rate: float = 0.1
    test_steps: int = 10
    gates: Literal["task", "shared", "fixed"] = "task"
    budget: float = 0.5
    temperature: float = 1.0
    frugality: float = 0.1
    plasticity: float = 0.1
    sensitivity: float = 0.1
    graph: FusedGraph = "auto"
    path: Path = "auto"
    memory_mib: float | None = None
    tasks: int = 4
    ways: int = 5
    shots: int = 1
    queries: int = 15

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1 or self.temperature <= 0:
            raise ConfigError("NeuronML: use a budget above 0 and at most 1, and a temperature above 0")

    def source(self, pictures: Pictures, views: Views) -> EpisodeSource:
        """Labelled episodes; the views are not used."""
        return EpisodeSource(pictures, self.ways, self.shots, self.queries, self.tasks)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder, linear head and gates."""
        return with_gates(encoder, per_task=self.gates == "task")

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """`slow`: normalisation statistics, the usual summary of a task, each unit's importance."""
        return params_of(net), buffers_of(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Mean query cross-entropy after adaptation, and the structure loss, which reaches gates only."""
        layers = layers_of(net.get_submodule("encoder"))
        summary = task_summary(net, params | slow, tasks.support.x)
        scores = task_scores(net, params | slow, summary)
        scores = scores.detach() if self.gates == "fixed" else scores
        hard = torch.cat([opened(s, self.budget) for s in by_layer(scores, layers)], -1)
        gates = straight_through(hard, torch.sigmoid(scores / self.temperature))
        set_norm(net, "batch")
        theta = {k: v for k, v in params.items() if not k.startswith("gates.")}
        batchable, limit = runs_batched(self.graph), self.memory_mib
        loss, figures = over_tasks(
            self._one_task, net, theta, (tasks, gates), path=self.path, batchable=batchable, memory_mib=limit
        )
        carry = {"open": hard, "summary": summary.mean(0), "importance": figures.pop("relative")}
        kept = by_layer(slow["gates.importance"], layers)
        apart = torch.stack([plasticity(m, p) for m, p in zip(by_layer(gates, layers), kept, strict=True)]).mean()
        structure = self.frugality * frugality(gates) + self.plasticity * apart
        figures |= {"active": hard.mean(), "overlap": overlap(hard), "plasticity": apart.detach()}
        return loss + structure, Aux({k: v.detach() for k, v in figures.items()}, carry=carry)

    def _one_task(self, net: nn.Module, theta: Params, both: tuple[Task, Tensor]) -> tuple[Tensor, Params]:
        (task, gates), layers = both, layers_of(net.get_submodule("encoder"))
        x, y, asked, answers = task.support.x, task.support.y, task.query.x, task.query.y
        assert y is not None and answers is not None
        weights = spread_head(theta, task.ways)
        closing, rules = masks(gates.detach(), layers, weights), rules_for(self.graph, net, x, y)

        def inner(w: Params, outer: tuple[Tensor, ...]) -> Tensor:
            return F.cross_entropy(functional_call(net, masked(w, closing), (x,)), y)

        start = masked(weights, masks(gates, layers, weights))
        if rules is None:
            w = descend(inner, start, (), self.inner_rate, self.inner_steps, self.graph)
            logits = functional_call(net, w, (asked,))
            loss = F.cross_entropy(logits, answers)
        else:
            own = MaskedRules(rules, closing)
            w = descend(inner, laid_out(start), (), self.inner_rate, self.inner_steps, self.graph, own)
            loss, logits = loss_and_logits(closed_form(net, asked, answers), w)
        slopes = by_layer(
            unit_slopes(lambda w: F.cross_entropy(functional_call(net, w, (x,)), y), w, layers), layers
        )
        relative = [relative_sensitivity(s) for s in slopes]
        each = zip(by_layer(gates, layers), relative, strict=True)
        missed = torch.stack([sensitivity(m, r) for m, r in each]).mean()
        figures = {"query_loss": loss, "query_accuracy": (logits.argmax(-1) == answers).float().mean()}
        figures |= {"sensitivity": missed, "relative": torch.cat(relative)}
        return loss + self.sensitivity * missed, figures

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Statistics by one pass over all queries with their tasks' gates; summary and importance move a tenth."""
        slow = gated_statistics(net, params, slow, tasks.query.x, aux.carry["open"])
        moved = {"gates.centre": aux.carry["summary"], "gates.importance": aux.carry["importance"]}
        return slow | {k: torch.lerp(slow[k], v, 0.1) for k, v in moved.items()}

    def learner(self, net: nn.Module) -> GatedLearner:
        """Gates from the new task's support, then the same inner loop with `test_steps` steps."""
        return GatedLearner(net, self.budget, self.test_steps, self.inner_rate)
