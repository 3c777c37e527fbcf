"""Generated pictures of one coloured shape somewhere, with captions; some pairs never meet in training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selftaught.claims.clip_models import Captions, Heads, Setting, accuracy, best_of, fit, reader, rival
from selftaught.core.types import Params
from selftaught.data.captions import captioned
from selftaught.data.pictures import Pictures
from selftaught.data.tokens import vocabulary_of, words_of
from selftaught.data.views import Views
from selftaught.learners.heads import normalise, prototypes
from selftaught.learners.zero_shot import few_shot_classifier
from selftaught.methods.clip import CLIP
from selftaught.nets import build_encoder
from selftaught.tasks.captions import CaptionTasks, captions_of

COLOURS = {
    "red": (0.9, 0.1, 0.1), "green": (0.1, 0.7, 0.2), "blue": (0.15, 0.25, 0.95), "yellow": (0.95, 0.9, 0.1),
    "purple": (0.6, 0.1, 0.75), "orange": (1.0, 0.55, 0.05), "white": (1.0, 1.0, 1.0), "pink": (1.0, 0.6, 0.75),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
PLACES = {"centre": (0.0, 0.0), "top": (-0.4, 0.0), "bottom": (0.4, 0.0), "left": (0.0, -0.4), "right": (0.0, 0.4)}
CAPTIONS = (
    "a {c} {s}", "a picture of a {c} {s}", "the {s} is {c}", "a {s} in {c}", "a {c} {s} at the {p}",
    "at the {p} there is a {s} in {c}", "a picture of something {c} it is a {s}",
)  # fmt: skip
TEMPLATES = ("a {}", "a picture of a {}", "a {} at the centre", "a {} at the left", "a {} at the right")
"""Prompts for a name like "red square"; the first stands alone, all of them are the ensemble."""

Pair = tuple[int, int]
"""Number of a colour, number of a shape."""


def every_pair() -> list[Pair]:
    """All colours with all shapes."""
    return [(c, s) for c in range(len(COLOURS)) for s in range(len(SHAPES))]


def name_of(pair: Pair) -> str:
    """As "red square"."""
    return f"{list(COLOURS)[pair[0]]} {SHAPES[pair[1]]}"


def held_out(count: int, seed: int) -> list[Pair]:
    """`count` pairs drawn by chance so that every colour and every shape keeps at least two pairs to train on."""
    generator = torch.Generator().manual_seed(seed)
    pairs = every_pair()
    while True:
        order = torch.randperm(len(pairs), generator=generator).tolist()
        rest = [pairs[i] for i in order[count:]]
        colours, shapes = ([pair[k] for pair in rest] for k in (0, 1))
        enough = all(colours.count(c) > 1 for c in range(len(COLOURS)))
        if enough and all(shapes.count(s) > 1 for s in range(len(SHAPES))):
            return sorted(pairs[i] for i in order[:count])


@dataclass(frozen=True)
class Drawn:
    """Captioned `pictures`, and the `pairs` [B 2] they show: number of the colour, of the shape."""

    pictures: Pictures
    pairs: Tensor


def draw(pairs: Sequence[Pair], count: int, size: int, generator: torch.Generator) -> Drawn:
    """`count` pictures [count 3 size size] of pairs drawn from `pairs`, on noise of a grey of their own."""
    shown = torch.tensor(pairs)[torch.randint(len(pairs), (count,), generator=generator)]
    places = torch.randint(len(PLACES), (count,), generator=generator)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    centre = torch.tensor(list(PLACES.values()))[places] + between(-0.1, 0.1, 2)
    down, right = ((axis[None, :] - centre[:, k, None]) for k in (0, 1))
    reach = between(0.3, 0.45, 1, 1)
    turned = between(-0.25, 0.25, 1, 1)
    y, x = down[:, :, None] / reach, right[:, None, :] / reach
    y, x = y * turned.cos() + x * turned.sin(), x * turned.cos() - y * turned.sin()
    ink = _masks(y, x)[shown[:, 1], torch.arange(count)][:, None]
    colour = torch.tensor(list(COLOURS.values()))[shown[:, 0]] * between(0.8, 1.0, 1)
    colour = (colour + 0.06 * torch.randn(count, 3, generator=generator)).clamp(0, 1)
    ground = between(0.1, 0.5, 1, 1, 1) + 0.08 * torch.randn(count, 3, size, size, generator=generator)
    pixels = ink * colour[:, :, None, None] + (1 - ink) * ground.clamp(0, 1)
    names = tuple(f"{name_of((int(c), int(s)))} {n}" for n, (c, s) in enumerate(shown.tolist()))
    pictures = Pictures((pixels * 255).round().to(torch.uint8), names)
    captions = [_captions(c, s, p) for (c, s), p in zip(shown.tolist(), places.tolist(), strict=True)]
    return Drawn(captioned(pictures, captions), shown)


def _masks(y: Tensor, x: Tensor) -> Tensor:
    """[shapes B H W] of 0 and 1, where (y, x) are places relative to the shape, its reach being 1."""
    radius, square = (y * y + x * x).sqrt(), torch.maximum(y.abs(), x.abs())
    shapes = {
        "circle": radius < 1,
        "square": square < 0.85,
        "triangle": (y < 0.8) & (y > 2 * x.abs() - 1),
        "cross": (square < 1) & (torch.minimum(y.abs(), x.abs()) < 0.33),
        "ring": (radius < 1) & (radius > 0.55),
        "diamond": y.abs() + x.abs() < 1.1,
    }
    return torch.stack([shapes[name] for name in SHAPES]).float()


def _captions(colour: int, shape: int, place: int) -> list[str]:
    words = {"c": list(COLOURS)[colour], "s": SHAPES[shape], "p": list(PLACES)[place]}
    return [caption.format(**words) for caption in CAPTIONS]


# ---------------------------------------------------------------------------------------- the experiment


@dataclass(frozen=True)
class World:
    """One seed's pairs and pictures; `shots` are labelled ones of unseen pairs."""

    seen: list[Pair]
    unseen: list[Pair]
    train: Drawn
    check: Drawn
    known: Drawn
    new: Drawn
    shots: Drawn


def world(s: Setting, seed: int) -> World:
    """Everything from the seed."""
    generator = torch.Generator().manual_seed(seed)
    unseen = held_out(s.unseen, seed)
    seen = [pair for pair in every_pair() if pair not in unseen]
    of_seen = [draw(seen, n, s.size, generator) for n in (s.train, s.test, s.test)]
    of_unseen = [draw(unseen, n, s.size, generator) for n in (s.test, 30 * s.unseen)]
    return World(seen, unseen, *of_seen, *of_unseen)


def numbers(of: Drawn, among: Sequence[Pair]) -> Tensor:
    """[B] the place of each picture's pair."""
    return torch.tensor([among.index((c, k)) for c, k in of.pairs.tolist()])


def right(
    arm: Captions | Heads,
    weights: Params,
    of: Drawn,
    among: Sequence[Pair],
    templates: Sequence[str] = TEMPLATES[:1],
) -> float:
    """Accuracy of naming the pictures of `of` by the names of `among`."""
    scores = arm.scores(weights, of.pictures.x, [name_of(pair) for pair in among], templates)
    return accuracy(scores, numbers(of, among))


def arms_of(s: Setting, w: World, seed: int) -> dict[str, Captions | Heads]:
    """CLIP in two forms, and heads for colour and shape; the encoders start alike."""
    vocabulary, classes = vocabulary_of(w.train.pictures.classes), w.train.pictures.classes
    columns = {word: k for k, word in enumerate((*COLOURS, *SHAPES))}
    truth = torch.zeros(len(classes), len(columns))
    for n, name in enumerate(classes):
        truth[n, [columns[word] for word in words_of(captions_of(name)[0]) if word in columns]] = 1
    groups = (slice(0, len(COLOURS)), slice(len(COLOURS), len(columns)))

    def encoder() -> torch.nn.Module:
        return build_encoder("conv4", 3, s.size, seed, width=s.width)

    clip = CLIP(vocabulary, context=16, batch=s.batch)
    return {
        "CLIP": reader(clip, encoder(), seed),
        "CLIP, collisions as negatives": reader(replace(clip, collisions="negatives"), encoder(), seed),
        "heads for colour and shape": rival(encoder(), columns, truth, seed, groups),
    }


def measure(s: Setting, seed: int) -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
    """Figures of every model, and accuracy among unseen pairs with some pictures of each (`s.shots`)."""
    w, found, curves = world(s, seed), {}, {}
    for name, arm in arms_of(s, w, seed).items():
        source = CaptionTasks(
            w.train.pictures, Views(), CLIP(vocabulary_of(w.train.pictures.classes), 16).tokenizer(), s.batch
        )
        kept = fit(s, arm.net, arm.loss, source, s.steps, s.rate, seed, f"shapes, {name}, seed {seed}")
        weights = best_of([right(arm, each, w.check, w.seen) for each in kept], kept)
        several = {name: TEMPLATES[:1], f"{name}, {len(TEMPLATES)} templates": TEMPLATES}
        for row, templates in several.items() if isinstance(arm, Captions) else [(name, TEMPLATES)]:
            found[row] = {
                "known": right(arm, weights, w.known, every_pair(), templates),
                "new": right(arm, weights, w.new, w.unseen, templates),
                "harder": right(arm, weights, w.new, every_pair(), templates),
                "last": right(arm, kept[-1], w.new, every_pair(), templates),
            }
        if name == "CLIP" and isinstance(arm, Captions):
            curves = few_shots(s, arm, weights, w)
    everything = len(every_pair())
    found["chance"] = {"known": 1 / everything, "new": 1 / len(w.unseen), "harder": 1 / everything}
    return found, curves


def few_shots(s: Setting, arm: Captions, weights: Params, w: World) -> dict[str, list[float]]:
    """Accuracy among unseen pairs for each number of pictures: started by names, and by the pictures alone."""
    start = arm.matrix(weights, [name_of(pair) for pair in w.unseen], TEMPLATES)
    z, y = arm.features(weights, w.new.pictures.x), numbers(w.new, w.unseen)
    support, label = arm.features(weights, w.shots.pictures.x), numbers(w.shots, w.unseen)
    curves: dict[str, list[float]] = {"from the names on": [], "pictures alone": []}
    for k in s.shots:
        rows = torch.cat([(label == n).nonzero()[:k, 0] for n in range(len(w.unseen))])
        tuned = few_shot_classifier(start, support[rows], label[rows], arm.scale(weights))
        curves["from the names on"].append(accuracy(z @ tuned, y))
        alone = (
            normalise(prototypes(support[rows], len(w.unseen), label[rows])) if k else torch.zeros_like(start.mT)
        )
        curves["pictures alone"].append(accuracy(z @ alone.mT, y) if k else 1 / len(w.unseen))
    return curves
