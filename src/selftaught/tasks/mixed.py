"""Queries that show two classes at once: a window of one picture in another, and labels by area.

CutMix: Yun, Han, Oh, Chun, Choe, Yoo, arXiv 1905.04899. Mixing the queries of a task and never its support: Ni,
Goldblum, Sharaf, Kong, Goldstein, "Data Augmentation for Meta-Learning", ICML 2021. That every picture has a
window and a partner of its own is our choice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.core.types import Examples, Task, TaskSource


@dataclass(frozen=True)
class MixedQueries:
    """Tasks of `source` (with a T axis) whose queries are mixed, each with probability `chance`.

    `query.y` becomes soft: [T Q N] in the pictures' type, the share of each class in the picture; rows sum to 1.
    Losses that want class numbers cannot use such a task. Raises ConfigError for a `chance` outside 0..1 and for
    queries without labels.
    """

    source: TaskSource
    chance: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.chance <= 1:
            raise ConfigError(f"the chance that a query is mixed must be in 0..1, got {self.chance}")

    def __call__(self, generator: torch.Generator) -> Task:
        task = self.source(generator)
        if task.query.y is None:
            raise ConfigError("mixed queries need labels to mix: use a source that gives query.y")
        own = (task.query.y.unsqueeze(-1) == torch.arange(task.ways)).to(task.query.x.dtype)
        x, share, partner = cut_and_mix(task.query.x, self.chance, generator)
        other = own.gather(1, partner[..., None].expand_as(own))
        y = share[..., None] * own + (1 - share[..., None]) * other
        return Task(task.support, Examples(x, y), task.ways, task.index)


def cut_and_mix(x: Tensor, chance: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [T Q C H W] with windows of others of their task.

    Also the share [T Q] of a picture that is still its own, and its partner's row [T Q]. The window's centre is
    uniform, its area uniform in 0..1 before it is cut at the border; the share counts the pixels left.
    """
    rows, (height, width) = x.shape[:2], x.shape[-2:]
    partner = torch.rand(rows, generator=generator).argsort(-1)
    area, top, left, lot = torch.rand((4, *rows), generator=generator)
    side = torch.where(lot < chance, area.sqrt(), torch.zeros(()))
    down, across = _inside(top, side, height), _inside(left, side, width)
    window = down[..., :, None] & across[..., None, :]
    other = x.gather(1, partner[..., None, None, None].expand_as(x))
    share = 1 - window.to(x.dtype).mean((-2, -1))
    return torch.where(window.unsqueeze(-3), other, x), share, partner


def _inside(centre: Tensor, length: Tensor, pixels: int) -> Tensor:
    """[... pixels] which lie within half of `length` [...] of `centre` [...], both as parts of the side."""
    middles = (torch.arange(pixels) + 0.5) / pixels
    return (middles - centre[..., None]).abs() < length[..., None] / 2
