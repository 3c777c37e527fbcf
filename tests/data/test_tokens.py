"""Texts as numbers: what a row looks like, what is cut, and which words are refused."""

import pytest

from selftaught.core.errors import DataError
from selftaught.data.tokens import ByteTokenizer, WordTokenizer, build_tokenizer, vocabulary_of


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
