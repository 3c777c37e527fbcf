"""parallel-metalearn: all tasks in one `vmap`, as its example sets it up; its outer optimiser does not move."""

from itertools import repeat

import torch
from metalearn.algorithms import MAML  # type: ignore[import-not-found]
from metalearn.inner_optimizers import InnerSGD  # type: ignore[import-not-found]
from metalearn.loss import CategoricalAccuracy, CrossEntropy  # type: ignore[import-not-found]
from metalearn.model_wrappers import MAML_Model  # type: ignore[import-not-found]
from torch import Tensor

from benchmarks.peers.scripts.network import gradients, network
from benchmarks.peers.work import Step, Work


def maml(work: Work) -> Step:
    """All tasks at once, which is its default up to 80 tasks."""
    return _build(work, None)


def anil(work: Work) -> Step:
    """Only the head moves."""
    return _build(work, "ANIL")


def _build(work: Work, moving: str | None) -> Step:
    net = network(work)
    model = MAML_Model(backbone=net.encoder, head=net.head, fast_weights_names=moving)
    inner = InnerSGD(
        initial_fast_weights=model.get_fast_weights(),
        inner_lr=work.options["rate"],
        first_order=bool(work.options.get("first_order")),
        learn_lr=False,
    )
    for rate in inner.parameters():
        # It keeps the rate in float32, which would round it for float64 weights.
        rate.data = torch.full_like(rate, work.options["rate"], dtype=net.head.weight.dtype)
    algorithm = MAML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        inner_optimizer=inner,
        support_loss_fn=CrossEntropy(metric_fn=CategoricalAccuracy()),
        inner_steps=work.options["steps"],
        device=torch.device("cpu"),
    )
    t = work.tensors
    batch = (t["support_x"], {"labels": t["support_y"]}, t["query_x"], {"labels": t["query_y"]})

    def step() -> dict[str, Tensor]:
        algorithm.step(repeat(batch), training=True)
        return {k.replace("backbone.", "encoder."): g for k, g in gradients(model).items()}

    return step
