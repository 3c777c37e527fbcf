"""Classifiers made of class names, of a few pictures, or of both: ProtoNet whose support is text.

Radford et al. 2021, arXiv 2103.00020, section 3.1: normalise each prompt's feature, take the mean over prompts,
normalise again. Starting few-shot adaptation there follows Wortsman et al. 2022 (arXiv 2109.01903); the plain
gradient steps with the scale held, and the pull back, are our choice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply
from selftaught.core.types import Examples, Params
from selftaught.learners.heads import normalise, prototypes
from selftaught.nets.text import ImageTextModel, clamped_scale

PLAIN = ("{}",)
"""The prompt that is the class name itself."""


def prompts(names: Sequence[str], templates: Sequence[str] = PLAIN) -> list[str]:
    """Every name in every template, in order of template, then name: rows as a support of K shots has them.

    Raises ConfigError for no names, an empty or repeated one, and a template without its place `{}`.
    """
    if not names or not templates:
        raise ConfigError("zero-shot needs at least one class name and one template")
    wrong = [t for t in templates if "{}" not in t]
    if wrong:
        raise ConfigError(f"the template {wrong[0]!r} has no {{}} for the class name: write 'a photo of a {{}}'")
    if any(not n.strip() for n in names) or len(set(names)) != len(names):
        raise ConfigError(f"class names must differ and not be empty, got {list(names)}")
    return [template.replace("{}", name) for template in templates for name in names]


@torch.no_grad()
def zero_shot_classifier(
    model: ImageTextModel,
    tokenizer: Callable[[list[str]], Tensor],
    names: Sequence[str],
    templates: Sequence[str] = PLAIN,
) -> Float[Tensor, "D M"]:
    """One column of length one for each class: the mean of its normalised prompts, normalised.

    `model` is anything with `encode_text` (open_clip's models, with their own tokenizer), used as it is.
    Raises ConfigError as `prompts` does.
    """
    z = model.encode_text(tokenizer(prompts(names, templates)))
    return normalise(prototypes(normalise(z), len(names))).mT


def few_shot_classifier(
    classifier: Float[Tensor, "D M"],
    features: Float[Tensor, "S D"],
    y: Int64[Tensor, " S"],
    scale: float = 100.0,
    *,
    steps: int = 20,
    rate: float = 0.1,
    keep: float = 1.0,
) -> Float[Tensor, "D M"]:
    """`classifier` after gradient steps on the cross-entropy of a few pictures, with `keep` times its squared
    distance from where it started as a pull back; without pictures, itself.

    Logits are scale * cos(picture, column). The gradient is that of the loss divided by `scale` and multiplied by
    M, so that `rate` means the same at any scale and number of classes. Classes without pictures are allowed.
    Raises ConfigError for labels out of range.
    """
    if not len(features):
        return classifier
    if int(y.min()) < 0 or int(y.max()) >= classifier.shape[1]:
        raise ConfigError(f"labels {int(y.min())}..{int(y.max())} for {classifier.shape[1]} classes")
    start, w, z = normalise(classifier.mT), normalise(classifier.mT), normalise(features)
    for _ in range(steps):
        # The gradient of cross-entropy with respect to w, written out: (p - one-hot)^T z.
        p = F.softmax(scale * z @ normalise(w).mT, dim=-1) - F.one_hot(y, len(w)).to(z.dtype)
        w = w - rate * (p.mT @ z / len(z) * len(w) + keep * (w - start))
    return normalise(w).mT


@dataclass(frozen=True)
class Names:
    """An adapted learner: `classifier` [D N] with columns of length one, and the `weights` that embed queries."""

    classifier: Float[Tensor, "D N"]
    weights: Params


@dataclass(frozen=True)
class ZeroShotLearner:
    """Classes from texts (support of whole token numbers [S L]) or from pictures ([S C H W]), by the same rule.

    A class is the normalised mean of its normalised features; several texts a class are a prompt ensemble.
    `net` is `TwoTowers` or like it: called with either kind of support. Statistics are those of training.
    """

    net: nn.Module

    def adapt(self, weights: Params, support: Examples, ways: int) -> Names:
        """The classifier of one support set: `y` [S], or None if ordered by shot (template), then class."""
        z = normalise(apply(self.net, weights, support.x))
        return Names(normalise(prototypes(z, ways, support.y)).mT, weights)

    def predict(self, adapted: Names, x: Float[Tensor, "Q C H W"]) -> Float[Tensor, "Q N"]:
        """Cosines times the learned scale."""
        z = normalise(apply(self.net, adapted.weights, x))
        return clamped_scale(adapted.weights["log_scale"]) * (z @ adapted.classifier)
