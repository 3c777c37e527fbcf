"""FOMAML and ANIL by their definitions: where MAML's two options lead, written out step by step."""

from dataclasses import replace

import pytest
import torch
from small_tasks import distance, gradient, small
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.types import Examples, Params, Task, merged
from selftaught.methods.maml import MAML

FOMAML = MAML(graph="first-order", path="loop", inner_steps=3, inner_rate=0.2, tasks=2, ways=3, shots=2, queries=2)
ANIL = MAML(moving="head", path="loop", inner_steps=3, inner_rate=0.2, tasks=2, ways=3, shots=2, queries=2)


def of_task(net: nn.Module, weights: Params, examples: Examples, t: int) -> Tensor:
    """Cross-entropy of one side of task t."""
    assert examples.y is not None
    return F.cross_entropy(functional_call(net, weights, (examples.x[t],)), examples.y[t])


def stepped(net: nn.Module, theta: Params, tasks: Task, t: int, method: MAML) -> Params:
    """theta_K as plain numbers: the head's row repeated, then K steps of gradient descent on the support."""
    w = {k: (v.expand(3, *v.shape[1:]) if k.startswith("head.") else v).detach().clone() for k, v in theta.items()}
    moving = [k for k in w if method.moving == "all" or k.startswith("head.")]
    for _ in range(method.inner_steps):
        leaves = {k: v.clone().requires_grad_() for k, v in w.items()}
        slopes = torch.autograd.grad(of_task(net, leaves, tasks.support, t), [leaves[k] for k in moving])
        w = w | {k: w[k] - method.inner_rate * g for k, g in zip(moving, slopes, strict=True)}
    return w


def applied_to_the_start(net: nn.Module, theta: Params, tasks: Task, method: MAML) -> Params:
    """The query's gradient at theta_K of each task, averaged, as a gradient of theta; head rows share one row."""
    total = {k: torch.zeros_like(v) for k, v in theta.items()}
    for t in range(2):
        leaves = {k: v.requires_grad_() for k, v in stepped(net, theta, tasks, t, method).items()}
        slopes = torch.autograd.grad(of_task(net, leaves, tasks.query, t), list(leaves.values()))
        for k, g in zip(leaves, slopes, strict=True):
            total[k] += (g.sum(0, keepdim=True) if k.startswith("head.") else g) / 2
    return total


@pytest.mark.parametrize("moving", ["all", "head"])
def test_fomaml_is_the_gradient_at_the_end_applied_to_the_start(moving: str) -> None:
    """Group normalisation, so that every picture counts for itself; with it, this is all there is."""
    method = replace(FOMAML, moving=moving)
    net, theta, slow, tasks = small(method, "group")
    _, found = gradient(method, net, theta, slow, tasks)
    expected = applied_to_the_start(net, theta, tasks, method)
    # For the head alone too: its steps are constants, so the support's features carry nothing to the encoder.
    assert distance(found, expected) < 1e-9


def test_fomaml_is_not_maml_and_is_it_without_steps() -> None:
    net, theta, slow, tasks = small(FOMAML, "group")
    for steps, same in ((3, False), (0, True)):
        first, second = (
            gradient(replace(FOMAML, inner_steps=steps, graph=graph), net, theta, slow, tasks)
            for graph in ("first-order", "unrolled")
        )
        assert torch.allclose(first[0], second[0]) and (distance(first[1], second[1]) < 1e-9) is same


def test_anil_moves_the_head_alone_inside_and_everything_outside() -> None:
    net, theta, slow, tasks = small(ANIL, "group")
    loss, found = gradient(ANIL, net, theta, slow, tasks)
    ends = [of_task(net, stepped(net, theta, tasks, t, ANIL), tasks.query, t) for t in range(2)]
    assert torch.allclose(loss, torch.stack(ends).mean(), rtol=1e-9)
    assert all(g.any() for g in found.values())
    adapted = ANIL.learner(net).adapt(merged(theta, slow), Examples(tasks.support.x[0]), 3)
    for k, v in theta.items():
        assert torch.equal(adapted[k], v) is not k.startswith("head."), k
    everything = MAML(inner_steps=3).learner(net).adapt(merged(theta, slow), Examples(tasks.support.x[0]), 3)
    assert not any(torch.equal(everything[k], v) for k, v in theta.items())
