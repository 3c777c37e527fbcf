"""Rounds in one process: what they compute, who takes part, what waits and what is counted."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from federated.federated_clients import blobs, small_net
from selftaught.core.errors import ConfigError, DataError
from selftaught.core.functional import params_of
from selftaught.core.types import Examples, Task
from selftaught.federated import (
    ClientData,
    Correction,
    Dyn,
    Federation,
    FineTuneModel,
    LocalSteps,
    MAMLModel,
    MetaModel,
    NoCorrection,
    ProtoModel,
    Scaf,
    choose,
    classifier,
    generator_of,
    mean_accuracy,
    rounds_together,
    usable,
)
from selftaught.federated.local import gradients, stacked
from selftaught.methods.maml import MAML
from selftaught.nets import build_encoder
from selftaught.nets.heads import WithClassifier

MODELS: list[MetaModel] = [FineTuneModel(3, 10), MAMLModel(3, 6, 6), ProtoModel(3, 6, 6)]
CORRECTIONS: list[Correction] = [NoCorrection(), Dyn(0.1), Scaf()]


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_all_nine_learn(model: MetaModel, correction: Correction) -> None:
    federation = Federation(small_net(), blobs(own_labels=False), model, correction, LocalSteps(4, 0.1), 0.6)
    state = federation.start()
    losses = []
    for _ in range(12):
        state, record = federation.round(state)
        losses.append(record.loss)
        assert record.accepted == record.chosen and not record.refused
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    accuracies = federation.accuracies(state)
    assert sorted(accuracies) == list("abcde") and mean_accuracy(accuracies) > 0.8


def test_the_local_gradient_is_mamls() -> None:
    """Against `methods.maml`, whose one head row has the sum of the gradients of our rows."""
    encoder = small_net().encoder
    theirs = WithClassifier(encoder, 5).double()
    torch.nn.init.normal_(theirs.head.weight)
    ours = classifier(encoder, 3, 0).double()
    data = blobs(3)
    model = MAMLModel(3, 6, 9, rate=0.2, steps=2)
    tasks = [model.draw(d, generator_of(0, 1, n)) for n, d in data.items()]
    batch = Task(
        Examples(torch.stack([t.support.x for t in tasks]), torch.stack([t.support.y for t in tasks])),  # type: ignore[misc]
        Examples(torch.stack([t.query.x for t in tasks]), torch.stack([t.query.y for t in tasks])),  # type: ignore[misc]
        3,
    )
    params = {k: v.requires_grad_() for k, v in params_of(theirs).items()}
    method = MAML(inner_steps=2, inner_rate=0.2, path="loop", graph="unrolled")
    loss, _ = method.loss(theirs, params, {}, batch)
    expected = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
    start = params_of(ours) | {
        k: params[k].detach().expand(3, *params[k].shape[1:]) for k in ("head.weight", "head.bias")
    }
    found, losses, _ = gradients(ours, model, stacked([start] * 3), [{}] * 3, tasks)
    assert losses.mean().item() == pytest.approx(loss.item(), abs=1e-12)
    for k, v in expected.items():
        mine = found[k].mean(0)
        mine = mine.sum(0, keepdim=True) if k.startswith("head.") else mine
        assert torch.allclose(mine, v, atol=1e-10), k


def test_first_order_is_another_gradient() -> None:
    (data,) = blobs(1).values()
    net, model = small_net(), MAMLModel(3, 6, 6, rate=0.5)
    task = model.draw(data, generator_of(0, 1))
    both = [
        gradients(net, m, stacked([params_of(net)]), [{}], [task])[0]
        for m in (model, replace(model, first_order=True))
    ]
    assert not torch.allclose(both[0]["head.weight"], both[1]["head.weight"], atol=1e-4)


def test_one_client_that_always_takes_part_is_central_training() -> None:
    clients, net, model = blobs(1), small_net(), FineTuneModel(3, 10)
    federation = Federation(net, clients, model, NoCorrection(), LocalSteps(5, 0.2, clip=0))
    state = federation.start()
    weights = {k: v.clone() for k, v in params_of(net).items()}
    for turn in (1, 2, 3):
        state, _ = federation.round(state)
        generator = generator_of(0, turn, "a")
        for _ in range(5):
            batch = model.draw(clients["a"], generator).query
            leaves = {k: v.requires_grad_() for k, v in weights.items()}
            assert batch.y is not None
            loss = F.cross_entropy(functional_call(net, leaves, (batch.x,)), batch.y)
            slopes = torch.autograd.grad(loss, list(leaves.values()))
            weights = {k: (v - 0.2 * g).detach() for (k, v), g in zip(leaves.items(), slopes, strict=True)}
    assert all(torch.allclose(state.server.average[k], v, atol=1e-12) for k, v in weights.items())


def test_no_correction_is_plain_averaging() -> None:
    """The round of five is the mean of the rounds that each client does alone."""
    clients = blobs()
    every = Federation(small_net(), clients, MAMLModel(3, 6, 6), local=LocalSteps(3, 0.1))
    state, _ = every.round(every.start())
    alone = []
    for name, data in clients.items():
        one = replace(every, clients={name: data})
        alone.append(one.round(one.start())[0].server.model)
    for k, v in state.server.model.items():
        assert torch.allclose(v, torch.stack([a[k] for a in alone]).mean(0), atol=1e-12)


def test_states_wait_while_their_clients_do() -> None:
    federation = Federation(small_net(), blobs(), MAMLModel(3, 6, 6), Dyn(0.1), LocalSteps(2, 0.1), 0.4)
    state = federation.start()
    for _ in range(6):
        before = state
        state, record = federation.round(state)
        for row, name in enumerate(federation.names):
            same = all(torch.equal(state.states[k][row], before.states[k][row]) for k in state.states)
            assert same == (name not in record.chosen)


def test_side_by_side_is_one_after_the_other() -> None:
    def make(seed: int, at_once: int | None = None) -> Federation:
        return Federation(
            small_net(seed),
            blobs(5 - seed, seed=seed),
            MAMLModel(3, 6, 6),
            Scaf(),
            LocalSteps(3, 0.1),
            0.5,
            seed,
            at_once,
        )

    federations = [make(0), make(1)]
    together = [f.start() for f in federations]
    apart = [f.start() for f in federations]
    chunked, small = make(0, at_once=2), make(0).start()
    for _ in range(3):
        found = rounds_together(federations, together)
        single = [f.round(s) for f, s in zip(federations, apart, strict=True)]
        assert [r for _, r in found] != [] and [r.chosen for _, r in found] == [r.chosen for _, r in single]
        together, apart, small = [s for s, _ in found], [s for s, _ in single], chunked.round(small)[0]
    for one, other in [*zip(together, apart, strict=True), (small, apart[0])]:
        for k in one.server.model:
            assert torch.allclose(one.server.model[k], other.server.model[k], atol=1e-12)
            assert torch.allclose(one.states[k], other.states[k], atol=1e-12)
    assert chunked.accuracies(small) == federations[0].accuracies(apart[0])
    with pytest.raises(ConfigError, match="rounds together"):
        rounds_together([federations[0], replace(federations[1], correction=Dyn())], together)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    def run(seed: int) -> torch.Tensor:
        federation = Federation(small_net(), blobs(), MAMLModel(3, 6, 6), Dyn(), LocalSteps(2, 0.1), 0.4, seed)
        state = federation.start()
        for _ in range(3):
            state, _ = federation.round(state)
        return state.server.average["head.weight"]

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))


def test_models_are_counted_both_ways() -> None:
    for correction, per_client in ((NoCorrection(), 2), (Dyn(), 2), (Scaf(), 3)):
        federation = Federation(small_net(), blobs(), FineTuneModel(3), correction, LocalSteps(1), 0.4)
        assert federation.round(federation.start())[1].models == 2 * per_client


def test_who_takes_part_depends_on_names_seed_and_round_only() -> None:
    names = [f"n{i}" for i in range(10)]
    assert choose(names, 0.3, 0, 1) == choose(list(reversed(names)), 0.3, 0, 1)
    assert len(choose(names, 0.25, 0, 1)) == 3 and choose(names, 1.0, 3, 9) == tuple(names)
    rounds = [choose(names, 0.3, 0, t) for t in range(40)]
    assert set().union(*rounds) == set(names) and len(set(rounds)) > 20


def test_a_client_that_diverges_is_refused_and_the_round_goes_on() -> None:
    clients = blobs()
    clients["c"] = clients["c"]._replace(x_train=clients["c"].x_train * 1e200)
    federation = Federation(small_net(), clients, FineTuneModel(3), Dyn(), LocalSteps(3, 0.1, clip=0))
    before = federation.start()
    state, record = federation.round(before)
    assert list(record.refused) == ["c"] and "not finite" in record.refused["c"]
    assert record.accepted == ("a", "b", "d", "e")
    assert all(torch.isfinite(v).all() for v in (*state.server.model.values(), *state.states.values()))
    row = federation.names.index("c")
    assert all(torch.equal(state.states[k][row], before.states[k][row]) for k in state.states)
    alone = replace(federation, clients={"c": clients["c"]})
    unmoved, nothing = alone.round(alone.start())
    assert not nothing.accepted and unmoved.server.round == 1
    assert all(torch.equal(unmoved.server.model[k], v) for k, v in before.server.model.items())


def test_weight_decay_shrinks_and_clip_bounds_the_step() -> None:
    clients, net = blobs(2), small_net()

    def moved(local: LocalSteps) -> float:
        federation = Federation(net, clients, FineTuneModel(3), local=local)
        start = federation.start()
        end = federation.round(start)[0].server.model
        return sum((end[k] - v).square().sum().item() for k, v in start.server.model.items()) ** 0.5

    assert moved(LocalSteps(1, 0.1, clip=1e-3)) <= 0.1 * 1e-3 + 1e-12
    assert moved(LocalSteps(1, 0.1, clip=1e-9, weight_decay=1.0)) > 0.05
    assert LocalSteps(4, 0.1, decay=0.5).travelled(3) == pytest.approx(4 * 0.1 * 0.25)


def test_group_norm_goes_through_and_batch_norm_is_refused() -> None:
    x = torch.rand(12, 1, 16, 16)
    y = torch.arange(2).repeat(6)
    clients = {n: ClientData(x, y, x, y) for n in "ab"}
    for norm in ("group", "batch"):
        net = classifier(build_encoder("conv4", 1, 16, 0, width=8, norm=norm), 2, 0)
        federation = Federation(net, clients, MAMLModel(2, 4, 4), Scaf(), LocalSteps(1))
        if norm == "group":
            state, record = federation.round(federation.start())
            assert not record.refused and set(federation.accuracies(state)) == {"a", "b"}
        else:
            with pytest.raises(ConfigError, match="norm='group'"):
                federation.start()


@pytest.mark.parametrize(
    ("model", "change", "reason"),
    [
        (MAMLModel(3), lambda d: d._replace(x_train=d.x_train[:1], y_train=d.y_train[:1]), "one picture"),
        (ProtoModel(3), lambda d: d._replace(x_train=d.x_train[:3], y_train=torch.arange(3)), "no overlap"),
        (FineTuneModel(2), lambda d: d, "class 2"),
        (MAMLModel(3), lambda d: d._replace(y_train=d.y_train.clone().fill_(-1)), "without a label"),
    ],
)
def test_clients_that_cannot_take_part_are_named(model: MetaModel, change, reason: str) -> None:  # type: ignore[no-untyped-def]
    clients = blobs(2)
    clients["bad one"] = change(clients["b"])
    del clients["b"]
    kept, refused = usable(clients, model)
    assert reason in refused["bad one"]
    with pytest.raises(DataError, match=r"usable\(clients, model\)"):
        Federation(small_net(), clients, model)
    if kept:
        assert Federation(small_net(), kept, model).names == ("a",)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(DataError, match="no clients"):
        Federation(small_net(), {}, MAMLModel(3))
    for fraction in (0.0, 1.5):
        with pytest.raises(ConfigError, match="fraction"):
            Federation(small_net(), blobs(), MAMLModel(3), fraction=fraction)
    with pytest.raises(ConfigError, match="local training"):
        LocalSteps(0)
    with pytest.raises(ConfigError, match="local training"):
        LocalSteps(rate=0.0)
    with pytest.raises(ConfigError, match="encoder"):
        Federation(torch.nn.Linear(6, 3).double(), blobs(), ProtoModel(3)).start()
    with pytest.raises(DataError, match="test pictures"):
        mean_accuracy({})


def test_small_clients_are_shared_out_between_support_and_query() -> None:
    y = torch.tensor([0, 0, 1, 1, 2])
    data = ClientData(torch.arange(5.0)[:, None], y, torch.zeros(0, 1), torch.zeros(0).long())
    for turn in range(20):
        task = MAMLModel(3, 4, 4).draw(data, generator_of(0, turn))
        support, query = (set(e.x.flatten().tolist()) for e in (task.support, task.query))
        assert not support & query and support | query == {0, 1, 2, 3, 4}
        task = ProtoModel(3, 4, 4).draw(data, generator_of(0, turn))
        assert task.support.y is not None and task.query.y is not None
        assert set(task.query.y.tolist()) <= set(task.support.y.tolist()) <= {0, 1}
        assert not set(task.support.x.flatten().tolist()) & set(task.query.x.flatten().tolist())
