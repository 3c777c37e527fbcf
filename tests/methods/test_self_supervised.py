"""SimCLR, BYOL, ProtoCLR and ProtoNet against their formulas."""

import math

import pytest
import torch
from small_tasks import leaves_of, pictures, small
from torch.func import functional_call
from torch.nn import functional as F

from selftaught.core.functional import apply, apply_update, params_of, part
from selftaught.core.train import start, train
from selftaught.core.types import Aux, Examples, Params, Task
from selftaught.data.views import Views
from selftaught.losses.contrastive import info_nce, nt_xent
from selftaught.methods.byol import BYOL
from selftaught.methods.protoclr import ProtoCLR
from selftaught.methods.protonet import ProtoNet
from selftaught.methods.simclr import SimCLR, views_of
from selftaught.optimizers.gradient import Gradient


class OnTheSphere(torch.nn.Module):
    """An encoder whose outputs have a given length."""

    def __init__(self, length: float) -> None:
        super().__init__()
        self.lift, self.length, self.width = torch.nn.Linear(256, 6).double(), length, 6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.length * F.normalize(self.lift(x.flatten(1)), dim=-1)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_protoclr_on_the_sphere_is_info_nce(temperature: float) -> None:
    """Squared distances of vectors of length 1 / sqrt(2 tau) are cosines over tau, up to a constant."""
    method = ProtoCLR(tasks=2, ways=5, queries=2)
    tasks = small(method)[3]
    torch.manual_seed(0)
    net = method.network(OnTheSphere((2 * temperature) ** -0.5))
    loss, aux = method.loss(net, params_of(net), {}, tasks)
    z = [functional_call(net, params_of(net), (x,)) for x in tasks.query.x]
    raw = [functional_call(net, params_of(net), (x,)) for x in tasks.support.x]
    expected = info_nce(torch.stack(z), torch.stack(raw), tasks.query.y, temperature)
    assert torch.allclose(loss, expected, rtol=1e-10)
    assert 0 <= aux.metrics["query_accuracy"] <= 1


def test_protonet_is_the_papers_formula() -> None:
    method = ProtoNet(tasks=2, ways=3, shots=2, queries=2)
    net, params, slow, tasks = small(method)
    losses = []
    x = torch.cat([tasks.support.x, tasks.query.x], 1)
    for t in range(2):
        support, query = apply(net, params | slow, x[t], "batch").split(6)
        centres = torch.stack([support[[n, 3 + n]].mean(0) for n in range(3)])
        logits = -torch.stack([(query - c).square().sum(-1) for c in centres], 1)
        losses.append(F.cross_entropy(logits, torch.tensor([0, 1, 2] * 2)))
    loss = method.loss(net, params, slow, tasks)[0]
    assert torch.allclose(loss, torch.stack(losses).mean(), rtol=1e-10)
    rows = torch.tensor([4, 0, 2, 5, 1, 3])  # labels count, and not the order of rows
    assert tasks.support.y is not None
    shuffled = Task(Examples(tasks.support.x[:, rows], tasks.support.y[:, rows]), tasks.query, tasks.ways)
    assert torch.allclose(method.loss(net, params, slow, shuffled)[0], loss, rtol=1e-10)


def test_protonets_averages_move_by_the_mean_over_tasks() -> None:
    method = ProtoNet(tasks=3, ways=3, shots=2, queries=2)
    net, params, slow, tasks = small(method)
    x = torch.cat([tasks.support.x, tasks.query.x], 1)
    each = [apply_update(net, params, slow, x[t])[1] for t in range(3)]
    found = method.loss(net, params, slow, tasks)[1].buffers
    assert found.keys() == slow.keys()
    for k, v in found.items():
        expected = torch.stack([e[k] for e in each])
        counted = not v.is_floating_point()
        assert torch.equal(v, expected[0]) if counted else torch.allclose(v, expected.mean(0), rtol=1e-10), k
        assert v.dtype == slow[k].dtype


@pytest.mark.parametrize("views", [2, 3])
def test_simclr_is_nt_xent_on_all_views(views: int) -> None:
    method = SimCLR(batch=6, views=views, hidden=12, out=6)
    net, params, slow, tasks = small(method)
    x = torch.cat([tasks.support.x[0], tasks.query.x[0]])
    z = apply(net, params | slow, x, "batch").unflatten(0, (views, 6))
    loss, aux = method.loss(net, params, slow, tasks)
    assert torch.allclose(loss, nt_xent(z, method.temperature), rtol=1e-12)
    assert aux.buffers.keys() == slow.keys() and not torch.equal(
        aux.buffers["encoder.blocks.0.norm.running_mean"], slow["encoder.blocks.0.norm.running_mean"]
    )


def test_views_of_puts_a_picture_into_one_column() -> None:
    """[V, T*N]: entry (v, t*N + n) is view v of picture n of task t, support views first."""
    source = SimCLR(batch=5, views=3).source(pictures(), Views())  # without changes a view is its picture
    first, second = (source(torch.Generator().manual_seed(seed)) for seed in (0, 1))
    both = Task(
        Examples(torch.cat([first.support.x, second.support.x])),
        Examples(torch.cat([first.query.x, second.query.x])),
        ways=5,
    )
    x = views_of(both)
    assert x.shape == (3, 10, 1, 16, 16)
    assert first.index is not None and second.index is not None
    raw = pictures().x[torch.cat([first.index, second.index]).flatten()].float() / 255
    assert all(torch.allclose(view, raw, atol=1e-6) for view in x)


# ------------------------------------------------------------------------------------------------- BYOL


def byol(**changes: float) -> BYOL:
    return BYOL(batch=6, hidden=12, out=6, **changes)  # type: ignore[arg-type]


def test_byols_target_gets_no_gradient() -> None:
    method = byol()
    net, params, slow, tasks = small(method)
    asking = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in slow.items()}
    leaves = leaves_of(params)
    loss, _ = method.loss(net, leaves, asking, tasks)
    targets = [v for k, v in asking.items() if k.startswith("target.")]
    found = torch.autograd.grad(loss, [*targets, *leaves.values()], allow_unused=True)
    assert all(g is None for g in found[: len(targets)])
    assert all(g is not None for g in found[len(targets) :])


def test_byol_is_the_papers_loss() -> None:
    method = byol()
    net, params, slow, tasks = small(method)
    slow = {k: v + 0.1 * torch.randn_like(v) if k.startswith("target.") else v for k, v in slow.items()}
    x = torch.cat([tasks.support.x[0], tasks.query.x[0]])
    buffers = {k: v for k, v in slow.items() if not k.startswith("target.") and k != "count"}
    p = apply(net, params | buffers, x, "batch")
    h = apply(net.get_submodule("encoder"), part(slow, "target.encoder"), x, "batch")
    t = apply(net.get_submodule("projector"), part(slow, "target.projector"), h, "batch")
    p, t = F.normalize(p, dim=-1), F.normalize(t, dim=-1)
    expected = ((p[:6] - t[6:]).square().sum(-1).mean() + (p[6:] - t[:6]).square().sum(-1).mean()) / 2
    assert torch.allclose(method.loss(net, params, slow, tasks)[0], expected, rtol=1e-10)


def test_byols_target_moves_by_its_average_and_by_nothing_else() -> None:
    method = byol(momentum=0.9)
    net = small(method)[0].float()
    optimizer = Gradient(rate=1e-2, schedule="constant")
    state = start(method, net, optimizer, 0)
    assert all(torch.equal(v, state.params[k]) for k, v in part(state.slow, "target").items())
    assert not any(k.startswith("predictor.") for k in part(state.slow, "target"))
    source = method.source(pictures(), Views(rotate=10))
    for after, _ in train(method, net, source, optimizer, state, 3):
        old, new = part(state.slow, "target"), part(after.slow, "target")
        for k in new:
            assert torch.allclose(new[k], 0.9 * old[k] + 0.1 * after.params[k], atol=1e-7)
        assert any(not torch.equal(new[k], old[k]) for k in new)
        state = after
    assert state.slow["count"] == 3


def test_byols_momentum_rises_to_one() -> None:
    """m = 1 - (1 - m0) (cos(pi k / K) + 1) / 2, then the target stands still."""
    method = byol(momentum=0.8, total_steps=4)
    net, params, slow, tasks = small(method)
    other = {k: v + 1 for k, v in params.items()}
    for step in range(6):
        after = method.refresh(net, slow, other, tasks, Aux())
        m = 1 - 0.2 * (math.cos(math.pi * min(step / 4, 1)) + 1) / 2
        moved = part(after, "target")
        assert all(torch.allclose(moved[k], m * v + (1 - m) * other[k]) for k, v in part(slow, "target").items())
        slow = after
    still: Params = part(slow, "target")
    last = part(method.refresh(net, slow, other, tasks, Aux()), "target")
    assert all(torch.allclose(still[k], last[k]) for k in still)
