"""The part of `stream` that begins with WebDataset shards: write them, decode them, train from the outcome."""

import io
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import track

from benchmarks.stream import CHUNK, Stream, alone, coarse_noise, own_memory, steps, watched
from selftaught.data.shards import read_shards

PARTS = 20
"""The small set is such a part of the large one."""


def from_shards(asked: Stream) -> list[dict[str, Any]]:
    """A row for a twentieth of the pictures and one for all."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (max(asked.shards // PARTS, 1), asked.shards):
            place = Path(folder) / str(count)
            write_shards(place, count, asked.size)
            rows.append(alone(decoded, place, count, asked))
    return rows


def write_shards(place: Path, count: int, size: int) -> None:
    """Grey pictures of coarse noise, by turns `KEY.jpg` and `KEY.png`, with `KEY.cls`, 10,000 in a shard."""
    place.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number, first in enumerate(track(range(0, count, CHUNK), "writing shards", transient=True)):
        some = coarse_noise(min(CHUNK, count - first), size, generator).numpy()
        with tarfile.open(place / f"{number:05d}.tar", "w") as tar:
            for n, pixels in enumerate(some, first):
                kind, extension = ("PNG", "png") if n % 2 else ("JPEG", "jpg")
                out = io.BytesIO()
                Image.fromarray(pixels[0]).save(out, kind)
                _add(tar, f"{n:07d}.cls", str(n % 100).encode())
                _add(tar, f"{n:07d}.{extension}", out.getvalue())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def decoded(place: Path, count: int, asked: Stream) -> dict[str, Any]:
    """Own memory in MB before and at most while decoding and while training; rates of this one process.

    Rates are by its processor seconds, which other work on the machine changes less than seconds of the clock.
    """
    torch.set_num_threads(asked.threads)
    before, began = own_memory(), time.process_time()
    with watched() as seen:
        pictures = read_shards(place, size=asked.size, channels=1, labelled=True, workers=0, cache=place / "cache")
    assert len(pictures) == count and not pictures.skipped
    decoding = time.process_time() - began
    began = time.process_time()
    training = steps(pictures, asked)
    return {
        "pictures": count,
        "shards, MB": sum(f.stat().st_size for f in place.glob("*.tar")) / 1e6,
        "decoded, MB": pictures.x.nbytes / 1e6,
        "own memory before, MB": before,
        "at most while decoding, MB": max(seen),
        "at most while training, MB": training,
        "pictures decoded a processor second": count / decoding,
        "steps a processor second": asked.steps / (time.process_time() - began),
    }
