"""Do captions alone let pictures be named that no label was ever given for?

Paper: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
arXiv 2103.00020, whose zero-shot transfer this repeats where a minute of training is enough:

    shapes   a coloured shape somewhere; a quarter of the pairs of colour and shape is in no training picture
    emoji    names and keywords as captions; named are emoji of another split whose words were all trained and
             whose whole name never was, drawn by hands trained on and by a hand never trained on

The fair rival is supervised by the same words: heads on the same encoder for colour and for shape, or for every
word, whose scores are averaged over the words of a name. A classifier with a class for each name in training is no
rival: it can say no new name at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from selftaught.claims import clip_emoji, clip_shapes
from selftaught.claims.clip_models import Setting
from selftaught.claims.outcome import Estimate, Line, Outcome, estimate

Figures = Mapping[str, float]
Found = list[dict[str, dict[str, float]]]
"""One entry a seed: model -> figures."""
CLIP = "CLIP"
RIVALS = {"shapes": "heads for colour and shape", "emoji": "a head for every word"}
QUICK = replace(
    Setting(), train=200, test=48, steps=6, width=8, emoji_width=8, emoji_steps=4, emoji_classes=120, batch=24,
    checks=2, seeds=(0, 1),
)  # fmt: skip


def show(quick: bool = False) -> Outcome:
    """Both worlds, every seed."""
    s = QUICK if quick else Setting()
    in_shapes = [clip_shapes.measure(s, seed) for seed in s.seeds]
    found = {
        "shapes": [figures for figures, _ in in_shapes],
        "emoji": [clip_emoji.measure(s, seed) for seed in s.seeds],
    }
    return Outcome(
        "clip",
        "Radford et al., ICML 2021, arXiv 2103.00020",
        "Training on captions alone lets new classes be named by their words: combinations never seen together, "
        "and drawings by a hand never trained on.",
        protocol(s, found["emoji"][0]),
        rows(found),
        verdict(found),
        losing(found),
        lines=[
            Line("accuracy among unseen pairs against pictures of each", label, s.shots, over_seeds(curves))
            for label in in_shapes[0][1]
            for curves in [[each[label] for _, each in in_shapes]]
        ],
    )


def over_seeds(curves: Sequence[Sequence[float]]) -> list[Estimate]:
    """One estimate for each place of the curves."""
    return [estimate(values) for values in zip(*curves, strict=True)]


def of(found: Found, model: str, figure: str) -> list[float]:
    """A figure of every seed."""
    return [one[model][figure] for one in found]


def rows(found: Mapping[str, Found]) -> list[Mapping[str, Estimate | str]]:
    """A row for each model in each world."""
    out: list[Mapping[str, Estimate | str]] = []
    for world, seeds in found.items():
        for model in seeds[0]:
            cells = {
                column: estimate(of(seeds, model, figure)) if figure in seeds[0][model] else ""
                for column, figure in (("trained names", "known"), ("new names", "new"), ("harder", "harder"))
            }
            out.append({"pictures": world, "model": model, **cells})
    return out


def ahead(found: Found, other: str, figure: str) -> Estimate:
    """CLIP less another model, paired by seed."""
    pairs = zip(of(found, CLIP, figure), of(found, other, figure), strict=True)
    return estimate([a - b for a, b in pairs])


def clear(difference: Estimate) -> bool:
    """Whether all of the interval lies above zero (never for a single seed)."""
    return difference.mean - difference.half_width > 0


def verdict(found: Mapping[str, Found]) -> str:
    """Shown where new names are found more often than by chance in both worlds, and the new hand among them."""
    gains = {
        (world, words): ahead(found[world], "chance", figure)
        for world, figure, words in (
            ("shapes", "harder", "unseen pairs among all"),
            ("emoji", "new", "new emoji"),
            ("emoji", "harder", "new emoji in the new hand"),
        )
    }
    word = "Shown" if all(clear(gain) for gain in gains.values()) else "Not shown"
    over = "; ".join(f"{words} {gain} above chance" for (_, words), gain in gains.items())
    against = "; ".join(
        f"{world} {ahead(found[world], rival, 'harder')}" for world, rival in RIVALS.items()
    )  # fmt: skip
    return f"{word}: {over}. Against heads supervised by the same words (column harder): {against}."


def losing(found: Mapping[str, Found]) -> str:
    """Where the rival leads, what is lost against trained names, and what stopping late costs."""
    leads = [w for w, rival in RIVALS.items() if clear(minus(ahead(found[w], rival, "harder")))]
    told = f"Heads trained on the same words lead on {' and '.join(leads)}. " if leads else ""
    shapes = found["shapes"]
    gap = estimate([a - b for a, b in zip(of(shapes, CLIP, "known"), of(shapes, CLIP, "harder"), strict=True)])
    late = estimate([a - b for a, b in zip(of(shapes, CLIP, "last"), of(shapes, CLIP, "harder"), strict=True)])
    return (
        f"{told}Pairs never seen are named {gap} less often than pairs seen, among all 48 names: learning by "
        f"heart is the easier part. The last step in place of the one that seen pairs chose changes this by {late}"
        ". Words that no caption had cannot be named at all."
    )


def minus(difference: Estimate) -> Estimate:
    """The other way round."""
    return replace(difference, mean=-difference.mean)


def protocol(s: Setting, emoji: Mapping[str, Figures]) -> str:
    """What was done, in full."""
    names, known = (round(1 / emoji["chance"][k]) for k in ("new", "known"))
    return (
        f"{s}. Shapes: 8 colours, 6 shapes, 5 places, noise; {s.unseen} pairs of colour and shape, others for "
        "each seed, in no training picture; trained names: new pictures of seen pairs among all 48 names; new "
        f"names: unseen pairs among these {s.unseen}; harder: among all 48; prompts 'a red square', or the mean "
        f"of {len(clip_shapes.TEMPLATES)} templates. Emoji: names and keywords of the training split, drawn by "
        f"{' and '.join(clip_emoji.OLD_STYLES)}; trained names: {known} trained emoji drawn by "
        f"{clip_emoji.NEW_STYLE}; new names: {names} emoji of the test split whose words were all trained and "
        f"whose name was no caption, in the trained hands; harder: the same drawn by {clip_emoji.NEW_STYLE}. All "
        f"rows of a seed share encoder, start, batches and steps. Of {s.checks} checkpoints the one is shown that "
        "is best on other new pictures of seen pairs, or on emoji of the validation split, never one chosen by "
        "what is reported; how much of word frequency a rival's scores leave out is chosen so too. Rates and "
        "steps were set for CLIP on validation pictures of another seed, and the rivals have the same; "
        f"{len(s.seeds)} seeds; 95 % intervals by Student's t."
    )
