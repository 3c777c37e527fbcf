"""The parts of an agent: a recurrent belief over tasks, its decoder, a policy and two critics. All of them small.

Letters: B episodes, H steps, O observations, A actions, K components, L latent numbers, C numbers of context.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Belief:
    """q(y) q(z | y): a mixture of K diagonal Gaussians over L numbers that say which task it is.

    `log_y` [... K] log probabilities, `mean` and `log_var` [... K L].
    """

    log_y: Tensor
    mean: Tensor
    log_var: Tensor

    def features(self) -> Tensor:
        """What the policy sees, [... K + 2 L]: q(y), mean and log variance of the whole mixture; no sample."""
        y = self.log_y.exp()[..., None]
        mean = (y * self.mean).sum(-2)
        spread = (y * (self.log_var.exp() + (self.mean - mean[..., None, :]).square())).sum(-2)
        return torch.cat([y[..., 0], mean, spread.clamp(min=1e-6).log()], -1)


def layers(widths: Sequence[int]) -> nn.Sequential:
    """[... D] -> [... out]: linear layers with ReLU between."""
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        parts += [nn.ReLU()] * (i > 0) + [nn.Linear(a, b)]
    return nn.Sequential(*parts)


@final
class Recurrence(nn.Module):
    """Transitions [B H F] and a state [1 B D] -> states after each of them [B H D], and the last one."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        # What a reward says depends on the movement: a gated layer has their products from the start.
        self.embed = nn.Linear(inputs, 4 * width)
        self.gru = nn.GRU(2 * width, width, batch_first=True)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        value, gate = self.embed(x).chunk(2, -1)
        return self.gru(value * gate.tanh(), h)


@final
class Decoder(nn.Module):
    """Observation and action [... D], latent [... L] -> reward and movement [... out].

    A layer of ReLU and one of products between what is done and which task it is.
    """

    def __init__(self, inputs: int, latent: int, hidden: int, out: int) -> None:
        super().__init__()
        self.plain = nn.Linear(inputs + latent, hidden)
        self.done = nn.Linear(inputs, hidden)
        self.task = nn.Linear(latent, hidden)
        self.out = nn.Linear(2 * hidden, out)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        plain = self.plain(torch.cat([x, z], -1)).relu()
        return self.out(torch.cat([plain, self.done(x) * self.task(z)], -1))


@final
class BeliefHead(nn.Module):
    """State [... D] -> belief. Log variances are kept in -8..2, where nothing overflows."""

    def __init__(self, width: int, components: int, latent: int) -> None:
        super().__init__()
        self.shape = (components, latent)
        self.y = nn.Linear(width, components)
        self.z = nn.Linear(width, 2 * components * latent)
        # Components start apart: equal ones would share every gradient and stay one.
        self.prior = nn.Parameter(2 * F.normalize(torch.randn(components, latent), dim=-1))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.z(h).unflatten(-1, (2, *self.shape)).unbind(-3)
        return self.y(h).log_softmax(-1), self.prior + mean, log_var.clamp(-8, 2)


@final
class TwinCritic(nn.Module):
    """[n D] -> [2 n], two networks in one multiplication."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        widths = (inputs, hidden, hidden, 1)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for a, b in pairwise(widths):
            # As nn.Linear starts.
            self.weights.append(nn.Parameter((2 * torch.rand(2, a, b) - 1) / math.sqrt(a)))
            self.biases.append(nn.Parameter((2 * torch.rand(2, 1, b) - 1) / math.sqrt(a)))

    def forward(self, x: Tensor) -> Tensor:
        y = x.expand(2, *x.shape)
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            y = torch.baddbmm(b, F.relu(y) if i else y, w)
        return y[..., 0]


def gaussian_action(out: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Squashed action [... A] and its log density [...] from the policy's output [... 2 A] and standard noise.

    log pi = sum log N(u) - log(1 - tanh(u)^2), the second in its form that cannot overflow.
    """
    mean, log_std = out.chunk(2, -1)
    log_std = log_std.clamp(-5, 2)
    u = mean + log_std.exp() * noise
    log_p = -(noise.square() + math.log(2 * math.pi)) / 2 - log_std
    squash = 2 * (math.log(2) - u - F.softplus(-2 * u))
    return u.tanh(), (log_p - squash).sum(-1)
