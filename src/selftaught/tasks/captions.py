"""Pairs of pictures and captions as tasks: the texts are the support, the pictures the queries.

The classes of a captioned set are its different captions: `classes[n]` holds everything that is said of the
pictures with y = n, one caption a line. So a set labelled by class names is a captioned set as it stands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from selftaught.core.errors import DataError, TooFewPicturesError
from selftaught.core.types import Examples, Task
from selftaught.data.augment import augment
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.tasks.views import distinct


@dataclass(frozen=True)
class CaptionTasks:
    """A `TaskSource` of one task: up to `batch` different pictures, each with one of its captions drawn at random.

    `support.x` [1 B L] are token numbers by `tokenizer`, `query.x` [1 B C H W] pictures in one view; row i of both
    is a pair. `support.y` [1 B B] is 1 where text j (second axis) is a caption of picture i (third axis) too, so
    that a loss need not call it wrong; `query.y` [1 B] are classes of the whole set. `ways` is B.

    Raises DataError without captions, TooFewPicturesError for fewer than two pictures.
    """

    pictures: Pictures
    views: Views
    tokenizer: Callable[[Sequence[str]], Tensor]
    batch: int = 128

    def __post_init__(self) -> None:
        if self.pictures.y is None or not self.pictures.classes:
            raise DataError(
                "pictures without captions: put a captions.csv or captions.jsonl into the folder, or a .txt file "
                "beside each picture; class folders serve too, their names being the captions"
            )
        if len(self.pictures) < 2:
            raise TooFewPicturesError(f"{len(self.pictures)} pair(s): telling pairs apart needs at least 2")

    @cached_property
    def _captions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of every different caption [n L]; which of them are said of each class, filled up by repetition
        [M most]; and how many those are [M]."""
        said = [captions_of(name) for name in self.pictures.classes]
        texts = list(dict.fromkeys(text for one in said for text in one))
        number = {text: n for n, text in enumerate(texts)}
        most = max(map(len, said))
        table = torch.tensor([[number[one[k % len(one)]] for k in range(most)] for one in said])
        return self.tokenizer(texts), table, torch.tensor([len(one) for one in said])

    def __call__(self, generator: torch.Generator) -> Task:
        assert self.pictures.y is not None
        tokens, table, counts = self._captions
        index = distinct(len(self.pictures), min(self.batch, len(self.pictures)), generator)
        y = self.pictures.y[index]
        drawn = (torch.rand(len(index), generator=generator) * counts[y]).long()
        text = table[y, drawn]
        true_of = (table[y][None] == text[:, None, None]).any(-1)
        x = augment(self.pictures.x[index], self.views, generator)
        support = Examples(tokens[text][None], true_of.long()[None])
        return Task(support, Examples(x[None], y[None]), ways=len(index), index=index[None])


def captions_of(name: str) -> list[str]:
    """The captions that a class name holds, one a line, without repetition. Raises DataError for none."""
    found = [line.strip() for line in name.splitlines() if line.strip()]
    if not found:
        raise DataError("a class without a name has no caption: name it, or remove its pictures")
    return list(dict.fromkeys(found))
