"""Pictures with captions: a table in the folder, a text file beside each picture, or WebDataset shards.

What comes out is an ordinary set whose classes are the different captions: `classes[y]` is everything said of a
picture, one caption a line (`tasks.captions` draws from it).
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import torch

from selftaught.core.errors import DataError
from selftaught.data.archives import tar_files
from selftaught.data.decode import picture_extensions, printable
from selftaught.data.folder import read_files
from selftaught.data.listing import list_folder
from selftaught.data.pictures import Pictures, Skipped

TABLES = ("captions.csv", "captions.jsonl")
FILE_COLUMNS = ("file", "file_name", "filepath", "image")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")
_MOST_TEXT = 1 << 20

Row = tuple[str, str, str]
"""Where it stands (for messages), file, caption."""
Said = dict[str, list[str]]
"""File -> its captions, in the order they came."""


def has_captions(path: str | os.PathLike[str]) -> bool:
    """Whether `read_captioned` would find a table, shards, or a text file beside some picture."""
    root = Path(path)
    if root.is_file():
        return root.suffix == ".tar"
    if not root.is_dir():
        return False
    if any((root / name).is_file() for name in TABLES) or any(root.glob("*.tar")):
        return True
    return any(_beside(file.path).is_file() for file in list_folder(os.fspath(root)).files)


def read_captioned(path: str | os.PathLike[str], *, size: int, channels: int = 3) -> Pictures:
    """Captioned pictures from a folder or a shard, as `read_folder` reads pictures; `classes` are captions.

    Looked for in this order: `captions.csv` (a line with the columns file and caption, then a line for each
    caption; a file may come again), `captions.jsonl` (an object with file and caption, or a list of them, on
    each line), WebDataset shards `*.tar` (`key.jpg` with `key.txt` or `key.json`), and a text file of the same
    name beside each picture, one caption a line. Pictures that a table does not name are left out; those that have
    no text beside them or cannot be decoded are in `skipped`.

    Raises DataError, naming file and line, for tables that cannot be read or name missing pictures, and for
    captions that are empty.
    """
    root = Path(path)
    tables = [root / name for name in TABLES if (root / name).is_file()]
    if len(tables) > 1:
        raise DataError(f"{printable(str(root))} has {' and '.join(TABLES)}: keep one of them")
    if tables:
        rows = _csv_rows(tables[0]) if tables[0].suffix == ".csv" else _json_rows(tables[0])
        return _from_table(tables[0], _gathered(rows), size, channels)
    shards = [root] if root.suffix == ".tar" else sorted(root.glob("*.tar"))
    if shards:
        return _from_shards(shards, size, channels)
    return _from_sidecars(root, size, channels)


def captioned(pictures: Pictures, said: Sequence[Sequence[str]]) -> Pictures:
    """The same pictures with a list of captions for each as their classes. Raises DataError for an empty one."""
    texts = [
        "\n".join(dict.fromkeys(_tidy(c, name) for c in one))
        for name, one in zip(pictures.names, said, strict=True)
    ]
    empty = [name for name, text in zip(pictures.names, texts, strict=True) if not text]
    if empty:
        raise DataError(f"{empty[0]} has no caption: write one, or take the picture away")
    classes = tuple(dict.fromkeys(texts))
    number = {text: n for n, text in enumerate(classes)}
    return replace(pictures, y=torch.tensor([number[text] for text in texts]), classes=classes)


def _tidy(caption: str, where: str) -> str:
    """On one line. Raises DataError where nothing is left."""
    line = " ".join(caption.split())
    if not line:
        raise DataError(f"{where}: the caption is empty. Write one, or take the line and the picture away.")
    return line


def _gathered(rows: Iterable[Row]) -> Said:
    said: Said = {}
    for where, file, caption in rows:
        said.setdefault(file, []).append(_tidy(caption, where))
    return said


# ------------------------------------------------------------------------------------------------ tables


def _csv_rows(table: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(_text(table), newline=""), strict=True)
    try:
        columns = tuple(reader.fieldnames or ())
        file, caption = (_column(table, columns, wanted) for wanted in (FILE_COLUMNS, CAPTION_COLUMNS))
        for row in reader:
            where = f"{printable(str(table))}, line {reader.line_num}"
            if None in row:
                raise DataError(
                    f'{where} has more columns than the first line: put "..." around texts with commas'
                )
            yield where, row[file] or "", row[caption] or ""
    except csv.Error as error:
        raise DataError(
            f"{printable(str(table))}, line {reader.line_num}: {error}. Save it as CSV again."
        ) from error


def _column(table: Path, columns: Sequence[str], wanted: Sequence[str]) -> str:
    found = [name for name in wanted if name in columns]
    if not found:
        raise DataError(
            f"{printable(str(table))} has no column {wanted[0]!r} in its first line "
            f"({', '.join(columns) or 'empty'}): begin it with file,caption"
        )
    return found[0]


def _json_rows(table: Path) -> Iterator[Row]:
    for number, line in enumerate(_text(table).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{printable(str(table))}, line {number}"
        content: Any = None
        with suppress(ValueError, RecursionError):
            content = json.loads(line)
        file, captions = (_field(content, names) for names in (FILE_COLUMNS, CAPTION_COLUMNS))
        captions = captions if isinstance(captions, list) else [captions]
        if not isinstance(file, str) or not all(isinstance(c, str) for c in captions) or not captions:
            raise DataError(f'{where} is not of the form {{"file": "a.jpg", "caption": "a red square"}}')
        for caption in captions:
            yield where, file, caption


def _field(content: Any, names: Sequence[str]) -> Any:
    return next((content[n] for n in names if n in content), None) if isinstance(content, dict) else None


def _from_table(table: Path, said: Said, size: int, channels: int) -> Pictures:
    shown = printable(str(table))
    if not said:
        raise DataError(f"{shown} names no picture: add a line for each caption")
    places: Said = {}
    for file, captions in said.items():
        parts = PurePosixPath(file.replace("\\", "/"))
        if not file or parts.is_absolute() or ".." in parts.parts:
            raise DataError(f"{shown} names {file!r}, which is not in its folder: give paths inside it")
        places.setdefault(str(table.parent / parts), []).extend(captions)
    missing = [place for place in places if not _is_file(place)]
    if missing:
        names = ", ".join(printable(file) for file in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{shown} names {len(missing)} picture(s) that are not there: {names}. Put them into the folder, or "
            "delete their lines."
        )
    return _read(places, size, channels)


def _is_file(place: str) -> bool:
    """Names that no file can have (too long, undecodable) are of none."""
    with suppress(OSError, ValueError):
        return Path(place).is_file()
    return False


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {printable(str(file))}: {error}. Save it as UTF-8 text.") from error


def _read(said: Said, size: int, channels: int, names: Callable[[str], str] = str) -> Pictures:
    """Pictures at the paths of `said`, and under the names that `names` gives these."""
    by_name = {printable(place): place for place in said}
    pictures = read_files(list(said), size=size, channels=channels)
    shown = replace(
        pictures,
        names=tuple(names(by_name[name]) for name in pictures.names),
        skipped=tuple(Skipped(names(by_name.get(s.path, s.path)), s.reason) for s in pictures.skipped),
    )
    return captioned(shown, [said[by_name[name]] for name in pictures.names])


# ---------------------------------------------------------------------------------------- text beside it


def _beside(picture: str) -> Path:
    return Path(picture).with_suffix(".txt")


def _from_sidecars(root: Path, size: int, channels: int) -> Pictures:
    said: Said = {}
    alone: list[Skipped] = []
    listing = list_folder(os.fspath(root))
    for file in listing.files:
        text = _beside(file.path)
        if not text.is_file():
            alone.append(Skipped(printable(file.path), f"no caption beside it ({text.name})"))
            continue
        said[file.path] = [line for line in _text(text).splitlines() if line.strip()]
        if not said[file.path]:
            raise DataError(f"{printable(str(text))} is empty: write a caption, or take it and the picture away")
    if not said:
        raise DataError(
            f"{printable(str(root))} has no captions: put a captions.csv (file,caption) or captions.jsonl into "
            "it, or a .txt file beside each picture"
        )
    pictures = _read(said, size, channels)
    return replace(pictures, skipped=pictures.skipped + listing.skipped + tuple(alone))


# ------------------------------------------------------------------------------------------------ shards


def _from_shards(shards: Sequence[Path], size: int, channels: int) -> Pictures:
    """By way of files under made-up names, so that members are decoded like all other pictures."""
    with TemporaryDirectory() as folder:
        said: Said = {}
        shown: dict[str, str] = {}
        alone: list[Skipped] = []
        for shard in shards:
            for key, (extension, content, captions) in _samples(shard, alone).items():
                place = Path(folder) / f"{len(said):09d}{extension}"
                place.write_bytes(content)
                said[str(place)] = captions
                shown[str(place)] = printable(f"{shard.name}/{key}{extension}")
        read = _read(said, size, channels, lambda place: shown.get(place, place))
        return replace(read, skipped=read.skipped + tuple(alone))


def _samples(shard: Path, alone: list[Skipped]) -> dict[str, tuple[str, bytes, list[str]]]:
    """Key -> extension and content of the picture, captions. A key is a member's path up to its first dot.

    Captions without a picture are put into `alone`.
    """
    pictures: dict[str, tuple[str, bytes]] = {}
    texts: Said = {}
    known = picture_extensions()
    for name, content in tar_files(
        shard, lambda name: PurePosixPath(name).suffix.lower() in {*known, ".txt", ".json"}
    ):
        member = PurePosixPath(name)
        key = str(member.parent / member.name.partition(".")[0])
        extension = member.suffix.lower()
        if extension in known:
            if key in pictures:
                raise DataError(f"{printable(str(shard))} has two pictures of the name {key!r}: rename one")
            pictures[key] = extension, content
        else:
            texts[key] = texts.get(key, []) + _captions_in(content, extension, f"{printable(str(shard))}, {name}")
    lost = [key for key in pictures if key not in texts]
    if lost or not pictures:
        what = f"{lost[0]} has no {lost[0]}.txt or .json" if lost else "it holds no picture"
        raise DataError(f"{printable(str(shard))}: {what}; write every sample as KEY.jpg and KEY.txt")
    without = "no picture for its caption that Pillow opens"
    alone.extend(Skipped(printable(f"{shard.name}/{key}"), without) for key in texts if key not in pictures)
    return {key: (*pictures[key], texts[key]) for key in pictures}


def _captions_in(content: bytes, extension: str, where: str) -> list[str]:
    captions: Any = None
    if len(content) <= _MOST_TEXT:
        with suppress(ValueError, RecursionError):
            text = content.decode("utf-8-sig")
            captions = text.splitlines() if extension == ".txt" else _field(json.loads(text), CAPTION_COLUMNS)
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
        raise DataError(f"{where} holds no caption: text in UTF-8, or an object with a caption")
    found = [c for c in captions if c.strip()]
    if not found:
        raise DataError(f"{where}: the caption is empty. Write one, or leave the sample out.")
    return found
