"""No peer: MAML by hand, one task after the other, each with its own backward pass. The reference."""

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.peers.scripts.network import clear, episodes, gradients, network
from benchmarks.peers.work import Step, Work


def maml(work: Work) -> Step:
    """Second order, or first order where the work says so."""
    net, tasks = network(work), episodes(work)
    rate, steps, second = work.options["rate"], work.options["steps"], not work.options.get("first_order")

    def step() -> dict[str, Tensor]:
        clear(net)
        for support_x, support_y, query_x, query_y in tasks:
            weights: dict[str, Tensor] = dict(net.named_parameters())
            for _ in range(steps):
                loss = F.cross_entropy(functional_call(net, weights, (support_x,)), support_y)
                slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=second)
                weights = {k: w - rate * g for (k, w), g in zip(weights.items(), slopes, strict=True)}
            logits = functional_call(net, weights, (query_x,))
            (F.cross_entropy(logits, query_y) / len(tasks)).backward()
        return dict(gradients(net))

    return step


def anil(work: Work) -> Step:
    """Only the head moves; the encoder sees the support once and the query once."""
    net, tasks = network(work), episodes(work)
    rate, steps = work.options["rate"], work.options["steps"]

    def step() -> dict[str, Tensor]:
        clear(net)
        for support_x, support_y, query_x, query_y in tasks:
            weight: Tensor = net.head.weight
            bias: Tensor = net.head.bias
            z = net.encoder(support_x)
            for _ in range(steps):
                loss = F.cross_entropy(F.linear(z, weight, bias), support_y)
                a, b = torch.autograd.grad(loss, [weight, bias], create_graph=True)
                weight, bias = weight - rate * a, bias - rate * b
            logits = F.linear(net.encoder(query_x), weight, bias)
            (F.cross_entropy(logits, query_y) / len(tasks)).backward()
        return dict(gradients(net))

    return step
