"""Labelled texts of several domains from a table, as a bag of words."""

import csv
import io
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from selftaught.core.errors import DataError
from selftaught.domains.sets import Domains, number_domains

COLUMNS = ("text", "label", "domain")
Row = tuple[int, str, str, str]
"""Line, text, label, domain."""


@final
@dataclass(frozen=True)
class Texts:
    """`texts`, `labels` and `domains` [n] as they stand in the table; a target's label may be empty."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    domains: tuple[str, ...]
    targets: tuple[str, ...] = ()

    def bag_of_words(self, vectorizer: Any = None) -> tuple[Domains, Any]:
        """Sparse rows [n D], and the vectoriser that makes rows of new texts by `transform`.

        `vectorizer` is scikit-learn's CountVectorizer or TfidfVectorizer (None: TF-IDF of words, logarithmic). It
        learns its words from all texts, labels play no part. Raises DataError where no word is left.
        """
        chosen = TfidfVectorizer(sublinear_tf=True) if vectorizer is None else vectorizer
        try:
            rows = chosen.fit_transform(self.texts).tocsr()
        except ValueError as error:
            raise DataError(f"no words could be found in {len(self.texts)} texts: {error}") from error
        domain, names = number_domains(self.domains, self.targets)
        return Domains(rows, np.array(self.labels), domain, names), chosen

    def values(self) -> NDArray[np.float64]:
        """Labels as numbers [n], for regression; NaN where a target has none. Raises DataError for others."""
        out = np.full(len(self.labels), np.nan)
        for n, (label, domain) in enumerate(zip(self.labels, self.domains, strict=True)):
            with suppress(ValueError):
                out[n] = float(label)
            if not np.isfinite(out[n]) and domain not in self.targets:
                raise DataError(f"text {n + 1} has the label {label!r}, which is not a number")
        return out


def read_texts(path: str | os.PathLike[str], *, targets: Collection[str] = ()) -> Texts:
    """A `.csv` file (first line with the columns text, label, domain) or `.jsonl` (an object with these a line).

    `targets` names domains whose labels are not needed. Raises DataError, naming file and line, for another
    ending, missing columns, empty texts and missing labels; ConfigError for a target that does not appear.
    """
    file = Path(path)
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if file.suffix.lower() not in readers:
        raise DataError(f"{file}: texts are read from .csv or .jsonl, with the columns {', '.join(COLUMNS)}")
    rows = [_checked(file, row, targets) for row in readers[file.suffix.lower()](file, _content(file))]
    if not rows:
        raise DataError(f"{file} holds no text: add a line for each, with {', '.join(COLUMNS)}")
    number_domains([row[3] for row in rows], targets)
    _, texts, labels, domains = zip(*rows, strict=True)
    return Texts(texts, labels, domains, tuple(targets))


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}. Save it as UTF-8 text.") from error


def _csv_rows(file: Path, content: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        _has_columns(f"{file}, line 1", reader.fieldnames or ())
        for row in reader:
            yield reader.line_num, row["text"] or "", row["label"] or "", row["domain"] or ""
    except csv.Error as error:
        raise DataError(f"{file}, after line {reader.line_num}: {error}. Save it as CSV again.") from error


def _json_rows(file: Path, content: str) -> Iterator[Row]:
    # Only line feeds part objects: JSON strings may hold other signs that splitlines takes for ends of lines.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        row: Any = None
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
        if not isinstance(row, dict):
            raise DataError(f'{file}, line {number} is not of the form {{"text": "...", "label": "...", ...}}')
        _has_columns(f"{file}, line {number}", tuple(row))
        label = "" if row["label"] is None else str(row["label"])
        yield number, str(row["text"]), label, str(row["domain"])


def _has_columns(where: str, columns: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise DataError(
            f"{where} has no {' and no '.join(missing)} (it has {', '.join(map(str, columns)) or 'nothing'}): "
            f"name the columns {', '.join(COLUMNS)}"
        )


def _checked(file: Path, row: Row, targets: Collection[str]) -> Row:
    number, text, label, domain = row
    for name, value in (("text", text), ("domain", domain)):
        if not value.strip():
            raise DataError(f"{file}, line {number}: the {name} is empty. Write it, or take the line away.")
    if not label.strip() and domain not in targets:
        raise DataError(
            f"{file}, line {number}: no label, but {domain!r} is a source. Write it, or "
            "name the domain in targets."
        )
    return row
