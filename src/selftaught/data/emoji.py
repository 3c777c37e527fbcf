"""Emoji drawn by three houses, packaged with the library: 32x32 colour pictures that need no download.

Every class is an emoji and has one picture in each of three drawing styles (Twemoji, Noto, Fluent flat), so a
one-shot task asks whether an encoder sees the same thing through another hand. Sources, versions and licences
are in `packaged/NOTICE.md`; `scripts/build_emoji.py` draws the files again and compares them.
"""

import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selftaught.core.errors import DataError
from selftaught.data.captions import captioned
from selftaught.data.pictures import Pictures

Split = Literal["train", "validation", "test"]
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Emoji:
    """What is known of one class.

    `group` is Unicode's (nine of them); `family` joins near-duplicates by a rule on the names (clock faces,
    arrows, hearts, buttons, one gesture by a man and by a woman, one shape in two colours) and never spans
    two splits; `styles` are the drawing styles there are, all three for each class.
    """

    emoji: str
    name: str
    group: str
    family: str
    keywords: tuple[str, ...]
    split: Split
    styles: tuple[str, ...]


def emoji_metadata() -> tuple[Emoji, ...]:
    """All classes in the order in which `read_emoji()` numbers them."""
    about = _index()
    return tuple(
        Emoji(
            emoji=one["emoji"],
            name=one["name"],
            group=one["group"],
            family=one["family"],
            keywords=tuple(one["keywords"]),
            split=one["split"],
            styles=tuple(about["styles"]),
        )
        for one in about["emoji"]
    )


def emoji_styles() -> tuple[str, ...]:
    """The drawing styles, in the order of the pictures."""
    return tuple(_index()["styles"])


def read_emoji(style: str | None = None, *, split: Split | None = None) -> Pictures:
    """The emoji pictures, uint8 [B 3 32 32] on white; `classes` are names, `groups` drawing styles.

    `style` keeps one drawing style (see `emoji_styles`), `split` the classes of one split; splits share no
    class and no family, and each holds its part of every Unicode group. Pictures are ordered by style, then
    class; `names` are 'style/name'. Raises DataError for a style or split that does not exist.
    """
    known = emoji_styles()
    if style is not None and style not in known:
        raise DataError(f"no drawing style is called {style!r}; there are: {', '.join(known)}")
    if split is not None and split not in _SPLITS:
        raise DataError(f"no emoji split is called {split!r}; there are: {', '.join(_SPLITS)}")
    about = emoji_metadata()
    chosen = [n for n, one in enumerate(about) if split in (None, one.split)]
    classes = tuple(about[n].name for n in chosen)
    styles = known if style is None else (style,)
    return Pictures(
        x=torch.cat([_cut(one)[torch.tensor(chosen)] for one in styles]),
        names=tuple(f"{one}/{name}" for one in styles for name in classes),
        y=torch.arange(len(chosen)).repeat(len(styles)),
        classes=classes,
        groups=tuple(one for one in styles for _ in classes),
    )


def read_captioned_emoji(style: str | None = None, *, split: Split | None = None) -> Pictures:
    """`read_emoji` with captions in place of classes: the name and every keyword of an emoji, one a line.

    A sign that a repeated name carries along is left off, as are keywords without letters or digits (":)").
    Raises DataError for a style or split that does not exist.
    """
    pictures = read_emoji(style, split=split)
    about = {one.name: one for one in emoji_metadata()}
    assert pictures.y is not None
    every = [about[name] for name in pictures.classes]
    said = [
        [one.name.removesuffix(one.emoji).strip(), *(k for k in one.keywords if any(map(str.isalnum, k)))]
        for one in every
    ]
    return captioned(pictures, [said[n] for n in pictures.y.tolist()])


@lru_cache(maxsize=1)
def _index() -> dict[str, Any]:
    text = (files("selftaught.data") / "packaged" / "emoji.json").read_text(encoding="utf-8")
    about = cast(dict[str, Any], json.loads(text))
    # Some Unicode names differ in nothing but the sign, so a repeated name carries it along.
    repeated = {name for name, times in Counter(e["name"] for e in about["emoji"]).items() if times > 1}
    for one in about["emoji"]:
        if one["name"] in repeated:
            one["name"] = f"{one['name']} {one['emoji']}"
    return about


def _cut(style: str) -> Tensor:
    """The pictures of one sheet, uint8 [M 3 size size]; a sheet is rows of `columns` squares."""
    about = _index()
    size, columns = about["size"], about["columns"]
    sheet = files("selftaught.data") / "packaged" / f"emoji_{style}.webp"
    with sheet.open("rb") as file, Image.open(file) as picture:
        pixels = np.array(picture.convert("RGB"))
    grid = torch.from_numpy(pixels).reshape(-1, size, columns, size, 3)
    return grid.permute(0, 2, 4, 1, 3).reshape(-1, 3, size, size)[: len(about["emoji"])]
