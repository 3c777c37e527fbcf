"""Episodes of clusters: what k-means finds, which clusters and pictures are drawn, and what chance decides."""

import pytest
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError, TooFewPicturesError
from selftaught.data.pictures import Pictures
from selftaught.tasks.clusters import ClusterTasks, partitions_of, principal


def blobs(groups: int = 5, each: int = 8, width: int = 6) -> tuple[Tensor, Tensor]:
    """Rows far apart between groups and close inside, and their groups."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(groups).repeat(each)
    return 10 * torch.randn(groups, width, generator=g)[y] + 0.1 * torch.randn(len(y), width, generator=g), y


def numbered(count: int) -> Pictures:
    """Picture b is uniformly b, so that a row tells which picture it is."""
    x = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    return Pictures(x, tuple(map(str, range(count))))


def alike(a: Tensor, b: Tensor) -> bool:
    """The same partition, whatever the clusters are called."""
    return torch.equal(a[:, None] == a, b[:, None] == b)


# ------------------------------------------------------------------------------------------- partitions


def test_separate_groups_are_found_whatever_the_scaling() -> None:
    x, y = blobs()
    for found in partitions_of(x, 5, 1, seed=0):
        assert alike(found, y)
    several = partitions_of(x, 5, 6, seed=0)
    assert several.shape == (6, 40) and several.dtype == torch.int64
    assert sum(alike(found, y) for found in several) >= 3  # one start each: a run may miss
    assert int(several.min()) == 0 and int(several.max()) == 4


def test_partitions_differ_where_there_are_no_groups() -> None:
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    several = partitions_of(x, 5, 4, seed=0)
    assert not any(alike(several[a], several[b]) for a in range(4) for b in range(a))


def test_a_seed_names_the_partitions() -> None:
    x = torch.randn(600, 6, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    once = partitions_of(x, 5, 2, seed=3)
    try:
        torch.set_num_threads(3)
        assert torch.equal(partitions_of(x, 5, 2, seed=3), once)
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(partitions_of(x, 5, 2, seed=4), once)
    assert torch.equal(partitions_of(x, 5, 3, seed=3)[:2], once)


def test_principal_components_keep_distances_or_what_they_can_of_them() -> None:
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    whole = principal(x, 99, seed=0)
    assert whole.shape == (20, 6) and whole.dtype == torch.float32
    assert torch.allclose(torch.cdist(whole, whole), torch.cdist(x, x), atol=1e-4)
    part = principal(x, 2, seed=0)
    kept = torch.linalg.svdvals(x - x.mean(0))[:2]
    assert part.shape == (20, 2) and torch.allclose(torch.linalg.svdvals(part), kept, rtol=1e-3)


def test_what_cannot_be_clustered_is_refused() -> None:
    x, _ = blobs()
    with pytest.raises(TooFewPicturesError, match="40 pictures do not make 41 clusters"):
        partitions_of(x, 41, 1, seed=0)
    for clusters, partitions in ((1, 1), (5, 0)):
        with pytest.raises(ConfigError, match="use at least 2 and 1"):
            partitions_of(x, clusters, partitions, seed=0)


# ------------------------------------------------------------------------------------------------ tasks


def source(partitions: Tensor, **changes: int) -> ClusterTasks:
    sizes = {"ways": 3, "shots": 2, "queries": 3, "tasks": 4} | changes
    return ClusterTasks(numbered(partitions.shape[1]), lambda: partitions, **sizes)


def test_shapes_labels_and_order() -> None:
    task = source(blobs()[1][None])(torch.Generator().manual_seed(0))
    assert task.support.x.shape == (4, 6, 1, 2, 2) and task.query.x.shape == (4, 9, 1, 2, 2) and task.ways == 3
    assert task.support.y is not None and task.query.y is not None and task.index is not None
    assert task.support.y.tolist() == [[0, 1, 2] * 2] * 4 and task.query.y.tolist() == [[0, 1, 2] * 3] * 4
    shown = torch.cat([task.support.x, task.query.x], 1)[:, :, 0, 0, 0] * 255
    assert torch.equal(shown.round().long(), task.index)


def test_a_label_is_a_cluster_and_no_picture_comes_twice() -> None:
    y = blobs()[1]
    make = source(y[None])
    for seed in range(5):
        index = make(torch.Generator().manual_seed(seed)).index
        assert index is not None
        for row in index:
            of = y[row].unflatten(0, (5, 3))  # [K+Q N]
            assert (of == of[0]).all() and len(set(of[0].tolist())) == 3
            assert len(set(row.tolist())) == 15


def test_label_order_is_drawn_anew() -> None:
    """With as many ways as clusters, only the order is left to chance: all six are seen."""
    index = source(blobs(groups=3)[1][None], tasks=60)(torch.Generator().manual_seed(0)).index
    assert index is not None
    assert len({tuple((row[:3] % 3).tolist()) for row in index}) == 6


def test_small_clusters_are_never_drawn() -> None:
    y = torch.cat([blobs(groups=4)[1], torch.full((4,), 4)])  # the fifth has 4 pictures, 5 are needed
    index = source(y[None], tasks=50)(torch.Generator().manual_seed(0)).index
    assert index is not None and int(index.max()) == 31


def test_tasks_come_from_all_partitions_that_are_large_enough() -> None:
    at = torch.arange(32)
    blocks, stripes, single = at // 8, at % 4, torch.zeros_like(at)
    index = source(torch.stack([blocks, single, stripes]), tasks=40)(torch.Generator().manual_seed(0)).index
    assert index is not None

    def of(y: Tensor) -> list[bool]:
        rows = [y[row].unflatten(0, (5, 3)) for row in index]
        return [bool((r == r[0]).all()) and len(set(r[0].tolist())) == 3 for r in rows]

    first, second = of(blocks), of(stripes)
    assert any(first) and any(second) and all(a != b for a, b in zip(first, second, strict=True))


def test_the_generator_is_all_the_chance_there_is() -> None:
    make = source(blobs()[1][None])
    one, two, other = (make(torch.Generator().manual_seed(s)).index for s in (0, 0, 1))
    assert one is not None and two is not None and other is not None
    assert torch.equal(one, two) and not torch.equal(one, other)
    again = torch.Generator().manual_seed(0)
    make(again)
    further = make(again).index
    assert further is not None and not torch.equal(further, one)


def test_too_few_large_clusters_are_refused_in_words() -> None:
    y = blobs(groups=2)[1]
    with pytest.raises(TooFewPicturesError, match=r"3 clusters of 2 shots \+ 3 queries; ask for fewer clusters"):
        source(y[None])(torch.Generator().manual_seed(0))
    with pytest.raises(TooFewPicturesError, match="no partition of 16 pictures has 4 clusters"):
        source(y[None], ways=4)


def test_a_source_that_is_not_drawn_from_clusters_nothing() -> None:
    asked = []
    y = blobs()[1][None]
    made = ClusterTasks(numbered(40), lambda: asked.append(1) or y, ways=3)  # type: ignore[func-returns-value]
    assert not asked
    for seed in range(3):
        made(torch.Generator().manual_seed(seed))
    assert asked == [1]
