"""What a method that reads captions is given: captioned pictures, and the words they are made of."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selftaught.app.sources import PACKAGED, as_pictures, fingerprint, fitted
from selftaught.data.captions import has_captions, read_captioned
from selftaught.data.emoji import read_captioned_emoji
from selftaught.data.pictures import Pictures
from selftaught.data.tokens import vocabulary_of


def reads_captions(method: str) -> bool:
    """Whether a method of this name learns from captions."""
    return method == "clip"


def pictures_for(method: str, data: Any, size: int, channels: int, *, labelled: bool = False) -> Pictures:
    """`as_pictures`, but with captions as classes for a method that reads them.

    They come from the folder (`data.captions`) or, for the word "emoji", from names and keywords. With `labelled`,
    or where there are none, subfolders count as `as_pictures` says.
    """
    if reads_captions(method) and isinstance(data, str | Path) and not labelled:
        kind, _, split = str(data).partition(":")
        if kind == PACKAGED and not Path(data).exists():
            return fitted(read_captioned_emoji(split=split or "train"), size, channels)  # type: ignore[arg-type]
        if has_captions(data):
            return read_captioned(data, size=size, channels=channels)
    return as_pictures(data, size, channels, labelled=labelled)


def completed(method: str, options: Mapping[str, Any], pictures: Pictures) -> dict[str, Any]:
    """The method's options with the words of the captions as vocabulary, where it has none."""
    if reads_captions(method) and not options["vocabulary"] and pictures.y is not None:
        return {**options, "vocabulary": vocabulary_of(pictures.classes)}
    return dict(options)


def mark_of(method: str, pictures: Pictures) -> str:
    """The fingerprint of the pictures and, for a method that reads captions, of what is said of each."""
    mark = fingerprint(pictures)
    if not reads_captions(method) or pictures.y is None:
        return mark
    said = "\0".join(pictures.classes[n] for n in pictures.y.tolist())
    return hashlib.sha256(f"{mark}\0{said}".encode()).hexdigest()[:16]
