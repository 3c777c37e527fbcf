"""WebDataset shards: tar files of pictures, read member by member and decoded as they come.

Neither the set nor a shard is ever held: a picture goes from the archive through the decoder into a file of
decoded pictures that is mapped at the end (`rows.py`). What stays in memory is a name for every picture. Archives
are read as safely as everywhere (`archives.py`): nothing is unpacked by its own name.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from selftaught.core.errors import DataError, SaveError
from selftaught.data import cache as stored
from selftaught.data.archives import tar_files
from selftaught.data.cache import Decoded
from selftaught.data.decode import FOREIGN, Array, Failure, decode_many, picture_extensions, printable
from selftaught.data.listing import LEFTOVERS, Entries, list_files, list_folder
from selftaught.data.parallel import Job, chunked, default_workers, in_order
from selftaught.data.pictures import Pictures, Skipped
from selftaught.data.rows import Rows
from selftaught.data.wish import CRASHED, START_SECONDS, Wish, wished

LABEL_FIELDS = ("cls", "label", "class", "class_name")
"""Where the class stands in a `KEY.json`: the first of these that it has, a number or a text."""
_MOST_TEXT = 1 << 20
_HEADER = 1024

AnyPath = str | os.PathLike[str]


def shards_of(path: AnyPath) -> tuple[Path, ...]:
    """The shards `path` stands for: itself, if it is a `.tar`, or those of a folder that holds no pictures.

    In the order of their names; none where `path` is anything else.
    """
    root = Path(path)
    with suppress(OSError, ValueError):
        if root.is_file():
            return (root,) if root.suffix.lower() == ".tar" else ()
        found = sorted(p for p in root.iterdir() if p.suffix.lower() == ".tar" and not p.name.startswith("."))
        if found and not list_folder(os.fspath(root)).files:
            return tuple(found)
    return ()


def read_shards(
    path: AnyPath,
    *,
    size: int,
    channels: int = 3,
    labelled: bool = False,
    cache: Path | None = None,
    workers: int | None = None,
    limit_pixels: int = 64_000_000,
    in_memory_bytes: int = 1 << 30,
) -> Pictures:
    """All pictures of one `.tar` or of those in a folder; `x` uint8 [B C size size].

    In the order of the shards' names and, in a shard, of its members. `names` are `shard.tar/KEY.jpg`; a member's
    key is its path up to the first dot of its file name. With `labelled` the class of a picture is the text of
    `KEY.cls` (a number or a name); where no picture has one, `cls`, `label`, `class` or `class_name` of
    `KEY.json`; where no picture has that either, the folder in its key, as `read_folder` has it (folders common to
    all keys do not count). Numbers are sorted as numbers.

    Other arguments as in `read_folder`. A cache is kept as .npy file whatever its size.

    Raises `DataError` if there are no shards, for a shard that is damaged or holds what an archive of pictures
    does not (see `archives.tar_files`), two pictures of one key, no usable picture or, with `labelled`, a picture
    without a label; `SaveError` and `ConfigError` as `read_folder`.
    """
    wish = wished(size, channels, limit_pixels, cache, workers, in_memory_bytes)
    shown = printable(os.fspath(path))
    shards = list_files(str(p) for p in shards_of(path))
    if shards.skipped or not shards.files:
        why = "; ".join(f"{s.path} {s.reason}" for s in shards.skipped)
        raise DataError(f"{shown}: {why or 'there are no WebDataset shards'}. Give a .tar, or a folder of such.")
    decoded, found = _known_or_decoded(shards.files, wish, labelled)
    failed = tuple(Skipped(found.names[i], reason) for i, reason in sorted(decoded.failed.items()))
    skipped = (*found.skipped, *failed)
    if len(decoded.x) == 0:
        some = "; ".join(f"{s.path}: {s.reason}" for s in skipped[:3]) or "they hold none"
        raise DataError(f"no picture in the shards of {shown} can be used: {some}. Save them as JPEG or PNG.")
    names = tuple(found.names[i] for i in decoded.kept()) if decoded.failed else tuple(found.names)
    if not labelled:
        return Pictures(decoded.x, names, skipped=skipped)
    labels = _labels(found, shown)
    classes = _sorted({labels[i] for i in decoded.kept()})
    number = {name: n for n, name in enumerate(classes)}
    y = torch.from_numpy(np.fromiter((number[labels[i]] for i in decoded.kept()), np.int64, len(names)))
    return Pictures(decoded.x, names, y, classes, skipped=skipped)


@dataclass
class _Found:
    """What the shards hold so far: for each picture, in order, its name and the texts of its labels ('': none)."""

    total: int
    names: list[str] = field(default_factory=list)
    cls: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    read: int = 1

    def label(self, texts: list[str], values: dict[str, str], keys: Sequence[str]) -> None:
        """Put the values of a shard's pictures behind `texts`; equal ones are one object."""
        same: dict[str, str] = {}
        texts.extend(same.setdefault(v, v) for v in (values.get(key, "") for key in keys))


def _known_or_decoded(shards: Entries, wish: Wish, labelled: bool) -> tuple[Decoded, _Found]:
    key = stored.key_of(shards, wish.form, "shards")
    found = None if wish.cache is None else _remembered(wish.cache, key)
    if wish.cache is not None and found is not None:
        known = stored.find(wish.cache, key, len(found.names))
        if known is not None:
            return known, found
    found = _Found(sum(s.size_bytes for s in shards))
    with Rows(wish.cache, (wish.form.channels, wish.form.size, wish.form.size)) as rows:
        failed: dict[int, str] = {}
        lasting = True
        for i, result in enumerate(_results(_contents(shards, found, labelled), found, wish)):
            if isinstance(result, Failure):
                failed[i], lasting = result.reason, lasting and result.lasting
            else:
                rows.append(result)
        count = len(found.names)
        if wish.cache is not None and len(failed) < count:
            _remember(wish.cache, key, found)
            return stored.store_mapped(wish.cache, key, rows, count, failed, keep=lasting), found
        x = rows.finished(None)
        return Decoded(x.clone() if x.nbytes <= wish.in_memory_bytes else x, count, failed), found


def _results(contents: Iterator[bytes], found: _Found, wish: Wish) -> Iterator[Array | Failure]:
    """Processes from the start if their number was given, else once the rest would take long without."""
    job: Job[bytes, Array | Failure] = partial(decode_many, form=wish.form)
    workers, began = wish.workers, time.monotonic()
    if workers is None:
        for chunk in chunked(contents):
            yield from job(chunk)
            if (time.monotonic() - began) * (found.total / found.read - 1) > START_SECONDS:
                break
        workers = default_workers()
    yield from in_order(job, contents, workers, CRASHED)


def _contents(shards: Entries, found: _Found, labelled: bool) -> Iterator[bytes]:
    """The pictures, still encoded; what is known of each stands in `found` before it comes."""
    for shard in shards:
        yield from _of_shard(Path(shard.path), found)
        if labelled and shard.path == shards.paths[0]:
            _labels(found, printable(shard.path))  # better now than after all of them


def _of_shard(shard: Path, found: _Found) -> Iterator[bytes]:
    known = picture_extensions()
    looked_at = {*known, *FOREIGN, ".cls", ".json"}
    keys: dict[str, None] = {}
    cls: dict[str, str] = {}
    said: dict[str, str] = {}
    for name, content in tar_files(shard, lambda name: _visible(name) and _extension(name) in looked_at):
        member, extension = PurePosixPath(name), _extension(name)
        shown = printable(f"{shard.name}/{member}")
        key = str(member.parent / member.name.partition(".")[0])
        found.read += len(content) + _HEADER
        if extension == ".cls":
            cls[key] = _text(content)
        elif extension == ".json":
            said[key] = _text_in(content)
        elif extension in known and content:
            if key in keys:
                raise DataError(f"{printable(str(shard))} has two pictures of the name {key!r}: rename one")
            keys[key] = None
            found.names.append(shown)
            yield content
        else:
            closed = f"Pillow does not open {extension}; save it as JPEG or PNG"
            reason = closed if extension in FOREIGN else "is empty (0 bytes)"
            found.skipped.append(Skipped(shown, reason))
    found.label(found.cls, cls, tuple(keys))
    found.label(found.said, said, tuple(keys))


def _visible(name: str) -> bool:
    return not any(part.startswith(".") or part in LEFTOVERS for part in PurePosixPath(name).parts)


def _extension(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


# ------------------------------------------------------------------------------------------------ labels


def _text(content: bytes) -> str:
    """A label on one line, or '' where there is none that can be read."""
    with suppress(UnicodeDecodeError):
        return printable(content.decode("utf-8-sig").strip()) if len(content) <= _MOST_TEXT else ""
    return ""


def _text_in(content: bytes) -> str:
    with suppress(ValueError, RecursionError):
        fields = json.loads(content) if len(content) <= _MOST_TEXT else None
        if isinstance(fields, dict):
            found = next((fields[name] for name in LABEL_FIELDS if name in fields), None)
            if isinstance(found, str | int) and not isinstance(found, bool):
                return printable(str(found).strip())
    return ""


def _labels(found: _Found, shown: str) -> Sequence[str]:
    """The class of every picture. Raises DataError for one without."""
    kind = "cls" if any(found.cls) else "json" if any(found.said) else ""
    labels = {"cls": found.cls, "json": found.said}.get(kind) or _folders(found.names)
    for name, label in zip(found.names, labels, strict=True):
        if not label:
            nothing = f"no class: neither KEY.cls, nor KEY.json with {', '.join(LABEL_FIELDS)}, nor a folder"
            wanted = f"no KEY.{kind} with a class, which others have" if kind else nothing
            raise DataError(f"{shown}: {name} has {wanted}. Write one for every picture, or read it unlabelled.")
    return labels


def _folders(names: Sequence[str]) -> list[str]:
    """The first folder in which the keys differ, '' for a picture beside these; the last, where all are in one."""
    where = [name.partition("/")[2].rpartition("/")[0] for name in names]
    parts = {folder: [part for part in folder.split("/") if part] for folder in set(where)}
    if len(parts) <= 1:
        return ["".join(folder[-1:]) for folder in parts.values()] * len(names)
    ends = zip(min(parts.values()), max(parts.values()), strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    labels = {folder: "".join(found[common : common + 1]) for folder, found in parts.items()}
    return [labels[folder] for folder in where]


def _sorted(classes: set[str]) -> tuple[str, ...]:
    """Numbers as numbers, if they are all numbers."""
    if all(name.isdecimal() and len(name) < 20 for name in classes):
        return tuple(sorted(classes, key=lambda name: (int(name), name)))
    return tuple(sorted(classes))


# ----------------------------------------------------------------------------- names and labels in the cache


def _remember(folder: Path, key: str, found: _Found) -> None:
    """Names and labels, a line each (nothing in them has a tab or a line break)."""

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{s.path}\t{s.reason}\n" for s in found.skipped)
            file.writelines("\t".join(row) + "\n" for row in zip(found.names, found.cls, found.said, strict=True))

    try:
        stored.moved_in(_names_path(folder, key), write)
    except OSError as error:
        raise SaveError(f"cannot write to the cache {folder}: {error.strerror}. Free some space.") from error


def _remembered(folder: Path, key: str) -> _Found | None:
    found = _Found(0)
    same: dict[str, str] = {}
    try:
        with _names_path(folder, key).open(encoding="utf-8", newline="\n") as file:
            for line in file:
                first, *rest = line.removesuffix("\n").split("\t")
                if len(rest) == 1:
                    found.skipped.append(Skipped(first, rest[0]))
                else:
                    cls, said = rest
                    found.names.append(first)
                    found.cls.append(same.setdefault(cls, cls))
                    found.said.append(same.setdefault(said, said))
    except (OSError, ValueError):
        return None
    return found


def _names_path(folder: Path, key: str) -> Path:
    return folder / f"pictures-{key}.tsv"
