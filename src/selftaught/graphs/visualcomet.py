"""VisualCOMET's annotations with features that were computed before.

Format (Park et al., ECCV 2020, arXiv 2004.10796, and its public data): a JSON list of objects with `img_fn`,
`movie`, `place`, `event`, `intent`, `before`, `after`; the last three are lists of sentences, in which a number is
a person. Our choice: number k is object k of the picture, counted from 1 (the data's own metadata decides which
objects those are: write the features in that order), and features lie in safetensors files, one a picture, as the
authors' pickles are never opened. The data holds no hyperedges, so each moment gets the same: one a person that is
both seen and said.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from selftaught.artifacts.tensors import load_tensors
from selftaught.core.errors import DataError, SelftaughtError
from selftaught.data.pictures import Skipped
from selftaught.graphs.events import Event, mentions_of, person_hyperedges

_TEXT = ("img_fn", "movie", "place", "event")
_LISTS = {"before": "before", "intent": "present", "after": "after"}


def read_visualcomet(
    annotations: str | Path, features: str | Path
) -> tuple[tuple[Event, ...], tuple[Skipped, ...]]:
    """Events, and the records that were left out with the reason of each.

    The features of `img_fn` "movie/frame.jpg" are in `features`/movie/frame.safetensors: `objects` [V F], and if
    known `boxes` [V 4] from 0 to 1 and `image` [F], which becomes an object without a tag over the whole picture.
    Raises DataError where the file is missing, no JSON list, or holds no usable record.
    """
    file, folder = Path(annotations), Path(features)
    events: list[Event] = []
    skipped: list[Skipped] = []
    for number, record in enumerate(_records(file)):
        try:
            events.append(_event(f"{file.name}#{number}", record, folder))
        except (DataError, _Missing) as error:
            skipped.append(Skipped(f"{file.name}#{number}", str(error)))
    if not events:
        why = f"; the first: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
        raise DataError(f"{file}: none of {len(skipped)} records can be used{why}")
    return tuple(events), tuple(skipped)


class _Missing(SelftaughtError):
    """Features that cannot be read: a reason to skip, whatever their file's own error is."""


def _records(file: Path) -> list[Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing: give the path of train_annots.json or the like") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, list):
        raise DataError(f"{file} holds a JSON {type(content).__name__}: VisualCOMET's annotations are a list")
    return content


def _event(name: str, record: Any, folder: Path) -> Event:
    if not isinstance(record, Mapping):
        raise DataError(f"a {type(record).__name__} where an object belongs")
    for key in _TEXT:
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise DataError(f"{key!r} is missing or no text")
    texts = tuple(_sentences(record, key) for key in _LISTS)
    objects, boxes, tags = _objects(record["img_fn"], folder)
    mentioned = [tag for tag, _ in mentions_of(record["event"])]
    if not mentioned:
        raise DataError("'event' has no words")
    absent = sorted({tag for tag in mentioned if tag and tag not in tags.tolist()})
    if absent:
        raise DataError(f"'event' names person {absent[0]}, but the picture has {int(tags.max())} objects")
    edges = person_hyperedges(tags.tolist(), mentioned)
    return Event(
        f"{name} {record['img_fn']}", objects, boxes, tags, record["event"], record["place"], (edges,) * 3, texts
    )


def _sentences(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = record.get(key, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise DataError(f"{key!r} is no list of sentences")
    return tuple(text for text in found if text.strip())


def _objects(img_fn: str, folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Features [V F], boxes [V 4] and tags [V] of one picture."""
    place = PurePosixPath(img_fn)
    if place.is_absolute() or ".." in place.parts or "\\" in img_fn or "\0" in img_fn:
        raise DataError(f"'img_fn' {img_fn!r} leads out of the folder of features")
    file = folder / place.with_suffix(".safetensors")
    try:
        found, _ = load_tensors(file)
    except SelftaughtError as error:
        raise _Missing(str(error)) from error
    objects = found.get("objects")
    if objects is None or objects.ndim != 2 or not len(objects):
        raise DataError(f"{file} has no tensor 'objects' of [V F] with at least one object")
    boxes = found.get("boxes", torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(objects), 1))
    image = found.get("image")
    if boxes.shape != (len(objects), 4) or (image is not None and image.shape != objects.shape[1:]):
        raise DataError(f"{file}: 'boxes' must be [{len(objects)} 4] and 'image' [{objects.shape[1]}]")
    tags = torch.arange(1, len(objects) + 1)
    if image is not None:
        objects = torch.cat([objects, image[None]])
        boxes = torch.cat([boxes, torch.tensor([[0.0, 0.0, 1.0, 1.0]])])
        tags = torch.cat([tags, torch.zeros(1, dtype=torch.int64)])
    if not bool(objects.isfinite().all() & boxes.isfinite().all()):
        raise DataError(f"{file} holds NaN or infinite numbers")
    return objects.float(), boxes.float(), tags
