"""Texts as numbers: what a row looks like, what is cut, and which words are refused."""

import sys

import pytest

from selftaught.core.errors import ConfigError, DataError
from selftaught.data.tokens import (
    BytePairTokenizer,
    ByteTokenizer,
    WordTokenizer,
    build_tokenizer,
    byte_pairs_of,
    vocabulary_of,
)


def test_words_are_numbered_by_their_place() -> None:
    tokenizer = WordTokenizer(("blue", "circle", "red"), context=5)
    assert tokenizer(["red circle", "Blue, CIRCLE!"]).tolist() == [[1, 5, 4, 6, 0], [1, 3, 4, 6, 0]]
    assert tokenizer.size == 7


def test_a_long_text_is_cut_and_keeps_its_end() -> None:
    tokenizer = WordTokenizer(("a", "b"), context=4)
    assert tokenizer(["a b a b a b"]).tolist() == [[1, 3, 4, 5]]
    assert ByteTokenizer(4)(["xyz"]).tolist() == [[1, ord("x") + 2, ord("y") + 2, 258]]


def test_bytes_know_every_text() -> None:
    tokenizer = ByteTokenizer(8)
    rows = tokenizer(["é", "", "no"])
    assert rows.shape == (3, 8) and int(rows.max()) == tokenizer.size - 1
    assert rows[0].tolist() == [1, 0xC3 + 2, 0xA9 + 2, 258, 0, 0, 0, 0]


def test_a_word_nobody_taught_is_refused_with_near_ones() -> None:
    tokenizer = build_tokenizer("blue circle square", 8)
    with pytest.raises(DataError, match=r"'squares'.*3 words.*near ones: square"):
        tokenizer(["blue squares"])
    with pytest.raises(DataError, match="no words"):
        tokenizer(["?!"])
    lenient = build_tokenizer("blue circle square", 8, strict=False)
    assert lenient(["blue squares"])[0, :4].tolist() == [1, 3, 2, 6]
    assert lenient(["?!"])[0, :4].tolist() == [1, 2, 6, 0]


def test_a_vocabulary_is_the_words_of_the_captions() -> None:
    captions = ["A red square", "a blue square\nblue thing"]
    assert vocabulary_of(captions) == "a blue red square thing"
    assert vocabulary_of(captions, most=3) == "a blue square"
    with pytest.raises(DataError, match="no words"):
        vocabulary_of(["", "!"])


def test_byte_pairs_know_every_text_and_seen_words_as_one_piece() -> None:
    pytest.importorskip("tokenizers")
    file = byte_pairs_of(["a red square", "a blue square", "Red circle"] * 20, most=400)
    tokenizer = build_tokenizer(file, 12)
    assert isinstance(tokenizer, BytePairTokenizer) and build_tokenizer(file, 12) == tokenizer
    one, again, other, long = tokenizer(["red square", "RED SQUARE", "squid é", "red " * 30])
    end = tokenizer.size - 1
    assert one.equal(again) and int(one.argmax()) == 3 and int(one[3]) == end  # start, red, square, end
    assert one[0] == 1 and not one[4:].any() and int(other.max()) == end and int((other > 0).sum()) > 4
    assert int(long[-1]) == end and bool((long[1:-1] == one[1]).all())
    assert 256 < tokenizer.size <= 403
    assert byte_pairs_of(["a red square", "a blue square", "Red circle"] * 20, most=400) == file


def test_byte_pairs_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="256 bytes"):
        byte_pairs_of(["a"], most=10)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"selftaught\[text\]"):
        build_tokenizer('{"no": "package"}', 8)


def test_a_file_of_another_kind_is_refused() -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(DataError, match=r"no tokenizer of the package.*tokenizer\.json"):
        build_tokenizer('{"no": "tokenizer"}', 8)
