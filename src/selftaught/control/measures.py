"""How well an agent does in its first episode of a task, after a change, and whether it finds the classes."""

import torch
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from selftaught.control.families import Family
from selftaught.control.moss import summary
from selftaught.control.training import Agent, Played, fixed_schedule, play
from selftaught.core.errors import ConfigError


def first_episode(agent: Agent, family: Family, tasks: Tensor, seed: int = 0) -> Played:
    """One episode of each of tasks [n P] from nothing known, by the middle of the policy.

    Starts and noise are those of `seed`, so that agents are compared on equal ones.
    """
    return play(agent, family, *fixed_schedule(family, tasks), torch.Generator().manual_seed(seed), "mean")


def changed_episode(agent: Agent, family: Family, tasks: Tensor, later: Tensor, seed: int = 0) -> Played:
    """As `first_episode`; in the middle, unannounced, each task becomes that of `later` [n P]."""
    schedule = fixed_schedule(family, tasks, later, family.horizon // 2)
    return play(agent, family, *schedule, torch.Generator().manual_seed(seed), "mean")


def returns(played: Played, since: int = 0) -> Tensor:
    """Sum of rewards from step `since` on, [n]."""
    return played.episodes.rewards[:, since:].sum(1)


@torch.no_grad()
def components(agent: Agent, played: Played, step: int = -1) -> Tensor:
    """The likeliest mixture component, int64 [n], of the belief before `step` (-1: after the last).

    Raises ConfigError for an agent without a belief.
    """
    if agent.config.context != "belief":
        raise ConfigError(f'an agent with context="{agent.config.context}" has no mixture; use context="belief"')
    _, belief = summary(agent.config, agent.net, agent.weights, played.states[:, step])
    assert belief is not None
    return belief.log_y.argmax(-1)


def purity(found: Tensor, classes: Tensor) -> float:
    """Share of things in the commonest class of their cluster; both int64 [n]."""
    return float(contingency_matrix(classes.numpy(), found.numpy()).max(0).sum() / len(found))
