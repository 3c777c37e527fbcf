"""Does a belief learned by self-supervision let an agent do well in its first episode of a task it never saw?

Paper: Wang, Bing, Yao, Wang, Su, Yang, Huang, Knoll, AAAI 2023, arXiv 2305.00286, of which only abstract and
introduction could be read: its MuJoCo and Meta-World tasks are not repeated here.

    worlds     a point whose task is a hidden direction, or a hidden goal
    agents     MoSS, with and without its contrast, a recurrence trained by the critics alone, SAC, an oracle
    asked      returns of the first episode on new tasks; after an unannounced change; classes among the components

All of it is ours. Agents share networks, experience collected, steps and tasks; options were chosen on others.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from rich.console import Console
from rich.progress import track
from sklearn.cluster import KMeans
from torch import Tensor

from selftaught.claims.outcome import Estimate, Line, Outcome, estimate
from selftaught.control import (
    Agent,
    Family,
    MoSS,
    PointRobot,
    changed_episode,
    components,
    first_episode,
    purity,
    returns,
    start,
    train,
)

OURS, PLAIN = "MoSS", "MoSS without contrast"
RECURRENT, SAC, ORACLE = "recurrence (after RL2)", "SAC, no context", "SAC, told the task"
FIRST, CHANGED, PURITY = "first episode", "after a change", "purity"


@dataclass(frozen=True)
class World:
    """A family, the iterations on it, and how many classes there are to find."""

    family: Family
    iterations: int
    classes: int


def worlds() -> dict[str, World]:
    """Both of the claim."""
    return {
        "directions": World(PointRobot("direction"), 30, 4),
        "goals": World(PointRobot("goal"), 36, 4),
    }


@dataclass(frozen=True)
class Setting:
    """`tasks` to train on and as many others asked, in `points` places along training."""

    worlds: Mapping[str, World] = field(default_factory=worlds)
    config: MoSS = field(default_factory=MoSS)
    tasks: int = 64
    points: int = 4
    asked: int = 2
    seeds: tuple[int, ...] = (0, 1, 2)

    def agents(self) -> dict[str, MoSS]:
        """The same sizes for all of them."""
        c = self.config
        return {
            OURS: c,
            PLAIN: replace(c, contrast=0.0),
            RECURRENT: replace(c, context="recurrent"),
            SAC: replace(c, context="none"),
            ORACLE: replace(c, context="task"),
        }


QUICK = Setting(
    {
        "directions": World(PointRobot("direction", horizon=6), 2, 4),
        "goals": World(PointRobot("goal", horizon=6), 2, 4),
    },
    MoSS(hidden=8, recurrent=8, worlds=4, updates=1, batch=4, window=2, looks=2, decoded=2),
    tasks=8,
    points=2,
    seeds=(0, 1),
)


def drawn(s: Setting, family: Family) -> tuple[Tensor, Tensor, Tensor]:
    """Training tasks, the tasks asked, and what those become.

    Options were chosen on list 0; figures for list 1 were seen meanwhile, so list 2 is the one that is asked.
    """
    g = torch.Generator().manual_seed(100)
    lists = family.draw(s.tasks, g), *(family.draw(s.tasks, g) for _ in range(3))
    tests = lists[1 + s.asked]
    # The task after the next has another class than this one.
    return lists[0], tests, tests.roll(1, 0)


@dataclass
class Found:
    """Of one agent in one world, by seed: figures after the last iteration, returns along the way, seconds."""

    first: list[list[float]] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)
    purity: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def last(self) -> list[float]:
        """Returns of the first episode at the end, by seed."""
        return [curve[-1] for curve in self.first]


Table = Mapping[tuple[str, str], Found]
"""(world, agent) -> what was found."""


def run(s: Setting, world: World, config: MoSS, seed: int, found: Found) -> None:
    """Train one agent and add what it does on the tasks asked."""
    family = world.family
    tasks, asked, later = drawn(s, family)
    net = config.network(family, seed)
    at = {round(world.iterations * (k + 1) / s.points) for k in range(s.points)}
    curve, began = [], time.process_time()
    spent = 0.0
    agent = Agent(config, net, {})
    for state, _ in train(config, net, family, tasks, start(config, net, family, tasks, seed), world.iterations):
        if state.step in at:
            spent += time.process_time() - began
            agent = replace(agent, weights=state.params | state.slow)
            curve.append(float(returns(first_episode(agent, family, asked)).mean()))
            began = time.process_time()
    found.first.append(curve)
    found.seconds.append(spent)
    half = family.horizon // 2
    found.changed.append(float(returns(changed_episode(agent, family, asked, later), half).mean()))
    clusters = _clusters(agent, world, asked, seed)
    if clusters is not None:
        found.purity.append(purity(clusters, family.classes(asked)))


def _clusters(agent: Agent, world: World, asked: Tensor, seed: int) -> Tensor | None:
    """Components of a mixture; k-means, told how many classes there are, of a recurrence's last states."""
    played = first_episode(agent, world.family, asked)
    if agent.config.context == "belief":
        return components(agent, played)
    if agent.config.context != "recurrent":
        return None
    means = KMeans(world.classes, n_init=5, random_state=seed).fit(played.states[:, -1].numpy())
    return torch.as_tensor(means.labels_).long()


def measure(s: Setting) -> dict[tuple[str, str], Found]:
    """Every agent in every world with every seed."""
    runs = [(w, a, seed) for w in s.worlds for seed in s.seeds for a in s.agents()]
    found: dict[tuple[str, str], Found] = {(w, a): Found() for w in s.worlds for a in s.agents()}
    for w, a, seed in track(runs, "agents", console=Console(stderr=True), transient=True):
        run(s, s.worlds[w], s.agents()[a], seed, found[w, a])
    return found


def show(quick: bool = False) -> Outcome:
    """Train all agents, and play."""
    s = QUICK if quick else Setting()
    found = measure(s)
    return Outcome(
        "moss",
        "Wang, Bing, Yao, Wang, Su, Yang, Huang, Knoll, AAAI 2023, arXiv 2305.00286 (abstract and introduction)",
        "A belief over tasks learned by self-supervision, renewed at every transition, lets an agent do well in "
        "its first episode of an unseen task and follow a change of task inside it, with less experience.",
        protocol(s),
        [row(w, a, f) for (w, a), f in found.items()],
        verdict(s, found),
        losing(s, found),
        lines=[
            Line(f"return in {w} against transitions", a, along(s, w), points(f)) for (w, a), f in found.items()
        ],
    )


def along(s: Setting, world: str) -> list[float]:
    """Transitions collected at each place of a curve, the random ones at the start among them."""
    w = s.worlds[world]
    each = s.config.worlds * w.family.horizon
    return [float(each * (1 + round(w.iterations * (k + 1) / s.points))) for k in range(s.points)]


def points(found: Found) -> list[Estimate]:
    """Of a curve, over seeds."""
    return [estimate(values) for values in zip(*found.first, strict=True)]


def row(world: str, agent: str, found: Found) -> dict[str, Estimate | str]:
    """Means over seeds; what an agent does not have is empty."""
    return {
        "world": world,
        "agent": agent,
        FIRST: estimate(found.last),
        CHANGED: estimate(found.changed),
        PURITY: estimate(found.purity) if found.purity else "",
        "CPU s": f"{sum(found.seconds) / len(found.seconds):.1f}",
    }


def lead(found: Table, world: str, other: str, changed: bool = False) -> Estimate:
    """How much higher MoSS's return is, seed by seed."""
    ours, theirs = found[world, OURS], found[world, other]
    a, b = (ours.changed, theirs.changed) if changed else (ours.last, theirs.last)
    return estimate([x - y for x, y in zip(a, b, strict=True)])


def clear(gain: Estimate) -> bool:
    """Whether the interval lies above zero; one seed has none."""
    return gain.mean - gain.half_width > 0


def verdict(s: Setting, found: Table) -> str:
    """Shown where MoSS's first episode is clearly better than SAC's and the recurrence's in every world."""
    gains = {(w, o): lead(found, w, o) for w in s.worlds for o in (SAC, RECURRENT)}
    word = "Shown" if all(clear(g) for g in gains.values()) else "Not shown"
    said = "; ".join(f"{w}, {g} above {o}" for (w, o), g in gains.items())
    return f"{word}: returns of the first episode on new tasks, paired by seed: {said}."


def losing(s: Setting, found: Table) -> str:
    """What MoSS does not clearly win, the gap to the oracle, the classes."""
    pairs = [(w, o, c) for w in s.worlds for o in (SAC, RECURRENT) for c in (False, True)]
    lost = [
        f"{w}{' after a change' if c else ''} against {o} ({lead(found, w, o, c)})"
        for w, o, c in pairs
        if not clear(lead(found, w, o, c))
    ]
    gap = "; ".join(f"{w} {_turned(lead(found, w, ORACLE))}" for w in s.worlds)
    pure = "; ".join(
        f"{w} {estimate(found[w, OURS].purity)} (k-means of the recurrence "
        f"{estimate(found[w, RECURRENT].purity)}, one cluster {1 / s.worlds[w].classes:.2f})"
        for w in s.worlds
    )
    return (
        f"Not clearly ahead: {'; '.join(lost) or 'nowhere'}. Behind the agent that is told the task by: {gap}. "
        f"Purity: {pure}."
    )


def _turned(gain: Estimate) -> Estimate:
    return replace(gain, mean=-gain.mean)


def protocol(s: Setting) -> str:
    """What all rows share."""
    c = s.config
    sizes = "; ".join(f"{n} {w.iterations}, of {w.family.horizon} steps" for n, w in s.worlds.items())
    return (
        f"Iterations: {sizes}; each plays {c.worlds} episodes and takes {c.updates} steps of Adam {c.rate:g} on "
        f"{c.batch} replayed ones, after an iteration of random play. Directions and goals lie in four sectors of "
        f"the plane; in {c.change:.0%} of the training episodes the task changes once. {s.tasks} training tasks, "
        f"{s.tasks} others asked, one episode each from nothing known, by the middle of the policy. Return: sum "
        "of rewards, after a change of the second half only. All agents have the same policy, critics, number of "
        "episodes and steps; the recurrence has MoSS's GRU, but no other teacher than the critics; MoSS has "
        f"{c.components} components. Gated layers, a rate and which transitions are decoded were chosen, of few "
        f"tries, on another list of tasks with seed 0 and a third of the iterations; last step; {len(s.seeds)} "
        "seeds, 95 % intervals by Student's t over seeds. "
        "CPU s: training, one thread. Sizes and steps are those of a few minutes on a shared machine; the "
        "paper's bodies and figures are not repeated."
    )
