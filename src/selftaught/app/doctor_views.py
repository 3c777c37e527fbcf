"""Whether a view recipe fits a set of pictures, by raw pixels before anything is trained; and views to look at.

Two views of one picture should be different, and yet nearer to each other than to views of other pictures. Both
are measured in squared pixel differences. The measure and every threshold are our choice; none is from a paper.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from markupsafe import escape
from PIL import Image
from torch import Tensor

from selftaught.app.doctor import FAINT, Finding
from selftaught.artifacts.files import write_bytes, write_text
from selftaught.core.errors import ConfigError
from selftaught.core.functional import to_float
from selftaught.data.augment import augment
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views

MOST, FEWEST = 128, 8
"""Pictures looked at, spread evenly over the set; with fewer than the second nothing is said."""

EQUAL, HARDLY, NEARER = 0.9, 0.01, 0.58
"""Views are identical where this share of pictures has two equal ones; hardly differ where those of a picture are
nearer than this share of the distance to others; are too strong where less than the last share of comparisons has
the picture's own view nearer (0.5 is chance)."""

_TILE, _GAP = 96, 4


@dataclass(frozen=True)
class Spread:
    """Two views each of some pictures: `equal` is the share with no difference, `ratio` the mean squared distance
    within a picture over that between pictures, `nearer` the share of comparisons in which within is less."""

    equal: float
    ratio: float
    nearer: float


def spread_of(pictures: Pictures, views: Views, seed: int = 0) -> Spread | None:
    """By at most `MOST` pictures that are not plain; None where there are fewer than `FEWEST` of these."""
    x = to_float(pictures.x[:: max(1, len(pictures) // MOST)][:MOST])
    x = x[x.flatten(1).std(1, correction=0) > FAINT / 255]
    if len(x) < FEWEST:
        return None
    generator = torch.Generator().manual_seed(seed)
    a, b = augment(x, views, generator).flatten(1), augment(x, views, generator).flatten(1)
    within = (a - b).square().mean(1)
    between = torch.cdist(a, b).square()[~torch.eye(len(x), dtype=torch.bool)] / a.shape[1]
    others = between.view(len(x), -1)
    return Spread(
        equal=float(((a - b).abs().amax(1) < 0.5 / 255).float().mean()),
        ratio=float(within.mean() / others.mean().clamp(min=1e-12)),
        nearer=float((within[:, None] < others).float().mean()),
    )


def examine_views(pictures: Pictures, views: Views, name: str = "these views") -> list[Finding]:
    """One finding: views are identical, hardly differ, are too strong, or fit; none where too few pictures vary.

    Raw pixels know nothing of what a picture shows, so "too strong" is a reason to look, not a verdict.
    """
    found = spread_of(pictures, views)
    if found is None:
        return []
    told = f"by raw pixels a picture's other view is nearer than another picture's in {found.nearer:.0%}"
    if found.equal >= EQUAL:
        return [
            Finding(
                "problem",
                "Views are identical",
                f"Under {name}, {found.equal:.0%} of the pictures looked at gave two equal views.",
                "There is nothing to learn from equal views; choose another recipe with --views (views=).",
            )
        ]
    if found.ratio < HARDLY:
        return [
            Finding(
                "warning",
                "Views hardly differ",
                f"Under {name}, two views of a picture differ by {found.ratio:.1%} of what two pictures do.",
                "Raw pixels already solve the task; choose a stronger recipe with --views (views=).",
            )
        ]
    if found.nearer < NEARER:
        return [
            Finding(
                "warning",
                "Views may be too strong",
                f"Under {name}, {told} of comparisons, and 50% would be chance.",
                "Look at some with --page FILE; if you cannot tell whose view it is, choose a milder recipe.",
            )
        ]
    return [Finding("ok", "Views", f"Under {name}, {told} of comparisons.")]


def view_grid(pictures: Pictures, views: Views, rows: int = 8, columns: int = 7, seed: int = 0) -> Tensor:
    """uint8 [C H W]: pictures spread evenly over the set below each other, each as it is and in `columns` views.

    Small pictures are enlarged by a whole factor, without smoothing.
    """
    at = _rows(len(pictures), rows)
    x = to_float(pictures.x[at])
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.stack([x, *(augment(x, views, generator) for _ in range(columns))], 1)
    times = max(1, _TILE // max(pictures.shape[1:]))
    tiles = tiles.repeat_interleave(times, -2).repeat_interleave(times, -1)
    tiles = torch.nn.functional.pad(tiles, (0, _GAP, 0, _GAP), value=1.0)
    tiles[:, 0, ..., -_GAP:] = 0.5  # what follows this line are views
    n, v, c, h, w = tiles.shape
    grid = tiles.permute(2, 0, 3, 1, 4).reshape(c, n * h, v * w)
    return (grid.clamp(0, 1) * 255).round().to(torch.uint8)


def write_view_page(path: Path, pictures: Pictures, views: Views, seed: int = 0) -> None:
    """The grid as a .png, or as an .svg with the names of the pictures. Raises ConfigError, SaveError."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"{path}: views are drawn as .png or .svg; name the file something.png")
    if not len(pictures):
        raise ConfigError(f"{path}: there is no picture to draw views of")
    grid = view_grid(pictures, views, seed=seed)
    content = _png(grid)
    if path.suffix.lower() == ".png":
        write_bytes(path, content)
    else:
        write_text(path, _svg(grid, content, [pictures.names[i] for i in _rows(len(pictures), 8)]))


def _rows(count: int, most: int) -> list[int]:
    """At most `most` positions, evenly over 0 .. `count` - 1."""
    return [n * count // min(count, most) for n in range(min(count, most))]


def _png(grid: Tensor) -> bytes:
    array = (grid[0] if grid.shape[0] == 1 else grid.permute(1, 2, 0)).contiguous().numpy()
    with io.BytesIO() as file:
        Image.fromarray(array).save(file, "PNG")
        return file.getvalue()


def _svg(grid: Tensor, png: bytes, names: list[str]) -> str:
    _, height, width = grid.shape
    step, left = height // len(names), 240
    texts = "".join(
        f'<text x="8" y="{step * n + step // 2}">{escape(name if len(name) < 34 else "…" + name[-32:])}</text>'
        for n, name in enumerate(names)
    )
    address = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><title>Each picture, then views of it</title>'
        f'<rect width="100%" height="100%" fill="white"/>{texts}'
        f'<image x="{left}" width="{width}" height="{height}" href="{address}"/></svg>\n'
    )
