"""Omniglot: handwritten characters of many alphabets, each drawn by twenty people (Lake et al. 2015).

Home: https://github.com/brendenlake/omniglot. The files are black ink (0) on white; here ink is 255 on 0,
because zero padding should look like paper, and getting this wrong moves results by many points.
"""

import io
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor

from selftaught.core.errors import DataError
from selftaught.data.archives import open_zip
from selftaught.data.pictures import Pictures

_INSIDE = re.compile(r"(?:^|/)(?P<alphabet>[^/]+)/(?P<character>character\d+)/(?P<file>\d+_\d+\.png)$")
_DRAWER = re.compile(r"_(\d+)\.png(?:#rot\d+)?$")
_TURNS = (90, 180, 270)


@dataclass(frozen=True)
class _File:
    alphabet: str
    character: str
    inside: str

    @property
    def label(self) -> str:
        return f"{self.alphabet}/{self.character}"


def read_omniglot(
    path: str | Path, *, size: int = 28, classes: Iterable[str] | None = None, rotations: bool = False
) -> Pictures:
    """The characters of an Omniglot zip, or of a folder it was unpacked to, as uint8 [B 1 size size].

    `path` holds .../Alphabet/characterNN/NNNN_DD.png at any depth; a picture that occurs twice (the full and
    a small background set side by side) is taken once. `classes` names the characters to keep as
    'Alphabet/characterNN' (see `read_split`). With `rotations`, each character turned counter-clockwise by
    90, 180 and 270 degrees is a class of its own, 'Alphabet/characterNN/rot090' and so on, after the upright
    ones. `groups` are the alphabets, `names` the paths inside `path` (with '#rot090' on turned pictures).
    Ink is 255; 105 pixels are reduced to `size` by antialiased bilinear resampling.

    Raises DataError when the path or a named class is missing, or a picture cannot be decoded.
    """
    place = Path(path)
    if size < 1:
        raise DataError(f"size must be at least 1 pixel, not {size}")
    listed, read = open_zip(place) if place.is_file() else _open_folder(place)
    found = _sorted_files(listed, place)
    if classes is not None:
        found = _chosen(found, set(classes), place)
    labels = tuple(dict.fromkeys(f.label for f in found))
    number = {label: n for n, label in enumerate(labels)}
    upright = Pictures(
        x=torch.from_numpy(_decode((f.inside for f in found), read, len(found), size, place)),
        names=tuple(f.inside for f in found),
        y=torch.tensor([number[f.label] for f in found], dtype=torch.int64),
        classes=labels,
        groups=tuple(f.alphabet for f in found),
    )
    return _with_rotations(upright) if rotations else upright


def drawers(pictures: Pictures) -> Tensor:
    """Who drew each picture of an Omniglot set: int64 [B], 1 to 20, from the file names.

    Numbers are comparable within one alphabet only. Raises DataError for names of another form.
    """
    found = [_DRAWER.search(name) for name in pictures.names]
    if None in found:
        wrong = pictures.names[found.index(None)]
        raise DataError(f"{wrong!r} is not an Omniglot file name such as 0709_01.png; use read_omniglot")
    return torch.tensor([int(m.group(1)) for m in found if m], dtype=torch.int64)


def _open_folder(place: Path) -> tuple[list[str], Callable[[str], bytes]]:
    if not place.is_dir():
        raise DataError(
            f"{place} does not exist; name images_background.zip from "
            "https://github.com/brendenlake/omniglot or the folder it was unpacked to"
        )
    return [p.relative_to(place).as_posix() for p in place.rglob("*.png")], lambda name: (
        place / name
    ).read_bytes()


def _sorted_files(listed: list[str], place: Path) -> list[_File]:
    """The pictures among the listed paths, by alphabet, character and file name, each once."""
    # A folder that is itself an alphabet has paths without the alphabet in them: put its name in front.
    above = f"{place.name}/" if place.is_dir() else ""
    kept: dict[tuple[str, str, str], _File] = {}
    for inside in sorted(listed):
        if match := _INSIDE.search(above + inside):
            file = _File(match["alphabet"], match["character"], inside)
            kept.setdefault((file.alphabet, file.character, match["file"]), file)
    if not kept:
        raise DataError(
            f"{place} holds no Omniglot pictures: expected Alphabet/characterNN/NNNN_DD.png at some depth "
            "(a strokes_* archive has none; use an images_* one)"
        )
    return [kept[key] for key in sorted(kept)]


def _chosen(found: list[_File], wanted: set[str], place: Path) -> list[_File]:
    missing = sorted(wanted - {f.label for f in found})
    if missing:
        raise DataError(
            f"{place} lacks {len(missing)} of {len(wanted)} classes, first {missing[0]!r}; names are of "
            "the form 'Greek/character01', and evaluation alphabets are in images_evaluation.zip"
        )
    return [f for f in found if f.label in wanted]


def _decode(
    inside: Iterator[str], read: Callable[[str], bytes], count: int, size: int, place: Path
) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    out = np.empty((count, 1, size, size), dtype=np.uint8)
    for row, name in enumerate(inside):
        try:
            with Image.open(io.BytesIO(read(name))) as picture:
                ink = ImageChops.invert(picture.convert("L"))
        except (OSError, SyntaxError, zipfile.BadZipFile) as error:
            raise DataError(f"{name} in {place} cannot be decoded ({error}); download it again") from error
        out[row, 0] = np.asarray(ink.resize((size, size), Image.Resampling.BILINEAR))
    return out


def _with_rotations(upright: Pictures) -> Pictures:
    assert upright.y is not None and upright.groups is not None
    ways = len(upright.classes)
    x, names, classes = [upright.x], list(upright.names), list(upright.classes)
    for turn in _TURNS:
        x.append(torch.rot90(upright.x, turn // 90, dims=(2, 3)))
        names += [f"{name}#rot{turn:03d}" for name in upright.names]
        classes += [f"{label}/rot{turn:03d}" for label in upright.classes]
    y = torch.cat([upright.y + k * ways for k in range(len(x))])
    return Pictures(torch.cat(x), tuple(names), y, tuple(classes), upright.groups * len(x))
