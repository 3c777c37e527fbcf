"""FCRL and its baselines on sets and on pictures: formulas written out, frozen encoders, runs that resume."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tasks import gradient, small
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from selftaught.artifacts.checkpoint import load_state, save_state
from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply, part
from selftaught.core.train import start, train
from selftaught.core.types import Method, Params, State, Task, TaskSource, merged
from selftaught.data.functions import Functions, draw_sinusoids
from selftaught.evaluate.fewshot import few_shot
from selftaught.learners.decoders import fit_decoder, normalised_error, represent
from selftaught.methods.fcrl import FCRL
from selftaught.methods.neural_processes import CNP, NP
from selftaught.nets import build_encoder
from selftaught.nets.sets import SetEncoder
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.episodes import EpisodePlan

FUNCTIONS = draw_sinusoids(60, points=12, noise=0.5)
METHODS: dict[str, Any] = {
    "fcrl": FCRL(hidden=16, out=8, batch=10),
    "cnp": CNP(hidden=16, batch=10),
    "np": NP(hidden=16, latent=4, batch=10),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def network(method: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return method.network(SetEncoder(hidden=16, width=8))


def on_sets(method: Any) -> tuple[nn.Module, Params, Params, Task]:
    net = network(method).double()
    task = method.source(FUNCTIONS)(torch.Generator().manual_seed(2))
    return net, *method.init(net), tree_map(lambda x: x.double() if x.is_floating_point() else x, task)


def run(method: Any, steps: int, state: State | None = None) -> State:
    net, optimizer = network(method), Gradient(3e-3, schedule="constant")
    state = state or start(method, net, optimizer, 0)
    *_, (state, _) = train(method, net, method.source(FUNCTIONS), optimizer, state, steps)
    return state


# -------------------------------------------------------------------------------------------- formulas


def test_fcrl_is_its_formula_function_by_function() -> None:
    net, params, slow, tasks = on_sets(METHODS["fcrl"])
    sets = torch.stack([tasks.support.x[0], tasks.query.x[0]])
    z = [[apply(net, params, sets[a, k : k + 1])[0] for k in range(10)] for a in range(2)]
    total = 0.0
    for a, b in ((0, 1), (1, 0)):
        for k in range(10):
            s = torch.stack([F.cosine_similarity(z[a][k], z[b][m], dim=0) for m in range(10)]) / 0.07
            total += float(torch.logsumexp(s, 0) - s[k]) / 20
    loss, _ = METHODS["fcrl"].loss(net, params, slow, tasks)
    assert float(loss) == pytest.approx(total, rel=1e-10)


def density(out: Tensor, y: Tensor) -> float:
    """log N(y; mean, 0.1 + 0.9 softplus(raw))."""
    deviation = 0.1 + 0.9 * math.log1p(math.exp(float(out[1])))
    return -((float(y - out[0]) / deviation) ** 2) / 2 - math.log(deviation) - 0.5 * math.log(2 * math.pi)


def test_cnp_tells_every_point_from_every_context() -> None:
    net, params, slow, tasks = on_sets(METHODS["cnp"])
    sets = torch.stack([tasks.support.x[0], tasks.query.x[0]])
    found = []
    for context in range(2):
        for k in range(10):
            r = apply(net, params, sets[context, k : k + 1])[0]
            for x, y in sets[:, k].flatten(0, 1):
                out = apply(net.get_submodule("decoder"), part(params, "decoder"), torch.cat([r, x[None]])[None])
                found.append(-density(out[0], y))
    assert len(found) == 2 * 10 * 12
    loss, _ = METHODS["cnp"].loss(net, params, slow, tasks)
    assert float(loss) == pytest.approx(sum(found) / len(found), rel=1e-10)


def test_np_is_the_evidence_bound_with_the_sources_draws() -> None:
    net, params, slow, tasks = on_sets(METHODS["np"])
    sets = torch.stack([tasks.support.x[0, ..., :2], tasks.query.x[0]])
    eps = tasks.support.x[0, :, 0, 2:]
    told, far = [], []

    def gaussian(points: Tensor) -> tuple[Tensor, Tensor]:
        out = apply(net, params, points[None])[0]
        return out[:4], 0.1 + 0.9 * torch.sigmoid(out[4:])

    for k in range(10):
        mean, deviation = gaussian(sets[:, k].flatten(0, 1))
        z = mean + deviation * eps[k]
        for x, y in sets[:, k].flatten(0, 1):
            out = apply(net.get_submodule("decoder"), part(params, "decoder"), torch.cat([z, x[None]])[None])
            told.append(density(out[0], y))
        for context in range(2):
            m, s = gaussian(sets[context, k])
            kl = (s / deviation).log() + (deviation**2 + (mean - m) ** 2) / (2 * s**2) - 0.5
            far.append(float(kl.sum()))
    loss, aux = METHODS["np"].loss(net, params, slow, tasks)
    bound = -sum(told) / len(told) + sum(far) / len(far) / 12
    assert float(loss) == pytest.approx(bound, rel=1e-10)
    assert float(aux.metrics["divergence"]) == pytest.approx(sum(far) / len(far), rel=1e-10)


# --------------------------------------------------------------------------------------------- training


@each_method
def test_the_same_sets_reach_the_encoder_in_all_three(method: Any) -> None:
    plain = METHODS["fcrl"].source(FUNCTIONS)(torch.Generator().manual_seed(4))
    task = method.source(FUNCTIONS)(torch.Generator().manual_seed(4))
    assert torch.equal(task.support.x[..., :2], plain.support.x) and torch.equal(task.query.x, plain.query.x)
    encoders = [{k: v for k, v in network(m).state_dict().items() if "encoder" in k} for m in METHODS.values()]
    assert all(torch.equal(e[k], encoders[0][k]) for e in encoders for k in encoders[0])


@each_method
def test_every_parameter_has_a_gradient_and_the_loss_falls(method: Any) -> None:
    _, slopes = gradient(method, *on_sets(method))
    assert all(v.any() for v in slopes.values())
    net, optimizer = network(method), Gradient(3e-3, schedule="constant")
    state = start(method, net, optimizer, 0)
    losses = [f["loss"] for _, f in train(method, net, method.source(FUNCTIONS), optimizer, state, 60)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 0.5


@each_method
def test_resumed_is_uninterrupted(method: Any, tmp_path: Path) -> None:
    source: object = method.source(FUNCTIONS)
    assert isinstance(method, Method) and isinstance(source, TaskSource)
    whole = run(method, 4)
    save_state(tmp_path / "half.safetensors", run(method, 2))
    resumed = run(method, 4, load_state(tmp_path / "half.safetensors"))
    assert all(torch.equal(whole.params[k], resumed.params[k]) for k in whole.params)
    assert torch.equal(whole.generator.get_state(), resumed.generator.get_state())


@each_method
def test_a_decoder_leaves_the_encoder_frozen_and_beats_a_constant(method: Any) -> None:
    net, state = network(method), run(method, 60)
    weights = merged(state.params, state.slow)
    before = {k: v.clone() for k, v in [*weights.items(), *net.state_dict().items()]}
    z = represent(net, weights, FUNCTIONS)
    assert z.shape == (60, 8) and not z.requires_grad and FUNCTIONS.truth is not None
    decoder = fit_decoder(z, FUNCTIONS.truth, "linear")
    assert normalised_error(decoder(z), FUNCTIONS.truth) < 0.8
    after = dict([*weights.items(), *net.state_dict().items()])
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert torch.equal(represent(net, weights, FUNCTIONS), z)


def test_decoders_read_the_encoder_and_not_the_projector() -> None:
    method = METHODS["fcrl"]
    net, state = network(method), run(method, 1)
    z = represent(net, state.params, FUNCTIONS)
    other = {k: v if k.startswith("encoder.") else v + 1 for k, v in state.params.items()}
    assert torch.equal(represent(net, other, FUNCTIONS), z)


@each_method
def test_classes_of_functions_are_told_apart_from_one_of_each(method: Any) -> None:
    """Large against small amplitude."""
    assert FUNCTIONS.truth is not None
    order = FUNCTIONS.truth[:, 0].argsort()
    classes = Functions(FUNCTIONS.x, FUNCTIONS.y, labels=order.argsort() // 20).take(
        torch.cat([order[:20], order[-20:]])
    )
    assert classes.labels is not None
    state = run(method, 60)
    z = represent(network(method), state.params, classes)
    assert few_shot(z, classes.labels // 2, EpisodePlan(2, 1, 5, 50)).mean > 70


# --------------------------------------------------------------------------------------------- pictures


def test_on_pictures_it_is_the_same_loss_of_blanked_views() -> None:
    method = FCRL(hidden=16, out=8, batch=6)
    net, params, slow, tasks = small(method)
    x = torch.cat([tasks.support.x[0], tasks.query.x[0]])
    assert not ((x[:6] > 0) & (x[6:] > 0)).any()
    z = F.normalize(apply(net, params | slow, x, "batch"), dim=-1)
    logits, right = z[:6] @ z[6:].T / 0.07, torch.arange(6)
    both = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    assert torch.allclose(method.loss(net, params, slow, tasks)[0], both, rtol=1e-9)


def test_what_needs_sets_refuses_an_encoder_of_pictures() -> None:
    for method in (CNP(), NP()):
        with pytest.raises(ConfigError, match="SetEncoder"):
            method.network(build_encoder("conv4", 1, 16, 0, width=8))
