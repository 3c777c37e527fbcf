"""Files gone wrong: seeded mutations of good ones."""

import json
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

TOKENS = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000, b"-1", b"0", b"null", b"true", b"{}", b"[]", b'""',
    b'"\\ud800"', b"[" * 100_000, b'{"a":' * 50_000, b"\0", b"\xff\xfe", b"\xc3", b"\xef\xbb\xbf", b"\r", b"\n\n",
    b'"', b",", b"../../x.png", b"x" * 5000, b"1.5", b"[1, 2]", "\u2028\x85\x0b".encode(),
)  # fmt: skip
"""What readers of text and JSON trip over."""

NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
"""What readers of binary lengths and sizes trip over."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 10**9, 10**30, -(10**400), 0.5, 1e308, float("nan"), float("inf"), "", "x",
    "\ud800", "a\0b", "../../x", "x" * 5000, [], [[]], [1, "a", None], {}, {"a": {"b": 1}}, [[[[[0]]]]],
    [0.5, 1.0], "16", "conv4",
)  # fmt: skip
"""What stands in JSON where something else belongs."""

Mutation = Callable[[bytearray, random.Random, Sequence[bytes]], bytearray]


def mutated(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """One of the `seeds` after one to four mutations; now and then noise instead."""
    if chance.random() < 0.02:
        return chance.randbytes(chance.randrange(300))
    if seeds[0][:1] == b"{" and chance.random() < 0.6:
        return _odd_json(chance.choice(seeds), chance)
    content = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        content = chance.choice(MUTATIONS)(content, chance, seeds)
    return bytes(content)


def _odd_json(content: bytes, chance: random.Random) -> bytes:
    """Well-formed JSON, an object a file or a line, with other values or keys at one to three places."""
    lines = content.split(b"\n") if b"\n " not in content.strip() else [content]
    objects: list[Any] = [json.loads(line) for line in lines if line.strip()]
    for _ in range(chance.choice((1, 1, 2, 3))):
        place: Any = objects
        while True:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or chance.random() < 0.1:
                break
            place = place[key]
        if place is objects:
            objects.append(deepcopy(chance.choice(VALUES)))
        elif isinstance(place, dict) and chance.random() < 0.15:
            place[chance.choice((key + "x", "", "size", "\0"))] = place.pop(key)
        else:
            place[key] = deepcopy(chance.choice(VALUES))
    return "\n".join(json.dumps(one) for one in objects).encode() + b"\n"


def _place(content: bytearray, chance: random.Random) -> int:
    """Any position, the first ones more often: headers are there."""
    end = len(content) + 1
    return chance.randrange(min(end, 64)) if chance.random() < 0.4 else chance.randrange(end)


def _cut(content: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> bytearray:
    return content[: _place(content, chance)]


def _flip(content: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> bytearray:
    for _ in range(chance.choice((1, 1, 3, 20))):
        if content:
            content[min(_place(content, chance), len(content) - 1)] ^= 1 << chance.randrange(8)
    return content


def _fill(content: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> bytearray:
    start, size = _place(content, chance), chance.choice((1, 4, 64))
    content[start : start + size] = bytes([chance.choice((0, 255, 32, chance.randrange(256)))]) * size
    return content


def _token(content: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> bytearray:
    """In place of nothing, or of a word or number that stands there."""
    token, start = chance.choice(TOKENS), _place(content, chance)
    end = start
    while end < len(content) and chance.random() < 0.9 and chr(content[end]).isalnum():
        end += 1
    content[start:end] = token
    return content


def _number(content: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> bytearray:
    size, start = chance.choice((1, 2, 4, 8)), _place(content, chance)
    number = chance.choice(NUMBERS) & (256**size - 1)
    content[start : start + size] = number.to_bytes(size, chance.choice(("little", "big")))
    return content


def _delete(content: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> bytearray:
    start = _place(content, chance)
    del content[start : start + chance.choice((1, 2, 16, 512))]
    return content


def _repeat(content: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> bytearray:
    start = _place(content, chance)
    part = content[start : start + chance.choice((1, 16, 512))]
    content[start:start] = part * chance.choice((1, 3))
    return content


def _splice(content: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> bytearray:
    other = bytearray(chance.choice(seeds))
    return content[: _place(content, chance)] + other[_place(other, chance) :]


MUTATIONS: tuple[Mutation, ...] = (_cut, _flip, _flip, _fill, _token, _token, _number, _delete, _repeat, _splice)
