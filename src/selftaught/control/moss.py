"""MoSS: act on a belief about which task it is, learned by reconstruction and by telling tasks apart.

Paper: Wang, Bing, Yao, Wang, Su, Yang, Huang, Knoll, "Meta-Reinforcement Learning Based on Self-Supervised Task
Representation Learning", AAAI 2023, arXiv 2305.00286. Read were its abstract and introduction, not its equations;
no code of the authors was found.

    belief     h_t = GRU(h_{t-1}, transition t),  b_t = q(y | h_t) q(z | y, h_t), a mixture of K Gaussians
    inference  sum_k q(y=k) [ error of reward and movement decoded from z_k + a KL(q(z|k) || p(z|k)) ]
               + b KL(mean q(y) || uniform) + c contrast of two windows of an episode with those of other tasks
    policy     SAC on observation and b_t; its gradients end at the belief; one replay for all of it

The paper's: the two modules, the Gaussian mixture, the belief renewed at every transition, reconstruction and
contrast, an off-policy agent that sees the distribution. Ours: everything else, as the sum over components in
place of sampling y, the KL of the mean of q(y), the moments by which the policy sees the mixture, one step.

Baselines are the same code by one option, `context`: "belief" is MoSS, "recurrent" the GRU trained by the critics'
loss alone (after RL2), "none" is SAC, "task" an oracle that is shown the task.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.control.families import Family
from selftaught.control.networks import (
    Belief,
    BeliefHead,
    Decoder,
    Recurrence,
    TwinCritic,
    gaussian_action,
    layers,
)
from selftaught.control.objectives import component_kl, mean_categorical_kl, soft_target, task_contrast
from selftaught.control.replay import Episodes
from selftaught.core.errors import ConfigError
from selftaught.core.functional import params_of, part, prefixed
from selftaught.core.types import Aux, Params

Context = Literal["belief", "recurrent", "none", "task"]
_COUNTS = ("worlds", "updates", "batch", "capacity")


@dataclass(frozen=True)
class MoSS:
    """Sizes, weights of the losses, and how much is collected and learned in one iteration.

    An iteration plays `worlds` episodes and takes `updates` steps on `batch` replayed episodes each. `change` is
    the share of training episodes in which the task changes once. Raises ConfigError for options out of range.
    """

    context: Context = "belief"
    components: int = 4
    latent: int = 4
    hidden: int = 64
    recurrent: int = 32
    kl: float = 0.01
    balance: float = 0.1
    contrast: float = 0.1
    contrast_temperature: float = 0.2
    window: int = 6
    looks: int = 4
    decoded: int = 6
    prior_log_var: float = -1.4
    discount: float = 0.95
    polyak: float = 0.01
    temperature: float = 0.1
    rate: float = 3e-3
    worlds: int = 16
    updates: int = 30
    batch: int = 16
    capacity: int = 2000
    change: float = 0.3

    def __post_init__(self) -> None:
        for name in ("components", "latent", "hidden", "recurrent", "window", "looks", "decoded", *_COUNTS):
            if getattr(self, name) < 1:
                raise ConfigError(f"MoSS: {name}={getattr(self, name)}, it must be 1 or more")
        if not (0 < self.discount < 1 and 0 < self.polyak <= 1 and 0 <= self.change <= 1):
            raise ConfigError("MoSS: discount lies between 0 and 1, polyak in 0..1 above 0, change in 0..1")
        if self.context not in ("belief", "recurrent", "none", "task"):
            raise ConfigError(f"MoSS: context={self.context!r}; there are belief, recurrent, none and task")

    def width(self, family: Family) -> int:
        """C, numbers of context beside an observation."""
        belief = self.components + 2 * self.latent
        return {"belief": belief, "recurrent": belief, "none": 0, "task": family.parameters}[self.context]

    def network(self, family: Family, seed: int) -> nn.ModuleDict:
        """The skeleton with its starting numbers."""
        o, a, c, d = family.observations, family.actions, self.width(family), self.hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.ModuleDict({"actor": layers([o + c, d, d, 2 * a]), "critic": TwinCritic(o + c + a, d)})
            if self.context in ("belief", "recurrent"):
                net["gru"] = Recurrence(2 * o + a + 2, self.recurrent)
            if self.context == "recurrent":
                net["summary"] = nn.Linear(self.recurrent, c)
            if self.context == "belief":
                net["head"] = BeliefHead(self.recurrent, self.components, self.latent)
                net["decoder"] = Decoder(o + a, self.latent, d, 1 + o)
                net["projector"] = nn.Linear(c, d)
        return net

    def init(self, net: nn.ModuleDict) -> tuple[Params, Params]:
        """Parameters with SAC's log temperature, and the target critics."""
        params = params_of(net) | {"log_temperature": torch.tensor(math.log(self.temperature))}
        return params, prefixed("target", {k: v.clone() for k, v in part(params, "critic").items()})

    def loss(
        self, net: nn.ModuleDict, params: Params, slow: Params, played: Episodes, generator: torch.Generator
    ) -> tuple[Tensor, Aux]:
        """All losses on `played` [B H ...] in one sum; each moves its own part, detached from the others."""
        x = normalised(slow, played)
        context, belief = contexts(self, net, params, x, played.tasks)
        metrics: dict[str, Tensor] = {}
        total = torch.zeros(())
        if belief is not None:
            inference, metrics = self.inference(net, params, x, played.ids, belief, generator)
            total = total + inference
        sac, more = self.sac(net, params, slow, x, context, generator)
        return total + sac, Aux({k: v.detach() for k, v in (metrics | more).items()})

    def inference(
        self, net: nn.ModuleDict, params: Params, x: "Normal", ids: Tensor, belief: Belief, g: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction, divergences and contrast; `belief` holds H + 1 of them for each episode."""
        count, steps = x.rewards.shape
        # Beliefs at a few moments explain a few transitions each, earlier and later ones, of the task of the last
        # transition they saw; no belief saw more than those before its moment.
        at = torch.randint(steps + 1, (count, self.looks), generator=g)
        told = torch.randint(steps, (count, self.looks * self.decoded), generator=g)
        row, split = torch.arange(count)[:, None], (self.looks, self.decoded)
        log_y, mean, log_var = (v[row, at] for v in (belief.log_y, belief.mean, belief.log_var))
        z = mean + (log_var / 2).exp() * torch.randn(mean.shape, generator=g)
        inputs = torch.cat([x.seen[row, told], x.actions[row, told]], -1).unflatten(1, split)
        truth = torch.cat([x.rewards[row, told][..., None], x.moves[row, told]], -1).unflatten(1, split)
        shape = (*z.shape[:3], self.decoded)
        pairs = [inputs[:, :, None].expand(*shape, -1), z[:, :, :, None].expand(*shape, -1)]
        error = (call(net, params, "decoder", *pairs) - truth[:, :, None]).square()
        mine = (ids[row, told].unflatten(1, split) == ids[row, (at - 1).clamp(min=0)][..., None])[:, :, None]
        error = (error[..., 0] + error[..., 1:].mean(-1)) / 2 * mine
        error = error.sum(-1) / mine.sum(-1).clamp(min=1)
        prior = component_kl(mean, log_var, params["head.prior"], self.prior_log_var)
        y = log_y.exp()
        parts = {
            "reconstruction": (y * error).sum(-1).mean(),
            "kl": (y * prior).sum(-1).mean(),
            "balance": mean_categorical_kl(belief.log_y[:, 1:]),
        }
        total = parts["reconstruction"] + self.kl * parts["kl"] + self.balance * parts["balance"]
        if self.contrast:
            parts["contrast"] = self._contrast(net, params, x, ids, g)
            total = total + self.contrast * parts["contrast"]
        return total, parts

    def _contrast(
        self, net: nn.ModuleDict, params: Params, x: "Normal", ids: Tensor, g: torch.Generator
    ) -> Tensor:
        """Two windows of each episode that share no transition; those over a change are left out."""
        count, steps = x.rewards.shape
        size = min(self.window, steps // 2)
        first = torch.randint(steps - 2 * size + 1, (count,), generator=g)
        second = first + size + (torch.rand(count, generator=g) * (steps - 2 * size - first + 1)).long()
        rows = torch.arange(count)[:, None]
        places = [start[:, None] + torch.arange(size) for start in (first, second)]
        said = [ids[rows, place] for place in places]
        valid = (torch.cat(said, 1) == said[0][:, :1]).all(1)
        inputs = torch.cat([x.transitions()[rows, place] for place in places])
        # A window knows nothing of the reward before it, which may be the other window's.
        inputs = torch.cat([F.pad(inputs[:, :1, :-1], (0, 1)), inputs[:, 1:]], 1)
        h, _ = call(net, params, "gru", inputs, inputs.new_zeros(1, 2 * count, self.recurrent))
        seen = Belief(*call(net, params, "head", h[:, -1])).features()
        a, b = call(net, params, "projector", seen).chunk(2)
        same = said[0][:, :1] == said[1][None, :, 0]
        return task_contrast(a, b, same, valid, self.contrast_temperature)

    def sac(
        self, net: nn.ModuleDict, params: Params, slow: Params, x: "Normal", context: Tensor, g: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Critics, policy and temperature (SAC, arXiv 1812.05905) on every step of the episodes."""
        here = torch.cat([x.seen, context], -1)
        noise = torch.randn(2, *x.actions.shape, generator=g)
        temperature = params["log_temperature"].exp().detach()
        with torch.no_grad():
            after = here[:, 1:].flatten(0, 1)
            action, log_p = gaussian_action(call(net, params, "actor", after), noise[0].flatten(0, 1))
            next_q = functional_call(net["critic"], part(slow, "target"), (torch.cat([after, action], -1),))
            target = soft_target(x.rewards.flatten(), next_q, log_p, temperature, self.discount)
        now = here[:, :-1].flatten(0, 1)
        q = call(net, params, "critic", torch.cat([now, x.actions.flatten(0, 1)], -1))
        critic = (q - target).square().mean(1).sum() / 2
        now = now.detach()
        action, log_p = gaussian_action(call(net, params, "actor", now), noise[1].flatten(0, 1))
        fixed = {k: v.detach() for k, v in part(params, "critic").items()}
        value = functional_call(net["critic"], fixed, (torch.cat([now, action], -1),)).amin(0)
        actor = (temperature * log_p - value).mean()
        wanted = -float(x.actions.shape[-1])
        heat = -(params["log_temperature"] * (log_p.detach() + wanted)).mean()
        figures = {"critic": critic, "actor": actor, "temperature": temperature, "value": value.mean()}
        return critic + actor + heat, figures

    def refresh(self, slow: Params, params: Params) -> Params:
        """Target critics move towards the critics by `polyak`."""
        moved = {k: v.lerp(params[f"critic.{k}"], self.polyak) for k, v in part(slow, "target").items()}
        return slow | prefixed("target", moved)


@dataclass(frozen=True)
class Normal:
    """Episodes in units of the first, random ones: `seen` [B H+1 O], `moves` [B H O], `rewards` [B H].

    `changes` [B H]: the reward less that of the step before, 0 at the first.
    """

    seen: Tensor
    actions: Tensor
    rewards: Tensor
    moves: Tensor
    changes: Tensor

    def transitions(self) -> Tensor:
        """What the recurrence reads of each step, [B H 2 O + A + 2]; the last is how the reward changed."""
        figures = torch.stack([self.rewards, self.changes], -1)
        return torch.cat([self.seen[:, 1:], self.actions, self.moves, figures], -1)


def scales(played: Episodes) -> Params:
    """Mean and deviation of what is seen, of movements and rewards; taken once, from random play."""
    moves = played.seen.diff(dim=1)
    out = {}
    rewards = played.rewards[..., None]
    figures = {"seen": played.seen, "moves": moves, "rewards": rewards, "changes": rewards.diff(dim=1)}
    for name, x in figures.items():
        flat = x.flatten(0, 1)
        out[f"{name}_mean"], out[f"{name}_std"] = flat.mean(0), flat.std(0).clamp(min=1e-3)
    return prefixed("scale", out)


def normalised(slow: Params, played: Episodes) -> Normal:
    """`played` in those units."""
    s = part(slow, "scale")
    first = played.rewards[:, :1]
    return Normal(
        (played.seen - s["seen_mean"]) / s["seen_std"],
        played.actions,
        (played.rewards - s["rewards_mean"][0]) / s["rewards_std"][0],
        (played.seen.diff(dim=1) - s["moves_mean"]) / s["moves_std"],
        played.rewards.diff(dim=1, prepend=first) / s["changes_std"][0],
    )


def call(net: nn.ModuleDict, params: Params, name: str, *inputs: Tensor) -> Any:
    """The part `name` of `net` with its numbers in `params`."""
    return functional_call(net[name], part(params, name), inputs)


def contexts(
    config: MoSS, net: nn.ModuleDict, params: Params, x: Normal, tasks: Tensor
) -> tuple[Tensor, Belief | None]:
    """What the agent knew before each of H steps and after the last, [B H+1 C]; the belief too, with its gradient.

    Entry t is computed from transitions 0..t-1 only. The policy's gradient does not reach a belief; the
    recurrence of context="recurrent" has no other teacher than the critics.
    """
    count = len(x.rewards)
    if config.context == "none":
        return x.seen[..., :0], None
    if config.context == "task":
        return torch.cat([tasks, tasks[:, -1:]], 1), None
    start = x.seen.new_zeros(1, count, config.recurrent)
    h, _ = call(net, params, "gru", x.transitions(), start)
    states = torch.cat([start[0][:, None], h], 1)
    return summary(config, net, params, states)


def summary(config: MoSS, net: nn.ModuleDict, params: Params, h: Tensor) -> tuple[Tensor, Belief | None]:
    """Context of recurrent states [... D]."""
    if config.context == "recurrent":
        return call(net, params, "summary", h).tanh(), None
    belief = Belief(*call(net, params, "head", h))
    return belief.features().detach(), belief
