"""higher: the functional copy of a module and its differentiable optimiser, as in its MAML example."""

import higher  # type: ignore[import-not-found]
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers.scripts.network import clear, episodes, gradients, network
from benchmarks.peers.work import Step, Work


def maml(work: Work) -> Step:
    """One inner-loop context and one backward pass a task."""
    net, tasks = network(work), episodes(work)
    optimizer = torch.optim.SGD(net.parameters(), lr=work.options["rate"])

    def step() -> dict[str, Tensor]:
        clear(net)
        for support_x, support_y, query_x, query_y in tasks:
            context = higher.innerloop_ctx(net, optimizer, copy_initial_weights=False)
            with context as (functional, inner):
                for _ in range(work.options["steps"]):
                    inner.step(F.cross_entropy(functional(support_x), support_y))
                (F.cross_entropy(functional(query_x), query_y) / len(tasks)).backward()
        return dict(gradients(net))

    return step
