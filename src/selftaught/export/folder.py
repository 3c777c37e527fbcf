"""The folder an export writes, whole or not at all: model, preparation of pictures, script, a page for people."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from selftaught.artifacts.files import (
    TEMPORARY_SUFFIX,
    save_error,
    sync_folder,
    write_bytes,
    write_json,
    write_text,
    writer,
)
from selftaught.core.errors import RunError
from selftaught.export.checking import TOLERANCE
from selftaught.export.network import Exportable
from selftaught.export.scripts import script
from selftaught.nets.hub import HubEncoder

EXPORT_FORMAT = 1

_LOCK = "export.lock"
"""Held in the unfinished folder while its writer lives, so that others can tell it from a dead one's leavings."""


def refuse_existing(out: Path) -> None:
    """Raises RunError where `out` is there already, unless it is an empty folder."""
    try:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise RunError(f"{out} exists: give --out a new folder, or remove it first")
    except OSError as error:
        raise save_error(out, error) from error


def write_folder(out: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary folder beside `out`, then move it there.

    What a killed export to the same `out` left unfinished is cleared away first. Raises RunError where `out` is
    there already (an empty folder may be), SaveError where the system refuses. On every failure, also of `fill`,
    nothing is left behind.
    """
    refuse_existing(out)
    target = Path(os.path.realpath(out))
    begin = _begin(target)
    temporary = target.parent / f"{begin}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    lock = FileLock(temporary / _LOCK, timeout=0, is_singleton=False)
    try:
        _clear(target.parent, begin)
        temporary.mkdir(parents=True)
        with lock:
            fill(temporary)
        (temporary / _LOCK).unlink(missing_ok=True)
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except OSError as error:
        raise save_error(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(target.parent)


def _begin(target: Path) -> str:
    """How unfinished folders for `target` are called; a name of any length has room."""
    return f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]}-"


def _clear(parent: Path, begin: str) -> None:
    """Remove unfinished folders whose writers are dead. What cannot be removed stays."""
    for left in parent.glob(f"{begin}*{TEMPORARY_SUFFIX}"):
        dead = left.with_name(f"{begin}{secrets.token_hex(8)}.dead{TEMPORARY_SUFFIX}")
        with suppress(OSError):
            with FileLock(left / _LOCK, timeout=0, is_singleton=False):
                pass  # raises Timeout, an OSError, where its writer lives
            # By a rename: a writer that was about to put this folder in its place then fails, or came first.
            left.rename(dead)
            shutil.rmtree(dead, ignore_errors=True)


def write_model(out: Path, what: Exportable, kind: str, file: str, content: bytes, gap: float) -> None:
    """`file` with `content`, `model.json`, the script and `README.md` as the folder `out`.

    `kind` is "onnx" or "torch", `gap` the largest relative difference found. Raises as `write_folder`.
    """
    name, text = script(kind, what.head is not None)

    def fill(folder: Path) -> None:
        write_bytes(folder / file, content)
        write_json(folder / "model.json", description(what, file, gap))
        write_text(folder / name, text)
        write_text(folder / "README.md", page(what, file, name))

    write_folder(out, fill)


def description(what: Exportable, file: str, gap: float) -> dict[str, Any]:
    """What goes in, how a picture becomes that, what comes out; plain JSON values."""
    shapes = {"embedding": ["batch", int(getattr(what.encoder, "width", 0)) or "width"]}
    if what.head is not None:
        shapes["probability"] = ["batch", len(what.head.classes)]
    return {
        "format": EXPORT_FORMAT,
        "writer": writer(),
        "file": file,
        "input": {
            "name": "pictures",
            "type": "uint8",
            "shape": ["batch", what.size, what.size, 3],
            "order": "RGB",
        },
        "preprocessing": {
            "size": what.size,
            "channels": what.channels,
            "orientation": "as EXIF says",
            "transparency": "laid on white; on black where then nothing darker than 240 of 255 is left",
            "depth": "16-bit grey divided by 257",
            "grey": "before resizing (Pillow's mode L)" if what.channels == 1 else None,
            "crop": "the largest centred square",
            "resize": "Pillow's bicubic filter, antialiased, in 8 bits",
        },
        "in the graph": _in_graph(what),
        "outputs": shapes,
        "classes": None if what.head is None else list(what.head.classes),
        "trained": what.trained,
        "check": {"largest difference": gap, "allowed": TOLERANCE, "relative to": "the largest number"},
    }


def _in_graph(what: Exportable) -> dict[str, Any]:
    """What happens to the numbers before the first layer; encoders of other libraries resize and normalise too."""
    grey = {"grey": "floor((19595 R + 38470 G + 7471 B + 32768) / 65536), Pillow's"} if what.channels == 1 else {}
    made: dict[str, Any] = {**grey, "scale": "1 / 255"}
    encoder = what.encoder
    if not isinstance(encoder, HubEncoder):
        return made | {"mean": [0.0] * what.channels, "std": [1.0] * what.channels}
    if what.size != encoder.side:
        smooth = ", averaged" if what.size > encoder.side else ""
        made["resize"] = f"to {encoder.side} x {encoder.side}, bilinear{smooth}"
    if what.channels == 1:
        made["planes"] = "the grey one three times"
    return made | {k: getattr(encoder, k).flatten().tolist() for k in ("mean", "std")}


def page(what: Exportable, file: str, name: str) -> str:
    """A short README."""
    needs = "onnxruntime" if file.endswith(".onnx") else "torch"
    said = "names pictures" if what.head is not None else "writes the embedding of pictures"
    classes = "" if what.head is None else f"Classes: {', '.join(what.head.classes)}.\n\n"
    return (
        f"# {file}\n\n"
        f"`python {name} PICTURE` {said}; it needs {needs}, numpy and pillow. Input: uint8 RGB pictures "
        f"[batch {what.size} {what.size} 3]; outputs: {', '.join(what.outputs)}. `model.json` says how a "
        f"picture file becomes such an input.\n\n{classes}"
        "Probabilities from a few labels are not calibrated.\n"
    )
