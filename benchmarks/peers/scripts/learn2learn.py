"""learn2learn: MAML and ANIL as its examples write them, one backward pass a task; its nearest-prototype head."""

import benchmarks.peers.torchvision_operators  # noqa: F401 # isort: skip

import learn2learn as l2l  # type: ignore[import-not-found]
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers.scripts.network import clear, episodes, gradients, network
from benchmarks.peers.work import Step, Work


def maml(work: Work) -> Step:
    """Clone, adapt, ask the queries."""
    net, tasks = network(work), episodes(work)
    learner = l2l.algorithms.MAML(net, lr=work.options["rate"], first_order=bool(work.options.get("first_order")))

    def step() -> dict[str, Tensor]:
        clear(net)
        for support_x, support_y, query_x, query_y in tasks:
            clone = learner.clone()
            for _ in range(work.options["steps"]):
                clone.adapt(F.cross_entropy(clone(support_x), support_y))
            (F.cross_entropy(clone(query_x), query_y) / len(tasks)).backward()
        return dict(gradients(net))

    return step


def anil(work: Work) -> Step:
    """Only the head is cloned. Its example embeds support and query in one pass, so that they share their
    statistics; here each has its own, as in the other implementations."""
    net, tasks = network(work), episodes(work)
    learner = l2l.algorithms.MAML(net.head, lr=work.options["rate"])

    def step() -> dict[str, Tensor]:
        clear(net)
        for support_x, support_y, query_x, query_y in tasks:
            clone = learner.clone()
            support, query = net.encoder(support_x), net.encoder(query_x)
            for _ in range(work.options["steps"]):
                clone.adapt(F.cross_entropy(clone(support), support_y))
            (F.cross_entropy(clone(query), query_y) / len(tasks)).backward()
        return dict(gradients(net))

    return step


def protonet(work: Work) -> Step:
    """Support and query of each task embedded in turn, its classifier on squared distances."""
    net, tasks = network(work), episodes(work)
    classifier = l2l.nn.PrototypicalClassifier()

    def step() -> dict[str, Tensor]:
        clear(net)
        for support_x, support_y, query_x, query_y in tasks:
            classifier.fit_(net.encoder(support_x), support_y)
            (F.cross_entropy(classifier(net.encoder(query_x)), query_y) / len(tasks)).backward()
        return {k: g for k, g in gradients(net).items() if k.startswith("encoder.")}

    return step


def evaluate(work: Work) -> Step:
    """Nearest class mean on cached embeddings, episode by episode; `distance` is euclidean or cosine."""
    features, support, query = (work.tensors[name] for name in ("features", "support", "query"))
    support_y, query_y = work.tensors["support_y"], work.tensors["query_y"]

    def step() -> dict[str, Tensor]:
        correct = []
        with torch.no_grad():
            for s, q in zip(support, query, strict=True):
                head = l2l.nn.PrototypicalClassifier(distance=work.options["distance"])
                head.fit_(features[s], support_y)
                correct.append((head(features[q]).argmax(-1) == query_y).double().mean())
        return {"percent": torch.stack(correct) * 100}

    return step
