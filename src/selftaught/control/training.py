"""Playing and learning in turns. The state is `core.types.State`, so `artifacts.checkpoint` saves all of a run."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from selftaught.control.families import Family, check_actions, check_finite, check_tasks
from selftaught.control.moss import MoSS, call, normalised, scales, summary
from selftaught.control.networks import gaussian_action
from selftaught.control.replay import Episodes, added, empty_replay, sample
from selftaught.core.functional import part, prefixed
from selftaught.core.types import Aux, Params, State
from selftaught.optimizers.gradient import Gradient

Mode = Literal["random", "explore", "mean"]
"""Actions are uniform, drawn from the policy, or the middle of what it would draw."""


@dataclass(frozen=True)
class Agent:
    """A trained agent: how it computes and its numbers; `weights` are parameters and slow state together."""

    config: MoSS
    net: nn.ModuleDict
    weights: Params


@dataclass(frozen=True)
class Played:
    """Episodes, and the recurrent states before each step and after the last [B H+1 D] (D = 0 without any)."""

    episodes: Episodes
    states: Tensor


def start(config: MoSS, net: nn.ModuleDict, family: Family, tasks: Tensor, seed: int) -> State:
    """The state before the first iteration: `config.worlds` random episodes on `tasks` [n P] are in the replay.

    Units of observations and rewards are those of these episodes. Raises ConfigError for fewer than two tasks
    (but with context="none"), DataError for NaN from a world.
    """
    if config.context != "none":
        check_tasks(family, tasks)
    generator = torch.Generator().manual_seed(seed)
    params, slow = config.init(net)
    schedule, ids = draw_schedule(config, family, tasks, generator)
    with torch.no_grad():
        first = play(Agent(config, net, params), family, schedule, ids, generator, "random").episodes
    slow |= scales(first) | prefixed("replay", added(empty_replay(first, config.capacity), first))
    return State(params, slow, Gradient(config.rate, schedule="constant").init(params), generator, 0)


def train(
    config: MoSS, net: nn.ModuleDict, family: Family, tasks: Tensor, state: State, iterations: int
) -> Iterator[tuple[State, dict[str, float]]]:
    """Yield the state and figures after each iteration until `state.step` reaches `iterations`.

    One iteration plays `worlds` episodes on training `tasks` [n P] and takes `updates` steps. Nothing in a state
    that was yielded changes later: stop at any moment and go on from the last one, to the same bits. Figures are
    means over the iteration; `return` is that of the episodes played, `transitions` all steps so far,
    `transitions_per_second` by the clock.
    """
    while state.step < iterations:
        began = time.perf_counter()
        generator = torch.Generator()
        generator.set_state(state.generator.get_state())
        state, figures = _iteration(config, net, family, tasks, replace(state, generator=generator))
        new = config.worlds * family.horizon
        figures["transitions"] = float(new * (state.step + 1))
        figures["transitions_per_second"] = new / (time.perf_counter() - began)
        yield state, figures


def _iteration(
    config: MoSS, net: nn.ModuleDict, family: Family, tasks: Tensor, state: State
) -> tuple[State, dict[str, float]]:
    generator, params, opt = state.generator, state.params, state.opt
    schedule, ids = draw_schedule(config, family, tasks, generator)
    agent = Agent(config, net, params | state.slow)
    fresh = play(agent, family, schedule, ids, generator, "explore").episodes
    replay = added(part(state.slow, "replay"), fresh)
    slow = {k: v for k, v in state.slow.items() if not k.startswith("replay.")}
    optimizer = Gradient(config.rate, schedule="constant")
    logged: list[dict[str, Tensor]] = []
    for _ in range(config.updates):
        batch = sample(replay, config.batch, generator)

        def loss(params: Params, slow: Params = slow, batch: Episodes = batch) -> tuple[Tensor, Aux]:
            return config.loss(net, params, slow, batch, generator)

        params, opt, aux = optimizer.step(loss, params, opt)
        slow = config.refresh(slow, params)
        logged.append(aux.metrics)
    figures = {k: float(torch.stack([m[k] for m in logged]).mean()) for k in logged[0]}
    figures["return"] = float(fresh.rewards.sum(1).mean())
    return State(params, slow | prefixed("replay", replay), opt, generator, state.step + 1), figures


def draw_schedule(
    config: MoSS, family: Family, tasks: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Tasks at each step [H B P] and their places in `tasks` [B H]: some change once, in the middle half."""
    count, steps = config.worlds, family.horizon
    before, after = torch.randint(len(tasks), (2, count, 1), generator=generator)
    when = torch.randint(steps // 4, max(steps // 4 + 1, 3 * steps // 4), (count, 1), generator=generator)
    changes = torch.rand(count, 1, generator=generator) < config.change
    ids = torch.where((torch.arange(steps) >= when) & changes, after, before)
    return tasks[ids].transpose(0, 1), ids


def fixed_schedule(
    family: Family, tasks: Tensor, later: Tensor | None = None, at: int = 0
) -> tuple[Tensor, Tensor]:
    """An episode of each of `tasks` [n P]; from step `at` on under `later` [n P], if given. As `draw_schedule`."""
    ids = torch.arange(len(tasks))[:, None].repeat(1, family.horizon)
    out = tasks.expand(family.horizon, *tasks.shape).clone()
    if later is not None:
        out[at:] = later
        ids[:, at:] += len(tasks)
    return out, ids


@torch.no_grad()
def play(
    agent: Agent, family: Family, schedule: Tensor, ids: Tensor, generator: torch.Generator, mode: Mode
) -> Played:
    """One episode of each of B worlds under `schedule` [H B P]; the belief is renewed after every step.

    Raises DataError naming world and step where an observation or a reward is not finite, ConfigError where a
    shape is not the family's.
    """
    steps, count = schedule.shape[:2]
    worlds = family.worlds(count)
    seen = [worlds.reset(schedule[0], generator)]
    check_finite("observation", seen[0], (count, family.observations), 0, family)
    recurrent = agent.config.context in ("belief", "recurrent") and mode != "random"
    states = [torch.zeros(count, agent.config.recurrent if recurrent else 0)]
    actions: list[Tensor] = []
    rewards: list[Tensor] = []
    for t in range(steps):
        action = _act(agent, family, seen[-1], states[-1], schedule[t], generator, mode)
        check_actions(action, family, count)
        after, reward = worlds.step(action, schedule[t])
        check_finite("observation", after, (count, family.observations), t + 1, family)
        check_finite("reward", reward, (count,), t + 1, family)
        if recurrent:
            before = rewards[-1] if rewards else reward
            states.append(_remember(agent, states[-1], seen[-1], action, reward, before, after))
        seen.append(after)
        actions.append(action)
        rewards.append(reward)
    done = Episodes(
        torch.stack(seen, 1), torch.stack(actions, 1), torch.stack(rewards, 1), schedule.transpose(0, 1), ids
    )
    return Played(done, torch.stack(states, 1))


def _act(
    agent: Agent,
    family: Family,
    seen: Tensor,
    state: Tensor,
    tasks: Tensor,
    g: torch.Generator,
    mode: Mode,
) -> Tensor:
    shape = (len(seen), family.actions)
    if mode == "random":
        return 2 * torch.rand(shape, generator=g) - 1
    s, config = part(agent.weights, "scale"), agent.config
    parts = [(seen - s["seen_mean"]) / s["seen_std"]]
    if config.context == "task":
        parts.append(tasks)
    elif config.context != "none":
        parts.append(summary(config, agent.net, agent.weights, state)[0])
    out = call(agent.net, agent.weights, "actor", torch.cat(parts, -1))
    noise = torch.randn(shape, generator=g)
    return gaussian_action(out, noise)[0] if mode == "explore" else out.chunk(2, -1)[0].tanh()


def _remember(
    agent: Agent, state: Tensor, seen: Tensor, action: Tensor, reward: Tensor, before: Tensor, after: Tensor
) -> Tensor:
    """The recurrent state [B D] after one more transition; `before` is the reward of the step before."""
    steps = Episodes(
        torch.stack([seen, after], 1), action[:, None], reward[:, None], action[:, None], action[:, None]
    )
    x = normalised(agent.weights, steps)
    change = (reward - before) / agent.weights["scale.changes_std"]
    x = replace(x, changes=change[:, None])
    _, h = call(agent.net, agent.weights, "gru", x.transitions(), state[None])
    return h[0]
