"""MAE on a task of its own: the loss written out, masks from the source alone, both kinds of encoder train."""

import dataclasses
from typing import Any

import pytest
import torch
from small_tasks import VIEWS, gradient, pictures, small
from torch import nn

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply
from selftaught.core.train import start, train
from selftaught.core.types import State
from selftaught.methods.mae import MAE
from selftaught.nets import build_encoder
from selftaught.nets.masked import hidden_patches
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.views import ViewTasks

METHOD = MAE(batch=6, hidden=8, heads=2)
ENCODERS: dict[str, dict[str, Any]] = {"conv4": {"width": 16}, "vit": {"width": 16, "depth": 2, "heads": 2}}


def network(method: MAE, name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return method.network(build_encoder(name, 1, 16, 0, **ENCODERS[name]))


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_the_formula_patch_by_patch(normalise: bool) -> None:
    method = dataclasses.replace(METHOD, normalise=normalise)
    net, params, slow, tasks = small(method)
    x = tasks.support.x[0]
    predicted = apply(net, params | slow, x, "batch")
    hidden = hidden_patches(x[:, 1:], 4, 0.75)
    errors, asked = [], []
    for b in range(6):
        for n in range(16):
            if hidden[b, n]:
                cell = x[b, 0, 4 * (n // 4) :, 4 * (n % 4) :][:4, :4].flatten()
                if normalise:
                    cell = (cell - cell.mean()) / (cell.var(correction=0) + 1e-6).sqrt()
                errors.append((predicted[b, n] - cell).square().mean())
                asked.append(cell)
    assert len(errors) == 6 * 12
    loss, aux = method.loss(net, params, slow, tasks)
    assert torch.allclose(loss, torch.stack(errors).mean(), rtol=1e-10)
    explained = 1 - loss / torch.stack(asked).var(correction=0)
    assert torch.allclose(aux.metrics["explained"], explained, rtol=1e-10)


def test_pictures_are_the_view_recipes_and_the_mask_is_the_generators() -> None:
    source = METHOD.source(pictures(), VIEWS)
    plain = ViewTasks(pictures(), VIEWS, 1, 6, 1, 0)
    masks = []
    for seed in (3, 3, 4):
        task = source(torch.Generator().manual_seed(seed))
        assert torch.equal(task.support.x[:, :, :1], plain(torch.Generator().manual_seed(seed)).support.x)
        assert task.query.x.shape == (1, 0, 1, 16, 16)
        masks.append(hidden_patches(task.support.x[0, :, 1:], 4, 0.75))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0][0], masks[0][1])


@pytest.mark.parametrize("name", ENCODERS)
def test_it_learns_more_than_the_mean_of_a_patch(name: str) -> None:
    method = MAE(batch=36, hidden=32, heads=2)
    net = network(method, name)
    optimizer = Gradient(rate=3e-3, schedule="constant")
    run = train(method, net, method.source(pictures(), VIEWS), optimizer, start(method, net, optimizer, 0), 40)
    log = [figures for _, figures in run]
    assert sum(f["loss"] for f in log[-5:]) < 0.8 * sum(f["loss"] for f in log[:5])
    assert sum(f["explained"] for f in log[-5:]) / 5 > 0.03


def test_a_vit_resumes_to_the_same_bits() -> None:
    method = dataclasses.replace(METHOD, batch=8)
    optimizer = Gradient(rate=1e-3, schedule="constant")
    source = method.source(pictures(), VIEWS)

    def after(state: State, steps: int) -> State:
        return [s for s, _ in train(method, network(method, "vit"), source, optimizer, state, steps)][-1]

    whole = after(start(method, network(method, "vit"), optimizer, 0), 4)
    halves = after(after(start(method, network(method, "vit"), optimizer, 0), 2), 4)
    assert all(torch.equal(v, halves.params[k]) for k, v in whole.params.items())


def test_the_class_token_is_taught() -> None:
    method = MAE(batch=6, hidden=8, heads=2)
    torch.manual_seed(0)
    net = method.network(build_encoder("vit", 1, 16, 0, pool="cls", **ENCODERS["vit"])).double()
    params, slow = method.init(net)
    tasks = small(method)[3]
    _, slopes = gradient(method, net, params, slow, tasks)
    assert slopes["encoder.cls"].any() and slopes["fill"].any() and slow == {}


def test_what_does_not_fit_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="16 x 16; use a patch that divides both"):
        MAE(patch=5).source(pictures(), VIEWS)
    with pytest.raises(ConfigError, match="fits more than once"):
        MAE(patch=16).source(pictures(), VIEWS)
    wide = dataclasses.replace(pictures(), x=pictures().x[:, :, :8])
    assert MAE(batch=2).source(wide, VIEWS)(torch.Generator()).support.x.shape == (1, 2, 2, 8, 16)
    for ratio in (0.0, 1.0, -1.0):
        with pytest.raises(ConfigError, match="use a ratio between 0 and 1"):
            MAE(ratio=ratio)
    with pytest.raises(ConfigError, match="use equal ones"):
        MAE(patch=4).network(build_encoder("vit", 1, 16, 0, patch=8, **ENCODERS["vit"]))
