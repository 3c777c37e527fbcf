"""MetaOptNet against scikit-learn's optimum per task, its gradient by differences, and both kinds of tasks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from small_tasks import gradient, leaves_of, small
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply
from selftaught.methods.metaopt import MetaOptNet

METHOD = MetaOptNet(penalty=0.4, scale=2.0, tasks=2, ways=3, shots=2, queries=2, newton_steps=30, cg_steps=40)


@pytest.mark.parametrize("episodes", ["labels", "views"])
def test_the_loss_is_that_of_each_tasks_optimum(episodes: str) -> None:
    method = replace(METHOD, episodes=episodes)
    net, params, slow, tasks = small(method)
    loss, aux = method.loss(net, params, slow, tasks)
    both = torch.cat([tasks.support.x, tasks.query.x], 1)
    z = apply(net, params, both.flatten(0, 1), "batch").unflatten(0, both.shape[:2])
    losses = []
    for t in range(2):
        assert tasks.support.y is not None and tasks.query.y is not None
        peer = LogisticRegression(C=1 / 0.4, solver="newton-cg", tol=1e-12, max_iter=10_000)
        peer.fit(z[t, :6].numpy(), tasks.support.y[t].numpy())
        logits = torch.from_numpy(np.asarray(peer.decision_function(z[t, 6:].numpy())))
        losses.append(F.cross_entropy(2 * logits, tasks.query.y[t]))
    assert torch.allclose(loss, torch.stack(losses).mean(), rtol=1e-5)
    assert aux.metrics["inner_gradient"] < 1e-4


def test_the_gradient_reaches_the_encoder_through_the_optimum() -> None:
    """Along one random direction of all parameters, against central differences."""
    net, params, slow, tasks = small(METHOD, "group")
    _, found = gradient(METHOD, net, params, slow, tasks)
    generator = torch.Generator().manual_seed(3)
    along = {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in leaves_of(params).items()}

    def at(step: float) -> float:
        return float(METHOD.loss(net, {k: v + step * along[k] for k, v in params.items()}, slow, tasks)[0])

    expected = (at(1e-5) - at(-1e-5)) / 2e-5
    assert sum(float((found[k] * along[k]).sum()) for k in along) == pytest.approx(expected, rel=1e-4)
    assert all(found[k] != 0 for k in ("log_scale", "log_penalty"))


def test_nonsense_is_refused() -> None:
    for wrong in ({"penalty": 0.0}, {"scale": -1.0}, {"newton_steps": 0}, {"cg_steps": 0}):
        with pytest.raises(ConfigError, match="MetaOptNet"):
            MetaOptNet(**wrong)  # type: ignore[arg-type]
