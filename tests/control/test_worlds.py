"""The worlds of control: gymnasium's pendulum step for step, the robot's rewards by hand, families refused."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.control import ConfigError, DataError, Pendulum, PointRobot, check_tasks
from selftaught.control.pendulum import PendulumWorlds


def test_the_pendulum_is_gymnasiums_step_for_step() -> None:
    made = [gymnasium.make("Pendulum-v1") for _ in range(3)]
    for seed, env in enumerate(made):
        env.reset(seed=seed)
    worlds = PendulumWorlds(torch.tensor(np.stack([e.unwrapped.state for e in made])))  # type: ignore[attr-defined]
    task = torch.tensor([[10.0, 1.0, 1.0, 1.0]], dtype=torch.float64).expand(3, 4)
    rng = np.random.default_rng(0)
    for _ in range(200):
        torque = rng.uniform(-2.5, 2.5, size=(3, 1))
        seen, reward = worlds.step(torch.tensor(torque) / 2, task)
        for k, env in enumerate(made):
            wanted, due, *_ = env.step(torque[k])
            assert np.allclose(seen[k].numpy(), wanted, atol=1e-6)
            assert reward[k].item() == pytest.approx(float(due), abs=1e-9)


def test_a_negative_gain_turns_the_motor_round() -> None:
    family = Pendulum()
    tasks = family.draw(4, torch.Generator().manual_seed(0))
    assert family.classes(tasks).tolist() == [0, 1, 0, 1]
    turned = tasks * torch.tensor([1.0, 1.0, 1.0, -1.0])
    state = torch.randn(4, 2)
    push = torch.rand(4, 1)
    here, _ = PendulumWorlds(state).step(push, tasks)
    there, _ = PendulumWorlds(state).step(-push, turned)
    assert torch.equal(here, there)


def test_the_robot_moves_and_is_told_its_distance() -> None:
    family = PointRobot(speed=0.5)
    worlds = family.worlds(2)
    goals = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    start = worlds.reset(goals, torch.Generator().manual_seed(0))
    seen, reward = worlds.step(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), goals)
    assert torch.allclose(seen, start + torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
    assert reward.tolist() == pytest.approx([-math.dist(seen[k], goals[k]) for k in range(2)], abs=1e-6)


@pytest.mark.parametrize("family", [PointRobot(), PointRobot(kinds=3, spread=0.9), Pendulum()])
def test_classes_follow_from_the_task_and_draws_from_the_generator(family: PointRobot | Pendulum) -> None:
    tasks = family.draw(60, torch.Generator().manual_seed(5))
    kinds = family.kinds if isinstance(family, PointRobot) else 2
    assert torch.equal(family.classes(tasks), torch.arange(60) % kinds)
    assert torch.equal(tasks, family.draw(60, torch.Generator().manual_seed(5)))
    assert len(tasks.unique(dim=0)) == 60


def test_one_task_is_no_family() -> None:
    one = PointRobot().draw(1, torch.Generator()).expand(5, 2)
    with pytest.raises(ConfigError, match=r"PointRobot has one task only.*context=\"none\""):
        check_tasks(PointRobot(), one)
    with pytest.raises(ConfigError, match=r"\(5, 2\), Pendulum takes \[n 4\]"):
        check_tasks(Pendulum(), one)
    assert issubclass(DataError, Exception) and isinstance(one, Tensor)
