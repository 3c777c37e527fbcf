"""Texts as rows of numbers: by words that a set of captions is made of, or by bytes.

A row is start, the text, end, and zeros; the end has the largest number there is, which is where CLIP reads a
text. Any callable from texts to [n L] whole numbers serves as well, open_clip's tokenizers for example.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Protocol, cast

import torch
from jaxtyping import Int64
from torch import Tensor

from selftaught.core.errors import DataError

PADDING, START, UNKNOWN = 0, 1, 2


class Tokenizer(Protocol):
    """Texts -> [n L] int64."""

    def __call__(self, texts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes: knows every text, and nothing of words. Longer texts are cut to `context` - 2 bytes."""

    context: int
    size: int = field(default=259, init=False)

    def __call__(self, texts: Sequence[str]) -> Int64[Tensor, "n L"]:
        """[n context]."""
        rows = [[b + 2 for b in text.encode()] for text in texts]
        return _filled(rows, self.context, self.size - 1)


@dataclass(frozen=True)
class WordTokenizer:
    """Words in lower case, numbered by their place in `words`; longer texts are cut to `context` - 2 words.

    With `strict`, a word that is not there raises DataError; without, it is the number 2, as rare words in
    training captions are.
    """

    words: tuple[str, ...]
    context: int
    strict: bool = True

    @property
    def size(self) -> int:
        """Numbers there are."""
        return len(self.words) + 4

    @cached_property
    def _number(self) -> dict[str, int]:
        return {word: n + 3 for n, word in enumerate(self.words)}

    def __call__(self, texts: Sequence[str]) -> Int64[Tensor, "n L"]:
        """[n context]. With `strict`, raises DataError for a text without words and for words unknown."""
        rows = []
        for text in texts:
            found = words_of(text)
            if self.strict and not found:
                raise DataError(f"the text {text!r} has no words: name it with some")
            if self.strict:
                self._refuse_unknown(text, found)
            rows.append([self._number.get(word, UNKNOWN) for word in found] or [UNKNOWN])
        return _filled(rows, self.context, self.size - 1)

    def _refuse_unknown(self, text: str, found: Sequence[str]) -> None:
        unknown = [word for word in found if word not in self._number]
        if not unknown:
            return
        near = ", ".join(difflib.get_close_matches(unknown[0], self.words, n=3))
        hint = f" (near ones: {near})" if near else ""
        raise DataError(
            f"{text!r}: the word {unknown[0]!r} is not among the {len(self.words)} words of the captions trained "
            f"on, so nothing is known of it. Say it in their words{hint}, or train with captions that have it."
        )


def build_tokenizer(vocabulary: str, context: int, *, strict: bool = True) -> ByteTokenizer | WordTokenizer:
    """`vocabulary` is words with spaces between them; without any, bytes."""
    words = tuple(vocabulary.split())
    return WordTokenizer(words, context, strict) if words else ByteTokenizer(context)


def vocabulary_of(captions: Iterable[str], most: int = 20_000) -> str:
    """The words of these captions with spaces between them, in alphabetical order; the `most` frequent of them.

    Raises DataError where there are none.
    """
    counts = Counter(word for caption in captions for word in words_of(caption))
    if not counts:
        raise DataError("the captions have no words: write at least one for a picture")
    kept = sorted(counts, key=lambda word: (-counts[word], word))[:most]
    return " ".join(sorted(kept))


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, in lower case, as scikit-learn's CountVectorizer finds them."""
    return _analyser()(text)


@lru_cache(maxsize=1)
def _analyser() -> Callable[[str], list[str]]:
    # Here, because loading scikit-learn takes as long as loading torch.
    from sklearn.feature_extraction.text import CountVectorizer

    return cast(Callable[[str], list[str]], CountVectorizer(token_pattern=r"(?u)\b\w+\b").build_analyzer())


def _filled(rows: Sequence[Sequence[int]], context: int, end: int) -> Tensor:
    out = torch.full((len(rows), context), PADDING, dtype=torch.int64)
    for line, row in zip(out, rows, strict=True):
        whole = [START, *row[: context - 2], end]
        line[: len(whole)] = torch.tensor(whole)
    return out
