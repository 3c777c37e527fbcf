"""Pendulums that differ in gravity, mass, length and what the motor does with a torque."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

_TORQUE, _FASTEST, _STEP = 2.0, 8.0, 0.05
"""Of gymnasium's Pendulum-v1: largest torque in N m, fastest turn in rad/s, seconds a step."""


@final
@dataclass(frozen=True)
class Pendulum:
    """gymnasium's Pendulum-v1, many at a time: swing up and stay up; the default task is that environment.

    A task is (gravity, mass, length, gain), P = 4: the motor turns torque u into gain * u. Drawn are lengths in
    `lengths` and a gain of size in `gains`, with both signs in turn, which are the two classes: under one of them
    everything the agent knows about its motor is the wrong way round. Cost is gymnasium's, of the torque asked.
    """

    lengths: tuple[float, float] = (0.8, 1.2)
    gains: tuple[float, float] = (0.8, 1.2)
    horizon: int = 100

    @property
    def observations(self) -> int:
        return 3

    @property
    def actions(self) -> int:
        return 1

    @property
    def parameters(self) -> int:
        return 4

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Tasks [count 4], the gain's signs in turn."""
        u = torch.rand(2, count, generator=generator)
        sign = 1.0 - 2.0 * (torch.arange(count) % 2)
        length = self.lengths[0] + (self.lengths[1] - self.lengths[0]) * u[0]
        gain = sign * (self.gains[0] + (self.gains[1] - self.gains[0]) * u[1])
        return torch.stack([torch.full((count,), 10.0), torch.ones(count), length, gain], 1)

    def classes(self, tasks: Tensor) -> Tensor:
        """0 where the motor does as it is told, 1 where it does the opposite."""
        return (tasks[:, 3] < 0).long()

    def worlds(self, count: int) -> "PendulumWorlds":
        """`count` pendulums."""
        return PendulumWorlds(torch.zeros(count, 2))


@final
class PendulumWorlds:
    """Angles from upright (rad) and angular velocities (rad/s), [B 2]; may be float64."""

    def __init__(self, state: Tensor) -> None:
        self.state = state

    def reset(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        """Any angle, at most one radian a second."""
        u = 2 * torch.rand(self.state.shape, generator=generator) - 1
        self.state = u * torch.tensor([math.pi, 1.0])
        return self._seen()

    def step(self, actions: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """As gymnasium: the cost is of the state before; velocity first, then the angle by the new velocity."""
        angle, velocity = self.state.unbind(-1)
        gravity, mass, length, gain = tasks.unbind(-1)
        torque = _TORQUE * actions[:, 0].clamp(-1, 1)
        turned = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        cost = turned.square() + 0.1 * velocity.square() + 0.001 * torque.square()
        pull = 3 * gravity / (2 * length) * angle.sin() + 3 / (mass * length.square()) * gain * torque
        velocity = (velocity + pull * _STEP).clamp(-_FASTEST, _FASTEST)
        self.state = torch.stack([angle + velocity * _STEP, velocity], -1)
        return self._seen(), -cost

    def _seen(self) -> Tensor:
        angle, velocity = self.state.unbind(-1)
        return torch.stack([angle.cos(), angle.sin(), velocity], -1)
