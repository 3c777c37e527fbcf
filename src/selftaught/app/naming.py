"""Pictures and words in use: name pictures by texts, find pictures by a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from selftaught.app.classifier import Prediction
from selftaught.app.model import Model
from selftaught.core.errors import DataError, RunError
from selftaught.core.functional import apply, in_batches
from selftaught.data.pictures import Pictures
from selftaught.learners.heads import normalise, prototypes
from selftaught.learners.zero_shot import PLAIN, few_shot_classifier, prompts
from selftaught.methods.clip import CLIP
from selftaught.nets.text import clamped_scale


@final
@dataclass(frozen=True)
class NameClassifier:
    """Classes that are texts: `matrix` [D M] has a column of length one for each of `classes`."""

    model: Model
    classes: tuple[str, ...]
    matrix: Float[Tensor, "D M"]

    @classmethod
    def of(
        cls, model: Model, classes: Sequence[str], templates: Sequence[str] = PLAIN, examples: Any = None
    ) -> "NameClassifier":
        """From names alone or, with `examples`, a start there and some steps on a few pictures of them.

        `examples` is a folder with a subfolder for each class that has any, named like the class.
        Raises RunError for a model that was not trained with captions, DataError for words it does not know and
        for examples of other classes, ConfigError for templates without {}.
        """
        z = text_features(model, prompts(classes, templates))
        matrix = normalise(prototypes(z, len(classes))).mT
        if examples is not None:
            pictures = model.read(examples, labelled=True)
            y = _numbered(pictures, classes)
            matrix = few_shot_classifier(matrix, picture_features(model, pictures), y, _scale(model))
        return cls(model, tuple(classes), matrix)

    def predict(self, data: Any) -> list[Prediction]:
        """One prediction for every picture of a file, folder, list, array or set; there are no neighbours."""
        return self.predict_pictures(self.model.read(data))

    def predict_pictures(self, pictures: Pictures, neighbours: int = 0) -> list[Prediction]:
        """`predict` for pictures already read; no neighbours, however many are asked for."""
        logits = _scale(self.model) * picture_features(self.model, pictures) @ self.matrix
        found = []
        for name, row in zip(pictures.names, logits.softmax(-1), strict=True):
            by_class = dict(zip(self.classes, row.tolist(), strict=True))
            best = max(by_class, key=by_class.__getitem__)
            found.append(Prediction(name, best, by_class[best], by_class, ()))
        return found


def _numbered(pictures: Pictures, classes: Sequence[str]) -> Tensor:
    strange = [name for name in pictures.classes if name not in classes]
    if strange or pictures.y is None:
        raise DataError(
            f"the examples have a folder {strange[0] if strange else ''!r}, which is not among the classes "
            f"{', '.join(classes)}: name folders like classes, or add the class"
        )
    number = torch.tensor([classes.index(name) for name in pictures.classes])
    return number[pictures.y]


def picture_features(model: Model, pictures: Pictures) -> Float[Tensor, "B D"]:
    """Where pictures lie in the common space, of length one. Raises RunError for a model without words."""
    _with_words(model)
    return normalise(in_batches(model.net, model.weights, pictures.x))


@torch.no_grad()
def text_features(model: Model, texts: Sequence[str]) -> Float[Tensor, "B D"]:
    """Where texts lie in the common space, of length one. Raises RunError and, for words unknown, DataError."""
    tokens = _with_words(model).tokenizer()(texts)
    return normalise(apply(model.net, model.weights, tokens))


def found_by(
    model: Model, pictures: Pictures, text: str, templates: Sequence[str] = PLAIN
) -> list[tuple[str, float]]:
    """Every picture with its cosine to `text` (the mean over templates), the nearest first."""
    wanted = NameClassifier.of(model, [text], templates).matrix[:, 0]
    cosine = picture_features(model, pictures) @ wanted
    order = cosine.argsort(descending=True, stable=True).tolist()
    return [(pictures.names[i], float(cosine[i])) for i in order]


def _with_words(model: Model) -> CLIP:
    method = model.config.build_method()
    if not isinstance(method, CLIP):
        raise RunError(
            f"this model was trained by {model.config.method}, which reads no captions, so it knows no names: "
            "train one with `selftaught pretrain PAIRS --method clip`"
        )
    return method


def _scale(model: Model) -> float:
    return float(clamped_scale(model.weights["log_scale"]))
