"""A picture comes out the same from a file and from its bytes, and so does every refusal."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.data.decode import Failure, Form, decode_many, original_size

RGB = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def coded(image: Image.Image, kind: str, **options: object) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return coded(Image.fromarray(RGB), "JPEG", exif=exif)


PICTURES = {
    "png": coded(Image.fromarray(RGB), "PNG"),
    "turned": turned(),
    "deep": coded(Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), "PNG"),
    "transparent": coded(Image.fromarray(np.dstack([RGB, RGB[..., :1]])), "PNG"),
    "first of two": coded(Image.new("P", (9, 9), 3), "GIF", save_all=True, append_images=[Image.new("P", (9, 9))]),
}
REFUSED = {
    "empty": b"",
    "cut": coded(Image.fromarray(RGB), "PNG")[:80],
    "text": b"<svg onload=alert(1)>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "large": coded(Image.new("1", (60, 60)), "PNG"),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_picture(name: str, channels: int, tmp_path: Path) -> None:
    (path := tmp_path / "file").write_bytes(PICTURES[name])
    of_file, of_bytes = decode_many([str(path), PICTURES[name]], Form(8, channels))
    assert isinstance(of_file, np.ndarray) and isinstance(of_bytes, np.ndarray)
    assert of_file.shape == (channels, 8, 8) and np.array_equal(of_file, of_bytes)
    assert original_size(str(path)) == original_size(PICTURES[name]) is not None


@pytest.mark.parametrize("name", REFUSED)
def test_the_same_refusal(name: str, tmp_path: Path) -> None:
    (path := tmp_path / "file").write_bytes(REFUSED[name])
    of_file, of_bytes = decode_many([str(path), REFUSED[name]], Form(8, 3, limit_pixels=2000))
    assert isinstance(of_file, Failure) and of_file == of_bytes and of_file.lasting
    assert original_size(str(path)) == original_size(REFUSED[name])
