"""Fashion-MNIST: 70,000 grey pictures of 28x28 pixels of ten kinds of clothing (Xiao et al. 2017).

Home: https://github.com/zalandoresearch/fashion-mnist (MIT). The files have the idx form of MNIST: a
big-endian header (magic number, then the size of each axis) and bytes.
"""

import gzip
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from selftaught.core.errors import DataError
from selftaught.data.download import Progress, data_folder, fetch
from selftaught.data.pictures import Pictures

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_PREFIX = {"train": "train", "test": "t10k"}


def read_fashion_mnist(
    path: str | Path | None = None,
    *,
    split: Literal["train", "test"] | None = None,
    progress: Progress | None = None,
) -> Pictures:
    """Fashion-MNIST as uint8 [B 1 28 28], bright on 0; both parts, training first, when `split` is None.

    `path` is a folder with the official files (gzipped or not), or one of its image files, which is read with
    the label file beside it. Without one the four files are downloaded (31 MB) to `data_folder()`. `names`
    are 'train/00000' and so on, `groups` the parts.
    Raises DataError when nothing can be downloaded, or a file is missing, damaged or of another form.
    """
    if split not in (None, "train", "test"):
        raise DataError(f"Fashion-MNIST has the splits train and test, not {split!r}")
    parts = [p for p in _PREFIX if split in (None, p)]
    if path is None:
        folder = _download(parts, progress)
    else:
        folder = Path(path)
        if folder.is_file():
            parts = [p for p in parts if folder.name.startswith(_PREFIX[p])]
            folder = folder.parent
    if not parts:
        raise DataError(
            f"{path} is not the {split or 'train or test'} images file of Fashion-MNIST; pass the folder"
        )
    read = [_part(folder, _PREFIX[p]) for p in parts]
    return Pictures(
        x=torch.cat([x for x, _ in read]),
        names=tuple(f"{p}/{n:05d}" for p, (x, _) in zip(parts, read, strict=True) for n in range(len(x))),
        y=torch.cat([y for _, y in read]),
        classes=CLASSES,
        groups=tuple(p for p, (x, _) in zip(parts, read, strict=True) for _ in range(len(x))),
    )


def _download(parts: list[str], progress: Progress | None) -> Path:
    folder = data_folder() / "fashion-mnist"
    for name, md5 in MD5.items():
        if any(name.startswith(_PREFIX[p]) for p in parts):
            fetch(f"{URL}/{name}", folder / name, md5=md5, progress=progress)
    return folder


def _part(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    x = _idx(folder, f"{prefix}-images-idx3-ubyte", axes=3)
    y = _idx(folder, f"{prefix}-labels-idx1-ubyte", axes=1)
    if len(x) != len(y) or x.shape[1:] != (28, 28) or int(y.max()) >= len(CLASSES):
        raise DataError(
            f"{folder}: {prefix} has pictures {tuple(x.shape)} and labels {tuple(y.shape)} up to "
            f"{int(y.max())}; expected [B 28 28] and as many labels from 0 to 9"
        )
    return x[:, None], y.to(torch.int64)


def _idx(folder: Path, name: str, axes: int) -> Tensor:
    """One idx file of unsigned bytes with `axes` axes, gzipped or not."""
    places = [p for p in (folder / f"{name}.gz", folder / name) if p.is_file()]
    if not places:
        raise DataError(f"{folder} lacks {name}.gz; download it from {URL}")
    place = places[0]
    try:
        data = gzip.decompress(place.read_bytes()) if place.suffix == ".gz" else place.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{place} is truncated or not gzipped ({error}); download it again") from error
    header = np.frombuffer(data[: 4 * (axes + 1)], dtype=">u4").tolist()
    # 0x08 is the code for unsigned bytes, the last byte of the magic number is the number of axes.
    if len(header) != axes + 1 or header[0] != 0x0800 + axes:
        raise DataError(f"{place} is not an idx file of bytes with {axes} axes; download it again")
    body = np.frombuffer(data, dtype=np.uint8, offset=4 * (axes + 1))
    if body.size != int(np.prod(header[1:], dtype=np.int64)) or body.size == 0:
        raise DataError(f"{place} has {body.size} bytes of data for the shape {header[1:]}; download it again")
    return torch.from_numpy(body.reshape(header[1:]).copy())
