"""What the playground knows and does, without any web: classes, pictures, guesses, the map, saving."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from selftaught.app.choices import Head
from selftaught.app.classifier import Classifier
from selftaught.app.model import Model
from selftaught.app.play import guesses as naming
from selftaught.app.play.guesses import Change, Guess, Measure, Near, Suggestion
from selftaught.app.play.pictures import Limits, Picture, as_png, read_bytes, shown_name, together
from selftaught.app.thumbnails import TSNE_FROM, embedding_map
from selftaught.core.errors import DataError, RunError
from selftaught.data.decode import Form, printable
from selftaught.data.pictures import Pictures

LONGEST_NAME = 60


@final
class PlaySession:
    """Classes with a few labelled pictures each, unlabelled pictures, and what a model makes of them.

    Pictures have numbers; classes are known by their names. Everything is in memory until `save` writes the
    classifier to `out`, the folder given at the start and the only one that is ever written. Not for several
    threads at a time. Methods raise DataError for what does not exist or goes beyond `limits`.
    """

    def __init__(
        self, start: Model | Classifier, out: Path, head: Head | None = None, limits: Limits | None = None
    ) -> None:
        """`head` is by default that of the classifier, or "prototype".

        Raises RunError for a method without an encoder of pictures.
        """
        self.limits = limits or Limits()
        self.out = out
        self.classes: dict[str, list[Picture]] = {}
        self.unlabelled: list[Picture] = []
        self.unsaved = False
        self._next = 1
        self._guesses: list[Guess] | None = None
        self._places: tuple[tuple[int, ...], Tensor] | None = None
        _check_encoder(start.model if isinstance(start, Classifier) else start)
        if isinstance(start, Classifier):
            self.model = start.model
            self.head: Head = head or start.head
            self.classes = self._from_support(start)
        else:
            self.model, self.head = start, head or "prototype"

    # Classes and pictures

    def add_class(self, name: str) -> str:
        """A new class without pictures; its name, without blanks around it."""
        wanted = self._new_name(name)
        if len(self.classes) >= self.limits.classes:
            raise DataError(f"{len(self.classes)} classes are the most here; remove one first")
        self.classes[wanted] = []
        self._changed()
        return wanted

    def rename_class(self, name: str, to: str) -> str:
        """Another name in the same place; the new name."""
        self._in(name)
        wanted = name if to.strip() == name else self._new_name(to)
        self.classes = {wanted if n == name else n: p for n, p in self.classes.items()}
        self._changed()
        return wanted

    def remove_class(self, name: str) -> None:
        """Its pictures become unlabelled."""
        pictures = self._in(name)
        self._room(len(pictures))
        del self.classes[name]
        self.unlabelled += pictures
        self._changed()

    def add(self, content: bytes, name: str, to: str | None = None) -> Picture:
        """A picture file's bytes into class `to`, or among the unlabelled. Undecodable ones raise DataError."""
        called = shown_name(name)
        if len(content) > self.limits.file_bytes:
            raise DataError(f"{called}: larger than {self.limits.file_bytes >> 20} MiB; scale it down first")
        where = self.unlabelled if to is None else self._in(to)
        self._room(1, to)
        config = self.model.config
        x, png = read_bytes(content, called, Form(config.size, config.channels, self.limits.pixels))
        vector = self.model.features(Pictures(x[None], (called,)))[0]
        if not torch.isfinite(vector).all():
            raise DataError(f"{called}: its embedding holds values that are not finite; was training stable?")
        picture = Picture(self._number(), called, x, vector, png)
        where.append(picture)
        self._changed(labels=to is not None)
        return picture

    def label(self, id: int, to: str) -> Change:
        """Put a picture, unlabelled or of another class, into class `to`; what that changed for the others."""
        if self.class_of(id) == to:
            return Change(id, to, ())
        self._room(1, to)
        before = self.predict()
        self._in(to).append(self._taken(id))
        self._changed()
        return naming.change(id, to, before, self.predict())

    def unlabel(self, id: int) -> None:
        """A labelled picture becomes an unlabelled one."""
        if self.class_of(id) is None:
            return
        self._room(1)
        self.unlabelled.append(self._taken(id))
        self._changed()

    def remove(self, id: int) -> None:
        """Forget a picture."""
        labelled = self.class_of(id) is not None
        self._taken(id)
        self._changed(labelled)

    def picture(self, id: int) -> Picture:
        """The picture of this number."""
        for one in self.pictures:
            if one.id == id:
                return one
        raise DataError(f"there is no picture {id}; it may have been removed")

    def class_of(self, id: int) -> str | None:
        """The class it is labelled with, or None."""
        self.picture(id)
        return next((n for n, pictures in self.classes.items() if any(p.id == id for p in pictures)), None)

    @property
    def pictures(self) -> list[Picture]:
        """All: labelled ones by class, then the unlabelled."""
        return [p for pictures in self.classes.values() for p in pictures] + self.unlabelled

    # What the model makes of them

    def predict(self) -> list[Guess]:
        """A guess for every unlabelled picture; none while fewer than two classes have a picture."""
        if self._guesses is None:
            self._guesses = naming.guesses(self.model, self.classes, self.unlabelled, self.head)
        return self._guesses

    def neighbours(self, id: int) -> tuple[Near, ...]:
        """The labelled pictures nearest to an unlabelled one, nearest first."""
        return next((g.neighbours for g in self.predict() if g.id == id), ())

    def suggest(self, measure: Measure = "margin") -> Suggestion | None:
        """The unlabelled picture to label next, or None while nothing can be guessed."""
        return naming.suggestion(self.predict(), measure)

    def what_changes(self, id: int, label: str) -> Change:
        """What it would change for the other unlabelled pictures if this one were labelled so; nothing is."""
        picture = self.picture(id)
        self._in(label)
        others = {n: [p for p in pictures if p.id != id] for n, pictures in self.classes.items()}
        others[label] = [*others[label], picture]
        rest = [p for p in self.unlabelled if p.id != id]
        return naming.change(id, label, self.predict(), naming.guesses(self.model, others, rest, self.head))

    def map(self) -> tuple[tuple[int, ...], Float[Tensor, "n 2"]]:
        """Numbers of all pictures and a place for each, within 0 .. 1 (PCA, from 30 pictures on t-SNE).

        Both axes have one scale, so that distances along them can be compared.
        """
        pictures = sorted(self.pictures, key=lambda p: p.id)
        ids = tuple(p.id for p in pictures)
        if self._places is None or self._places[0] != ids:
            vectors = torch.stack([p.vector for p in pictures]) if pictures else torch.zeros(0, 1)
            self._places = ids, _within_one(embedding_map(vectors))
        return self._places

    @property
    def map_kind(self) -> str:
        """How `map` finds its places."""
        return "t-SNE" if len(self.pictures) >= TSNE_FROM else "PCA"

    # On disk

    def save(self) -> Path:
        """The classifier that `selftaught adapt` would make of the labelled pictures, in `out`.

        Raises DataError for fewer than two classes or one without a picture; RunError, SaveError as
        `Classifier.save`.
        """
        empty = [name for name, pictures in self.classes.items() if not pictures]
        if empty:
            raise DataError(f"class {empty[0]!r} has no picture: add one, or remove the class")
        if len(self.classes) < 2:
            raise DataError(f"{len(self.classes)} class(es): telling classes apart needs at least two")
        labelled = [(p, i) for i, pictures in enumerate(self.classes.values()) for p in pictures]
        support = together([p for p, _ in labelled], [i for _, i in labelled], tuple(self.classes))
        Classifier.fit(self.model, support, self.head).save(self.out)
        self.unsaved = False
        return self.out

    @property
    def saved(self) -> bool:
        """Whether there is a classifier in `out`, saved by this session or before it."""
        return (self.out / "classifier.json").is_file()

    def load(self) -> None:
        """Classes, labelled pictures and head of the classifier in `out` instead of the present ones.

        Unlabelled pictures stay. Raises RunError where there is none, or one whose pictures are of another size.
        """
        found = Classifier.load(self.out)
        new, old = found.model.config, self.model.config
        if (new.size, new.channels) != (old.size, old.channels):
            raise RunError(
                f"{self.out} was made with pictures of {new.size} pixels and {new.channels} channel(s), here they "
                f"have {old.size} and {old.channels}: look at it with selftaught play {self.out}"
            )
        self.model, self.head = found.model, found.head
        self.classes = self._from_support(found)
        self.unlabelled = [replace(p, vector=self._vector(p)) for p in self.unlabelled]
        self._places = None
        self._changed()
        self.unsaved = False

    def _from_support(self, classifier: Classifier) -> dict[str, list[Picture]]:
        support = classifier.support
        assert support.y is not None
        classes: dict[str, list[Picture]] = {name: [] for name in support.classes}
        for x, name, y, vector in zip(
            support.x, support.names, support.y.tolist(), classifier.vectors, strict=True
        ):
            picture = Picture(self._number(), shown_name(name), x, vector, as_png(x))
            classes[support.classes[y]].append(picture)
        return classes

    def _vector(self, picture: Picture) -> Tensor:
        return self.model.features(Pictures(picture.x[None], (picture.name,)))[0]

    def _in(self, name: str) -> list[Picture]:
        if name not in self.classes:
            raise DataError(f"there is no class {name!r}; make it first")
        return self.classes[name]

    def _new_name(self, name: str) -> str:
        wanted = printable(name.strip())
        if not wanted:
            raise DataError("a class needs a name")
        if len(wanted) > LONGEST_NAME:
            raise DataError(f"a name of {len(wanted)} characters is too long; use at most {LONGEST_NAME}")
        if wanted in self.classes:
            raise DataError(f"there is a class {wanted!r} already; choose another name")
        return wanted

    def _room(self, more: int, to: str | None = None) -> None:
        """Raises DataError where `more` pictures do not fit into class `to`, or among the unlabelled."""
        there, most = (self.unlabelled, self.limits.unlabelled)
        if to is not None:
            there, most = self._in(to), self.limits.per_class
        if len(there) + more > most:
            where = "unlabelled pictures" if to is None else f"pictures in class {to!r}"
            raise DataError(f"{most} {where} are the most here; remove some first")

    def _taken(self, id: int) -> Picture:
        picture = self.picture(id)
        for pictures in self._lists():
            pictures[:] = [p for p in pictures if p.id != id]
        return picture

    def _lists(self) -> Sequence[list[Picture]]:
        return [*self.classes.values(), self.unlabelled]

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def _changed(self, labels: bool = True) -> None:
        """After every change; `labels` where it makes another classifier than the saved one."""
        self._guesses = None
        self.unsaved = self.unsaved or labels


def _check_encoder(model: Model) -> None:
    try:
        model.net.get_submodule("encoder")
    except AttributeError as error:
        raise RunError(
            f"{model.config.method} has no encoder of pictures, so there is nothing to try. "
            "Methods that have one: selftaught methods"
        ) from error


def _within_one(points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """The same places in 0 .. 1, centred; all at one place land in the middle."""
    if not len(points):
        return points
    low, high = points.amin(0), points.amax(0)
    span = float((high - low).max())
    return (points - (low + high) / 2) / (span or 1.0) + 0.5
