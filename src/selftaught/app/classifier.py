"""A few-shot classifier: a trained encoder and a handful of labelled pictures."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final, get_args

import numpy as np
import torch

from selftaught.app.choices import Head as Head
from selftaught.app.model import Model
from selftaught.app.own_head import OwnHead
from selftaught.artifacts.files import TEMPORARY_SUFFIX, read_json, save_error, write_json
from selftaught.artifacts.lock import LOCK, OWNER, locked
from selftaught.artifacts.tensors import load_tensors, save_tensors
from selftaught.core.errors import DataError, RunError
from selftaught.core.functional import part, prefixed
from selftaught.core.types import Params
from selftaught.data.pictures import Pictures, Skipped
from selftaught.evaluate.estimators import FewShotClassifier

CLASSIFIER_FORMAT = 1
_JSON = "classifier.json"
_PLACES = (("model", "support.safetensors"), ("model-2", "support-2.safetensors"))
"""Where a classifier's parts stand. One that is written in place of another takes the other pair of names, so that
the old one is whole until `classifier.json`, which names the pair, is replaced."""


@dataclass(frozen=True)
class Neighbour:
    """A support picture near a query: its name, its class, and the cosine similarity (-1 .. 1)."""

    name: str
    label: str
    similarity: float


@dataclass(frozen=True)
class Prediction:
    """What the classifier says of one picture: the label, how sure, all classes, and the nearest support.

    Probabilities are a softmax of the head's scores; from a few labels they are not calibrated.
    """

    name: str
    label: str
    probability: float
    probabilities: dict[str, float]
    neighbours: tuple[Neighbour, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "label": self.label,
            "probability": self.probability,
            "probabilities": self.probabilities,
            "neighbours": [vars(n) for n in self.neighbours],
        }


@final
@dataclass(frozen=True)
class Classifier:
    """`support` are the labelled pictures as the encoder saw them, `vectors` [S D] their embeddings.

    With the head "own" `own` names pictures as the method itself meets a task (for a method of inner steps, by the
    weights after them); `estimator` then only finds the nearest support, among the embeddings before the steps.
    """

    model: Model
    head: Head
    support: Pictures
    vectors: torch.Tensor
    estimator: FewShotClassifier
    own: OwnHead | None = None

    @classmethod
    def fit(cls, model: Model, support: Pictures, head: Head = "prototype") -> "Classifier":
        """Raises DataError for fewer than two classes or a class without pictures."""
        _check(support)
        return cls._from(model, support, model.features(support), head)

    @classmethod
    def _from(
        cls, model: Model, support: Pictures, vectors: torch.Tensor, head: Head, adapted: Params | None = None
    ) -> "Classifier":
        assert support.y is not None
        fitted = "prototype" if head == "own" else head
        estimator = FewShotClassifier(head=fitted).fit(vectors.numpy(), support.y.numpy())
        own = OwnHead.restored(model, support, adapted or {}) if head == "own" else None
        return cls(model, head, support, vectors, estimator, own)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""
        return self.support.classes

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Labelled files that could not be used."""
        return self.support.skipped

    def predict(self, data: Any, neighbours: int = 3) -> list[Prediction]:
        """One prediction for every picture of a file, folder, list, array or picture set, in the order read."""
        return self.predict_pictures(self.model.read(data), neighbours)

    def predict_pictures(self, pictures: Pictures, neighbours: int = 3) -> list[Prediction]:
        """`predict` for pictures already read; `neighbours` is cut to the size of the support set."""
        z = self.model.features(pictures).numpy()
        probability = self.own.probabilities(pictures.x) if self.own else self.estimator.predict_proba(z)
        count = max(1, min(neighbours, len(self.support)))
        distance, near = self.estimator.neighbors(z, count)
        return [
            self._one(name, p, 1 - d, i)
            for name, p, d, i in zip(pictures.names, probability, distance, near, strict=True)
        ]

    def _one(self, name: str, probability: Any, similarity: Any, near: Any) -> Prediction:
        by_class = {c: float(p) for c, p in zip(self.classes, probability, strict=True)}
        best = max(by_class, key=by_class.__getitem__)
        assert self.support.y is not None
        found = tuple(
            Neighbour(self.support.names[i], self.classes[int(self.support.y[i])], float(s))
            for i, s in zip(near, similarity, strict=True)
        )
        return Prediction(name, best, by_class[best], by_class, found)

    def save(self, folder: str | Path) -> None:
        """Write the model, the support pictures and their embeddings; raises SaveError, RunError.

        At every moment `folder` holds the old classifier or the new one, whole; other files in it stay.
        """
        path = Path(folder)
        try:
            if path.exists() and not (path / _JSON).is_file() and any(_foreign(path)):
                raise RunError(f"{path} holds other files: give --out a new or empty folder")
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise save_error(path, error) from error
        with locked(path):
            self._write(path)

    def _write(self, path: Path) -> None:
        assert self.support.y is not None
        before = _PLACES[1]
        with suppress(RunError):  # none there, or none that could be used
            before = _places(read_json(path / _JSON), path)
        model, support = _PLACES[1 - _PLACES.index(before)]
        self.model.save(path / model)
        tensors = {"x": self.support.x, "y": self.support.y, "vectors": self.vectors}
        tensors |= prefixed("adapted", self.own.tensors if self.own else {})
        save_tensors(path / support, tensors, {"kind": "selftaught classifier"})
        content = {
            "format": CLASSIFIER_FORMAT,
            "head": self.head,
            "classes": list(self.classes),
            "names": list(self.support.names),
            "model": model,
            "support": support,
        }
        # Last, because its presence says that the folder is whole.
        write_json(path / _JSON, content)
        shutil.rmtree(path / before[0], ignore_errors=True)
        with suppress(OSError):
            (path / before[1]).unlink()

    @classmethod
    def load(cls, folder: str | Path) -> "Classifier":
        """Raises RunError when the folder is not a whole classifier of this version."""
        path = Path(folder)
        if not (path / _JSON).is_file():
            raise RunError(f"{path / _JSON} is missing: not a classifier. Make one with `selftaught adapt`.")
        content = read_json(path / _JSON)
        if content.get("format") != CLASSIFIER_FORMAT:
            raise RunError(f"{path / _JSON} is of format {content.get('format')}; run `selftaught adapt` again.")
        model, file = _places(content, path)
        tensors, _ = load_tensors(path / file)
        missing = {"x", "y", "vectors"} - set(tensors) | {"head", "classes", "names"} - set(content)
        if missing:
            raise RunError(f"{path} lacks {', '.join(sorted(missing))}; run `selftaught adapt` again.")
        support = _support(content, tensors, path)
        _check(support)
        adapted, own = part(tensors, "adapted"), Model.load(path / model)
        return cls._from(own, support, tensors["vectors"], content["head"], adapted)


def _support(content: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], path: Path) -> Pictures:
    """The support set, after a look whether all parts of the folder are of one size and kind."""
    x, y, vectors = (tensors[k] for k in ("x", "y", "vectors"))
    names, classes = content["names"], content["classes"]
    texts = all(isinstance(t, list) and all(isinstance(s, str) for s in t) for t in (names, classes))
    if not texts or content["head"] not in get_args(Head) or len(set(classes)) != len(classes):
        raise RunError(f"{path / _JSON} has a broken head, classes or names; run `selftaught adapt` again.")
    fits = len(names) == len(x) == len(y) == len(vectors) and x.ndim == 4 and (y.ndim, vectors.ndim) == (1, 2)
    if not fits or x.dtype != torch.uint8 or y.dtype != torch.int64 or not _within(y, len(classes)):
        raise RunError(f"{path}: classifier.json and the support do not fit; run `selftaught adapt` again.")
    return Pictures(x, tuple(names), y, tuple(classes))


def _within(y: torch.Tensor, count: int) -> bool:
    return y.numel() > 0 and int(y.min()) >= 0 and int(y.max()) < count


def _foreign(path: Path) -> list[Path]:
    """What is in `path` and was not left by a `save` that was cut short."""
    own = {LOCK, OWNER, *_PLACES[0], *_PLACES[1]}
    return [p for p in path.iterdir() if p.name not in own and not p.name.endswith(TEMPORARY_SUFFIX)]


def _places(content: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """Names of the model and the support file. Only the known ones: a broken file must lead nowhere else."""
    found = (content.get("model", _PLACES[0][0]), content.get("support", _PLACES[0][1]))
    if found not in _PLACES:
        raise RunError(f"{path / _JSON} names unknown parts {found}; run `selftaught adapt` again.")
    return found


def _check(support: Pictures) -> None:
    if support.y is None:
        raise DataError("labelled pictures needed: a folder with one subfolder a class, or {class: [pictures]}")
    counts = np.bincount(support.y.numpy(), minlength=len(support.classes))
    empty = [name for name, n in zip(support.classes, counts, strict=True) if n == 0]
    if empty:
        raise DataError(f"class {empty[0]!r} has no readable picture: add one, or remove the class")
    if len(support.classes) < 2:
        raise DataError(f"{len(support.classes)} class(es): telling classes apart needs at least two folders")


def summary_of_skipped(skipped: Sequence[Skipped], most: int = 5) -> str:
    """A few lines on the files that were left out, or nothing."""
    if not skipped:
        return ""
    lines = [f"{len(skipped)} file(s) skipped:"] + [f"  {s.path}: {s.reason}" for s in skipped[:most]]
    return "\n".join(lines + [f"  and {len(skipped) - most} more"] * (len(skipped) > most))
