"""A set of decoded pictures: the one form in which all data enters the library."""

from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Pictures:
    """`x` uint8 [B C H W] (in memory or memory-mapped), with names and, where known, labels.

    `names` [B] are paths or identifiers; `y` int64 [B] counts into `classes`, or is None for unlabelled
    sets; `groups` [B] is a second, coarser or stylistic label (alphabet, drawing style), or None.
    `skipped` lists the files that could not be used.
    """

    x: UInt8[Tensor, "B C H W"]
    names: tuple[str, ...]
    y: Tensor | None = None
    classes: tuple[str, ...] = ()
    groups: tuple[str, ...] | None = None
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        channels, height, width = self.x.shape[1:]
        return channels, height, width

    def take(self, index: Tensor) -> "Pictures":
        """The pictures at `index` [n] int64, in that order; classes keep their numbers."""
        where = index.tolist()
        return Pictures(
            x=self.x[index],
            names=tuple(self.names[i] for i in where),
            y=None if self.y is None else self.y[index],
            classes=self.classes,
            groups=None if self.groups is None else tuple(self.groups[i] for i in where),
        )

    def only(self, keep: set[str]) -> "Pictures":
        """The pictures of the named classes, renumbered from 0 in the order of `classes`."""
        if self.y is None:
            raise ValueError("only() needs labelled pictures")
        chosen = [n for n, name in enumerate(self.classes) if name in keep]
        number = torch.full((len(self.classes),), -1, dtype=torch.int64)
        number[torch.tensor(chosen, dtype=torch.int64)] = torch.arange(len(chosen))
        index = torch.nonzero(number[self.y] >= 0).flatten()
        part = self.take(index)
        assert part.y is not None
        return Pictures(
            part.x,
            part.names,
            number[part.y],
            tuple(self.classes[n] for n in chosen),
            part.groups,
            self.skipped,
        )
