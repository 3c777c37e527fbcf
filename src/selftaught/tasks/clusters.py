"""Episodes whose classes are clusters of unlabelled pictures.

CACTUs: Hsu, Levine, Finn, "Unsupervised Learning via Meta-Learning", ICLR 2019, arXiv 1810.02334. Clustering is
scikit-learn's k-means.
"""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from selftaught.core.errors import ConfigError, TooFewPicturesError
from selftaught.core.functional import to_float
from selftaught.core.types import Examples, Task
from selftaught.data.pictures import Pictures
from selftaught.tasks.episodes import EpisodePlan, draw_episodes
from selftaught.tasks.views import labels

_log = logging.getLogger(__name__)


def principal(x: Float[Tensor, "B D"], components: int, seed: int) -> Float[Tensor, "B E"]:
    """The first principal components of the rows, as many as there are and at most `components`; float32."""
    size = min(components, *x.shape)
    _log.info("principal components of %d pictures: %d of %d numbers", len(x), size, x.shape[1])
    with _aside():
        # Here, because loading scikit-learn takes as long as loading torch and no other training has a use for it.
        from sklearn.decomposition import PCA

        found = PCA(size, svd_solver="randomized", random_state=seed).fit_transform(x.numpy())
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


def partitions_of(
    embeddings: Float[Tensor, "B D"], clusters: int, partitions: int, seed: int
) -> Int64[Tensor, "P B"]:
    """The cluster of every row, from 0 to `clusters` - 1, in each of `partitions` runs of k-means.

    With more than one, every run sees the features scaled by factors of its own, uniform in 0..1, so that clusters
    follow other directions each time (the paper's random scaling; the distribution is our choice). The same
    arguments give the same bits, whatever the number of threads. Runs are logged as they begin. Raises ConfigError
    for fewer than two clusters or no partition, TooFewPicturesError for fewer rows than clusters.
    """
    if clusters < 2 or partitions < 1:
        raise ConfigError(f"clusters={clusters}, partitions={partitions}: use at least 2 and 1")
    if len(embeddings) < clusters:
        raise TooFewPicturesError(
            f"{len(embeddings)} pictures do not make {clusters} clusters; ask for fewer clusters or add pictures"
        )
    chance, found = np.random.default_rng(seed), []
    for p in range(partitions):
        scale = chance.random(embeddings.shape[1]) if partitions > 1 else 1.0
        _log.info("k-means of %d pictures, %d clusters: %d of %d", len(embeddings), clusters, p + 1, partitions)
        with _aside():
            from sklearn.cluster import KMeans

            found.append(KMeans(clusters, n_init=1, random_state=seed + p).fit_predict(embeddings.numpy() * scale))
    return torch.from_numpy(np.stack(found)).long()


@contextmanager
def _aside() -> Iterator[None]:
    """One thread, since more would add up rows in an order of chance, and Python's generator as it was, from which
    the first import of scikit-learn draws."""
    from threadpoolctl import threadpool_limits

    state = random.getstate()
    try:
        with threadpool_limits(1):
            yield
    finally:
        random.setstate(state)


@dataclass(frozen=True)
class ClusterTasks:
    """Meta-batches of tasks whose classes are clusters. Pure in the generator.

    `cluster` gives partitions [P B] and is asked at the first draw, so that a source which is only looked at costs
    nothing. Each of `tasks` tasks draws one of them, then `ways` of its clusters that hold `shots` +
    `queries` pictures or more, in an order of its own, then different pictures. `support.x` [T N*K C H W] and
    `query.x` [T N*Q C H W] float in 0..1, `index` [T N*(K+Q)] the pictures' positions, support first. Partitions
    with too few such clusters are left out; raises TooFewPicturesError where none is left, or none can be.
    """

    pictures: Pictures
    cluster: Callable[[], Tensor]
    ways: int = 5
    shots: int = 1
    queries: int = 5
    tasks: int = 8

    def __post_init__(self) -> None:
        if len(self.pictures) < self.ways * (self.shots + self.queries):
            raise self._too_few()

    @cached_property
    def partitions(self) -> Int64[Tensor, "P B"]:
        """The cluster of every picture in each partition."""
        return self.cluster()

    @cached_property
    def _usable(self) -> list[tuple[Tensor, Tensor]]:
        """Of every usable partition, the pictures in clusters large enough and the clusters they are in."""
        found = []
        for y in self.partitions:
            large = torch.bincount(y) >= self.shots + self.queries
            if int(large.sum()) >= self.ways:
                kept = large[y].nonzero()[:, 0]
                found.append((kept, y[kept]))
        if not found:
            raise self._too_few()
        return found

    def _too_few(self) -> TooFewPicturesError:
        return TooFewPicturesError(
            f"no partition of {len(self.pictures)} pictures has {self.ways} clusters of {self.shots} shots + "
            f"{self.queries} queries; ask for fewer clusters, ways or queries, or add pictures"
        )

    def __call__(self, generator: torch.Generator) -> Task:
        drawn = [self._one(generator) for _ in range(self.tasks)]
        support, query = (torch.stack(side) for side in zip(*drawn, strict=True))
        return Task(
            self._examples(support, self.shots),
            self._examples(query, self.queries),
            self.ways,
            torch.cat([support, query], 1),
        )

    def _one(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Positions [N*K] and [N*Q] of one task."""
        which, seed = (int(torch.randint(n, (), generator=generator)) for n in (len(self._usable), 2**62))
        kept, y = self._usable[which]
        episode = draw_episodes(y, EpisodePlan(self.ways, self.shots, self.queries, episodes=1, seed=seed))
        return kept[episode.support[0]], kept[episode.query[0]]

    def _examples(self, position: Tensor, per_class: int) -> Examples:
        return Examples(to_float(self.pictures.x[position]), labels(self.tasks, self.ways, per_class))
