"""torchopt: its differentiable optimiser on the module itself, whose state is taken before a task and put back."""

import torchopt  # type: ignore[import-not-found]
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers.scripts.network import clear, episodes, gradients, network
from benchmarks.peers.work import Step, Work


def maml(work: Work) -> Step:
    """One backward pass a task."""
    net, tasks = network(work), episodes(work)
    inner = torchopt.MetaSGD(net, lr=work.options["rate"])

    def step() -> dict[str, Tensor]:
        clear(net)
        start = torchopt.extract_state_dict(net, by="reference")
        state = torchopt.extract_state_dict(inner, by="reference")
        for support_x, support_y, query_x, query_y in tasks:
            for _ in range(work.options["steps"]):
                inner.step(F.cross_entropy(net(support_x), support_y))
            (F.cross_entropy(net(query_x), query_y) / len(tasks)).backward()
            torchopt.recover_state_dict(net, start)
            torchopt.recover_state_dict(inner, state)
        return dict(gradients(net))

    return step
