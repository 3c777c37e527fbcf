"""Beside few-shot accuracy: probes, the shape of the feature cloud, how often pseudo-tasks collide."""

from collections.abc import Sequence

import torch

from selftaught.app.model import Model
from selftaught.core.errors import DataError
from selftaught.data.pictures import Pictures
from selftaught.evaluate.collisions import probability_all_distinct
from selftaught.evaluate.geometry import collapse_warning, effective_rank, uniformity
from selftaught.evaluate.probes import knn, linear_probe


def inspect(model: Model, pictures: Pictures, seed: int = 0) -> list[str]:
    """Lines on labelled pictures: linear probe and 5-nearest-neighbour accuracy, geometry, collisions.

    The probes learn from a random half of every class and are asked the other half. Raises DataError without
    labels.
    """
    if pictures.y is None:
        raise DataError("inspection needs labels: a folder with one subfolder per class")
    z = model.features(pictures)
    lines = [f"effective rank {effective_rank(z):.1f} of {z.shape[1]}, uniformity {uniformity(z[:2000]):.2f}"]
    warning = collapse_warning(z)
    lines += [f"WARNING: {warning}"] if warning else []
    train, test = halves(pictures.y, seed)
    if len(train) >= 5 and len(test):
        y = pictures.y
        for name, found in (
            ("linear probe", linear_probe(z[train], y[train], z[test], y[test])),
            ("5 nearest neighbours", knn(z[train], y[train], z[test], y[test], k=5)),
        ):
            lines.append(
                f"{name}: {found.mean:.1f} ± {found.half_width_95:.1f} % on {found.pictures} pictures, "
                f"learned from {len(train)}"
            )
    return lines + collisions(pictures, (5, 16, 32, 64))


def halves(y: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of a random half of every class (rounded up), and of the rest."""
    generator = torch.Generator().manual_seed(seed)
    first, rest = [], []
    for label in y.unique():
        where = torch.nonzero(y == label).flatten()
        where = where[torch.randperm(len(where), generator=generator)]
        cut = (len(where) + 1) // 2
        first.append(where[:cut])
        rest.append(where[cut:])
    return torch.cat(first), torch.cat(rest)


def collisions(pictures: Pictures, sizes: Sequence[int]) -> list[str]:
    """How often a pseudo-task of N random pictures holds two of one class, were it drawn from this set."""
    assert pictures.y is not None
    counts = torch.bincount(pictures.y).tolist()
    shares = [(n, 1 - probability_all_distinct(counts, n)) for n in sizes if n <= len(pictures)]
    if not shares:
        return []
    return ["pseudo-tasks with two pictures of one class: " + ", ".join(f"N={n} {s:.1%}" for n, s in shares)]
