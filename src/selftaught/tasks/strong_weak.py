"""Tasks of single pictures whose support views are weak and whose query views are strong."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from selftaught.core.errors import ConfigError, TooFewPicturesError
from selftaught.core.types import Examples, Task
from selftaught.data.augment import augment
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.tasks.views import distinct, labels


@dataclass(frozen=True)
class StrongWeakTasks:
    """One task at a time: `ways` different pictures, a `weak` view of each as support, a `strong` one as query.

    Row n of both sides shows picture n; `support.x` and `query.x` are [1 N C H W]. Raises TooFewPicturesError for
    fewer than two pictures; sets smaller than `ways` give tasks of as many ways as there are pictures.
    """

    pictures: Pictures
    strong: Views
    weak: Views
    ways: int = 32

    def __post_init__(self) -> None:
        if len(self.pictures) < 2:
            raise TooFewPicturesError(
                f"{len(self.pictures)} picture(s) to learn from: telling pictures apart needs at least 2"
            )

    def __call__(self, generator: torch.Generator) -> Task:
        ways = min(self.ways, len(self.pictures))
        index = distinct(len(self.pictures), ways, generator)
        x = self.pictures.x[index]
        support, query = (augment(x, views, generator)[None] for views in (self.weak, self.strong))
        y = labels(1, ways, 1)
        return Task(Examples(support, y), Examples(query, y), ways, index[None])


def weakened(views: Views, share: float) -> Views:
    """The recipe with `share` of its strength: 1 as it is, 0 without any change but the mirror.

    Ranges shrink towards no change, probabilities of jitter, grey, blur and erasing by the factor; `flip` stays,
    since a mirror has no degree. Raises ConfigError for a share outside 0..1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"weak={share} is no share of a recipe's strength; use a number from 0 to 1")
    by_factor = (
        "rotate", "shear", "translate", "elastic", "thickness", "brightness", "contrast", "saturation", "hue",
        "jitter", "grey", "blur", "erase",
    )  # fmt: skip
    changed: dict[str, Any] = {name: share * getattr(views, name) for name in by_factor}
    changed |= {name: _towards_one(getattr(views, name), share) for name in ("crop", "scale")}
    return replace(views, **changed)


def _towards_one(limits: tuple[float, float], share: float) -> tuple[float, float]:
    low, high = limits
    return 1 + share * (low - 1), 1 + share * (high - 1)
