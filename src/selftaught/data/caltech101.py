"""Caltech-101: 8,677 colour pictures of 101 kinds of objects (Fei-Fei, Fergus and Perona 2004).

Home: https://data.caltech.edu/records/mzrjq-6wc02 (CC BY 4.0); the archive `caltech-101.zip` there contains
`101_ObjectCategories.tar.gz`. The class BACKGROUND_Google, random pictures from the web, is left out always.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from selftaught.core.errors import ConfigError, DataError
from selftaught.data.archives import centre_square, read_joined, tar_files
from selftaught.data.pictures import Pictures

HOME = "https://data.caltech.edu/records/mzrjq-6wc02"
MD5 = "b224c7392d521a49829488ab0f1120d9"
_FOLDER = "101_ObjectCategories"
_DROPPED = "BACKGROUND_Google"
_SUFFIXES = (".jpg", ".jpeg")


def read_caltech101(path: str | Path | None = None, *, size: int = 64, verify: bool = False) -> Pictures:
    """Caltech-101 as uint8 [B 3 size size], each the largest centred square of its picture, resized.

    `path` is `101_ObjectCategories.tar.gz`, the folder it unpacks to (or the one around it), or a
    `*_jpeg.npz` (see `read_joined`). `verify` compares the tar with its published md5 first. `names` are
    'class/file'.
    Raises DataError without a path (the official zip is not fetched: its checksum is not known here), or
    when the file is damaged, of another form or without classes.
    """
    if size < 1:
        raise ConfigError(f"size must be at least 1 pixel, not {size}")
    if path is None:
        raise DataError(
            f"Caltech-101 is not downloaded for you: get caltech-101.zip from {HOME}, unpack it, and pass "
            f"the path of {_FOLDER}.tar.gz or of the folder {_FOLDER}"
        )
    place = Path(path)
    if not place.exists():
        raise DataError(f"{place} does not exist; name {_FOLDER}.tar.gz or the folder it unpacks to, from {HOME}")
    if place.suffix == ".npz":
        return _from_npz(place, size)
    if verify and place.is_file():
        _verify(place)
    files: list[tuple[str, Path | bytes]] = sorted(
        _folder_files(place) if place.is_dir() else _tar_members(place), key=lambda file: file[0]
    )
    if not files:
        raise DataError(f"{place} holds no {_FOLDER}/class/image_NNNN.jpg; pass the folder {_FOLDER} itself")
    classes = tuple(sorted({name.split("/")[0] for name, _ in files}))
    number = {name: n for n, name in enumerate(classes)}
    x = np.empty((len(files), 3, size, size), dtype=np.uint8)
    for row, (name, source) in enumerate(files):
        content = source.read_bytes() if isinstance(source, Path) else source
        x[row] = centre_square(content, size, f"{name} in {place}")
    y = torch.tensor([number[name.split("/")[0]] for name, _ in files])
    return Pictures(torch.from_numpy(x), tuple(name for name, _ in files), y, classes)


def _verify(place: Path) -> None:
    with place.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != MD5:
        raise DataError(f"{place} has md5 {found} instead of {MD5}; download it again from {HOME}")


def _folder_files(place: Path) -> Iterator[tuple[str, Path]]:
    inner = [p for p in (place / _FOLDER, place / "caltech-101" / _FOLDER) if p.is_dir()]
    for folder in (inner or [place])[0].iterdir():
        if folder.is_dir() and folder.name != _DROPPED:
            for file in folder.iterdir():
                if file.suffix.lower() in _SUFFIXES:
                    yield f"{folder.name}/{file.name}", file


def _tar_members(place: Path) -> Iterator[tuple[str, bytes]]:
    for name, content in tar_files(place, _wanted):
        yield "/".join(PurePosixPath(name).parts[-2:]), content


def _wanted(name: str) -> bool:
    path = PurePosixPath(name)
    # macOS leaves '._' files beside the real ones.
    return (
        len(path.parts) >= 2
        and path.suffix.lower() in _SUFFIXES
        and not path.name.startswith("._")
        and path.parts[-2] != _DROPPED
    )


def _from_npz(place: Path, size: int) -> Pictures:
    joined = read_joined(place, size)
    names = tuple(f"{joined.classes[n]}/{k:05d}" for k, n in enumerate(joined.y.tolist()))
    every = Pictures(joined.x, names, joined.y, joined.classes)
    return every.only(set(joined.classes) - {_DROPPED})
