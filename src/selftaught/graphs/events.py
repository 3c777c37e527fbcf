"""An event: a picture's objects, a sentence about them, a place, three hypergraphs and what is to be written.

VisualCOMET's convention (Park et al., ECCV 2020, arXiv 2004.10796): numbers in a sentence are tags, and tag k is a
person (here: an actor) of the picture. The parts are nodes, in this order: objects, mentions, the place. A mention
is a tag with the words up to the next tag; words before the first tag are a mention of their own, with tag 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from selftaught.core.errors import DataError
from selftaught.data.tokens import START, UNKNOWN, WordTokenizer, words_of
from selftaught.graphs.hypergraph import to_incidence

MOMENTS = ("before", "present", "after")
WORDS = 12
"""Words of a mention or a place that are read; what follows is left out."""


@dataclass(frozen=True)
class Event:
    """`features` [V F] of V objects, `boxes` [V 4] (left, top, right, bottom from 0 to 1), `tags` [V] (0: none).

    `hyperedges` holds PyG's [2 nnz] for each moment; `texts` the sentences to write for each moment, maybe none.
    """

    name: str
    features: Tensor
    boxes: Tensor
    tags: Tensor
    sentence: str
    place: str
    hyperedges: tuple[Tensor, Tensor, Tensor]
    texts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class EventBatch:
    """B events, filled up with absent nodes: V objects, E mentions, one place, N = V + E + 1.

    `there` [B N] says which nodes exist, `incidence` [B 3 N M] holds H of each moment. `words` [B E+1 L] are token
    numbers of mentions and place, 0 for none; `target` [B 3 T] those to write, all 0 where there is no text.
    """

    features: Float[Tensor, "B V F"]
    boxes: Float[Tensor, "B V 4"]
    object_tags: Int64[Tensor, "B V"]
    words: Int64[Tensor, "B E1 L"]
    mention_tags: Int64[Tensor, "B E1"]
    there: Bool[Tensor, "B N"]
    incidence: Float[Tensor, "B 3 N M"]
    target: Int64[Tensor, "B 3 T"]

    def __len__(self) -> int:
        return len(self.features)

    def take(self, index: Tensor) -> "EventBatch":
        """The events at `index` [n]."""
        return EventBatch(**{k: v[index] for k, v in vars(self).items()})


def mentions_of(sentence: str) -> list[tuple[int, list[str]]]:
    """(tag, words) of each mention, in order: "1 hits 2 with a bat" -> [(1, [hits]), (2, [with, a, bat])]."""
    found: list[tuple[int, list[str]]] = []
    for word in words_of(sentence):
        if word.isdecimal():
            found.append((int(word), []))
        elif found:
            found[-1][1].append(word)
        else:
            found.append((0, [word]))
    return found


def person_hyperedges(tags: Sequence[int], mentioned: Sequence[int]) -> Int64[Tensor, "2 nnz"]:
    """A hyperedge for each tag that is both seen and said: its objects, its mentions and the place."""
    place = len(tags) + len(mentioned)
    both = [tag for tag in dict.fromkeys(mentioned) if tag and tag in tags]
    said = [*tags, *mentioned]
    pairs = [
        (node, edge)
        for edge, tag in enumerate(both)
        for node in [*(n for n, t in enumerate(said) if t == tag), place]
    ]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T


def collate(
    events: Sequence[Event], tokenizer: WordTokenizer, choice: torch.Generator | None = None
) -> EventBatch:
    """One batch of events; of several texts for a moment the first is taken, or one by `choice`.

    Raises DataError where there is no event, where feature widths differ, where a hyperedge names an absent node
    and, with a strict tokenizer, for a word unknown; the message names the event.
    """
    if not events:
        raise DataError("no events: a batch needs at least one")
    mentions = [mentions_of(e.sentence) for e in events]
    objects, said = max(len(e.features) for e in events), max(len(m) for m in mentions)
    parts = [_one(e, m, objects, said, tokenizer, choice) for e, m in zip(events, mentions, strict=True)]
    if len({p["features"].shape[-1] for p in parts}) > 1:
        raise DataError("the events' features differ in width: compute them with one encoder")
    edges = max(p["incidence"].shape[-1] for p in parts)
    for part in parts:
        part["incidence"] = torch.nn.functional.pad(part["incidence"], (0, edges - part["incidence"].shape[-1]))
    return EventBatch(**{k: torch.stack([p[k] for p in parts]) for k in parts[0]})


def _one(
    event: Event,
    mentions: list[tuple[int, list[str]]],
    objects: int,
    said: int,
    tokenizer: WordTokenizer,
    choice: torch.Generator | None,
) -> dict[str, Tensor]:
    """The fields of `EventBatch` for one event, with room for `objects` and `said` mentions."""
    seen, heard = len(event.features), len(mentions)
    if event.boxes.shape != (seen, 4) or event.tags.shape != (seen,):
        raise DataError(
            f"{event.name}: {seen} objects, but boxes {list(event.boxes.shape)} and tags {list(event.tags.shape)}"
        )
    words = torch.zeros(said + 1, WORDS, dtype=torch.int64)
    for row, spoken in [*enumerate(w for _, w in mentions), (said, words_of(event.place))]:
        numbers = _numbers(event.name, spoken[:WORDS], tokenizer)
        words[row, : len(numbers)] = numbers
    there = torch.zeros(objects + said + 1, dtype=torch.bool)
    place = torch.tensor([*range(seen), *range(objects, objects + heard), objects + said])
    there[place] = True
    empty = torch.nn.functional.pad
    return {
        "features": empty(event.features.float(), (0, 0, 0, objects - seen)),
        "boxes": empty(event.boxes.float(), (0, 0, 0, objects - seen)),
        "object_tags": empty(event.tags, (0, objects - seen)),
        "words": words,
        "mention_tags": torch.tensor([t for t, _ in mentions] + [0] * (said + 1 - heard)),
        "there": there,
        "incidence": _incidence(event, place, len(there)),
        "target": _target(event, tokenizer, choice),
    }


def _incidence(event: Event, place: Tensor, nodes: int) -> Tensor:
    """[3 nodes M]: the event's own hypergraphs, its nodes moved to `place` in the batch."""
    try:
        own = [to_incidence(h, len(place)) for h in event.hyperedges]
    except DataError as error:
        raise DataError(f"{event.name}: {error}") from error
    out = torch.zeros(len(own), nodes, max(1, *(h.shape[1] for h in own)))
    for moment, h in enumerate(own):
        out[moment, place, : h.shape[1]] = h
    return out


def _target(event: Event, tokenizer: WordTokenizer, choice: torch.Generator | None) -> Tensor:
    """[3 context] token numbers; zeros where there is nothing to write."""
    out = torch.zeros(len(MOMENTS), tokenizer.context, dtype=torch.int64)
    for moment, texts in enumerate(event.texts):
        if texts:
            which = 0 if choice is None else int(torch.randint(len(texts), (), generator=choice))
            out[moment] = _told(event.name, texts[which], tokenizer)
    return out


def _told(name: str, text: str, tokenizer: WordTokenizer) -> Tensor:
    try:
        return tokenizer([text])[0]
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _numbers(name: str, words: Sequence[str], tokenizer: WordTokenizer) -> Tensor:
    if not words:
        return torch.empty(0, dtype=torch.int64)
    if len(words) > tokenizer.context - 2:
        words = words[: tokenizer.context - 2]
    row = _told(name, " ".join(words), tokenizer)
    return row[(row >= UNKNOWN) & (row < tokenizer.size - 1) & (row != START)]


def written(row: Tensor, tokenizer: WordTokenizer) -> str:
    """The words of token numbers [T] up to the end; an unknown word is written "?"."""
    words: list[str] = []
    for number in row.tolist():
        if number == tokenizer.size - 1 or number == 0:
            break
        if number != START:
            words.append("?" if number == UNKNOWN else tokenizer.words[number - 3])
    return " ".join(words)
