"""Labelled episodes: which pictures are support and which are query, drawn from labels alone.

An episode list depends on the labels and the plan and on nothing else, so every method is measured on the
same list and differences can be taken episode by episode.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from selftaught.core.errors import ConfigError, DataError, TooFewPicturesError
from selftaught.core.functional import to_float
from selftaught.core.types import Examples, Task
from selftaught.data.pictures import Pictures

_EPISODES_AT_ONCE = 500


@dataclass(frozen=True)
class EpisodePlan:
    """`episodes` tasks of `ways` classes, `shots` support and `queries` query pictures per class."""

    ways: int
    shots: int
    queries: int = 15
    episodes: int = 600
    seed: int = 0

    def __post_init__(self) -> None:
        smallest = {"ways": 2, "shots": 1, "queries": 1, "episodes": 1}
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise ConfigError(f"an episode plan needs {name} >= {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Episodes:
    """Positions of pictures in their set, one episode a row.

    `support` [E N*K] and `query` [E N*Q], ordered by shot, then class: row `k * ways + n` is shot k of the
    class `classes[e, n]`. Labels inside an episode are n, the same for every row (`support_y`, `query_y`).
    """

    support: Int64[Tensor, "E S"]
    query: Int64[Tensor, "E Q"]
    classes: Int64[Tensor, "E N"]
    plan: EpisodePlan

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def support_y(self) -> Tensor:
        """[N*K] int64, the local label of each support row."""
        return torch.arange(self.plan.ways).repeat(self.plan.shots)

    @property
    def query_y(self) -> Tensor:
        """[N*Q] int64, the local label of each query row."""
        return torch.arange(self.plan.ways).repeat(self.plan.queries)


@dataclass(frozen=True)
class _ByClass:
    """Positions sorted by label: class m owns `order[start[m] : start[m] + count[m]]`."""

    order: Tensor
    start: Tensor
    count: Tensor
    labels: Tensor


def _by_class(y: Tensor) -> _ByClass:
    if y.ndim != 1 or y.is_floating_point():
        raise DataError(f"labels must be whole numbers of shape [B], got {y.dtype} {list(y.shape)}")
    labels, count = torch.unique(y.cpu(), return_counts=True)
    order = torch.argsort(y.cpu(), stable=True)
    return _ByClass(order, torch.cumsum(count, 0) - count, count, labels)


def _check(groups: _ByClass, plan: EpisodePlan, names: Sequence[str]) -> None:
    if len(groups.labels) < plan.ways:
        raise TooFewPicturesError(
            f"{plan.ways}-way episodes need {plan.ways} classes, the set has {len(groups.labels)}; "
            f"ask for at most {len(groups.labels)} ways or add classes"
        )
    need = plan.shots + plan.queries
    fewest = int(groups.count.argmin())
    have = int(groups.count[fewest])
    if have < need:
        label = int(groups.labels[fewest])
        name = f"'{names[label]}'" if label < len(names) else f"number {label}"
        short = int((groups.count < need).sum())
        raise TooFewPicturesError(
            f"class {name} has {have} pictures, but {plan.shots} shots + {plan.queries} queries need {need} "
            f"({short} classes are too small); ask for fewer shots or queries, add pictures, or leave the "
            "class out"
        )


def _distinct(uniform: Float64[Tensor, "... n"], count: Int64[Tensor, "..."]) -> Int64[Tensor, "... n"]:
    """n different whole numbers below `count`, every subset equally likely, in no particular order.

    Floyd's sampling: the work does not depend on how many pictures a class has.
    """
    n = uniform.shape[-1]
    chosen = torch.empty(uniform.shape, dtype=torch.int64)
    for i in range(n):
        top = count - n + i
        guess = (uniform[..., i] * (top + 1)).long().clamp_(max=top)
        taken = (chosen[..., :i] == guess.unsqueeze(-1)).any(-1)
        chosen[..., i] = torch.where(taken, top, guess)
    return chosen


def _draw(groups: _ByClass, plan: EpisodePlan, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Local class numbers [E N] and picture positions [E N K+Q] of one block of episodes."""
    need = plan.shots + plan.queries
    many = len(groups.labels)
    # All the chance of an episode is in its own row, so a longer list starts with the shorter one.
    width = many + 2 * plan.ways * need
    uniform = torch.rand(plan.episodes, width, generator=generator, dtype=torch.float64)
    for_class, for_pick, for_order = uniform.split([many, plan.ways * need, plan.ways * need], dim=1)
    classes = for_class.argsort(1)[:, : plan.ways]
    shape = (plan.episodes, plan.ways, need)
    rank = _distinct(for_pick.reshape(shape), groups.count[classes])
    rank = rank.gather(-1, for_order.reshape(shape).argsort(-1))
    return classes, groups.order[groups.start[classes].unsqueeze(-1) + rank]


def _split(position: Tensor, shots: int) -> tuple[Tensor, Tensor]:
    """Support [E K*N] and query [E Q*N] out of positions [E N K+Q], both by shot, then class."""
    by_shot = position.transpose(1, 2)
    return by_shot[:, :shots].flatten(1), by_shot[:, shots:].flatten(1)


def draw_episodes(y: Int64[Tensor, " B"], plan: EpisodePlan, names: Sequence[str] = ()) -> Episodes:
    """The episodes of `plan` over pictures with labels `y`; the same arguments give the same list.

    Classes are drawn without replacement in uniformly random order, pictures without replacement inside a
    class, so no picture is in both support and query. A plan with more episodes starts with the same ones.
    `names` are class names for messages. Raises TooFewPicturesError where a class or the set is too small.
    """
    groups = _by_class(y)
    _check(groups, plan, names)
    generator = torch.Generator().manual_seed(plan.seed)
    supports, queries, classes = [], [], []
    for first in range(0, plan.episodes, _EPISODES_AT_ONCE):
        block = replace(plan, episodes=min(_EPISODES_AT_ONCE, plan.episodes - first))
        chosen, position = _draw(groups, block, generator)
        support, query = _split(position, plan.shots)
        supports.append(support)
        queries.append(query)
        classes.append(groups.labels[chosen])
    return Episodes(torch.cat(supports), torch.cat(queries), torch.cat(classes), plan)


@dataclass(frozen=True)
class EpisodeSource:
    """Meta-batches of labelled tasks, for supervised MAML and ProtoNet. Pure in the generator.

    Gives `tasks` tasks at a time: `support.x` [T N*K C H W] and `query.x` [T N*Q C H W] float in 0..1, labels
    local to the task, `index` [T N*(K+Q)] the positions of the support, then the query pictures.
    Raises DataError without labels and TooFewPicturesError where a class is too small.
    """

    pictures: Pictures
    ways: int
    shots: int
    queries: int = 15
    tasks: int = 4

    def __post_init__(self) -> None:
        if self.pictures.y is None:
            raise DataError("episodes need labelled pictures; put them in one folder per class")
        _check(self._groups, self._plan, self.pictures.classes)

    @cached_property
    def _plan(self) -> EpisodePlan:
        return EpisodePlan(self.ways, self.shots, self.queries, episodes=self.tasks)

    @cached_property
    def _groups(self) -> _ByClass:
        assert self.pictures.y is not None
        return _by_class(self.pictures.y)

    def __call__(self, generator: torch.Generator) -> Task:
        _, position = _draw(self._groups, self._plan, generator)
        support, query = _split(position, self.shots)
        return Task(
            support=self._examples(support, self.shots),
            query=self._examples(query, self.queries),
            ways=self.ways,
            index=torch.cat([support, query], 1),
        )

    def _examples(self, position: Tensor, per_class: int) -> Examples:
        y = torch.arange(self.ways).repeat(self.tasks, per_class)
        return Examples(to_float(self.pictures.x[position]), y)
