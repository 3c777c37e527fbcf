"""MAML as it is usually written by hand: no part of the library but the network it is given."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.types import Task


def one_graph_loop(
    net: nn.Module, params: Mapping[str, Tensor], tasks: Task, rate: float, steps: int
) -> tuple[Tensor, ...]:
    """Second-order meta-gradient with one graph over all tasks and one backward pass at the end.

    `net` is an encoder with a one-row `head`, repeated for every class; tasks have a leading T axis.
    """
    support_y, query_y = tasks.support.y, tasks.query.y
    assert support_y is not None and query_y is not None
    leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
    losses = []
    for t in range(len(support_y)):
        weights = {
            k: v.expand(tasks.ways, *v.shape[1:]) if k.startswith("head.") else v for k, v in leaves.items()
        }
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(net, weights, (tasks.support.x[t],)), support_y[t])
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {k: w - rate * g for (k, w), g in zip(weights.items(), slopes, strict=True)}
        losses.append(F.cross_entropy(functional_call(net, weights, (tasks.query.x[t],)), query_y[t]))
    return torch.autograd.grad(torch.stack(losses).mean(), list(leaves.values()))
