"""The same numbers on a GPU as on the CPU; skipped where there is none."""

import pytest
import torch
from small_tasks import small
from torch.utils._pytree import tree_map

from selftaught.core.functional import buffers_of, params_of
from selftaught.core.over_tasks import Path
from selftaught.core.types import Params, Task
from selftaught.learners.inner import FusedGraph
from selftaught.methods.maml import MAML
from selftaught.nets.conv4 import Conv4

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def gradients(method: MAML, params: Params, tasks: Task, device: str) -> list[torch.Tensor]:
    net = method.network(Conv4(1, 16, width=8)).double().to(device)
    own, there = {k: v.to(device) for k, v in params.items()}, tree_map(lambda x: x.to(device), tasks)
    leaves = {k: v.requires_grad_() for k, v in own.items()}
    loss, _ = method.loss(net, leaves, buffers_of(net), there)
    return [g.cpu() for g in torch.autograd.grad(loss, list(leaves.values()))]


@pytest.mark.parametrize("graph", ["auto", "unrolled", "adjoint"])
@pytest.mark.parametrize("path", ["auto", "loop"])
def test_meta_gradient_of_maml(path: Path, graph: FusedGraph) -> None:
    method = MAML(inner_steps=3, tasks=3, ways=3, shots=1, queries=2)
    tasks = small(method)[3]
    params = params_of(method.network(Conv4(1, 16, width=8)).double())
    expected = gradients(MAML(inner_steps=3, graph="unrolled", path="loop"), params, tasks, "cpu")
    found = gradients(MAML(inner_steps=3, graph=graph, path=path), params, tasks, "cuda")
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)
