"""Families of tasks in one world, which looks the same while rewards or movements differ.

Letters here: B episodes at a time, H steps, O observations, A actions, P numbers that say which task it is.
`Worlds` are B copies of the world that step together. A task is given at every step, so that it may change inside
an episode; nothing but rewards and movements tells the agent. Actions are in -1..1 everywhere.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, final

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError, DataError


class Worlds(Protocol):
    """B copies of a world. They keep their state; all randomness is that of `generator`."""

    def reset(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        """Start an episode under tasks [B P]: observations [B O]."""
        ...

    def step(self, actions: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Observations [B O] and rewards [B] after actions [B A] in -1..1 under tasks [B P]."""
        ...


class Family(Protocol):
    """Tasks that share a world. Episodes last `horizon` steps and never end before."""

    @property
    def observations(self) -> int: ...

    @property
    def actions(self) -> int: ...

    @property
    def parameters(self) -> int: ...

    @property
    def horizon(self) -> int: ...

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Tasks [count P] of the family's distribution."""
        ...

    def classes(self, tasks: Tensor) -> Tensor:
        """Which kind of task each of tasks [n P] is, int64 [n]; for measures only, no agent is told."""
        ...

    def worlds(self, count: int) -> Worlds:
        """`count` worlds that step together."""
        ...


@final
@dataclass(frozen=True)
class PointRobot:
    """A point in the plane whose task is a vector it cannot see, P = 2.

    `reward="goal"`: minus the distance to the vector's end, the field's usual toy. `reward="direction"`: the
    movement's product with the vector, as in running one way. Our choice is that vectors come in `kinds` classes:
    directions spread evenly over the circle, each `spread` radians to both sides, of lengths `near`..`far`. A full
    step moves each coordinate by `speed`. Raises ConfigError for another reward.
    """

    reward: Literal["goal", "direction"] = "goal"
    kinds: int = 4
    spread: float = 0.4
    near: float = 0.7
    far: float = 1.3
    speed: float = 0.25
    horizon: int = 20

    def __post_init__(self) -> None:
        if self.reward not in ("goal", "direction"):
            raise ConfigError(f"PointRobot has no reward {self.reward!r}; there are goal and direction")

    @property
    def observations(self) -> int:
        return 2

    @property
    def actions(self) -> int:
        return 2

    @property
    def parameters(self) -> int:
        return 2

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Vectors [count 2], classes in turn."""
        u = torch.rand(2, count, generator=generator)
        angle = torch.arange(count) % self.kinds * (2 * math.pi / self.kinds) + (2 * u[0] - 1) * self.spread
        radius = self.near + (self.far - self.near) * u[1]
        return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)

    def classes(self, tasks: Tensor) -> Tensor:
        """The direction nearest to the vector."""
        turns = torch.atan2(tasks[:, 1], tasks[:, 0]) / (2 * math.pi)
        return (turns * self.kinds).round().long() % self.kinds

    def worlds(self, count: int) -> "PointWorlds":
        """`count` points."""
        return PointWorlds(self, torch.zeros(count, 2))


@final
class PointWorlds:
    """Points [B 2] of a family."""

    def __init__(self, family: PointRobot, place: Tensor) -> None:
        self.family = family
        self.place = place

    def reset(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        """Near the middle."""
        self.place = 0.05 * torch.randn(self.place.shape, generator=generator)
        return self.place

    def step(self, actions: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Move, and be told how far the goal is or how good the way was."""
        before, self.place = self.place, self.place + self.family.speed * actions
        if self.family.reward == "direction":
            return self.place, ((self.place - before) * tasks).sum(-1)
        return self.place, -torch.linalg.vector_norm(self.place - tasks, dim=-1)


def check_tasks(family: Family, tasks: Tensor) -> None:
    """Whether [n P] tasks can be learned to tell apart. Raises ConfigError for one task or other shapes."""
    if tasks.ndim != 2 or tasks.shape[1] != family.parameters:
        raise ConfigError(
            f"tasks have shape {tuple(tasks.shape)}, {type(family).__name__} takes [n {family.parameters}]: "
            "use what its draw() gives"
        )
    if len(torch.unique(tasks, dim=0)) < 2:
        raise ConfigError(
            f"{type(family).__name__} has one task only: there is nothing to infer. Give two or more different "
            'tasks, or train without context (context="none")'
        )


def check_actions(actions: Tensor, family: Family, count: int) -> None:
    """Raises ConfigError unless actions are [count A]."""
    if actions.shape != (count, family.actions):
        raise ConfigError(
            f"actions have shape {tuple(actions.shape)}, {type(family).__name__} takes [{count} {family.actions}]"
            ": one row for each world"
        )


def check_finite(what: str, values: Tensor, shape: tuple[int, ...], step: int, family: Family) -> None:
    """Raises ConfigError for another shape, DataError naming the first world and step with NaN or infinity."""
    if values.shape != shape:
        raise ConfigError(
            f"{type(family).__name__} gave {what}s of shape {tuple(values.shape)} at step {step}, expected {shape}"
        )
    good = torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else torch.isfinite(values)
    if not bool(good.all()):
        world = int((~good).nonzero()[0])
        raise DataError(
            f"{type(family).__name__}: the {what} of world {world} at step {step} is not finite "
            f"({values[world].tolist()}). Nothing was learned from this episode; repair the world or its reward"
        )
