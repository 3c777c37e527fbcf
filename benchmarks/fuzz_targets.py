"""The readers that are fuzzed: good inputs, and a function that reads one and names what it lost in silence."""

import csv
import gzip
import io
import json
import os
import random
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from selftaught.app.classifier import Classifier
from selftaught.app.config import Config
from selftaught.app.model import Model
from selftaught.artifacts.checkpoint import load_state, save_state
from selftaught.artifacts.metrics import append_metrics, read_metrics
from selftaught.core.train import start
from selftaught.data.archives import open_zip, tar_files
from selftaught.data.captions import read_captioned
from selftaught.data.folder import read_folder
from selftaught.data.pictures import Pictures
from selftaught.data.splits import read_class_list
from selftaught.data.strokes import draw_strokes
from selftaught.optimizers.gradient import Gradient


@dataclass(frozen=True)
class Target:
    """`read` raises the library's errors, or gives the names of what was neither used nor reported."""

    seeds: Sequence[bytes]
    read: Callable[[bytes], Sequence[str]]
    random: bool = False
    """Whether inputs only decide what is made, so that the first one need not be good."""


def picture(kind: str, **options: object) -> bytes:
    """A small picture of noise in a format of Pillow."""
    out = io.BytesIO()
    mode = "P" if kind == "GIF" else "RGB"
    Image.effect_noise((24, 18), 80).convert(mode).save(out, kind, **options)
    return out.getvalue()


def _reported(pictures: Pictures) -> set[str]:
    """Names of the files that were used or skipped."""
    return {Path(name).name for name in (*pictures.names, *(s.path for s in pictures.skipped))}


def _pictures(ground: Path) -> Target:
    (ground / "good.png").write_bytes(picture("PNG"))
    seeds = [picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")]
    seeds.append(picture("TIFF", compression="tiff_lzw"))

    def read(content: bytes) -> Sequence[str]:
        (ground / "x.png").write_bytes(content)
        pictures = read_folder(ground, size=8)
        assert pictures.x.shape[1:] == (3, 8, 8) and len(pictures) == len(pictures.names)
        return sorted({"x.png", "good.png"} - _reported(pictures))

    return Target(seeds, read)


def _config() -> Config:
    return Config(
        "simclr", {"batch": 8}, "conv4", {"width": 4}, 16, 1, "glyph", {"crop": [0.5, 1.0]}, steps=3, rate=0.001,
        warmup=0, weight_decay=0.0, seed=1, data={"source": "x", "pictures": 4, "labelled": False}, command="x",
    )  # fmt: skip


def _model() -> Model:
    config = _config()
    net = config.build_network()
    return Model(net, net.state_dict(), config)


def _checkpoints(ground: Path) -> Target:
    config, file = _config(), ground / "x.safetensors"
    state = start(config.build_method(), config.build_network(), Gradient(1e-3, 3), seed=1)
    save_state(file, state)

    def read(content: bytes) -> Sequence[str]:
        file.write_bytes(content)
        found = load_state(file)
        before = (state.params, state.slow, state.opt)
        now = (found.params, found.slow, found.opt)
        return [] if [len(part) for part in now] == [len(part) for part in before] else ["tensors"]

    return Target([file.read_bytes()], read)


def _configs(ground: Path) -> Target:
    """The configuration of a saved model, read to the point where a run or a prediction would start."""
    _model().save(ground / "m")
    file = ground / "m" / "config.json"

    def read(content: bytes) -> Sequence[str]:
        file.write_bytes(content)
        model = Model.load(ground / "m")
        model.config.build_source(draw_strokes(2, 4, size=16))
        return []

    return Target([file.read_bytes()], read)


def _classifiers(ground: Path) -> Target:
    Classifier.fit(_model(), draw_strokes(2, 2, size=16)).save(ground / "clf")
    file = ground / "clf" / "classifier.json"

    def read(content: bytes) -> Sequence[str]:
        file.write_bytes(content)
        found = Classifier.load(ground / "clf")
        told = found.predict(draw_strokes(1, 1, size=16))
        return [] if len(told) == 1 else ["the picture"]

    return Target([file.read_bytes()], read)


def _metrics(ground: Path) -> Target:
    file = ground / "metrics.jsonl"
    for step in range(4):
        append_metrics(file, step, {"loss": 0.5 * step, "rank": float("nan")})

    def read(content: bytes) -> Sequence[str]:
        file.write_bytes(content)
        whole = content.count(b"\n")
        return [] if len(read_metrics(file)) == whole else ["a line"]

    return Target([file.read_bytes()], read)


def _captioned(ground: Path, name: str) -> tuple[Path, set[str]]:
    for file in ("a.png", "b.png"):
        (ground / file).write_bytes(picture("PNG"))
    return ground / name, {"a.png", "b.png"}


def _unsaid(pictures: Pictures, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Captions of a table that no picture has, nor a skipped one."""
    said = {line for text in pictures.classes for line in text.split("\n")}
    skipped = {Path(s.path).name for s in pictures.skipped}
    return [text for file, text in rows if " ".join(text.split()) not in said and Path(file).name not in skipped]


def _tables(ground: Path) -> Target:
    file, _ = _captioned(ground, "captions.csv")
    seeds = [b'file,caption\na.png,a red square\nb.png,"blue, round"\na.png,red\n', b"image,text\r\nb.png,x\r\n"]

    def read(content: bytes) -> Sequence[str]:
        file.write_bytes(content)
        pictures = read_captioned(ground, size=8)
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
        files, texts = ([next(iter(r[k] for k in keys if k in r)) for r in rows] for keys in _COLUMNS)
        return _unsaid(pictures, list(zip(files, texts, strict=True)))

    return Target(seeds, read)


_COLUMNS = (("file", "file_name", "filepath", "image"), ("caption", "captions", "text", "title"))


def _lines(ground: Path) -> Target:
    file, _ = _captioned(ground, "captions.jsonl")
    seeds = [b'{"file": "a.png", "caption": "red"}\n{"image": "b.png", "captions": ["blue", "round"]}\n']

    def read(content: bytes) -> Sequence[str]:
        file.write_bytes(content)
        pictures = read_captioned(ground, size=8)
        rows: list[tuple[str, str]] = []
        for line in content.decode("utf-8-sig").splitlines():
            if line.strip():
                name, texts = (
                    next(json.loads(line)[k] for k in keys if k in json.loads(line)) for keys in _COLUMNS
                )
                rows += [(name, text) for text in (texts if isinstance(texts, list) else [texts])]
        return _unsaid(pictures, rows)

    return Target(seeds, read)


def _sidecars(ground: Path) -> Target:
    file, names = _captioned(ground, "a.txt")
    (ground / "b.txt").write_text("blue\n", encoding="utf-8")

    def read(content: bytes) -> Sequence[str]:
        file.write_bytes(content)
        pictures = read_captioned(ground, size=8)
        rows = [("a.png", line) for line in content.decode("utf-8-sig").splitlines() if line.strip()]
        return sorted(names - _reported(pictures)) + _unsaid(pictures, rows)

    return Target([b"a red square\nred\n", "größer\r\n日本\r\n".encode()], read)


def _class_lists(ground: Path) -> Target:
    file = ground / "list.txt"

    def read(content: bytes) -> Sequence[str]:
        file.write_bytes(content)
        names = read_class_list(file)
        lines = [line.strip() for line in content.decode("utf-8-sig").split("\n")]
        return [line for line in lines if line and line not in names]

    return Target(
        [b"Greek/character01\nGreek/character02\n\nLatin/character01\n", "größe\r\nb\r\n".encode()], read
    )


def _labelled(ground: Path) -> Target:
    """The input decides what lies in the folder: names, depths, kinds and contents."""
    kinds = [picture("PNG"), picture("JPEG"), picture("PNG")[:40], b"", b"no picture"]
    names = [
        "a.png",
        "b.JPG",
        "c.gif",
        ".hidden.png",
        "notes.txt",
        "d.heic",
        "e\n.png",
        "\udcff.png",
        "x" * 200 + ".png",
    ]
    folders = ["one", "two", "one/deep", "", ".git", "two/a.png", "\udcfe"]

    def read(content: bytes) -> Sequence[str]:
        chance, root = random.Random(content), ground / os.urandom(8).hex()
        root.mkdir()
        placed: set[Path] = set()
        for _ in range(chance.randrange(9)):
            place = root / chance.choice(folders) / chance.choice(names)
            if any(p.is_file() for p in place.parents) or place.is_dir():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(chance.choice([*kinds, content[:2000]]))
            placed.add(place)
        pictures = read_folder(root, size=8, labelled=True)
        shown = [
            p
            for p in placed
            if p.suffix != ".txt" and not any(s.startswith(".") for s in p.relative_to(root).parts)
        ]
        assert pictures.y is not None and int(pictures.y.max()) < len(pictures.classes)
        return ["a file"] if len(shown) != len(pictures) + len(pictures.skipped) else []

    return Target([picture("PNG")], read, random=True)


def _tar(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    # Only the two blocks of zeros that end it, without padding: mutations shall hit something.
    return out.getvalue()[: tar.offset]


def _heads(content: bytes) -> int:
    """Members of a tar as its headers say, one after the other, up to the first block of zeros."""
    plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    at = count = 0
    while plain[at : at + 512].strip(b"\0"):
        size = int(plain[at + 124 : at + 135].strip(b"\0 ") or b"0", 8)
        at, count = at + 512 * (1 + -(-size // 512)), count + 1
    return count if not plain[at:].strip(b"\0") else -1


def _archives(ground: Path) -> Target:
    plain = _tar({"a/one.txt": b"1" * 700, "a/two.txt": b"2", "three.txt": b""})
    file = ground / "x.tar"

    def read(content: bytes) -> Sequence[str]:
        file.write_bytes(content)
        count = len(list(tar_files(file, lambda name: True)))
        return [] if count == _heads(content) else [f"{_heads(content) - count} members"]

    return Target([plain, gzip.compress(plain, mtime=0)], read)


def _zips(ground: Path) -> Target:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as opened:
        for n in range(3):
            opened.writestr(f"{n}.txt", bytes([65 + n]) * 200)
    file = ground / "x.zip"

    def read(content: bytes) -> Sequence[str]:
        file.write_bytes(content)
        names, member = open_zip(file)
        for name in names:
            member(name)
        return [] if len(names) == len(set(names)) else ["a name"]

    return Target([out.getvalue()], read)


def _shards(ground: Path) -> Target:
    red, grey = picture("PNG"), picture("JPEG")
    seeds = [
        _tar({"a.png": red, "a.txt": b"red\nsquare\n", "b.jpg": grey, "b.json": b'{"caption": "grey"}'}),
        _tar({"0/c.txt": b"one", "0/c.png": red, "d.txt": b"alone"}),
    ]
    file = ground / "x.tar"

    def read(content: bytes) -> Sequence[str]:
        file.write_bytes(content)
        pictures = read_captioned(file, size=8)
        with tarfile.open(file) as tar:
            members = [m.name for m in tar if Path(m.name).suffix.lower() in (".png", ".jpg", ".txt", ".json")]
        keys = {str(Path(name).parent / Path(name).name.partition(".")[0]) for name in members}
        return sorted(keys)[: len(keys) - len(pictures) - len(pictures.skipped)]

    return Target(seeds, read)


TARGETS: Mapping[str, Callable[[Path], Target]] = {
    "picture": _pictures,
    "checkpoint": _checkpoints,
    "config": _configs,
    "classifier": _classifiers,
    "metrics": _metrics,
    "captions.csv": _tables,
    "captions.jsonl": _lines,
    "sidecar": _sidecars,
    "class list": _class_lists,
    "labelled folder": _labelled,
    "tar": _archives,
    "zip": _zips,
    "shard": _shards,
}
"""Name -> how a reader is set up in an empty folder."""
