"""Families made of gymnasium environments, our families as gymnasium environments, and HalfCheetah's tasks.

gymnasium is an extra (`pip install "selftaught[control]"`), MuJoCo another (`"selftaught[mujoco]"`); both are
imported only when something here is called.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from selftaught.control.families import Family
from selftaught.core.errors import ConfigError, DataError

Reward = Callable[[Tensor, float, Mapping[str, Any], Tensor], float]
"""(task [P], the environment's own reward, its `info`, action [A] in -1..1) -> reward under the task."""


@final
@dataclass(frozen=True)
class GymFamily:
    """One kind of gymnasium environment under many tasks; made by `gym_family`, which checks it.

    `draws` and `kinds` are `Family.draw` and `Family.classes`; `reward` gives the reward under a task, `apply`
    writes a task into an environment (masses, lengths) before a step. Bounds `low` and `high` are of actions [A].
    """

    make: Callable[[], Any]
    draws: Callable[[int, torch.Generator], Tensor]
    kinds: Callable[[Tensor], Tensor]
    parameters: int
    horizon: int
    observations: int
    low: Tensor
    high: Tensor
    reward: Reward | None = None
    apply: Callable[[Any, Tensor], None] | None = None

    @property
    def actions(self) -> int:
        return len(self.low)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Tasks [count P]."""
        return self.draws(count, generator)

    def classes(self, tasks: Tensor) -> Tensor:
        """int64 [n]."""
        return self.kinds(tasks)

    def worlds(self, count: int) -> "GymWorlds":
        """`count` environments, stepped one after the other."""
        return GymWorlds(self, [self.make() for _ in range(count)])


@final
class GymWorlds:
    """Environments of a family, with the number of steps taken."""

    def __init__(self, family: GymFamily, environments: Sequence[Any]) -> None:
        self.family = family
        self.environments = environments
        self.taken = 0

    def reset(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        """Each with a seed of its own, drawn from `generator`."""
        self.taken = 0
        seeds = torch.randint(2**31, (len(self.environments),), generator=generator).tolist()
        for env, task in zip(self.environments, tasks, strict=True):
            self._apply(env, task)
        return _stack([env.reset(seed=s)[0] for env, s in zip(self.environments, seeds, strict=True)])

    def step(self, actions: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Actions in -1..1 are stretched to the bounds. Raises DataError where an episode ends before its time."""
        self.taken += 1
        scaled = self.family.low + (actions.clamp(-1, 1) + 1) / 2 * (self.family.high - self.family.low)
        seen, rewards = [], []
        for k, env in enumerate(self.environments):
            self._apply(env, tasks[k])
            after, reward, ended, cut, info = env.step(scaled[k].numpy())
            if ended or (cut and self.taken < self.family.horizon):
                raise DataError(
                    f"world {k} ended at step {self.taken} of {self.family.horizon}: families here have episodes "
                    "of one length. Switch termination off in the environment, or give a shorter horizon"
                )
            seen.append(after)
            own = float(reward)
            given = own if self.family.reward is None else self.family.reward(tasks[k], own, info, actions[k])
            rewards.append(given)
        return _stack(seen), torch.tensor(rewards, dtype=torch.float32)

    def _apply(self, env: Any, task: Tensor) -> None:
        if self.family.apply is not None:
            self.family.apply(env, task)


def gym_family(
    make: Callable[[], Any],
    draws: Callable[[int, torch.Generator], Tensor],
    horizon: int,
    *,
    kinds: Callable[[Tensor], Tensor] | None = None,
    reward: Reward | None = None,
    apply: Callable[[Any, Tensor], None] | None = None,
) -> GymFamily:
    """A family of what `make()` returns. Without `kinds` every task is of one class.

    Raises ConfigError where gymnasium is missing, or a space is no Box of numbers in a row with, for actions,
    finite bounds.
    """
    boxes = _gymnasium().spaces.Box
    env = make()
    for what, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, boxes) or len(space.shape) != 1:
            raise ConfigError(
                f"{env}: its {what} space is {space}, only a Box of one axis fits here; wrap the environment, for "
                "example in gymnasium.wrappers.FlattenObservation"
            )
    low, high = (torch.tensor(np.asarray(b, np.float32)) for b in (env.action_space.low, env.action_space.high))
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise ConfigError(f"{env}: its actions have no bounds ({env.action_space}); wrap it in RescaleAction")
    parameters = draws(2, torch.Generator()).shape[1]
    (width,) = env.observation_space.shape
    env.close()
    classes = kinds if kinds is not None else _one_class
    return GymFamily(make, draws, classes, parameters, horizon, int(width), low, high, reward, apply)


def cheetah(kind: Literal["velocity", "direction"], horizon: int = 200) -> GymFamily:
    """HalfCheetah-Vel (run at a speed of 0..3 m/s) or -Dir (forwards or backwards), after MAML's tasks.

    Reward: minus the gap in speed, or the speed in the wanted direction, plus the environment's cost of control.
    Speeds come from `info` of HalfCheetah-v5. The non-stationary variant is `MoSS(change=...)` in training and
    `fixed_schedule(..., later, at)` in evaluation. Raises ConfigError where MuJoCo is missing.
    """
    if kind not in ("velocity", "direction"):
        raise ConfigError(f"cheetah has no tasks of kind {kind!r}; there are velocity and direction")
    fast = kind == "velocity"

    def make() -> Any:
        gymnasium = _gymnasium()
        try:
            return gymnasium.make("HalfCheetah-v5")
        except gymnasium.error.DependencyNotInstalled as error:
            raise ConfigError('HalfCheetah needs MuJoCo: pip install "selftaught[mujoco]"') from error

    return gym_family(
        make,
        _speeds if fast else _directions,
        horizon,
        kinds=_thirds if fast else _signs,
        reward=_speed_reward if fast else _direction_reward,
    )


def as_gymnasium(family: Family, task: Tensor, seed: int = 0) -> Any:
    """One task [P] of a family as a `gymnasium.Env`; `reset(seed=...)` or `seed` decides what is random."""
    gymnasium = _gymnasium()
    bound = np.full(family.observations, np.inf, np.float32)

    class OneTask(gymnasium.Env):  # type: ignore[name-defined]
        metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
        render_mode = None

        def __init__(self) -> None:
            self.observation_space = gymnasium.spaces.Box(-bound, bound, dtype=np.float32)
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (family.actions,), np.float32)
            self.worlds = family.worlds(1)
            self.generator = torch.Generator().manual_seed(seed)
            self.taken = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            if seed is not None:
                self.generator.manual_seed(seed)
            self.taken = 0
            return self.worlds.reset(task[None], self.generator)[0].numpy().copy(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.taken += 1
            actions = torch.as_tensor(np.asarray(action, np.float32))[None]
            seen, reward = self.worlds.step(actions, task[None])
            return seen[0].numpy().copy(), float(reward), False, self.taken >= family.horizon, {}

    return OneTask()


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise ConfigError('gymnasium is not installed: pip install "selftaught[control]"') from error
    return gymnasium


def _stack(seen: Sequence[Any]) -> Tensor:
    return torch.tensor(np.stack(seen), dtype=torch.float32)


def _one_class(tasks: Tensor) -> Tensor:
    return torch.zeros(len(tasks), dtype=torch.int64)


def _speeds(count: int, generator: torch.Generator) -> Tensor:
    return 3 * torch.rand(count, 1, generator=generator)


def _thirds(tasks: Tensor) -> Tensor:
    return tasks[:, 0].clamp(0, 2.99).long()


def _directions(count: int, generator: torch.Generator) -> Tensor:
    return (1.0 - 2.0 * (torch.arange(count) % 2))[:, None]


def _signs(tasks: Tensor) -> Tensor:
    return (tasks[:, 0] < 0).long()


def _speed_reward(task: Tensor, own: float, info: Mapping[str, Any], action: Tensor) -> float:
    return -abs(float(info["x_velocity"]) - float(task[0])) + float(info["reward_ctrl"])


def _direction_reward(task: Tensor, own: float, info: Mapping[str, Any], action: Tensor) -> float:
    return float(task[0]) * float(info["x_velocity"]) + float(info["reward_ctrl"])
