"""Our own side of every comparison: the work itself, and the library's implementations by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final, get_args, get_type_hints

import torch
from torch import Tensor

from benchmarks.peers.scripts.network import PREFIX
from benchmarks.peers.work import Step, Work
from benchmarks.peers.worker import Program
from benchmarks.variants import Shape, episodes, start
from selftaught.core.types import Examples, Method, Task
from selftaught.evaluate.fewshot import few_shot_on
from selftaught.methods.maml import MAML
from selftaught.methods.protonet import ProtoNet
from selftaught.nets.conv4 import Conv4
from selftaught.tasks.episodes import EpisodePlan, draw_episodes

HERE = "benchmarks.peers.own"
RATE = 0.1
"""Step size of every inner loop."""


@final
@dataclass(frozen=True)
class Implementation:
    """`graph` and `path` of MAML under the name that the table shows."""

    name: str
    graph: str
    path: str = "auto"
    algorithms: tuple[str, ...] = ("maml",)


IMPLEMENTATIONS: tuple[Implementation, ...] = (
    Implementation("selftaught", "auto", "auto", ("maml", "anil", "first-order")),
    Implementation("unrolled, loop", "unrolled", "loop", ("maml", "anil")),
    Implementation("unrolled, threads", "unrolled", "threads", ("maml", "anil")),
    Implementation("unrolled, batched", "unrolled", "batched", ("anil",)),
    Implementation("adjoint, loop", "adjoint", "loop"),
    Implementation("adjoint, threads", "adjoint", "threads"),
    Implementation("fused, loop", "fused", "loop"),
    Implementation("fused, threads", "fused", "threads"),
    Implementation("fused-remat, loop", "fused-remat", "loop"),
    Implementation("fused-remat, threads", "fused-remat", "threads"),
    Implementation("first-order, loop", "first-order", "loop", ("first-order",)),
    Implementation("first-order, threads", "first-order", "threads", ("first-order",)),
)
"""What the library offers; a new name is a line here, and one that the library does not know is left out."""


def programs(algorithm: str, only: tuple[str, ...] = ()) -> dict[str, Program]:
    """Those of `IMPLEMENTATIONS` for "maml", "anil" or "first-order" that the installed library knows."""
    hints = get_type_hints(MAML)
    return {
        one.name: Program(f"{HERE}:maml", options={"graph": _graph(one, algorithm), "path": one.path})
        for one in IMPLEMENTATIONS
        if algorithm in one.algorithms
        and (not only or one.name in only)
        and _graph(one, algorithm) in _words(hints["graph"])
        and one.path in _words(hints["path"])
    }


def _words(hint: Any) -> set[str]:
    """The words of a Literal or of a union of them."""
    found: set[str] = set()
    for one in get_args(hint):
        found |= {one} if isinstance(one, str) else _words(one)
    return found


def _graph(one: Implementation, algorithm: str) -> str:
    return "first-order" if algorithm == "first-order" else one.graph


def meta_work(shape: Shape, steps: int, algorithm: str) -> Work:
    """Pictures, labels and starting weights for a step of "maml", "anil", "first-order" or "protonet"."""
    tasks = episodes(shape)
    _, params, _ = start(MAML(), shape)  # ProtoNet's are those of the encoder among them
    assert tasks.support.y is not None and tasks.query.y is not None
    tensors: dict[str, Tensor] = {
        "support_x": tasks.support.x,
        "support_y": tasks.support.y,
        "query_x": tasks.query.x,
        "query_y": tasks.query.y,
    }
    tensors |= {PREFIX + k: v for k, v in params.items()}
    options = {
        "rate": RATE,
        "steps": steps,
        "ways": shape.ways,
        "size": shape.size,
        "first_order": algorithm == "first-order",
        "moving": "head" if algorithm == "anil" else "all",
    }
    return Work({k: v.contiguous() for k, v in tensors.items()}, options)


def maml(work: Work) -> Step:
    """The library's MAML as its training calls it: the loss, then the gradient."""
    o = work.options
    settings: Mapping[str, Any] = {k: o[k] for k in ("graph", "path", "moving")}
    tasks = _tasks(work)
    method = MAML(
        inner_steps=o["steps"], inner_rate=o["rate"], tasks=len(tasks.support.x), ways=tasks.ways, **settings
    )
    return _gradients(method, work, tasks, "")


def protonet(work: Work) -> Step:
    """The library's ProtoNet: loss and gradient."""
    tasks = _tasks(work)
    return _gradients(ProtoNet(tasks=len(tasks.support.x), ways=tasks.ways), work, tasks, "head.")


def _tasks(work: Work) -> Task:
    t = work.tensors
    support, query = Examples(t["support_x"], t["support_y"]), Examples(t["query_x"], t["query_y"])
    return Task(support, query, int(work.options["ways"]))


def _gradients(method: Method, work: Work, tasks: Task, without: str) -> Step:
    weights = {k.removeprefix(PREFIX): v for k, v in work.tensors.items() if k.startswith(PREFIX)}
    first = weights["encoder.blocks.0.conv.weight"]
    net = method.network(Conv4(first.shape[1], work.options["size"], first.shape[0])).to(first.dtype)
    weights = {k: v for k, v in weights.items() if not (without and k.startswith(without))}
    _, slow = method.init(net)

    def step() -> dict[str, Tensor]:
        leaves = {k: v.detach().requires_grad_() for k, v in weights.items()}
        loss, _ = method.loss(net, leaves, slow, tasks)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    return step


def evaluation_work(plan: EpisodePlan, features: int, classes: int, per_class: int, distance: str) -> Work:
    """Seeded random embeddings and the positions of every episode's pictures, drawn once for all."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, features, generator=generator)
    y = torch.arange(classes).repeat_interleave(per_class)
    x = centres[y] + 2 * torch.randn(len(y), features, generator=generator)
    drawn = draw_episodes(y, plan)
    tensors = {
        "features": x,
        "support": drawn.support,
        "query": drawn.query,
        "support_y": drawn.support_y,
        "query_y": drawn.query_y,
        "y": y,
    }
    sizes = {"ways": plan.ways, "shots": plan.shots, "queries": plan.queries, "episodes": plan.episodes}
    return Work(tensors, {"distance": distance, "head": "prototype", **sizes})


def evaluate(work: Work) -> Step:
    """The library's evaluation from cached embeddings on the same episodes."""
    o = work.options
    plan = EpisodePlan(o["ways"], o["shots"], o["queries"], o["episodes"])
    drawn = draw_episodes(work.tensors["y"], plan)
    distance = "squared" if o["distance"] == "euclidean" else "cosine"

    def step() -> dict[str, Tensor]:
        found = few_shot_on(work.tensors["features"], drawn, o["head"], distance)  # type: ignore[arg-type]
        return {"percent": found.per_episode}

    return step
