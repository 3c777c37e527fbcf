"""PsCo: few-shot tasks whose shots are found, not given, among what a slow network saw in earlier batches.

Paper: Jang, Lee, Shin, "Unsupervised Meta-Learning via Few-shot Pseudo-supervised Contrastive Learning",
ICLR 2023, arXiv 2303.00996.

    q = predictor(projector(encoder(strong view))),  k = slow projector(slow encoder(weak view)),  of length one
    A = Sinkhorn(k queue^T) [B L], each row's K largest marked: the pseudo-shots of a B-way K-shot task
    loss = SupCon(q; the marked items of the queue, temperature tau_s)
         + mean of -log exp(q k / tau) / (exp(q k / tau) + sum over the queue of exp(q k' / tau))
    slow weights <- m * slow weights + (1 - m) * weights,  queue <- the newest keys, after every step

The paper's: tasks from a momentum network and a queue, balanced by Sinkhorn-Knopp (epsilon 0.05, three steps),
the sum of both losses with tau_s = 1 and tau = 0.2, strong views for queries and weak ones for keys, the
predictor, and at test time queries through the predictor against a support without it. Our choice: the weak
recipe is the set's own at a share `weak` of its strength; an item that is a shot of several queries is one
candidate, not several; the queue starts empty and grows (the first step takes its own batch's keys in its place);
the trained network, not the slow one, meets new tasks; small heads, m and queue for short runs, no fine-tuning on
other domains. Written from notes on the paper and its recipes; its full text was not at hand.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply, apply_update, buffers_of, params_of, part, prefixed
from selftaught.core.types import Aux, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.learners.asymmetric import AsymmetricLearner
from selftaught.losses.clustering import sinkhorn_codes
from selftaught.losses.momentum_contrast import queue_contrast
from selftaught.losses.pseudo_shots import pseudo_shot_contrast, top_shots
from selftaught.nets.heads import MLP, WithPredictor, WithProjector, width_of
from selftaught.tasks.strong_weak import StrongWeakTasks, weakened


@dataclass(frozen=True)
class PsCo:
    """`shots` is K, `queue` is L, `momentum` m; `batch` is B, pictures and ways of a step's one task.

    Raises ConfigError for fewer than one shot or key, a momentum outside [0, 1] and a share `weak` outside [0, 1].
    """

    shots: int = 1
    queue: int = 1024
    momentum: float = 0.99
    temperature: float = 0.2
    shot_temperature: float = 1.0
    epsilon: float = 0.05
    sinkhorn_steps: int = 3
    weak: float = 0.5
    hidden: int = 256
    out: int = 64
    batch: int = 128

    def __post_init__(self) -> None:
        if self.shots < 1 or self.queue < 1:
            raise ConfigError(f"shots={self.shots}, queue={self.queue}: use at least 1 of both")
        if not 0 <= self.momentum <= 1:
            raise ConfigError(f"momentum={self.momentum} is no average; use a momentum from 0 to 1")
        weakened(Views(), self.weak)

    def source(self, pictures: Pictures, views: Views) -> StrongWeakTasks:
        """One task of the whole batch: a weak support view and a strong query view of each picture."""
        return StrongWeakTasks(pictures, views, weakened(views, self.weak), self.batch)

    def network(self, encoder: nn.Module) -> nn.Module:
        """Encoder, projector and predictor."""
        projector = MLP([width_of(encoder), self.hidden, self.out], norm=True)
        return WithPredictor(encoder, projector, MLP([self.out, self.hidden, self.out], norm=True))

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """Trained numbers; `slow` holds statistics, the slow network and the queue [0..queue out]."""
        params = params_of(net)
        key = {k: v.clone() for k, v in params.items() if not k.startswith("predictor.")}
        queue = next(iter(params.values())).new_zeros((0, self.out))
        return params, buffers_of(net) | prefixed("key", key) | {"queue": queue}

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """Contrast with the pseudo-shots plus contrast with the queue; all tasks are one batch of T*N pictures."""
        weak, strong = tasks.support.x.flatten(0, 1), tasks.query.x.flatten(0, 1)
        statistics = {k: slow[k] for k, _ in net.named_buffers()}
        q, buffers = apply_update(net, params, statistics, strong)
        with torch.no_grad():
            below = WithProjector(net.get_submodule("encoder"), net.get_submodule("projector"))
            k = F.normalize(apply(below, part(slow, "key"), weak, "batch"), dim=-1)
            queue = slow["queue"] if len(slow["queue"]) else k
            member = top_shots(sinkhorn_codes(k @ queue.mT, self.epsilon, self.sinkhorn_steps), self.shots)
        shots = pseudo_shot_contrast(q, queue, member, self.shot_temperature)
        moco = queue_contrast(q, k, queue, self.temperature)
        distinct = member.any(0).sum() / member.sum()  # 1 where no two queries share a shot
        figures = {"shot_loss": shots.detach(), "queue_loss": moco.detach(), "distinct_shots": distinct}
        return shots + moco, Aux(figures, buffers, {"newest": k})

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """Move the slow network towards the trained one; the newest keys enter the queue, the oldest leave."""
        m = self.momentum
        key = {k: m * v + (1 - m) * params[k] for k, v in part(slow, "key").items()}
        queue = torch.cat([slow["queue"], aux.carry["newest"]])[-self.queue :]
        return slow | aux.buffers | prefixed("key", key) | {"queue": queue}

    def learner(self, net: nn.Module) -> AsymmetricLearner:
        """Cosine of the predicted query to the mean projection of each class: the predictor on one side only."""
        return AsymmetricLearner(net)
