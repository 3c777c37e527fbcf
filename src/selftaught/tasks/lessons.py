"""Small data sets met as a stream of batches: what a learning rule learns from, and unseen points to ask about."""

from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError, TooFewPicturesError
from selftaught.core.types import Examples, Task

Draw = Callable[[int, torch.Generator], Examples]
"""(how many, generator) -> x [B D] float, y [B] int64."""


@final
class Lessons:
    """Meta-batches of data sets: `tasks` of them a call, each drawn uniformly from `draws`, or all in turn.

    The support holds `steps` batches of `batch` rows one after another: `support.x.unflatten(1, (steps, batch))`.
    With `every`, a call gives every data set once, in order. Raises ConfigError without data sets or rows.
    """

    def __init__(
        self,
        draws: Mapping[str, tuple[Draw, Draw]],
        ways: int,
        steps: int,
        batch: int,
        queries: int,
        tasks: int = 4,
        every: bool = False,
    ) -> None:
        if not draws or min(ways, steps, batch, queries, tasks) < 1:
            raise ConfigError("lessons need a data set, and at least one way, step, row, query and task")
        self.draws, self.ways, self.steps, self.batch = draws, ways, steps, batch
        self.queries, self.tasks, self.every = queries, tasks, every

    @property
    def names(self) -> list[str]:
        """Of the data sets."""
        return list(self.draws)

    def __call__(self, generator: torch.Generator) -> Task:
        """`support.x` [T steps*batch D], `query.x` [T queries D], labels [T ...]."""
        each = list(self.draws.values())
        if not self.every:
            each = [each[i] for i in torch.randint(len(each), (self.tasks,), generator=generator).tolist()]
        support = [to_learn(self.steps * self.batch, generator) for to_learn, _ in each]
        query = [to_ask(self.queries, generator) for _, to_ask in each]
        return Task(_stacked(support), _stacked(query), self.ways)


def from_rows(x: Tensor, y: Tensor) -> Draw:
    """Rows of x [M D] with labels y [M], drawn with replacement. Raises TooFewPicturesError for no rows."""
    if not len(x) or len(x) != len(y):
        raise TooFewPicturesError(f"a data set needs rows and as many labels; got {len(x)} and {len(y)}")

    def draw(count: int, generator: torch.Generator) -> Examples:
        rows = torch.randint(len(x), (count,), generator=generator)
        return Examples(x[rows], y[rows])

    return draw


def _stacked(parts: list[Examples]) -> Examples:
    return Examples(torch.stack([p.x for p in parts]), torch.stack([p.y for p in parts if p.y is not None]))
