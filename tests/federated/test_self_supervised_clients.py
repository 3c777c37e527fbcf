"""Clients without labels: the library's methods as local steps, a few labels for the personal head."""

import pytest
import torch

from selftaught.data.strokes import draw_strokes
from selftaught.data.views import GLYPH
from selftaught.federated import (
    ClientData,
    Correction,
    Dyn,
    Federation,
    LocalSteps,
    NoCorrection,
    Scaf,
    SelfSupervised,
    by_owner,
    generator_of,
    usable,
)
from selftaught.methods.bmssl import BMSSL
from selftaught.methods.simclr import SimCLR
from selftaught.nets import build_encoder

METHODS: list[SimCLR | BMSSL] = [
    SimCLR(batch=8, hidden=8, out=8),
    BMSSL(ways=6, hidden=8, out=8, bootstrap_steps=2),
]


def clients() -> dict[str, ClientData]:
    drawn = draw_strokes(6, 9, size=16)
    assert drawn.y is not None
    return by_owner(drawn.x, drawn.y, [int(n) // 2 for n in drawn.y], 0, 0.3, local=True)


def federation(
    method: SimCLR | BMSSL, correction: Correction, norm: str = "batch", fraction: float = 0.6
) -> Federation:
    net = method.network(build_encoder("conv4", 1, 16, 0, width=4, norm=norm))
    return Federation(net, clients(), SelfSupervised(method), correction, LocalSteps(2, 0.05), fraction)


@pytest.mark.parametrize("correction", [NoCorrection(), Dyn(), Scaf()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_methods_are_local_steps(method: SimCLR | BMSSL, correction: Correction) -> None:
    run = federation(method, correction)
    state = run.start()
    assert any("running_mean" in k for k in state.server.slow)
    for _ in range(2):
        state, record = run.round(state)
        assert len(record.accepted) == 2 and not record.refused
    start = run.start().server
    assert any(not torch.equal(state.server.slow[k], v) for k, v in start.slow.items())
    assert any(not torch.equal(state.server.average[k], v) for k, v in start.model.items())
    accuracies = run.accuracies(state)
    assert set(accuracies) == {"0", "1", "2"} and all(0 <= a <= 1 for a in accuracies.values())


def test_the_local_gradient_is_the_methods() -> None:
    run = federation(METHODS[0], NoCorrection(), fraction=1.0)
    run = Federation(run.net, {"0": run.clients["0"]}, run.model, local=LocalSteps(1, 0.1, clip=0))
    start = run.start().server
    after = run.round(run.start())[0].server
    task = run.model.draw(run.clients["0"], generator_of(0, 1, "0"))
    leaves = {k: v.requires_grad_() for k, v in start.model.items()}
    loss, aux = METHODS[0].loss(run.net, leaves, start.slow, task)
    slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    for (k, v), g in zip(leaves.items(), slopes, strict=True):
        assert torch.allclose(after.average[k], v - 0.1 * g, atol=1e-6), k
    assert all(torch.equal(after.slow[k], v) for k, v in aux.buffers.items())


def test_labels_are_used_for_the_personal_head_alone() -> None:
    run = federation(METHODS[0], Dyn())
    hidden = {n: d._replace(y_train=torch.full_like(d.y_train, -1), y_test=d.y_test[:0], x_test=d.x_test[:0])
              for n, d in run.clients.items()}  # fmt: skip
    blind = Federation(run.net, hidden, run.model, run.correction, run.local, run.fraction)
    one, other = run.round(run.start())[0], blind.round(blind.start())[0]
    assert all(torch.equal(v, other.server.average[k]) for k, v in one.server.average.items())
    assert blind.accuracies(other) == {}


def test_the_personal_head_knows_only_labelled_pictures_and_so_many_shots() -> None:
    run = federation(METHODS[0], Dyn())
    weights = {**run.start().server.average, **run.start().server.slow}
    data = run.clients["0"]
    model = SelfSupervised(METHODS[0], GLYPH, shots=1)
    first = [int((data.y_train == k).nonzero()[0]) for k in (0, 1)]
    y = torch.full_like(data.y_train, -1)
    y[first] = torch.tensor([0, 1])
    expected = model.personal_logits(run.net, weights, data.x_train, data.y_train, data.x_test)
    assert torch.equal(model.personal_logits(run.net, weights, data.x_train, y, data.x_test), expected)
    y[first[1]] = 3  # classes may be missing
    logits = model.personal_logits(run.net, weights, data.x_train, y, data.x_test)
    assert logits.shape[1] == 4 and torch.isinf(logits[:, 1:3]).all() and torch.isfinite(logits[:, [0, 3]]).all()


def test_what_cannot_be_learned_from_is_named() -> None:
    data, model = clients()["0"], SelfSupervised(METHODS[0])
    refused = usable(
        {
            "float": data._replace(x_train=data.x_train.float()),
            "one": data._replace(x_train=data.x_train[:1], y_train=data.y_train[:1]),
            "blind": data._replace(y_train=torch.full_like(data.y_train, -1)),
            "good": data,
        },
        model,
    )[1]
    assert sorted(refused) == ["blind", "float", "one"]
    assert "uint8" in refused["float"] and "one picture" in refused["one"] and "label" in refused["blind"]
