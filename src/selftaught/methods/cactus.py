"""CACTUs: cluster unlabelled pictures, call the clusters classes, and meta-learn on episodes of them.

Paper: Hsu, Levine, Finn, "Unsupervised Learning via Meta-Learning", ICLR 2019, arXiv 1810.02334.

    P_1 .. P_p = k-means of A_i * embedding(pictures), A_i a random scaling of the features
    task: one partition, N of its clusters with at least K + Q pictures, labels 0..N-1 in random order,
          K support and Q query pictures of each
    then any learner of labelled episodes on these tasks: MAML or ProtoNet

The paper's: tasks from partitions of an embedding space, several partitions by random scaling, MAML and
prototypical networks as base learners. Our choice: ANIL and R2D2 as further ones; scikit-learn's k-means, once a
partition, on the first principal components; scalings uniform in 0..1 (none where there is one partition); how
many clusters by default. The paper clusters embeddings of ACAI, BiGAN or DeepCluster: `embeddings` names the
folder of a model trained before, by any method here; "pixels", the pictures themselves, needs none.
Written from notes on the paper and its recipes; its full text was not at hand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from selftaught.artifacts.model import load_model
from selftaught.core.errors import ConfigError, RunError
from selftaught.core.functional import in_batches, part, to_float
from selftaught.core.types import Aux, Learner, Method, Params, Task
from selftaught.data.pictures import Pictures
from selftaught.data.views import Views
from selftaught.methods.maml import MAML
from selftaught.methods.protonet import ProtoNet
from selftaught.methods.r2d2 import R2D2
from selftaught.nets import build_encoder
from selftaught.tasks.clusters import ClusterTasks, partitions_of, principal

Base = Literal["protonet", "maml", "anil", "r2d2"]
"""A method of labelled episodes, to be trained on tasks from another source."""


@dataclass(frozen=True)
class CACTUs:
    """`clusters` None: one for every 2 (shots + queries) pictures, at most 500. `inner_*`, `test_steps`: of MAML.

    `embeddings` is "pixels" or the folder of a trained model, which must stay as it is until training ends: a run
    that is continued makes the same partitions again.
    """

    base: Base = "protonet"
    embeddings: str = "pixels"
    components: int = 64
    clusters: int | None = None
    partitions: int = 10
    partition_seed: int = 0
    inner_steps: int = 5
    inner_rate: float = 0.05
    test_steps: int = 50
    tasks: int = 8
    ways: int = 5
    shots: int = 1
    queries: int = 5

    def source(self, pictures: Pictures, views: Views) -> ClusterTasks:
        """Episodes of clusters, made before the first step; the views are not used."""
        embed, need = embedding(self.embeddings, pictures), self.shots + self.queries
        clusters = self.clusters or max(2, min(500, len(pictures) // (2 * need)))

        def cluster() -> Tensor:
            x = principal(embed(), self.components, self.partition_seed)
            return partitions_of(x, clusters, self.partitions, self.partition_seed)

        return ClusterTasks(pictures, cluster, self.ways, self.shots, self.queries, self.tasks)

    def network(self, encoder: nn.Module) -> nn.Module:
        """The base learner's."""
        return self._base().network(encoder)

    def init(self, net: nn.Module) -> tuple[Params, Params]:
        """The base learner's."""
        return self._base().init(net)

    def loss(self, net: nn.Module, params: Params, slow: Params, tasks: Task) -> tuple[Tensor, Aux]:
        """The base learner's, for which clusters are classes."""
        return self._base().loss(net, params, slow, tasks)

    def refresh(self, net: nn.Module, slow: Params, params: Params, tasks: Task, aux: Aux) -> Params:
        """The base learner's."""
        return self._base().refresh(net, slow, params, tasks, aux)

    def learner(self, net: nn.Module) -> Learner:
        """That of `base`: prototype, gradient or ridge."""
        return self._base().learner(net)

    def _base(self) -> Method:
        return base_method(self.base, self.inner_steps, self.inner_rate, self.test_steps)


def base_method(base: Base, inner_steps: int, inner_rate: float, test_steps: int) -> Method:
    """The named method, for everything but its source; the numbers are those of "maml" and "anil".

    Raises ConfigError for another name.
    """
    if base == "protonet":
        return ProtoNet()
    if base == "r2d2":
        return R2D2()
    if base not in ("maml", "anil"):
        raise ConfigError(f"unknown base learner {base!r}; use protonet, maml, anil or r2d2")
    return MAML(inner_steps, inner_rate, test_steps, moving="head" if base == "anil" else "all")


def embedding(name: str, pictures: Pictures) -> Callable[[], Tensor]:
    """What gives [B D] float32: "pixels", or a folder's model with the statistics of its training.

    Raises RunError for a folder without a model, ConfigError for one that takes pictures of another shape.
    """
    if name == "pixels":
        return lambda: to_float(pictures.x).flatten(1)
    weights, config = load_model(name)
    try:
        kind, channels, size = config["encoder"], config["channels"], config["size"]
    except KeyError as error:
        raise RunError(f"{name}: its configuration names no {error}; give the folder of another model") from error
    if pictures.shape != (channels, size, size):
        raise ConfigError(
            f"{name} embeds pictures {[channels, size, size]}, these are {list(pictures.shape)}: use the same "
            "size and channels"
        )
    encoder = build_encoder(kind, channels, size, 0, **config.get("options", {}))
    return lambda: in_batches(encoder, part(weights, "encoder"), pictures.x)
