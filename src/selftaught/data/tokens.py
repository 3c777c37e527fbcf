"""Texts as rows of numbers: by words that a set of captions is made of, by byte pairs, or by bytes.

A row is start, the text, end, and zeros; the end has the largest number there is, which is where CLIP reads a
text. Any callable from texts to [n L] whole numbers serves as well, open_clip's tokenizers for example.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Protocol, cast

import torch
from jaxtyping import Int64
from torch import Tensor

from selftaught.core.errors import ConfigError, DataError

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


@dataclass(frozen=True)
class BytePairTokenizer:
    """Byte pairs (Sennrich et al. 2016) by the package `tokenizers`, whose file format `file` is the text of.

    Made by `byte_pairs_of`, or read from the tokenizer.json of another model. Longer texts are cut to
    `context` - 2 pieces; special pieces that the file would add are left out. Raises ConfigError without the
    package, DataError for a text that is no such file.
    """

    file: str
    context: int

    def __post_init__(self) -> None:
        _byte_pairs(self.file)

    @property
    def size(self) -> int:
        """Numbers there are."""
        return int(_byte_pairs(self.file).get_vocab_size()) + 3

    def __call__(self, texts: Sequence[str]) -> Int64[Tensor, "n L"]:
        """[n context]."""
        found = _byte_pairs(self.file).encode_batch(list(texts), add_special_tokens=False)
        return _filled([[n + 2 for n in one.ids] for one in found], self.context, self.size - 1)


@lru_cache(maxsize=8)
def _byte_pairs(file: str) -> Any:
    try:
        return _package().Tokenizer.from_str(file)
    except ConfigError:
        raise
    except Exception as error:  # the package raises nothing narrower
        raise DataError(
            f"{file[:40]!r}... is no tokenizer of the package tokenizers ({error}): give the text of a "
            "tokenizer.json, or words with spaces between them"
        ) from error


def _package() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            "byte pairs need the package tokenizers: pip install 'selftaught[text]', or use words (the default)"
        ) from error
    return tokenizers


def byte_pairs_of(captions: Iterable[str], most: int = 2000) -> str:
    """The text of a file of byte pairs with up to `most` pieces (256 of them bytes), of captions in lower case.

    It knows every text, and writes words it has seen as few pieces. Serves as a `vocabulary`. Raises ConfigError
    without the package and for fewer than 256 pieces.
    """
    if most < 256:
        raise ConfigError(f"{most} pieces: there are 256 bytes already, ask for more")
    package = _package()
    tokenizer = package.Tokenizer(package.models.BPE())
    tokenizer.normalizer = package.normalizers.Lowercase()
    tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = sorted(package.pre_tokenizers.ByteLevel.alphabet())
    trainer = package.trainers.BpeTrainer(vocab_size=most, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(captions, trainer)
    return str(tokenizer.to_str())


def build_tokenizer(
    vocabulary: str, context: int, *, strict: bool = True
) -> ByteTokenizer | WordTokenizer | BytePairTokenizer:
    """`vocabulary` is words with spaces between them, or a byte-pair file's text ("{..."); without any, bytes."""
    if vocabulary.lstrip().startswith("{"):
        return BytePairTokenizer(vocabulary, context)
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
