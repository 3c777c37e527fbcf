"""Where a run's tasks come from: the method's own source, or another one where the method takes any episodes.

What a method takes is read from its options, which are called the same everywhere: one that counts `tasks` of
`ways` classes with `queries` (or `query_views`) learns episodes, whoever makes them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast, get_args

from selftaught.app.choices import TasksFrom
from selftaught.core.errors import ConfigError
from selftaught.core.types import Method, TaskSource
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.methods import LASIUM, MAML, METHODS, CACTUs
from selftaught.methods.cactus import embedding
from selftaught.tasks.episodes import EpisodeSource
from selftaught.tasks.neighbours import NeighbourTasks, mutual_neighbours
from selftaught.tasks.split import Split, SplitTasks
from selftaught.tasks.views import ViewTasks

UNLABELLED = ("views", "clusters", "neighbours", "latent")
"""Sources that need no labels."""
_ROWS = (("shots", "support_views"), ("queries", "query_views"))


@dataclass(frozen=True)
class Sizes:
    """`tasks` tasks of `ways` classes, with `shots` support and `queries` query pictures (or views) of each."""

    tasks: int
    ways: int
    shots: int
    queries: int


@dataclass(frozen=True)
class NeighbourOptions:
    """`embeddings` as in CACTUs; how many `neighbours` are looked at; `own` as in `NeighbourTasks`.

    The numbers are ours. Raises ConfigError for fewer than one neighbour and a share outside 0..1.
    """

    embeddings: str = "pixels"
    neighbours: int = 5
    own: float = 0.25

    def __post_init__(self) -> None:
        if self.neighbours < 1 or not 0 <= self.own <= 1:
            raise ConfigError(f"neighbours={self.neighbours}, own={self.own}: use at least 1, and a share in 0..1")


def _labels(pictures: Pictures, views: Views, sizes: Sizes, options: Mapping[str, Any]) -> TaskSource:
    return EpisodeSource(pictures, sizes.ways, sizes.shots, sizes.queries, sizes.tasks)


def _views(pictures: Pictures, views: Views, sizes: Sizes, options: Mapping[str, Any]) -> TaskSource:
    """UMTRA's and ProtoCLR's tasks; with further shots views, since a raw picture has but one."""
    return ViewTasks(
        pictures, views, sizes.tasks, sizes.ways, sizes.shots, sizes.queries, raw_support=sizes.shots == 1
    )


def _clusters(pictures: Pictures, views: Views, sizes: Sizes, options: Mapping[str, Any]) -> TaskSource:
    return CACTUs(**vars(sizes), **options).source(pictures, views)


def _latent(pictures: Pictures, views: Views, sizes: Sizes, options: Mapping[str, Any]) -> TaskSource:
    return LASIUM(**vars(sizes), **options).source(pictures, views)


def _neighbours(pictures: Pictures, views: Views, sizes: Sizes, options: Mapping[str, Any]) -> TaskSource:
    """Neighbours are found at the first draw, so that a source which is only looked at costs nothing."""
    how = NeighbourOptions(**options)
    embed, count = embedding(how.embeddings, pictures), min(how.neighbours, len(pictures) - 1)

    @cache
    def found() -> NeighbourTasks:
        near = mutual_neighbours(embed(), count)
        return NeighbourTasks(pictures, views, near, sizes.tasks, sizes.ways, sizes.shots, sizes.queries, how.own)

    return lambda generator: found()(generator)


SOURCES: dict[str, Callable[[Pictures, Views, Sizes, Mapping[str, Any]], TaskSource]] = {
    "labels": _labels,
    "views": _views,
    "clusters": _clusters,
    "neighbours": _neighbours,
    "latent": _latent,
}
"""Every choice but "own"."""


def options_for(tasks: TasksFrom) -> tuple[str, ...]:
    """The names of what a source can be told beside the sizes of its tasks."""
    if tasks == "neighbours":
        return tuple(_names(NeighbourOptions))
    kind = {"clusters": CACTUs, "latent": LASIUM}.get(tasks)
    shared = _names(MAML) | {"base": None}
    return tuple(name for name in _names(kind) if name not in shared) if kind else ()


def divided(
    kind: type[Method], tasks: TasksFrom, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the method and options of the task source; what neither knows stays with the method."""
    theirs = set(options_for(tasks)) - set(_names(kind))
    of_source = {k: v for k, v in options.items() if k in theirs}
    return {k: v for k, v in options.items() if k not in theirs}, of_source


def source_of(
    name: str,
    method: Method,
    pictures: Pictures,
    views: Views,
    tasks: TasksFrom = "own",
    options: Mapping[str, Any] | None = None,
    split: Split = "tr-val",
) -> TaskSource:
    """The tasks of a run. Raises ConfigError, with the way out, where the method called `name` has no use for
    such tasks or such a split, and what the source raises."""
    _refuse(name, type(method), tasks, split)
    if tasks == "own":
        source = method.source(pictures, views)
    else:
        source = SOURCES[tasks](pictures, views, sizes_of(method), options or {})
    return source if split == "tr-val" else SplitTasks(source, split)


def sizes_of(method: Method) -> Sizes:
    """Of a method that `takes_any_tasks`; views count as shots and queries, and one shot where none is named."""
    said = vars(method)
    shots, queries = (said.get(name, said.get(views, 1)) for name, views in _ROWS)
    return Sizes(said["tasks"], said["ways"], shots, queries)


def takes_any_tasks(kind: type[Method]) -> bool:
    """Whether it learns episodes of `ways` classes from any source.

    CACTUs and LASIUM do not: they are a source together with a `base` learner.
    """
    names = _names(kind).keys()
    return {"tasks", "ways"} <= names and bool(names & {"queries", "query_views"}) and "base" not in names


def two_loops(kind: type[Method]) -> bool:
    """Whether it adapts to one part of a task and is asked the other: an inner rate or queries are options."""
    return bool(_names(kind).keys() & {"inner_rate", "queries", "query_views"})


def _refuse(name: str, kind: type[Method], tasks: TasksFrom, split: Split) -> None:
    if tasks not in get_args(TasksFrom):
        raise ConfigError(f"unknown tasks {tasks!r}; known: {', '.join(get_args(TasksFrom))}")
    if tasks != "own" and not takes_any_tasks(kind):
        if "base" in _names(kind):
            raise ConfigError(
                f"{name} is a task source and a base learner together: keep --tasks own, or take the base learner "
                f"as the method (for example --method protonet --tasks {tasks})"
            )
        raise ConfigError(
            f"{name} learns from batches of its own, not from few-shot tasks: keep --tasks own (tasks='own'), or "
            f"take {_listed(takes_any_tasks)}"
        )
    if split == "tr-tr" and not two_loops(kind):
        raise ConfigError(
            f"{name} has one loop, so no split between two: keep --split tr-val (split='tr-val'), or take "
            f"{_listed(two_loops)}"
        )


def _listed(fits: Callable[[type[Method]], bool]) -> str:
    *most, last = (name for name, kind in METHODS.items() if fits(kind))
    return f"{', '.join(most)} or {last}"


def _names(kind: type) -> dict[str, None]:
    return {field.name: None for field in dataclasses.fields(cast(Any, kind))}
