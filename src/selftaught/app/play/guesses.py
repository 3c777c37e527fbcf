"""What a few labels say of the unlabelled pictures, which of these to label next, and what that would change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch

from selftaught.app.choices import Head
from selftaught.app.model import Model
from selftaught.app.own_head import OwnHead
from selftaught.app.play.pictures import Picture, together
from selftaught.evaluate.estimators import FewShotClassifier

Measure = Literal["margin", "entropy"]
"""How a picture is chosen for the next label (uncertainty sampling): the smallest difference between the two
highest probabilities (Scheffer, Decomain, Wrobel 2001), or the highest entropy of all (Shannon 1948)."""


@final
@dataclass(frozen=True)
class Near:
    """A labelled picture near an unlabelled one; cosine similarity of their embeddings, -1 .. 1."""

    id: int
    label: str
    similarity: float


@final
@dataclass(frozen=True)
class Guess:
    """The probabilities of one unlabelled picture by class, in the order of the classes; not calibrated.

    `margin` is the difference between the two highest (0 .. 1), `entropy` is in nats (0 .. ln M).
    """

    id: int
    probabilities: Mapping[str, float]
    neighbours: tuple[Near, ...]

    @property
    def label(self) -> str:
        """The most probable class; of equal ones the first."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def probability(self) -> float:
        """That of the label."""
        return self.probabilities[self.label]

    @property
    def best_two(self) -> tuple[str, str]:
        """The two most probable classes."""
        first, second, *_ = sorted(self.probabilities, key=self.probabilities.__getitem__, reverse=True)
        return first, second

    @property
    def margin(self) -> float:
        """The highest probability less the second."""
        first, second = self.best_two
        return self.probabilities[first] - self.probabilities[second]

    @property
    def entropy(self) -> float:
        """In nats."""
        p = np.array([v for v in self.probabilities.values() if v > 0])
        return float(max(0.0, -(p * np.log(p)).sum()))


@final
@dataclass(frozen=True)
class Suggestion:
    """The unlabelled picture that is most useful to label next by `measure`, and the classes it is between."""

    id: int
    measure: Measure
    value: float
    between: tuple[str, str]


@final
@dataclass(frozen=True)
class Move:
    """One unlabelled picture before and after another one got a label.

    `distance` is the total variation between the two distributions: the share of probability that moved.
    """

    before: Guess
    after: Guess
    distance: float

    @property
    def flipped(self) -> bool:
        """Whether the label is another one now."""
        return self.before.label != self.after.label


@final
@dataclass(frozen=True)
class Change:
    """What picture `id`, labelled `label`, changes for the other unlabelled ones; those that move most first."""

    id: int
    label: str
    moves: tuple[Move, ...]

    @property
    def flipped(self) -> tuple[Move, ...]:
        """The pictures that get another label."""
        return tuple(m for m in self.moves if m.flipped)


def guesses(
    model: Model,
    classes: Mapping[str, Sequence[Picture]],
    asked: Sequence[Picture],
    head: Head,
    neighbours: int = 3,
) -> list[Guess]:
    """One for every asked picture, in their order; none while fewer than two classes have a picture.

    Classes without a picture take no part. The numbers are those of `Classifier.fit` on the same pictures.
    """
    filled = {name: pictures for name, pictures in classes.items() if pictures}
    if len(filled) < 2 or not asked:
        return []
    names = tuple(filled)
    labelled = [(p, i) for i, pictures in enumerate(filled.values()) for p in pictures]
    support = together([p for p, _ in labelled], [i for _, i in labelled], names)
    assert support.y is not None
    vectors = torch.stack([p.vector for p, _ in labelled]).numpy()
    estimator = FewShotClassifier("prototype" if head == "own" else head).fit(vectors, support.y.numpy())
    z = torch.stack([p.vector for p in asked]).numpy()
    if head == "own":
        probability = OwnHead.fit(model, support).probabilities(torch.stack([p.x for p in asked]))
    else:
        probability = estimator.predict_proba(z)
    distance, near = estimator.neighbors(z, max(1, min(neighbours, len(labelled))))

    def nearest(row: int) -> tuple[Near, ...]:
        return tuple(
            Near(labelled[i][0].id, names[labelled[i][1]], float(1 - d))
            for i, d in zip(near[row], distance[row], strict=True)
        )

    return [
        Guess(p.id, {n: float(v) for n, v in zip(names, probability[row], strict=True)}, nearest(row))
        for row, p in enumerate(asked)
    ]


def suggestion(found: Sequence[Guess], measure: Measure) -> Suggestion | None:
    """Of the guesses the least certain one by `measure`, of equal ones the first; None where there are none."""
    if not found:
        return None
    if measure == "margin":
        least = min(found, key=lambda g: g.margin)
        return Suggestion(least.id, measure, least.margin, least.best_two)
    least = max(found, key=lambda g: g.entropy)
    return Suggestion(least.id, measure, least.entropy, least.best_two)


def change(id: int, label: str, before: Sequence[Guess], after: Sequence[Guess]) -> Change:
    """From the guesses before and after; only pictures that are in both. A class that is new counts from 0."""
    was = {g.id: g for g in before}
    moves = [Move(was[g.id], g, _distance(was[g.id], g)) for g in after if g.id in was]
    return Change(id, label, tuple(sorted(moves, key=lambda m: -m.distance)))


def _distance(a: Guess, b: Guess) -> float:
    names = {*a.probabilities, *b.probabilities}
    return sum(abs(a.probabilities.get(n, 0.0) - b.probabilities.get(n, 0.0)) for n in names) / 2
