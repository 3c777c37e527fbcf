"""Playing and learning: beliefs see no future, seeds and resuming give the same bits, bad worlds are named."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selftaught.artifacts.checkpoint import load_state, save_state
from selftaught.control import (
    Agent,
    ConfigError,
    DataError,
    MoSS,
    Played,
    PointRobot,
    changed_episode,
    components,
    draw_schedule,
    first_episode,
    fixed_schedule,
    play,
    purity,
    returns,
    start,
    train,
)
from selftaught.control.moss import Context, contexts, normalised
from selftaught.control.replay import Episodes, added, empty_replay, sample
from selftaught.core.types import State

FAMILY = PointRobot(horizon=8)
SMALL = MoSS(
    hidden=8, recurrent=6, components=3, latent=2, worlds=4, updates=2, batch=4, window=3, looks=2, decoded=3
)
TASKS = FAMILY.draw(12, torch.Generator().manual_seed(0))
CONTEXTS: tuple[Context, ...] = ("belief", "recurrent", "none", "task")


def begun(config: MoSS = SMALL, seed: int = 0) -> tuple[Any, State]:
    net = config.network(FAMILY, seed)
    return net, start(config, net, FAMILY, TASKS, seed)


def run(config: MoSS = SMALL, iterations: int = 2) -> tuple[Agent, list[State], list[dict[str, float]]]:
    net, state = begun(config)
    states, figures = [state], []
    for s, f in train(config, net, FAMILY, TASKS, state, iterations):
        states.append(s)
        figures.append(f)
    return Agent(config, net, states[-1].params | states[-1].slow), states, figures


def same(a: State, b: State) -> bool:
    pairs = [(x, y) for p in ("params", "slow", "opt") for x, y in [(getattr(a, p), getattr(b, p))]]
    equal = all(list(x) == list(y) and all(torch.equal(x[k], y[k]) for k in x) for x, y in pairs)
    return equal and torch.equal(a.generator.get_state(), b.generator.get_state()) and a.step == b.step


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_context_trains_and_every_number_moves(context: Context) -> None:
    _, states, figures = run(replace(SMALL, context=context))
    still = [k for k, v in states[-1].params.items() if torch.equal(v, states[0].params[k])]
    assert not still, still
    assert figures[-1]["transitions"] == 4 * 8 * 3 and figures[-1]["transitions_per_second"] > 0
    assert all(torch.isfinite(torch.tensor(list(f.values()))).all() for f in figures)


@pytest.mark.parametrize("context", ["belief", "recurrent"])
def test_stopping_saving_and_going_on_is_never_having_stopped(context: Context, tmp_path: Path) -> None:
    config = replace(SMALL, context=context)
    _, states, _ = run(config, 3)
    save_state(tmp_path / "s.safetensors", states[1])
    back = load_state(tmp_path / "s.safetensors")
    assert same(back, states[1])
    *_, (again, _) = train(config, config.network(FAMILY, 0), FAMILY, TASKS, back, 3)
    assert same(again, states[3])
    assert not same(run(config, 3)[1][2], states[3])


def test_a_state_that_was_yielded_does_not_change_later() -> None:
    net, state = begun()
    steps = train(SMALL, net, FAMILY, TASKS, state, 3)
    first, _ = next(steps)
    params, slow, opt = ({k: v.clone() for k, v in x.items()} for x in (first.params, first.slow, first.opt))
    kept = State(params, slow, opt, torch.Generator(), first.step)
    kept.generator.set_state(first.generator.get_state())
    list(steps)
    assert same(first, kept)


@pytest.mark.parametrize("context", ["belief", "recurrent"])
def test_the_belief_uses_no_future_transition(context: Context) -> None:
    agent, states, _ = run(replace(SMALL, context=context))
    played = sample(
        {k[7:]: v for k, v in states[-1].slow.items() if k.startswith("replay.")}, 4, torch.Generator()
    )
    x = normalised(agent.weights, played)
    before, _ = contexts(agent.config, agent.net, agent.weights, x, played.tasks)
    t = 5
    other = replace(
        x,
        seen=torch.cat([x.seen[:, : t + 1], x.seen[:, t + 1 :] + 1], 1),
        actions=torch.cat([x.actions[:, :t], -x.actions[:, t:]], 1),
        rewards=torch.cat([x.rewards[:, :t], x.rewards[:, t:] + 1], 1),
        moves=torch.cat([x.moves[:, :t], x.moves[:, t:] + 1], 1),
        changes=torch.cat([x.changes[:, :t], x.changes[:, t:] + 1], 1),
    )
    after, _ = contexts(agent.config, agent.net, agent.weights, other, played.tasks)
    assert torch.equal(after[:, : t + 1], before[:, : t + 1])
    assert not torch.isclose(after[:, t + 1], before[:, t + 1]).all(1).any()


def test_beliefs_of_replayed_experience_are_those_of_acting() -> None:
    """Recomputed from stored transitions with the same weights, they are what the agent had while it played."""
    agent, _, _ = run()
    played = first_episode(agent, FAMILY, TASKS)
    replayed, belief = contexts(
        SMALL, agent.net, agent.weights, normalised(agent.weights, played.episodes), played.episodes.tasks
    )
    from selftaught.control.moss import summary

    acted, _ = summary(SMALL, agent.net, agent.weights, played.states)
    assert belief is not None and torch.allclose(acted, replayed, atol=1e-5)


def test_no_gradient_of_the_policy_or_the_critics_reaches_the_belief() -> None:
    agent, states, _ = run()
    params = {k: v.clone().requires_grad_() for k, v in states[-1].params.items()}
    played = first_episode(agent, FAMILY, TASKS).episodes
    x = normalised(agent.weights, played)
    context, _ = contexts(SMALL, agent.net, params, x, played.tasks)
    loss, _ = SMALL.sac(agent.net, params, states[-1].slow, x, context, torch.Generator())
    loss.backward()
    touched = {k.split(".")[0] for k, v in params.items() if v.grad is not None}
    assert touched == {"actor", "critic", "log_temperature"}


def test_the_actors_gradient_leaves_the_critics_alone() -> None:
    """The whole gradient of the critics is that of their own squared error."""
    agent, states, _ = run(replace(SMALL, context="none"))
    played = first_episode(agent, FAMILY, TASKS).episodes
    x = normalised(agent.weights, played)
    found = []
    for sign in (1.0, -1.0):
        params = {k: v.clone().requires_grad_() for k, v in states[-1].params.items()}
        with torch.no_grad():
            params["actor.4.bias"] *= sign
        params["actor.4.bias"].requires_grad_()
        context = x.seen[..., :0]
        loss, _ = agent.config.sac(
            agent.net, params, states[-1].slow, x, context, torch.Generator().manual_seed(1)
        )
        loss.backward()
        found.append([v.grad for k, v in params.items() if k.startswith("critic")])
    assert all(g is not None and g.any() for g in found[0])


def test_training_episodes_change_as_often_as_asked() -> None:
    g = torch.Generator().manual_seed(0)
    config = replace(SMALL, worlds=400, change=0.5)
    schedule, ids = draw_schedule(config, FAMILY, TASKS, g)
    assert schedule.shape == (8, 400, 2) and torch.equal(schedule, TASKS[ids].transpose(0, 1))
    changes = (ids.diff(dim=1) != 0).sum(1)
    # A change may draw the task that already is.
    assert changes.max() == 1 and 0.36 < changes.double().mean() < 0.56
    where = (ids.diff(dim=1) != 0).nonzero()[:, 1] + 1
    assert where.min() >= 2 and where.max() < 6
    assert not draw_schedule(replace(config, change=0.0), FAMILY, TASKS, g)[1].diff(dim=1).any()


def test_the_oracle_is_shown_the_task_of_the_moment() -> None:
    schedule, ids = fixed_schedule(FAMILY, TASKS[:3], TASKS[3:6], 4)
    assert torch.equal(schedule[3], TASKS[:3]) and torch.equal(schedule[4], TASKS[3:6])
    assert (ids[:, 4:] == ids[:, :4] + 3).all()
    agent, _, _ = run(replace(SMALL, context="task"))
    changed = changed_episode(agent, FAMILY, TASKS, TASKS.roll(1, 0))
    still = first_episode(agent, FAMILY, TASKS)
    assert torch.equal(changed.episodes.actions[:, :4], still.episodes.actions[:, :4])
    assert not torch.isclose(changed.episodes.actions[:, 4], still.episodes.actions[:, 4]).all()
    assert torch.allclose(returns(still, 4), still.episodes.rewards[:, 4:].sum(1))


def test_the_replay_forgets_the_oldest() -> None:
    def episodes(start: int, count: int) -> Episodes:
        values = torch.arange(start, start + count, dtype=torch.float32)[:, None]
        return Episodes(values[..., None], values[..., None], values, values[..., None], values.long())

    replay = empty_replay(episodes(0, 2), 5)
    for k in range(0, 8, 2):
        before = {n: v.clone() for n, v in replay.items()}
        new = added(replay, episodes(k, 2))
        assert all(torch.equal(v, replay[n]) for n, v in before.items())
        replay = new
    assert sorted(replay["rewards"][:, 0].tolist()) == [3, 4, 5, 6, 7]
    drawn = sample(replay, 200, torch.Generator())
    assert set(drawn.rewards[:, 0].tolist()) == {3, 4, 5, 6, 7} and torch.equal(drawn.ids.float(), drawn.rewards)
    with pytest.raises(ConfigError, match="capacity 3 is less than the 4"):
        empty_replay(episodes(0, 4), 3)


def test_purity_by_hand_and_components_only_of_a_belief() -> None:
    assert purity(torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([5, 5, 6, 6, 6, 5])) == pytest.approx(5 / 6)
    agent, _, _ = run()
    found = components(agent, first_episode(agent, FAMILY, TASKS))
    assert found.shape == (12,) and int(found.min()) >= 0 and int(found.max()) < 3
    sac, _, _ = run(replace(SMALL, context="none"))
    with pytest.raises(ConfigError, match='context="none" has no mixture'):
        components(sac, Played(first_episode(sac, FAMILY, TASKS).episodes, torch.zeros(12, 9, 0)))


@dataclass
class Broken:
    """A robot whose world 2 breaks at step 3."""

    what: str
    family: PointRobot = FAMILY
    taken: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)

    def worlds(self, count: int) -> "Broken":
        self.inner = self.family.worlds(count)
        return self

    def reset(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        self.taken = 0
        return self.inner.reset(tasks, generator)

    def step(self, actions: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        seen, reward = self.inner.step(actions, tasks)
        self.taken += 1
        if self.taken == 3 and self.what == "observation":
            seen = seen.index_fill(0, torch.tensor(2), torch.inf)
        if self.taken == 3 and self.what == "reward":
            reward = reward.index_fill(0, torch.tensor(2), torch.nan)
        return seen, reward[:, None] if self.what == "shape" else reward


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_what_is_not_finite_is_named_by_world_and_step(what: str) -> None:
    with pytest.raises(DataError, match=f"Broken: the {what} of world 2 at step 3 is not finite"):
        start(SMALL, SMALL.network(FAMILY, 0), Broken(what), TASKS, 0)


def test_a_break_in_the_middle_of_training_leaves_the_last_state_whole() -> None:
    net, state = begun()
    (first, _), *_ = train(SMALL, net, FAMILY, TASKS, state, 1)
    with pytest.raises(DataError, match="reward of world 2 at step 3"):
        list(train(SMALL, net, Broken("reward"), TASKS, first, 2))
    *_, (onward, _) = train(SMALL, net, FAMILY, TASKS, first, 2)
    assert same(onward, run()[1][2])


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"gave rewards of shape \(4, 1\) at step 1"):
        start(SMALL, SMALL.network(FAMILY, 0), Broken("shape"), TASKS, 0)
    agent, _, _ = run()
    wide = replace(agent, net=replace(SMALL, hidden=8).network(PointRobot(), 0))
    weights = dict(agent.weights)
    weights["actor.4.weight"], weights["actor.4.bias"] = torch.zeros(6, 8), torch.zeros(6)
    with pytest.raises(ConfigError, match=r"actions have shape \(12, 3\), PointRobot takes \[12 2\]"):
        play(replace(wide, weights=weights), FAMILY, *fixed_schedule(FAMILY, TASKS), torch.Generator(), "mean")


def test_one_task_is_refused_but_by_plain_sac() -> None:
    with pytest.raises(ConfigError, match="one task only"):
        start(SMALL, SMALL.network(FAMILY, 0), FAMILY, TASKS[:1], 0)
    plain = replace(SMALL, context="none")
    assert start(plain, plain.network(FAMILY, 0), FAMILY, TASKS[:1], 0).step == 0


@pytest.mark.parametrize("wrong", [{"components": 0}, {"discount": 1.0}, {"change": 1.5}, {"context": "both"}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MoSS(**wrong)
