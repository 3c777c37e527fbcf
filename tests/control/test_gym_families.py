"""gymnasium both ways: its environments as families, our families as its environments; refusals are named."""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from selftaught.control import (
    Agent,
    ConfigError,
    DataError,
    GymFamily,
    MoSS,
    Pendulum,
    PointRobot,
    as_gymnasium,
    changed_episode,
    cheetah,
    first_episode,
    gym_family,
    start,
    train,
)

SMALL = MoSS(hidden=8, recurrent=6, components=2, latent=2, worlds=2, updates=1, batch=2, window=2)


def lengths(count: int, generator: torch.Generator) -> Tensor:
    return 0.5 + torch.rand(count, 1, generator=generator)


def set_length(env: Any, task: Tensor) -> None:
    env.unwrapped.l = float(task[0])


def pendulums(horizon: int = 6, **options: Any) -> GymFamily:
    return gym_family(lambda: gymnasium.make("Pendulum-v1"), lengths, horizon, apply=set_length, **options)


def test_an_environment_of_gymnasium_becomes_a_family_that_trains() -> None:
    family = pendulums()
    assert (family.observations, family.actions, family.parameters) == (3, 1, 1)
    tasks = family.draw(5, torch.Generator().manual_seed(0))
    assert not family.classes(tasks).any()
    net = SMALL.network(family, 0)
    state = start(SMALL, net, family, tasks, 0)
    *_, (end, figures) = train(SMALL, net, family, tasks, state, 2)
    assert end.step == 2 and figures["return"] < 0
    again = start(SMALL, net, family, tasks, 0)
    assert torch.equal(again.slow["replay.rewards"], state.slow["replay.rewards"])


def test_it_plays_as_our_pendulum_does_under_the_same_task() -> None:
    family = pendulums()
    theirs = family.worlds(2)
    tasks = torch.tensor([[0.7], [1.3]])
    theirs.reset(tasks, torch.Generator().manual_seed(0))
    ours = Pendulum().worlds(2)
    ours.state = torch.tensor(np.stack([e.unwrapped.state for e in theirs.environments]))
    full = torch.tensor([[10.0, 1.0, 0.7, 1.0], [10.0, 1.0, 1.3, 1.0]])
    for k in range(6):
        push = torch.tensor([[0.3], [-1.0]]) * (k - 2) / 2
        for a, b in zip(theirs.step(push, tasks), ours.step(push, full), strict=True):
            assert torch.allclose(a, b.float(), atol=1e-5)


def test_rewards_can_be_of_the_task_and_see_info() -> None:
    family = pendulums(reward=lambda task, own, info, action: 10 * float(task[0]) + float(action[0]))
    worlds = family.worlds(2)
    tasks = torch.tensor([[0.5], [1.0]])
    worlds.reset(tasks, torch.Generator())
    _, rewards = worlds.step(torch.tensor([[0.25], [-0.5]]), tasks)
    assert rewards.tolist() == [5.25, 9.5]


@pytest.mark.parametrize("family", [PointRobot(horizon=5), Pendulum(horizon=5)])
def test_a_task_of_ours_is_an_environment_by_gymnasiums_own_check(family: PointRobot | Pendulum) -> None:
    env = as_gymnasium(family, family.draw(1, torch.Generator())[0])
    with warnings.catch_warnings():
        # It would rather have finite bounds, a rendering mode and a spec from its registry.
        warnings.filterwarnings("ignore", module="gymnasium")
        warnings.filterwarnings("ignore", message=".*WARN.*")
        check_env(env, skip_render_check=True)
    first, _ = env.reset(seed=3)
    ends = [env.step(env.action_space.low)[3] for _ in range(5)]
    assert ends == [False] * 4 + [True] and np.array_equal(first, env.reset(seed=3)[0])


def test_spaces_that_are_no_box_are_refused() -> None:
    def nothing(count: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(count, 1)

    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: gymnasium.make("CartPole-v1"), r"its action space is Discrete\(2\)"),
        (lambda: gymnasium.make("FrozenLake-v1"), r"its observation space is Discrete\(16\)"),
    ]
    for make, message in cases:
        with pytest.raises(ConfigError, match=message):
            gym_family(make, nothing, 5)

    class Free(gymnasium.ActionWrapper):
        def __init__(self) -> None:
            super().__init__(gymnasium.make("Pendulum-v1"))
            self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

        def action(self, action: Any) -> Any:
            return action

    with pytest.raises(ConfigError, match="no bounds"):
        gym_family(Free, nothing, 5)


def test_an_episode_that_ends_early_or_a_reward_of_nan_is_named() -> None:
    worlds = gym_family(lambda: gymnasium.make("Pendulum-v1", max_episode_steps=3), lengths, 6).worlds(1)
    worlds.reset(torch.ones(1, 1), torch.Generator())
    with pytest.raises(DataError, match="world 0 ended at step 3 of 6"):
        for _ in range(4):
            worlds.step(torch.zeros(1, 1), torch.ones(1, 1))
    broken = pendulums(reward=lambda task, own, info, action: float("nan"))
    tasks = lengths(4, torch.Generator())
    with pytest.raises(DataError, match="GymFamily: the reward of world 0 at step 1 is not finite"):
        start(SMALL, SMALL.network(broken, 0), broken, tasks, 0)


@pytest.mark.parametrize("kind", ["velocity", "direction"])
def test_half_cheetah_runs_headless_and_changes_its_task(kind: Any) -> None:
    pytest.importorskip("mujoco")
    family = cheetah(kind, horizon=8)
    assert (family.observations, family.actions, family.parameters) == (17, 6, 1)
    tasks = family.draw(4, torch.Generator().manual_seed(0))
    net = SMALL.network(family, 0)
    *_, (state, _) = train(SMALL, net, family, tasks, start(SMALL, net, family, tasks, 0), 1)
    agent = Agent(SMALL, net, state.params | state.slow)
    still = first_episode(agent, family, tasks).episodes
    changed = changed_episode(agent, family, tasks, tasks.roll(1, 0)).episodes
    assert torch.equal(still.rewards[:, :4], changed.rewards[:, :4])
    assert not torch.isclose(still.rewards[:, 4], changed.rewards[:, 4]).all()


def test_cheetahs_rewards_by_hand_and_other_kinds_refused() -> None:
    from selftaught.control.gym import _direction_reward, _speed_reward

    info = {"x_velocity": 1.5, "reward_ctrl": -0.1}
    assert _speed_reward(torch.tensor([2.0]), 9.0, info, torch.zeros(6)) == pytest.approx(-0.6)
    assert _direction_reward(torch.tensor([-1.0]), 9.0, info, torch.zeros(6)) == pytest.approx(-1.6)
    with pytest.raises(ConfigError, match="velocity and direction"):
        cheetah("jump")  # type: ignore[arg-type]
