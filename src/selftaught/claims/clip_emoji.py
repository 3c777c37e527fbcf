"""Emoji named by words: names never trained whose words were, in hands trained on and in one never trained on."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.claims.clip_models import (
    Captions,
    Heads,
    Setting,
    accuracy,
    fit,
    reader,
    reciprocal_rank,
    rival,
)
from selftaught.core.types import Params
from selftaught.data.emoji import Emoji, emoji_metadata, emoji_styles, read_captioned_emoji, read_emoji
from selftaught.data.pictures import Pictures
from selftaught.data.tokens import vocabulary_of, words_of
from selftaught.data.views import Views
from selftaught.methods.clip import CLIP
from selftaught.nets import build_encoder
from selftaught.tasks.captions import CaptionTasks, captions_of

HAND = Views(crop=(0.7, 1.0), rotate=10, brightness=0.2, contrast=0.2, saturation=0.2)
"""No mirror, since names say left and right, and no change of hue, since they say colours."""
NEW_STYLE = "fluent_flat"
OLD_STYLES = tuple(style for style in emoji_styles() if style != NEW_STYLE)
TEMPLATES = ("{}",)
PRIORS = (0.0, 1.0)
"""How much of a word's log-frequency the rival's score leaves out; validation chooses."""


@dataclass(frozen=True)
class Named:
    """Pictures, the `names` to choose from, and which is right [B]."""

    x: Tensor
    y: Tensor
    names: tuple[str, ...]


def spoken(one: Emoji) -> str:
    """The name without a sign."""
    return one.name.removesuffix(one.emoji).strip()


def training(s: Setting) -> Pictures:
    """The training classes in every style but the new one, with captions."""
    parts = [read_captioned_emoji(style, split="train") for style in OLD_STYLES]
    both = Pictures(
        torch.cat([p.x for p in parts]),
        tuple(name for p in parts for name in p.names),
        torch.cat([p.y for p in parts if p.y is not None]),
        parts[0].classes,
    )
    assert all(p.classes == both.classes for p in parts)
    if s.emoji_classes is None or both.y is None:
        return both
    return both.take((both.y < s.emoji_classes).nonzero()[:, 0])


def new_names(train: Pictures, split: str, styles: tuple[str, ...]) -> Named:
    """Emoji of another split whose words were all trained and whose name was never a caption; each name once."""
    assert train.y is not None
    said = {c for n in train.y.unique().tolist() for c in captions_of(train.classes[n])}
    words = {word for caption in said for word in words_of(caption)}
    lower = {caption.lower() for caption in said}
    about = [one for one in emoji_metadata() if one.split == split]
    names: dict[str, int] = {}
    for n, one in enumerate(about):
        name = spoken(one)
        if set(words_of(name)) <= words and words_of(name) and name.lower() not in lower:
            names.setdefault(name, n)
    drawn = [read_emoji(style, split=split) for style in styles]  # type: ignore[arg-type]
    where = torch.tensor(list(names.values()))
    x = torch.cat([p.x[where] for p in drawn])
    return Named(x, torch.arange(len(names)).repeat(len(styles)), tuple(names))


def trained_names(train: Pictures, style: str) -> Named:
    """Training emoji in a style, one for each name."""
    assert train.y is not None
    firsts: dict[str, int] = {}
    for n in sorted(set(train.y.tolist())):
        firsts.setdefault(captions_of(train.classes[n])[0], n)
    drawn = read_emoji(style, split="train")
    return Named(drawn.x[torch.tensor(list(firsts.values()))], torch.arange(len(firsts)), tuple(firsts))


def arms_of(s: Setting, train: Pictures, seed: int) -> dict[str, Captions | Heads]:
    """CLIP, and a head for every word; the encoders start alike."""
    assert train.y is not None
    used = [train.classes[n] for n in sorted(set(train.y.tolist()))]
    vocabulary = vocabulary_of(used)
    columns = {word: k for k, word in enumerate(vocabulary.split())}
    truth = torch.zeros(len(train.classes), len(columns))
    for n in set(train.y.tolist()):
        truth[n, [columns[word] for word in words_of(train.classes[n])]] = 1

    def encoder() -> torch.nn.Module:
        return build_encoder("conv4", 3, train.shape[1], seed, width=s.emoji_width)

    clip = CLIP(vocabulary, context=16, batch=s.batch)
    return {"CLIP": reader(clip, encoder(), seed), "a head for every word": rival(encoder(), columns, truth, seed)}


def measure(s: Setting, seed: int) -> dict[str, dict[str, float]]:
    """Figures of every model, and of the nearest pixels where a trained name is asked for."""
    train = training(s)
    check, test = new_names(train, "validation", OLD_STYLES), new_names(train, "test", OLD_STYLES)
    test_new, known_new = new_names(train, "test", (NEW_STYLE,)), trained_names(train, NEW_STYLE)
    found: dict[str, dict[str, float]] = {}
    for name, arm in arms_of(s, train, seed).items():
        vocabulary = vocabulary_of(train.classes[n] for n in sorted(set(train.y.tolist())))  # type: ignore[union-attr]
        source = CaptionTasks(train, HAND, CLIP(vocabulary, 16).tokenizer(strict=False), s.batch)
        kept = fit(s, arm.net, arm.loss, source, s.emoji_steps, s.emoji_rate, seed, f"emoji, {name}, seed {seed}")
        arm, weights = chosen(arm, kept, check)
        found[name] = {
            "known": right(arm, weights, known_new),
            "new": right(arm, weights, test),
            "harder": right(arm, weights, test_new),
        }
    found["nearest pixels"] = {"known": nearest_pixels(train, known_new)}
    found["chance"] = {
        "known": 1 / len(known_new.names),
        "new": 1 / len(test.names),
        "harder": 1 / len(test.names),
    }
    return found


def chosen(arm: Captions | Heads, kept: list[Params], check: Named) -> tuple[Captions | Heads, Params]:
    """Checkpoint and, for the rival, form of the score with the best reciprocal rank on validation emoji."""
    forms = [arm] if isinstance(arm, Captions) else [replace(arm, prior=prior) for prior in PRIORS]
    tried = [(form, weights, ranked(form, weights, check)) for form in forms for weights in kept]
    form, weights, _ = max(tried, key=lambda t: t[2])
    return form, weights


def right(arm: Captions | Heads, weights: Params, asked: Named) -> float:
    """Accuracy."""
    return accuracy(arm.scores(weights, asked.x, asked.names, TEMPLATES), asked.y)


def ranked(arm: Captions | Heads, weights: Params, asked: Named) -> float:
    """Mean reciprocal rank."""
    return reciprocal_rank(arm.scores(weights, asked.x, asked.names, TEMPLATES), asked.y)


def nearest_pixels(train: Pictures, asked: Named) -> float:
    """Accuracy of the name of the training picture with the largest cosine of pixels, less their mean."""
    assert train.y is not None
    mean = train.x.float().mean(0)
    z, known = (F.normalize((x.float() - mean).flatten(1), dim=-1) for x in (asked.x, train.x))
    said = [captions_of(train.classes[train.y[i]])[0] for i in (z @ known.mT).argmax(-1).tolist()]
    return sum(said[i] == asked.names[n] for i, n in enumerate(asked.y.tolist())) / len(said)
