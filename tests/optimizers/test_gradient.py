"""The outer optimiser against torch's own classes, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from selftaught.core.types import Aux, LossFn, Params
from selftaught.optimizers.gradient import Gradient, NotFiniteError

CURVE = torch.tensor([[3.0, 1.0], [1.0, 2.0]])


def start() -> Params:
    torch.manual_seed(0)
    return {"weight": torch.randn(3, 2), "bias": torch.randn(3), "scale": torch.randn(())}


def loss(params: Params) -> tuple[Tensor, Aux]:
    z = (params["weight"] @ CURVE).tanh() * params["scale"] + params["bias"].sin()[:, None]
    return z.square().sum(), Aux({"figure": z.detach().mean()}, {"buffer": z.detach()}, {"kept": z.detach()})


def run(optimizer: Gradient, steps: int, of: LossFn = loss) -> Params:
    params = start()
    opt = optimizer.init(params)
    for _ in range(steps):
        params, opt, _ = optimizer.step(of, params, opt)
    return params


def by_torch(kind: type[Any], rates: list[float], decay: float, **options: Any) -> Params:
    """torch's optimiser, with decay on matrices only."""
    params = {k: v.requires_grad_() for k, v in start().items()}
    vectors = [params["bias"], params["scale"]]
    groups = [{"params": [params["weight"]], "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = kind(groups, lr=1.0, **options)
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss(params)[0].backward()
        optimizer.step()
    return {k: v.detach() for k, v in params.items()}


def close(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=1e-5, atol=1e-6) for k in a)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_torchs_adamw(decay: float) -> None:
    optimizer = Gradient(rate=0.03, steps=6, warmup=2, weight_decay=decay)
    rates = [optimizer.rate_at(i) for i in range(6)]
    assert close(run(optimizer, 6), by_torch(torch.optim.AdamW, rates, decay))


def test_sgd_is_torchs_sgd() -> None:
    optimizer = Gradient(rate=0.03, steps=6, algorithm="sgd", momentum=0.8)
    rates = [optimizer.rate_at(i) for i in range(6)]
    assert close(run(optimizer, 6), by_torch(torch.optim.SGD, rates, 0.0, momentum=0.8))


def test_sgds_decay_is_decoupled() -> None:
    """One step without momentum: w - rate * decay * w - rate * g, on matrices only."""
    optimizer = Gradient(rate=0.1, schedule="constant", algorithm="sgd", momentum=0.0, weight_decay=0.5)
    leaves = {k: v.requires_grad_() for k, v in start().items()}
    slopes = dict(zip(leaves, torch.autograd.grad(loss(leaves)[0], list(leaves.values())), strict=True))
    expected = {k: v.detach() * (0.95 if k == "weight" else 1) - 0.1 * slopes[k] for k, v in leaves.items()}
    assert close(run(optimizer, 1), expected)


def test_the_schedule_warms_up_and_cools_down() -> None:
    optimizer = Gradient(rate=2.0, steps=12, warmup=2)
    assert [optimizer.rate_at(i) for i in (0, 1, 2)] == [1.0, 2.0, 2.0]
    assert optimizer.rate_at(7) == pytest.approx(1.0)
    assert optimizer.rate_at(11) == pytest.approx(1 + math.cos(math.pi * 0.9))
    assert optimizer.rate_at(12) == optimizer.rate_at(500) == pytest.approx(0)
    assert Gradient(rate=2.0, schedule="constant").rate_at(10**6) == 2.0


@pytest.mark.parametrize("algorithm", ["adam", "sgd"])
def test_what_was_handed_in_keeps_its_numbers(algorithm: Any) -> None:
    optimizer = Gradient(rate=0.1, algorithm=algorithm, weight_decay=0.1, clip=0.5)
    params = start()
    opt = optimizer.init(params)
    kept, opt_kept = ({k: v.clone() for k, v in d.items()} for d in (params, opt))
    new, moved, aux = optimizer.step(loss, params, opt)
    assert all(torch.equal(params[k], kept[k]) for k in params) and not params["bias"].requires_grad
    assert all(torch.equal(opt[k], opt_kept[k]) for k in opt)
    assert list(new) == list(params) and moved.keys() == opt.keys() and moved["step"] == 1
    assert not any(torch.equal(new[k], params[k]) for k in params)
    assert not any(v.requires_grad for v in (*new.values(), *moved.values()))
    assert (
        {"loss", "gradient_norm", "figure"} == aux.metrics.keys()
        and "buffer" in aux.buffers
        and "kept" in aux.carry
    )


def test_clipping_bounds_the_norm_of_the_whole_gradient() -> None:
    free = Gradient(rate=1.0, schedule="constant", algorithm="sgd", momentum=0.0)
    bound = Gradient(rate=1.0, schedule="constant", algorithm="sgd", momentum=0.0, clip=0.3)
    params = start()
    steps = []
    for optimizer in (free, bound):
        new, _, aux = optimizer.step(loss, params, optimizer.init(params))
        steps.append(torch.cat([(new[k] - params[k]).flatten() for k in params]))
        assert torch.allclose(aux.metrics["gradient_norm"], steps[0].norm(), rtol=1e-5)
    assert steps[0].norm() > 1 and torch.allclose(steps[1].norm(), torch.tensor(0.3), rtol=1e-4)
    assert torch.allclose(steps[1] / 0.3, steps[0] / steps[0].norm(), atol=1e-5)
    roomy = Gradient(rate=1.0, schedule="constant", algorithm="sgd", momentum=0.0, clip=1e6)
    assert close(run(roomy, 1), run(free, 1))


def test_clipping_gradients_that_share_memory() -> None:
    """A sum hands one expanded tensor to each parameter: scaling in place would fail, or count twice."""
    optimizer = Gradient(rate=1.0, schedule="constant", algorithm="sgd", momentum=0.0, clip=1.0)
    params = {"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}
    new, _, _ = optimizer.step(lambda p: ((p["a"] + p["b"]).sum(), Aux()), params, optimizer.init(params))
    assert all(torch.allclose(v, torch.full((2, 2), -(8**-0.5))) for v in new.values())


def test_a_parameter_outside_the_loss_stays() -> None:
    optimizer = Gradient(rate=0.1)
    params = start() | {"spare": torch.ones(2)}
    new, _, _ = optimizer.step(loss, params, optimizer.init(params))
    assert torch.equal(new["spare"], torch.ones(2))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["value", "slope"])
def test_not_finite_is_an_error_that_says_what_to_do(wrong: float, where: str) -> None:
    optimizer = Gradient()
    params = start()

    def broken(p: Params) -> tuple[Tensor, Aux]:
        value, aux = loss(p)
        if where == "value":
            return value + wrong, aux
        return value + (p["bias"].sum() - p["bias"].sum().detach()) * wrong, aux

    kept = {k: v.clone() for k, v in params.items()}
    with pytest.raises(NotFiniteError, match=r"step 0.*learning rate"):
        optimizer.step(broken, params, optimizer.init(params))
    assert all(torch.equal(params[k], kept[k]) for k in params)
