"""CIFAR-10: 60,000 colour pictures of 32x32 pixels in ten classes (Krizhevsky 2009).

Home: https://www.cs.toronto.edu/~kriz/cifar.html. Only the binary version is read; the Python version is a
pickle, and loading one from elsewhere can run any code.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from selftaught.core.errors import DataError
from selftaught.data.archives import read_joined, tar_files
from selftaught.data.download import Progress, data_folder, fetch
from selftaught.data.pictures import Pictures

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_RECORD = 1 + 3 * 32 * 32
_TRAIN = tuple(f"data_batch_{n}.bin" for n in range(1, 6))
_TEST = ("test_batch.bin",)


def read_cifar10(
    path: str | Path | None = None,
    *,
    split: Literal["train", "test"] | None = None,
    progress: Progress | None = None,
) -> Pictures:
    """CIFAR-10 as uint8 [B 3 32 32]; both parts, training first, when `split` is None.

    `path` is the official `cifar-10-binary.tar.gz`, the folder it unpacks to, or a `*_jpeg.npz` (see
    `read_joined`; JPEG copies give figures near, not equal, to the literature's). Without one the official
    archive is downloaded (163 MB) to `data_folder()`. `names` are 'train/00000' and so on, `groups` the
    parts.
    Raises DataError when nothing can be downloaded, or the file is damaged or of another form.
    """
    if split not in (None, "train", "test"):
        raise DataError(f"CIFAR-10 has the splits train and test, not {split!r}")
    place = (
        Path(path) if path is not None else fetch(URL, data_folder() / Path(URL).name, md5=MD5, progress=progress)
    )
    parts = [p for p in ("train", "test") if split in (None, p)]
    if place.suffix == ".npz":
        joined = read_joined(place, 32, None if split is None else int(split == "test"))
        each = [(p, joined.split == int(p == "test")) for p in parts]
        return _pictures([(p, joined.x[here], joined.y[here]) for p, here in each], joined.classes)
    wanted = {"train": _TRAIN, "test": _TEST}
    content = _contents(place, {name for p in parts for name in wanted[p]})
    return _pictures([(p, *_records(content, wanted[p], place)) for p in parts], CLASSES)


def _contents(place: Path, wanted: set[str]) -> dict[str, bytes]:
    """The named batch files by name, from the folder or the tar."""
    if place.is_dir():
        inner = place / "cifar-10-batches-bin"
        folder = inner if inner.is_dir() else place
        found: Iterable[tuple[str, bytes]] = (
            (name, (folder / name).read_bytes()) for name in wanted if (folder / name).is_file()
        )
    elif place.is_file():
        found = tar_files(place, lambda name: PurePosixPath(name).name in wanted)
    else:
        raise DataError(f"{place} does not exist; name cifar-10-binary.tar.gz or the folder it unpacks to")
    content = {PurePosixPath(name).name: data for name, data in found}
    if missing := sorted(wanted - set(content)):
        raise DataError(f"{place} lacks {', '.join(missing)}; use the *binary* version of CIFAR-10 from {URL}")
    return content


def _records(content: dict[str, bytes], names: tuple[str, ...], place: Path) -> tuple[Tensor, Tensor]:
    """A record is one byte of label and 3 x 32 x 32 bytes of red, green and blue rows."""
    for name in names:
        if not content[name] or len(content[name]) % _RECORD:
            raise DataError(
                f"{name} in {place} has {len(content[name])} bytes, no multiple of {_RECORD}: truncated"
            )
    table = np.frombuffer(b"".join(content[name] for name in names), dtype=np.uint8).reshape(-1, _RECORD)
    if table[:, 0].max() >= len(CLASSES):
        raise DataError(f"{place} has labels above 9: it is damaged, or CIFAR-100, which has two label bytes")
    return torch.from_numpy(table[:, 1:].reshape(-1, 3, 32, 32).copy()), torch.from_numpy(
        table[:, 0].astype(np.int64)
    )


def _pictures(parts: list[tuple[str, Tensor, Tensor]], classes: tuple[str, ...]) -> Pictures:
    return Pictures(
        x=torch.cat([x for _, x, _ in parts]),
        names=tuple(f"{part}/{n:05d}" for part, x, _ in parts for n in range(len(x))),
        y=torch.cat([y for _, _, y in parts]),
        classes=classes,
        groups=tuple(part for part, x, _ in parts for _ in range(len(x))),
    )
