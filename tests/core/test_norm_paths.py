"""The meta-gradient through every normalisation, on every path, against finite differences and the plain loop."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from selftaught.core.errors import ConfigError
from selftaught.core.functional import Norm, buffers_of, params_of, set_norm
from selftaught.core.over_tasks import Path, over_tasks
from selftaught.core.types import Examples, Params, Task
from selftaught.learners.inner import Graph, descend
from selftaught.nets.conv4 import Conv4, ConvBlock
from selftaught.nets.heads import width_of
from selftaught.nets.resnet import ResNet12, ResNet18
from selftaught.nets.vit import Block, ViT

TASKS, WIDTH, STEPS, RATE = 3, 4, 2, 0.4


@dataclass(frozen=True)
class Case:
    """A normalisation in the middle of a small smooth network, and the statistics it uses."""

    norm: Callable[[], nn.Module]
    shape: tuple[int, ...] = (4, 4)
    mode: Norm = "batch"


class OwnNorm(nn.Module):
    """A user's module that calls the function itself."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.shift = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.scale, self.shift)


class SmoothBlock(nn.Module):
    """The part of `ConvBlock` before pooling, with its channels-last copies; `tanh` for the kinks' sake."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(WIDTH, channels, 1)
        self.block = ConvBlock(channels, WIDTH, "batch")

    def forward(self, x: Tensor) -> Tensor:
        return self.block.norm(self.block._convolve(self.squeeze(x).tanh())).tanh()


class Tokens(nn.Module):
    """[B C L] as tokens through a transformer block or a layer norm on the last axis."""

    def __init__(self, below: nn.Module) -> None:
        super().__init__()
        self.below = below

    def forward(self, x: Tensor) -> Tensor:
        return self.below(x.transpose(1, 2)).transpose(1, 2)


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Conv2d(WIDTH, WIDTH, 3))


CASES: dict[str, Case] = {
    "none": Case(nn.Identity),
    "batch-1d": Case(lambda: nn.BatchNorm1d(WIDTH), ()),
    "batch-1d-of-sequences": Case(lambda: nn.BatchNorm1d(WIDTH), (5,)),
    "batch-2d": Case(lambda: nn.BatchNorm2d(WIDTH)),
    "batch-3d": Case(lambda: nn.BatchNorm3d(WIDTH), (2, 3, 2)),
    "batch-2d-without-affine": Case(lambda: nn.BatchNorm2d(WIDTH, affine=False)),
    "batch-2d-without-bias": Case(lambda: nn.BatchNorm2d(WIDTH, bias=False)),
    "batch-2d-that-keeps-no-statistics": Case(lambda: nn.BatchNorm2d(WIDTH, track_running_stats=False)),
    "batch-2d-running": Case(lambda: nn.BatchNorm2d(WIDTH), mode="running"),
    "batch-of-conv4": Case(lambda: SmoothBlock(WIDTH)),
    "batch-of-conv4-one-channel": Case(lambda: SmoothBlock(1)),
    "instance-1d": Case(lambda: nn.InstanceNorm1d(WIDTH, affine=True), (5,)),
    "instance-2d": Case(lambda: nn.InstanceNorm2d(WIDTH, affine=True)),
    "instance-2d-without-affine": Case(lambda: nn.InstanceNorm2d(WIDTH)),
    "instance-2d-running": Case(
        lambda: nn.InstanceNorm2d(WIDTH, affine=True, track_running_stats=True), mode="running"
    ),
    "group": Case(lambda: nn.GroupNorm(2, WIDTH)),
    "group-without-affine": Case(lambda: nn.GroupNorm(2, WIDTH, affine=False)),
    "layer": Case(lambda: Tokens(nn.LayerNorm(WIDTH)), (5,)),
    "layer-of-features": Case(lambda: nn.LayerNorm(WIDTH), ()),
    "layer-of-maps": Case(lambda: nn.LayerNorm([WIDTH, 4, 4])),
    "layer-without-affine": Case(lambda: nn.LayerNorm([WIDTH, 4, 4], elementwise_affine=False)),
    "layer-without-bias": Case(lambda: nn.LayerNorm([WIDTH, 4, 4], bias=False)),
    "layers-of-vit": Case(lambda: Tokens(Block(WIDTH, 2, 2)), (5,)),
    "root-mean-square": Case(lambda: nn.RMSNorm([WIDTH, 4, 4])),
    "local-response": Case(lambda: nn.LocalResponseNorm(2)),
    "weight": Case(lambda: parametrizations.weight_norm(nn.Conv2d(WIDTH, WIDTH, 3))),
    "weight-of-all-axes": Case(lambda: parametrizations.weight_norm(nn.Conv2d(WIDTH, WIDTH, 3), dim=None)),
    "weight-in-its-old-form": Case(old_weight_norm),
    "own-batch": Case(lambda: OwnNorm(lambda x, a, b: F.batch_norm(x, None, None, a, b, training=True))),
    "own-torch-batch": Case(
        lambda: OwnNorm(lambda x, a, b: torch.batch_norm(x, a, b, None, None, True, 0.1, 1e-5, False))
    ),
    "own-torch-instance": Case(
        lambda: OwnNorm(lambda x, a, b: torch.instance_norm(x, a, b, None, None, True, 0.1, 1e-5, False))
    ),
    "own-torch-layer": Case(
        lambda: Tokens(OwnNorm(lambda x, a, b: torch.layer_norm(x, [WIDTH], a, b))), (5,)
    ),
}  # fmt: skip


class Net(nn.Module):
    """[B 2 ...] -> [B 3]: a learned layer below the normalisation, without which no error would show."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.below = nn.Linear(2, WIDTH)
        self.norm = case.norm()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.below(x.movedim(1, -1)).movedim(-1, 1))
        return self.head(h.flatten(2).tanh().mean(2) if h.dim() > 2 else h.tanh())


@functools.cache
def problem(name: str) -> tuple[Net, Params, Params, Task]:
    torch.manual_seed(0)
    case = CASES[name]
    net = Net(case).double()
    params = {k: v + 0.5 * torch.randn_like(v) for k, v in params_of(net).items()}
    slow = {k: torch.rand_like(v) + 0.5 if v.is_floating_point() else v for k, v in buffers_of(net).items()}
    set_norm(net, case.mode)
    x = torch.randn(2, TASKS, 6, 2, *case.shape, dtype=torch.float64)
    y = torch.arange(3).repeat(TASKS, 2)
    return net, params, slow, Task(Examples(x[0], y), Examples(x[1], y), ways=3)


def objective(slow: Params, graph: Graph) -> Callable[[nn.Module, Params, Task], tuple[Tensor, dict[str, Tensor]]]:
    def one_task(net: nn.Module, params: Params, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
        support_y, query_y = task.support.y, task.query.y
        assert support_y is not None and query_y is not None

        def inner(w: Params, outer: tuple[Tensor, ...]) -> Tensor:
            return F.cross_entropy(functional_call(net, slow | w, (outer[0],)), support_y)

        moved = descend(inner, params, (task.support.x,), RATE, STEPS, graph)
        loss = F.cross_entropy(functional_call(net, slow | moved, (task.query.x,)), query_y)
        return loss, {"twice": 2 * loss}

    return one_task


def plain(net: nn.Module, leaves: Params, slow: Params, tasks: Task, second_order: bool) -> Tensor:
    """Mean loss by the loop as one would write it by hand."""
    losses = []
    assert tasks.support.y is not None and tasks.query.y is not None
    for t in range(TASKS):
        w = dict(leaves)
        for _ in range(STEPS):
            loss = F.cross_entropy(functional_call(net, slow | w, (tasks.support.x[t],)), tasks.support.y[t])
            slopes = torch.autograd.grad(loss, list(w.values()), create_graph=second_order)
            w = {k: v - RATE * g for (k, v), g in zip(w.items(), slopes, strict=True)}
        losses.append(F.cross_entropy(functional_call(net, slow | w, (tasks.query.x[t],)), tasks.query.y[t]))
    return torch.stack(losses).mean()


@functools.cache
def by_hand(name: str, second_order: bool) -> tuple[Tensor, Params]:
    """Value and gradient of the plain loop, right but for weight normalisation."""
    net, params, slow, tasks = problem(name)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    mean = plain(net, leaves, slow, tasks, second_order)
    return mean.detach(), dict(zip(leaves, torch.autograd.grad(mean, list(leaves.values())), strict=True))


def direction(params: Params) -> Params:
    generator = torch.Generator().manual_seed(1)
    return {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in params.items()}


@functools.cache
def by_differences(name: str) -> float:
    """The slope of the mean loss along `direction`: central differences of two sizes, extrapolated."""
    net, params, slow, tasks = problem(name)
    along = direction(params)

    def value(step: float) -> float:
        leaves = {k: (v + step * along[k]).requires_grad_() for k, v in params.items()}
        return float(plain(net, leaves, slow, tasks, second_order=False).detach())

    coarse, fine = ((value(h) - value(-h)) / (2 * h) for h in (4e-4, 2e-4))
    return (4 * fine - coarse) / 3


def gradient(name: str, path: Path, graph: Graph, **limits: float) -> tuple[Tensor, Params]:
    net, params, slow, tasks = problem(name)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    loss, figures = over_tasks(objective(slow, graph), net, leaves, tasks, path=path, workers=2, **limits)  # type: ignore[arg-type]
    assert torch.allclose(figures["twice"], 2 * loss.detach(), rtol=1e-14)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return loss.detach(), dict(zip(leaves, grads, strict=True))


def distance(a: Params, b: Params) -> float:
    """Relative, over all parameters together."""
    gap = torch.stack([(a[k] - b[k]).norm() for k in b]).norm()
    return float(gap / torch.stack([v.norm() for v in b.values()]).norm())


WAYS = [
    (path, graph) for path in ("loop", "threads", "batched") for graph in ("unrolled", "adjoint", "first-order")
]


@pytest.mark.parametrize(("path", "graph"), [*WAYS, ("batched by two", "unrolled")])
@pytest.mark.parametrize("name", list(CASES))
def test_every_normalisation_on_every_path(name: str, path: str, graph: Graph) -> None:
    limits = {"at_once": 2} if path == "batched by two" else {}
    way: Path = "batched" if limits else path  # type: ignore[assignment]
    if way == "batched" and graph == "adjoint":
        with pytest.raises(ConfigError, match="path='threads' or 'loop'"):
            gradient(name, way, graph, **limits)
        return
    loss, grads = gradient(name, way, graph, **limits)
    if graph != "first-order":  # which is the gradient of nothing
        along = direction(grads)
        slope = sum(float((g * along[k]).sum()) for k, g in grads.items())
        assert slope == pytest.approx(by_differences(name), rel=1e-6, abs=1e-8)
    if name.startswith("weight") and graph != "first-order":
        return  # The plain loop is what is wrong (tests/core/test_torch_facts.py).
    expected, plain_grads = by_hand(name, graph != "first-order")
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    assert distance(grads, plain_grads) < 1e-10


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("weight")])
def test_all_of_the_gradient_through_weight_normalisation(name: str) -> None:
    """Paths agree to the last parameter, where there is no right loop by hand to compare with."""
    _, expected = gradient(name, "loop", "unrolled")
    for path, graph in (("threads", "adjoint"), ("batched", "unrolled"), ("loop", "adjoint")):
        assert distance(gradient(name, path, graph)[1], expected) < 1e-10  # type: ignore[arg-type]


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "conv4-batch": lambda: Conv4(1, 16, 4),
    "conv4-group": lambda: Conv4(1, 16, 8, "group"),
    "conv4-none": lambda: Conv4(1, 16, 4, "none"),
    "resnet12-batch": lambda: ResNet12(1, (4, 4, 4, 4)),
    "resnet12-group": lambda: ResNet12(1, (8, 8, 8, 8), "group"),
    "resnet18-batch": lambda: ResNet18(1, width=16),
    "vit": lambda: ViT(1, width=8, depth=2, heads=2),
}


@pytest.mark.parametrize("name", list(ENCODERS))
def test_every_encoder_batched_is_the_loop(name: str) -> None:
    torch.manual_seed(0)
    encoder = ENCODERS[name]()
    net = nn.Sequential(encoder, nn.Linear(width_of(encoder), 3)).double()
    set_norm(net, "batch")
    x = torch.rand(2, 2, 6, 1, 16, 16, dtype=torch.float64)
    tasks = Task(
        Examples(x[0], torch.arange(3).repeat(2, 2)), Examples(x[1], torch.arange(3).repeat(2, 2)), ways=3
    )
    found = []
    for path in ("loop", "batched"):
        leaves = {k: v.requires_grad_() for k, v in params_of(net).items()}
        loss, _ = over_tasks(objective(buffers_of(net), "unrolled"), net, leaves, tasks, path=path)  # type: ignore[arg-type]
        found.append(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)))
    assert distance(found[1], found[0]) < 1e-10


def two_tasks(net: nn.Module, x: Tensor) -> Tensor:
    """The batched loss of two tasks of pictures."""
    params = {k: v.detach().requires_grad_() for k, v in net.named_parameters()}

    def one_task(net: nn.Module, params: Params, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return functional_call(net, params, (x,)).square().mean(), {}

    return over_tasks(one_task, net, params, x, path="batched")[0]


class ByName(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.scale)


BATCH_STATISTICS = (None, None, None, None, True, 0.1, 1e-5)


@pytest.mark.parametrize(
    ("name", "net"),
    [
        ("SyncBatchNorm", nn.Sequential(nn.Linear(4, 4), nn.SyncBatchNorm(4))),
        ("native_batch_norm", ByName(lambda x: torch.native_batch_norm(x, *BATCH_STATISTICS)[0])),
        ("native_batch_norm", ByName(lambda x: torch.ops.aten.native_batch_norm(x, *BATCH_STATISTICS)[0])),
        ("native_layer_norm", ByName(lambda x: torch.native_layer_norm(x, [4], None, None, 1e-5)[0])),
        ("layer_norm", ByName(lambda x: torch.ops.aten.native_layer_norm.default(x, [4], None, None, 1e-5)[0])),
        ("set_norm", nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))),
        ("set_norm", nn.InstanceNorm1d(5, affine=True, track_running_stats=True)),
    ],
)  # fmt: skip
def test_what_is_not_known_to_be_right_is_refused_by_name(name: str, net: nn.Module) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*path='loop'"):
        two_tasks(
            net, torch.rand(2, 6, 4) if name != "set_norm" or len(list(net.children())) else torch.rand(2, 6, 5, 4)
        )


def test_a_scripted_module_is_refused() -> None:
    """Its operations are not seen from Python."""
    net = nn.Sequential(nn.Linear(4, 4), torch.jit.trace(nn.LayerNorm(4), torch.rand(2, 4)))
    with pytest.raises(ConfigError, match=r"^1 is a .*path='loop'"):
        two_tasks(net, torch.rand(2, 6, 4))


def test_mixed_types_stay_as_torch_has_them() -> None:
    """Wide scales on narrow features, as in mixed precision."""
    net = nn.Sequential(nn.Flatten(1), nn.BatchNorm1d(4, track_running_stats=False))
    x = torch.rand(2, 6, 4, dtype=torch.bfloat16)
    seen: list[torch.dtype] = []

    def one_task(net: nn.Module, params: Params, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out = functional_call(net, params, (x,))
        seen.append(out.dtype)
        return out.float().square().mean(), {}

    for path in ("loop", "batched"):
        over_tasks(one_task, net, params_of(net), x, path=path)  # type: ignore[arg-type]
    assert set(seen) == {torch.bfloat16}


def test_outside_of_tasks_nothing_is_changed() -> None:
    """The treatment ends with the call, also after an error."""
    before = F.batch_norm(torch.arange(8.0).view(4, 2), None, None, training=True)
    with pytest.raises(ConfigError):
        two_tasks(nn.BatchNorm1d(4), torch.rand(2, 6, 4))
    assert torch.equal(F.batch_norm(torch.arange(8.0).view(4, 2), None, None, training=True), before)
    assert torch.overrides._get_current_function_mode_stack() == []
