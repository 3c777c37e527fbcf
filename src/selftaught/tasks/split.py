"""Whether the two loops of meta-learning see different pictures of a task, or all of them both times.

Bai, Chen, Zhou, Zhao, Lee, Kakade, Wang, Xiong, "How Important is the Train-Validation Split in Meta-Learning?",
ICML 2021, arXiv 2010.05843: "tr-val" adapts on one part of a task's pictures and asks the other, "tr-tr" adapts
on all of them and asks all of them. That both are one wrapper around any source is our choice.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.core.types import Examples, Task, TaskSource

Split = Literal["tr-val", "tr-tr"]

_PICTURE_AXES = 3


@dataclass(frozen=True)
class SplitTasks:
    """The tasks of `source`, as they are ("tr-val") or with support and query united in both roles ("tr-tr").

    The draws from the generator are those of `source` under either, so both train on the same pictures.
    Raises ConfigError for another `split`.
    """

    source: TaskSource
    split: Split = "tr-val"

    def __post_init__(self) -> None:
        if self.split not in ("tr-val", "tr-tr"):
            raise ConfigError(f"split must be 'tr-val' or 'tr-tr', got {self.split!r}")

    def __call__(self, generator: torch.Generator) -> Task:
        task = self.source(generator)
        return united(task) if self.split == "tr-tr" else task


def united(task: Task) -> Task:
    """Support and query are both the union: `x` [(T) S+Q C H W], `y` [(T) S+Q], support rows first.

    Rows stay ordered by shot, then class: the query's shots count on from the support's. `index` stays as it is,
    since the task shows the same pictures. Raises ConfigError where one side alone has labels, or soft ones, and
    where the sides hold different things (noise beside the support's pictures, captions as queries).
    """
    s, q = task.support.x, task.query.x
    if s.ndim != q.ndim or s.shape[-_PICTURE_AXES:] != q.shape[-_PICTURE_AXES:]:
        raise ConfigError(
            f"support {list(s.shape)} and query {list(q.shape)} do not hold the same kind of pictures, so neither "
            "can take the other's part; use split='tr-val'"
        )
    rows = Examples(_joined(task.support.x, task.query.x, _PICTURE_AXES), _labels(task))
    return Task(rows, rows, task.ways, task.index)


def _joined(support: Tensor, query: Tensor, after: int) -> Tensor:
    """Together along the row axis, which has `after` axes behind it, with or without T before it."""
    return torch.cat([support, query], support.ndim - after - 1)


def _labels(task: Task) -> Tensor | None:
    support, query = task.support.y, task.query.y
    if support is None and query is None:
        return None
    if support is None or query is None:
        raise ConfigError("a task to unite has labels on one side only; give both sides labels or neither")
    if support.ndim != query.ndim:
        raise ConfigError("mixed queries (soft labels) cannot be united with a support; use split='tr-val'")
    return _joined(support, query, 0)
