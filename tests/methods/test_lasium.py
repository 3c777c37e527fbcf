"""LASIUM: its base learners to the bit, and a VAE that is the same after a stop."""

from typing import Any

import pytest
import torch
from small_tasks import VIEWS, distance, gradient, pictures, small

from selftaught.core.train import start, train
from selftaught.core.types import State
from selftaught.methods.lasium import LASIUM
from selftaught.methods.maml import MAML
from selftaught.methods.protonet import ProtoNet
from selftaught.methods.r2d2 import R2D2
from selftaught.optimizers.gradient import Gradient
from selftaught.tasks.interpolation import VAEPlan

SMALL: dict[str, Any] = {"latent": 4, "vae_hidden": 16, "vae_epochs": 2, "tasks": 2, "ways": 3, "queries": 2}


def lasium(**changes: Any) -> LASIUM:
    return LASIUM(**(SMALL | changes))


@pytest.mark.parametrize(
    ("base", "same"),
    [
        ("protonet", ProtoNet()),
        ("r2d2", R2D2()),
        ("maml", MAML(inner_steps=2, inner_rate=0.3, test_steps=4)),
        ("anil", MAML(inner_steps=2, inner_rate=0.3, test_steps=4, moving="head")),
    ],
)
def test_it_is_its_base_learner_on_other_tasks(base: Any, same: Any) -> None:
    method = lasium(base=base, inner_steps=2, inner_rate=0.3, test_steps=4)
    net, params, slow, tasks = small(method)
    (loss, slope), (other, found) = (gradient(m, net, params, slow, tasks) for m in (method, same))
    assert torch.equal(loss, other) and distance(slope, found) == 0
    assert method.learner(net) == same.learner(net)
    assert not any("vae" in k for k in params | slow)


def test_options_reach_the_source() -> None:
    changes = {"amount": 0.3, "shift": 0.1, "anchors": "prior", "towards": "classes", "vae_seed": 7}
    source = lasium(vae_rate=0.01, vae_batch=9, **changes).source(pictures(), VIEWS)
    assert source.plan == VAEPlan(hidden=16, latent=4, epochs=2, batch=9, rate=0.01, seed=7)
    assert (source.amount, source.shift, source.anchors, source.towards) == (0.3, 0.1, "prior", "classes")
    assert (source.ways, source.shots, source.queries, source.tasks) == (3, 1, 2, 2)


def test_the_seed_of_the_vae_is_not_that_of_training() -> None:
    one, other = (lasium(vae_seed=s, shift=0.0).source(pictures(), VIEWS) for s in (0, 1))
    a, b = (source(torch.Generator().manual_seed(0)) for source in (one, other))
    assert a.index is not None and b.index is not None
    assert torch.equal(a.index, b.index) and not torch.allclose(a.support.x, b.support.x)


def test_a_new_source_goes_on_from_the_same_bits() -> None:
    """Stopped after two steps, continued with a VAE trained again."""
    method = lasium()
    net = small(method)[0].float()
    optimizer = Gradient(rate=1e-2, schedule="constant")

    def after(state: State, steps: int) -> State:
        run = train(method, net, method.source(pictures(), VIEWS), optimizer, state, steps)
        return [state for state, _ in run][-1]

    whole = after(start(method, net, optimizer, 0), 4)
    resumed = after(after(start(method, net, optimizer, 0), 2), 4)
    assert all(torch.equal(resumed.params[k], whole.params[k]) for k in whole.params)
