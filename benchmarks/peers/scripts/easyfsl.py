"""easyfsl: a ProtoNet training step, and its evaluation of episodes from cached embeddings."""

import benchmarks.peers.torchvision_operators  # noqa: F401 # isort: skip

import torch
from easyfsl.methods import FewShotClassifier, PrototypicalNetworks, SimpleShot  # type: ignore[import-not-found]
from easyfsl.utils import evaluate_on_one_task  # type: ignore[import-not-found]
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers.scripts.network import clear, episodes, gradients, network
from benchmarks.peers.work import Step, Work


def protonet(work: Work) -> Step:
    """Its loss is on distances and not on squared ones: the same work, another gradient."""
    net, tasks = network(work), episodes(work)
    classifier = PrototypicalNetworks(net.encoder)

    def step() -> dict[str, Tensor]:
        clear(net)
        for support_x, support_y, query_x, query_y in tasks:
            classifier.process_support_set(support_x, support_y)
            (F.cross_entropy(classifier(query_x), query_y) / len(tasks)).backward()
        return {k: g for k, g in gradients(net).items() if k.startswith("encoder.")}

    return step


def evaluate(work: Work) -> Step:
    """Episode by episode, as its `evaluate` does with a loader; here the episodes are already drawn."""
    features, support, query = (work.tensors[name] for name in ("features", "support", "query"))
    support_y, query_y = work.tensors["support_y"], work.tensors["query_y"]
    kinds: dict[str, type[FewShotClassifier]] = {"euclidean": PrototypicalNetworks, "cosine": SimpleShot}
    classifier = kinds[work.options["distance"]](torch.nn.Identity())

    def step() -> dict[str, Tensor]:
        percent = []
        with torch.no_grad():
            for s, q in zip(support, query, strict=True):
                right, of = evaluate_on_one_task(classifier, features[s], support_y, features[q], query_y)
                percent.append(100 * right / of)
        return {"percent": torch.tensor(percent, dtype=torch.float64)}

    return step
