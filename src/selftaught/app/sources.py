"""What users hand in as pictures - folders, files, arrays, tensors - turned into one form."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.core.errors import DataError
from selftaught.data.emoji import read_emoji
from selftaught.data.folder import read_files, read_folder
from selftaught.data.pictures import Pictures
from selftaught.data.shards import read_shards, shards_of

PACKAGED = "emoji"
"""The name that stands for the packaged pictures wherever a folder is expected (if no such folder exists)."""

CACHE = "SELFTAUGHT_CACHE"
"""The environment variable that names the folder in which decoded folders and shards are kept."""


def as_pictures(
    data: Any, size: int, channels: int, *, labelled: bool = False, cache: Path | None = None
) -> Pictures:
    """Pictures of `size` x `size` in `channels` channels from any of:

    a `Pictures` set; a folder; WebDataset shards, one `.tar` or a folder of them; one file; a list of files; uint8
    arrays or tensors [n H W C], [n C H W] or [n H W], or float ones in 0..1; the word "emoji" for the packaged
    set. Decoded folders and shards are kept in `cache`, by default the folder that `SELFTAUGHT_CACHE` names in the
    environment, if it does.
    Raises DataError for anything else.
    """
    if isinstance(data, Pictures):
        return fitted(data, size, channels)
    if isinstance(data, np.ndarray | Tensor):
        return fitted(_from_array(data), size, channels)
    if isinstance(data, str | Path):
        path = Path(data)
        if str(data).partition(":")[0] == PACKAGED and not path.exists():
            split = str(data).partition(":")[2] or "train"
            return fitted(read_emoji(split=split), size, channels)  # type: ignore[arg-type]
        cache = Path(os.environ[CACHE]) if cache is None and os.environ.get(CACHE) else cache
        if shards_of(path):
            return read_shards(path, size=size, channels=channels, labelled=labelled, cache=cache)
        if path.is_file():
            return read_files([path], size=size, channels=channels)
        return read_folder(path, size=size, channels=channels, labelled=labelled, cache=cache)
    if isinstance(data, Sequence) and all(isinstance(p, str | Path) for p in data):
        return read_files([Path(p) for p in data], size=size, channels=channels)
    raise DataError(
        f"cannot read pictures from {type(data).__name__}: give a folder, files, an array [n H W C] of uint8, "
        "or a Pictures set"
    )


def fitted(pictures: Pictures, size: int, channels: int) -> Pictures:
    """The same pictures with the wanted channels and size (antialiased), or themselves if they fit."""
    x = pictures.x
    if x.shape[1] != channels:
        if x.shape[1] == 1:
            x = x.expand(-1, channels, -1, -1)
        elif channels == 1:
            weights = torch.tensor([0.299, 0.587, 0.114])
            x = (x.float() * weights[:, None, None]).sum(1, keepdim=True).round().to(torch.uint8)
        else:
            raise DataError(f"pictures have {x.shape[1]} channels, the network takes {channels}")
    if tuple(x.shape[-2:]) != (size, size):
        resized = F.interpolate(x.float(), size=(size, size), mode="bilinear", antialias=True)
        x = resized.round().clamp(0, 255).to(torch.uint8)
    if x is pictures.x:
        return pictures
    return Pictures(x, pictures.names, pictures.y, pictures.classes, pictures.groups, pictures.skipped)


def _from_array(data: "np.ndarray[Any, Any] | Tensor") -> Pictures:
    x = torch.as_tensor(data)
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim != 4:
        raise DataError(f"an array of pictures is [n H W C], [n C H W] or [n H W]; got shape {tuple(x.shape)}")
    if x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.permute(0, 3, 1, 2)
    if x.shape[1] not in (1, 3):
        raise DataError(f"pictures have 1 or 3 channels; got an array of shape {tuple(data.shape)}")
    if x.is_floating_point():
        if x.numel() and (float(x.min()) < 0 or float(x.max()) > 1):
            raise DataError(f"float pictures are in 0..1; got {float(x.min()):.3g}..{float(x.max()):.3g}")
        x = (x * 255).round().to(torch.uint8)
    if x.dtype != torch.uint8:
        raise DataError(f"pictures are uint8 or float in 0..1; got {x.dtype}")
    return Pictures(x.contiguous(), tuple(f"picture {i}" for i in range(len(x))))


def fingerprint(pictures: Pictures) -> str:
    """A short hash of the decoded pictures, to notice that a resumed run would see others."""
    digest = hashlib.sha256(str(tuple(pictures.x.shape)).encode())
    for start in range(0, len(pictures), 4096):
        digest.update(pictures.x[start : start + 4096].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
