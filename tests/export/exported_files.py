"""Picture files of many kinds, and scripts run where libraries are missing."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ALONE = """
import runpy, sys
for name in {blocked!r}:
    sys.modules[name] = None  # any import of it now raises
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_alone(script: Path, pictures: Sequence[Path], blocked: Sequence[str]) -> list[str]:
    """Lines that `script` prints in a process that cannot import `blocked`, nor see this checkout."""
    code = ALONE.format(blocked=tuple(blocked), argv=[str(script), *map(str, pictures)])
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=script.parent, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def pixels(seed: int, height: int, width: int, channels: int) -> np.ndarray:
    """Smooth noise with an edge, so that orientation and crop matter."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (height // 8 + 1, width // 8 + 1, channels), dtype=np.uint8)
    full = np.kron(coarse, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width]
    full[:, : width // 3] += 50
    return full


def picture_files(folder: Path) -> list[Path]:
    """One file of each kind that the readers treat in a way of its own."""
    folder.mkdir(parents=True)
    colour = Image.fromarray(pixels(0, 60, 41, 3))
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = Image.fromarray(pixels(1, 33, 50, 4))
    ink = np.zeros((40, 40, 4), dtype=np.uint8)
    ink[8:20, 10:30] = 255  # white on nothing
    deep = Image.fromarray(pixels(2, 40, 52, 1)[..., 0].astype(np.uint16) * 257)
    palette = clear.quantize(16)
    saved: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain.png": (colour, {}),
        "turned.jpg": (colour, {"exif": turned, "quality": 90}),
        "large.jpg": (colour.resize((410, 600)), {}),
        "clear.png": (clear, {}),
        "ink.png": (Image.fromarray(ink), {}),
        "deep.png": (deep, {}),
        "palette.png": (palette, {}),
        "grey.png": (colour.convert("L"), {}),
        "bits.png": (colour.convert("1"), {}),
        "inks.jpg": (colour.convert("CMYK"), {}),
        "film.gif": (colour, {"save_all": True, "append_images": [clear.convert("RGB").resize((41, 60))]}),
    }
    for name, (picture, options) in saved.items():
        picture.save(folder / name, **options)
    return [folder / name for name in saved]


def said(line: str) -> tuple[str, float]:
    """Label and probability of a line of predict.py."""
    label, _, probability = line.rpartition(": ")[2].rpartition(" ")
    return label, float(probability)


def embedded(line: str) -> np.ndarray:
    """The vector of a line of embed.py."""
    return np.array(json.loads(line)["embedding"])
