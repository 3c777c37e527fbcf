"""What is wrong with a set of pictures, before hours are spent on it. Nothing is printed here.

Every threshold below is our choice; none comes from a paper.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from selftaught.core.functional import to_float
from selftaught.data.decode import original_size
from selftaught.data.pictures import Pictures

Level = Literal["ok", "warning", "problem"]

FEWEST, FEW = 8, 64
"""Fewer pictures than the first are a problem, fewer than the second a warning."""

ALIKE = 0.995
"""Correlation of two thumbnails from which pictures count as nearly the same."""

MOST_COMPARED = 5000
"""Near duplicates are looked for among at most this many pictures, spread evenly over the set."""

FLAT, FAINT = 2, 8
"""Flat: no channel spans more than the first (of 255). Faint: the standard deviation is below the second."""

UNEVEN = 4.0
"""Ratio of the largest to the smallest class from which classes count as uneven."""

_THUMB = 16
_BLOCK = 512
_HEADERS = 500
_MOST_PAIRS = 100_000


@dataclass(frozen=True)
class Finding:
    """One thing looked at: how bad it is, what it is, and what can be done (empty where nothing need be)."""

    level: Level
    title: str
    detail: str
    way_out: str = ""


def examine(pictures: Pictures, *, ways: int | None = None, shots: int | None = None) -> list[Finding]:
    """Everything worth knowing about a set before training; at least one finding for each thing looked at.

    `ways` and `shots` are those of the tasks to come: classes per task, and labelled pictures per class.
    The sizes of the originals are looked up where `pictures.names` are paths of files that still exist.
    """
    if len(pictures) == 0:
        return [Finding("problem", "No pictures", "The set is empty.", "Name a folder with pictures in it.")]
    return [
        *_number(pictures, ways),
        *_classes(pictures, ways, shots),
        *_exact(pictures),
        *_near(pictures),
        *_content(pictures),
        *_originals(pictures),
        *_skipped(pictures),
    ]


def overlap(a: Pictures, b: Pictures) -> list[Finding]:
    """Whether pictures of `a` (what was trained on) come back in `b` (what is tested on).

    Shared pictures make results look better than they are. `shared` gives their positions.
    """
    exact, near = shared(a, b), shared(a, b, near=True)
    both = torch.cat([exact, near]) if len(exact) or len(near) else near
    if not len(both):
        return [Finding("ok", "Sets are apart", f"None of {len(b)} pictures is among the other {len(a)}.")]
    count = len(set(both[:, 1].tolist()))
    pairs = _listed([f"{b.names[j]} is {a.names[i]}" for i, j in both.tolist()])
    kind = f"{len(set(exact[:, 1].tolist()))} to the bit" if len(exact) else "none to the bit, all nearly"
    return [
        Finding(
            "problem",
            "The two sets overlap",
            f"{count} of {len(b)} pictures are also in the other set ({kind}): {pairs}.",
            "Take them out of one of the sets; results on them say nothing about new pictures.",
        )
    ]


def shared(a: Pictures, b: Pictures, *, near: bool = False) -> Tensor:
    """Pairs [n 2] int64 (position in `a`, position in `b`) of equal pictures, sorted.

    Equal to the bit, which needs the same shape; or with `near`, of nearly the same look at any shape, among
    at most `MOST_COMPARED` pictures of each set and without the pairs equal to the bit.
    """
    if not near:
        where: dict[bytes, list[int]] = {}
        for i, digest in enumerate(_digests(a.x)):
            where.setdefault(digest, []).append(i)
        pairs = [(i, j) for j, digest in enumerate(_digests(b.x)) for i in where.get(digest, [])]
        return torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2)
    return _alike(_looked_at(a.x), _looked_at(b.x))


def _number(pictures: Pictures, ways: int | None) -> list[Finding]:
    count = len(pictures)
    if count < FEWEST or (ways is not None and pictures.y is None and count < ways):
        need = max(FEWEST, ways or 0)
        return [
            Finding(
                "problem",
                "Too few pictures",
                f"There are {count}; training needs at least {need}.",
                "Add pictures; unlabelled ones of the same kind will do.",
            )
        ]
    if count < FEW:
        return [
            Finding(
                "warning",
                "Few pictures",
                f"With {count} pictures, results differ much from run to run.",
                f"Add pictures (from about {FEW} on it gets steadier), or repeat with several seeds.",
            )
        ]
    return [Finding("ok", "Number of pictures", f"{count} pictures.")]


def _classes(pictures: Pictures, ways: int | None, shots: int | None) -> list[Finding]:
    if pictures.y is None:
        return []
    sizes = torch.bincount(pictures.y, minlength=len(pictures.classes)).tolist()
    named = list(zip(pictures.classes, sizes, strict=True))
    out = []
    if len(sizes) < (ways or 2):
        out.append(
            Finding(
                "problem",
                "Too few classes",
                f"There are {len(sizes)}, and a task takes {ways or 2}.",
                "Add class folders or ask for fewer ways.",
            )
        )
    # A class must fill its shots and leave at least one picture to be asked about.
    need = (shots or 1) + 1
    short = [f"{name} ({size})" for name, size in named if size < need]
    if short:
        out.append(
            Finding(
                "problem" if shots is not None else "warning",
                "Classes with too few pictures",
                f"{len(short)} of {len(sizes)} have fewer than {need} ({need - 1} to learn from, one to ask "
                f"about): {_listed(short)}.",
                "Add pictures to them, ask for fewer shots, or move these classes away.",
            )
        )
    small, large = min(named, key=lambda c: c[1]), max(named, key=lambda c: c[1])
    if large[1] >= UNEVEN * max(small[1], 1):
        out.append(
            Finding(
                "warning",
                "Uneven classes",
                f"{large[0]} has {large[1]} pictures, {small[0]} only {small[1]}.",
                "Report accuracy as a mean over classes, or even the classes out.",
            )
        )
    return out or [Finding("ok", "Classes", f"{len(sizes)} classes of {small[1]} to {large[1]} pictures.")]


def _exact(pictures: Pictures) -> list[Finding]:
    groups: dict[bytes, list[int]] = {}
    for i, digest in enumerate(_digests(pictures.x)):
        groups.setdefault(digest, []).append(i)
    twice = [group for group in groups.values() if len(group) > 1]
    if not twice:
        return [Finding("ok", "Exact duplicates", "No two pictures are the same.")]
    surplus = sum(len(group) - 1 for group in twice)
    examples = _listed([" = ".join(pictures.names[i] for i in group[:3]) for group in twice])
    level: Level = "problem" if 2 * surplus >= len(pictures) else "warning"
    out = [
        Finding(
            level,
            "Exact duplicates",
            f"{surplus} of {len(pictures)} pictures repeat another one: {examples}.",
            "Keep one of each: a picture must not be asked to differ from itself.",
        )
    ]
    if pictures.y is not None:
        out += _contradictions(pictures, pictures.y.tolist(), twice)
    return out


def _contradictions(pictures: Pictures, y: Sequence[int], twice: Sequence[Sequence[int]]) -> list[Finding]:
    torn = [group for group in twice if len({y[i] for i in group}) > 1]
    if not torn:
        return []
    examples = _listed([f"{pictures.names[g[0]]} in {_class_names(pictures, y, g)}" for g in torn])
    return [
        Finding(
            "problem",
            "The same picture in two classes",
            f"{len(torn)} pictures carry more than one label: {examples}.",
            "Decide on one class for each.",
        )
    ]


def _class_names(pictures: Pictures, y: Sequence[int], group: Sequence[int]) -> str:
    return " and ".join(sorted({pictures.classes[y[i]] for i in group}))


def _near(pictures: Pictures) -> list[Finding]:
    part = _looked_at(pictures.x)
    pairs = _alike(part, part)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    looked = f" (looked at {MOST_COMPARED} of {len(pictures)})" if len(pictures) > MOST_COMPARED else ""
    if not len(pairs):
        return [Finding("ok", "Near duplicates", f"No two pictures look nearly the same{looked}.")]
    names = _listed([f"{pictures.names[i]} ~ {pictures.names[j]}" for i, j in pairs.tolist()])
    touched = len(set(pairs.flatten().tolist()))
    return [
        Finding(
            "warning",
            "Near duplicates",
            f"{touched} pictures look nearly like another one{looked}: {names}.",
            "Remove copies and bursts; they make the task of telling pictures apart a matter of noise.",
        )
    ]


def _content(pictures: Pictures) -> list[Finding]:
    spans, spreads = [], []
    for block in _blocks(pictures.x):
        flat = block.flatten(2)
        spans.append((flat.amax(2).int() - flat.amin(2).int()).amax(1))
        spreads.append(flat.float().std(2, correction=0).amax(1))
    plain = torch.cat(spans) <= FLAT
    faint = (torch.cat(spreads) < FAINT) & ~plain
    out = []
    if plain.any():
        out.append(
            Finding(
                "problem" if plain.float().mean() > 0.1 else "warning",
                "Pictures of a single colour",
                f"{int(plain.sum())} of {len(pictures)}: {_named(pictures, plain)}.",
                "Remove them; if the originals are not plain, look at their transparency or bit depth.",
            )
        )
    if faint.any():
        out.append(
            Finding(
                "warning",
                "Low contrast",
                f"{int(faint.sum())} of {len(pictures)} hardly vary: {_named(pictures, faint)}.",
                "Check exposure and bit depth (12-bit data in 16-bit files comes out dark), or stretch them.",
            )
        )
    return out or [Finding("ok", "Contrast", "No picture is plain or faint.")]


def _originals(pictures: Pictures) -> list[Finding]:
    """Small or very different originals, by the headers of at most `_HEADERS` files."""
    at = _spread(len(pictures), _HEADERS).tolist()
    sizes = {i: size for i in at if (size := original_size(pictures.names[i])) is not None}
    if not sizes:
        return []
    wanted = min(pictures.shape[1:])
    small = [f"{pictures.names[i]} ({w} x {h})" for i, (w, h) in sizes.items() if min(w, h) < wanted]
    out = []
    if small:
        out.append(
            Finding(
                "warning",
                "Small originals",
                f"{len(small)} of {len(sizes)} files looked at were enlarged to {wanted}: {_listed(small)}.",
                "Choose a smaller picture size, or look for the full-size files.",
            )
        )
    sides = sorted(min(size) for size in sizes.values())
    if sides[-1] >= 8 * sides[0] and len(set(sides)) > 1:
        common = Counter(sides).most_common(1)[0][0]
        out.append(
            Finding(
                "warning",
                "Originals of very different size",
                f"Shorter sides go from {sides[0]} to {sides[-1]} pixels (most often {common}).",
                "Sharpness can then give away a class; check that sizes do not go with classes.",
            )
        )
    return out or [Finding("ok", "Originals", f"All at least {wanted} pixels and of comparable size.")]


def _skipped(pictures: Pictures) -> list[Finding]:
    if not pictures.skipped:
        return [Finding("ok", "Files", "Every picture file could be read.")]
    names = _listed([f"{s.path}: {s.reason}" for s in pictures.skipped])
    level: Level = "problem" if len(pictures.skipped) > len(pictures) else "warning"
    return [
        Finding(
            level,
            "Files left out",
            f"{len(pictures.skipped)} picture files could not be used: {names}.",
            "Save them again as JPEG or PNG, or remove them.",
        )
    ]


def _digests(x: Tensor) -> Iterator[bytes]:
    for block in _blocks(x):
        yield from (hashlib.blake2b(one.tobytes(), digest_size=16).digest() for one in block.numpy())


def _blocks(x: Tensor) -> Iterator[Tensor]:
    """A few pictures at a time: the set may be larger than memory."""
    return (x[i : i + _BLOCK].contiguous() for i in range(0, len(x), _BLOCK))


def _spread(count: int, most: int) -> Tensor:
    """At most `most` positions, evenly over 0 .. `count` - 1."""
    if count <= most:
        return torch.arange(count)
    return torch.arange(most) * count // most


@dataclass(frozen=True)
class _Look:
    """Of some pictures: positions `at` [n], thumbnails [n D] of mean 0 and length 1, and digests [n]."""

    at: Tensor
    thumbs: Tensor
    digests: tuple[bytes, ...]


def _looked_at(x: Tensor) -> _Look:
    """The pictures to compare, without those that hardly vary: flat ones are alike for another reason."""
    at = _spread(len(x), MOST_COMPARED)
    small = torch.cat([_thumb(x[part]) for part in at.split(_BLOCK)])
    small = small - small.mean(1, keepdim=True)
    varied = small.std(1, correction=0) > FAINT / 2 / 255
    small, at = small[varied], at[varied]
    return _Look(at, small / small.norm(dim=1, keepdim=True), tuple(_digests(x[at])))


def _thumb(x: Tensor) -> Tensor:
    if x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    return adaptive_avg_pool2d(to_float(x), _THUMB).flatten(1)


def _alike(a: _Look, b: _Look) -> Tensor:
    """Pairs [n 2] of positions whose thumbnails correlate by `ALIKE` or more, without those equal to the bit.

    Stops after about `_MOST_PAIRS`: a set of nothing but copies has as many pairs as its size squared.
    """
    number = {digest: n for n, digest in enumerate({*a.digests, *b.digests})}
    id_a = torch.tensor([number[d] for d in a.digests], dtype=torch.int64)
    id_b = torch.tensor([number[d] for d in b.digests], dtype=torch.int64)
    found, count = [torch.empty(0, 2, dtype=torch.int64)], 0
    for start in range(0, len(id_a), _BLOCK):
        stop = start + _BLOCK
        like = (a.thumbs[start:stop] @ b.thumbs.T >= ALIKE) & (id_a[start:stop, None] != id_b)
        rows, columns = torch.nonzero(like, as_tuple=True)
        found.append(torch.stack([a.at[rows + start], b.at[columns]], 1))
        count += len(rows)
        if count >= _MOST_PAIRS:
            break
    return torch.cat(found)


def _named(pictures: Pictures, which: Tensor) -> str:
    return _listed([pictures.names[i] for i in torch.nonzero(which).flatten().tolist()])


def _listed(things: Sequence[str], most: int = 3) -> str:
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return "; ".join(things[:most]) + more
