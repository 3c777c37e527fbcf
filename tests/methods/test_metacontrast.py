"""MetaContrast: InfoNCE and ProtoCLR as special cases, ridge against R2D2's formula, soft labels, nonsense."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_tasks import distance, gradient, small
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.core.functional import apply
from selftaught.core.types import Examples, Params, Task
from selftaught.learners.heads import normalise, ridge
from selftaught.losses.contrastive import info_nce
from selftaught.methods.metacontrast import MetaContrast
from selftaught.methods.protoclr import ProtoCLR
from selftaught.nets.heads import EncoderOnly

PLAIN = MetaContrast(rotations=False, cutmix=0, batch=5, hidden=16, out=6)
FULL = MetaContrast(batch=4, hidden=16, out=6)


def embedded(net: nn.Module, params: Params, tasks: Task) -> tuple[Tensor, Tensor]:
    """Unit embeddings [T S D] and [T Q D], all pictures in one pass."""
    x = torch.cat([tasks.support.x, tasks.query.x], 1)
    z = normalise(apply(net, params, x.flatten(0, 1), "batch")).unflatten(0, x.shape[:2])
    support, query = z.tensor_split([tasks.support.x.shape[1]], 1)
    return support, query


def test_without_tricks_proto_is_info_nce() -> None:
    net, params, slow, tasks = small(PLAIN)
    loss, _ = PLAIN.loss(net, params, slow, tasks)
    support, query = embedded(net, params, tasks)
    assert tasks.query.y is not None
    assert torch.allclose(loss, info_nce(query, support, tasks.query.y, PLAIN.temperature), rtol=1e-12)


class Scaled(nn.Module):
    """Embeddings of length 1 / sqrt(2 tau)."""

    def __init__(self, net: nn.Module, temperature: float) -> None:
        super().__init__()
        self.net, self.width, self.temperature = net, 6, temperature

    def forward(self, x: Tensor) -> Tensor:
        return normalise(self.net(x)) / (2 * self.temperature) ** 0.5


def test_without_tricks_proto_is_protoclr_on_embeddings_of_its_length() -> None:
    """Gradient and all; three queries and two supports a class."""
    method = replace(PLAIN, support_views=2, query_views=3, temperature=0.3)
    net, params, slow, tasks = small(method)
    ours, slopes = gradient(method, net, params, slow, tasks)
    other: Any = EncoderOnly(Scaled(net, 0.3))
    named = [{f"encoder.net.{k}": v for k, v in part.items()} for part in (params, slow)]
    theirs, found = gradient(ProtoCLR(), other, named[0], named[1], tasks)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    assert distance({k.removeprefix("encoder.net."): v for k, v in found.items()}, slopes) < 1e-9


def test_ridge_is_ridge_on_unit_embeddings() -> None:
    method = replace(FULL, head="ridge", scale=3.0, penalty=0.5)
    net, params, slow, tasks = small(method)
    loss, _ = method.loss(net, params, slow, tasks)
    support, query = embedded(net, params, tasks)
    weight, bias = ridge(support, torch.eye(16, dtype=support.dtype)[None], 0.5)
    log_p = F.log_softmax(3 * (query @ weight + bias.unsqueeze(-2)), -1)
    assert tasks.query.y is not None and tasks.query.y.is_floating_point()
    by_hand = sum(-(tasks.query.y[0, q] * log_p[0, q]).sum() for q in range(16)) / 16
    assert torch.allclose(loss, torch.as_tensor(by_hand), rtol=1e-9)
    _, found = gradient(method, net, params, slow, tasks)
    assert found["log_scale"] != 0 and found["log_penalty"] != 0


def test_soft_labels_are_the_mean_of_two_losses() -> None:
    """A query that shows two classes costs what both would, by their shares."""
    net, params, slow, tasks = small(PLAIN)
    assert tasks.query.y is not None
    a = tasks.query.y
    b = a.flip(-1)
    soft = 0.3 * F.one_hot(a, 5).double() + 0.7 * F.one_hot(b, 5).double()

    def of(y: Tensor) -> Tensor:
        return PLAIN.loss(net, params, slow, replace(tasks, query=Examples(tasks.query.x, y)))[0]

    assert torch.allclose(of(soft), 0.3 * of(a) + 0.7 * of(b), rtol=1e-12)


def test_rotations_are_classes_and_the_network_fits_the_head() -> None:
    _, params, _, tasks = small(FULL)
    assert tasks.ways == 16 and tasks.support.x.shape[1] == 16 and "log_scale" not in params
    _, params, _, tasks = small(replace(FULL, head="ridge", rotations=False))
    assert tasks.ways == 4 and {"log_scale", "log_penalty"} <= params.keys()


def test_an_even_embedding_costs_the_logarithm_of_the_ways() -> None:
    """Whatever the head, a network that says the same of every picture knows nothing."""
    for head in ("proto", "ridge"):
        method = replace(FULL, head=head)
        net, params, slow, tasks = small(method)
        for k in ("projector.layers.2.weight", "projector.layers.2.bias"):
            params[k] = torch.zeros_like(params[k]) if k.endswith("weight") else torch.ones_like(params[k])
        loss, _ = method.loss(net, params, slow, tasks)
        assert torch.allclose(loss, torch.tensor(16.0, dtype=loss.dtype).log(), rtol=1e-6)


def test_nonsense_is_refused() -> None:
    for wrong in ({"temperature": 0.0}, {"scale": -1.0}, {"penalty": 0.0}, {"cutmix": 1.1}, {"cutmix": -0.1}):
        with pytest.raises(ConfigError, match="above 0"):
            MetaContrast(**wrong)  # type: ignore[arg-type]
