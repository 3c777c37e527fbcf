"""What a report is made of: frozen records, filled by whoever measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from jaxtyping import Float, UInt8
from torch import Tensor

from selftaught.app.verdict import AccuracyRow
from selftaught.data.pictures import Skipped


@final
@dataclass(frozen=True)
class DataSummary:
    """What went in: `counts` of pictures by name of the part, `size` as C, H, W, and the files left out."""

    counts: Mapping[str, int]
    size: tuple[int, int, int]
    classes: int = 0
    skipped: tuple[Skipped, ...] = ()


@final
@dataclass(frozen=True)
class Neighbours:
    """The nearest pictures of one, by position in the gallery, nearest first, with cosine similarities."""

    query: int
    index: tuple[int, ...]
    similarity: tuple[float, ...]


@final
@dataclass(frozen=True)
class Gallery:
    """Some pictures as the encoder sees them: thumbnails, places from `embedding_map`, names, classes.

    `labels` [n] count into `classes`; both may be missing.
    """

    thumbnails: UInt8[Tensor, "n C H W"]
    names: tuple[str, ...]
    points: Float[Tensor, "n 2"] | None = None
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Geometry:
    """How the features fill their space of `width` dimensions, and the finding in words."""

    effective_rank: float
    width: int
    alignment: float | None = None
    uniformity: float | None = None
    collapsed: bool = False
    message: str = ""


@final
@dataclass(frozen=True)
class ReportData:
    """Everything a report shows. `model` is the name the verdict is about; by default the first row's that is
    no baseline. `metrics` are the lines of the training log: `step`, `seconds`, and any named values.
    """

    title: str
    command: str
    created: str
    version: str
    data: DataSummary
    config: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[AccuracyRow] = ()
    model: str = ""
    metrics: Sequence[Mapping[str, float]] = ()
    gallery: Gallery | None = None
    neighbours: Sequence[Neighbours] = ()
    geometry: Geometry | None = None
    notes: Sequence[str] = ()
