"""Reinforcement learning that recognises its task from experience: MoSS, its baselines, families of tasks."""

from selftaught.control.families import Family, PointRobot, Worlds, check_tasks
from selftaught.control.gym import GymFamily, as_gymnasium, cheetah, gym_family
from selftaught.control.measures import changed_episode, components, first_episode, purity, returns
from selftaught.control.moss import MoSS
from selftaught.control.networks import Belief
from selftaught.control.pendulum import Pendulum
from selftaught.control.replay import Episodes
from selftaught.control.training import Agent, Played, draw_schedule, fixed_schedule, play, start, train
from selftaught.core.errors import ConfigError, DataError

__all__ = [
    "Agent",
    "Belief",
    "ConfigError",
    "DataError",
    "Episodes",
    "Family",
    "GymFamily",
    "MoSS",
    "Pendulum",
    "Played",
    "PointRobot",
    "Worlds",
    "as_gymnasium",
    "changed_episode",
    "check_tasks",
    "cheetah",
    "components",
    "draw_schedule",
    "first_episode",
    "fixed_schedule",
    "gym_family",
    "play",
    "purity",
    "returns",
    "start",
    "train",
]
