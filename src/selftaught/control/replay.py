"""Whole episodes as named tensors: one buffer for the belief, the policy and the critics.

No belief is kept: beliefs of old experience are computed again with the present weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.core.types import Params


@dataclass(frozen=True)
class Episodes:
    """B episodes of H steps: `seen` [B H+1 O], `actions` [B H A], `rewards` [B H], and the task at each step.

    `tasks` [B H P] are its numbers, which only an oracle is shown; `ids` [B H] int64 its place in the list of
    training tasks, by which same-task pairs are kept out of the negatives.
    """

    seen: Tensor
    actions: Tensor
    rewards: Tensor
    tasks: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.seen)


def empty_replay(like: Episodes, capacity: int) -> Params:
    """Room for `capacity` episodes. Raises ConfigError where one collection does not fit in."""
    if capacity < len(like):
        raise ConfigError(f"capacity {capacity} is less than the {len(like)} episodes collected at a time")
    room = {k: v.new_zeros(capacity, *v.shape[1:]) for k, v in vars(like).items()}
    return room | {"filled": torch.zeros((), dtype=torch.int64), "at": torch.zeros((), dtype=torch.int64)}


def added(replay: Params, episodes: Episodes) -> Params:
    """A replay with `episodes` in it, in place of the oldest where it is full; the one given is not changed."""
    capacity, count, at = len(replay["seen"]), len(episodes), int(replay["at"])
    rows = (at + torch.arange(count)) % capacity
    out = {k: replay[k].index_copy(0, rows, v) for k, v in vars(episodes).items()}
    out["filled"] = (replay["filled"] + count).clamp(max=capacity)
    out["at"] = torch.tensor((at + count) % capacity)
    return out


def sample(replay: Params, count: int, generator: torch.Generator) -> Episodes:
    """`count` episodes, uniformly with replacement."""
    rows = torch.randint(int(replay["filled"]), (count,), generator=generator)
    return Episodes(**{k: replay[k][rows] for k in Episodes.__dataclass_fields__})
