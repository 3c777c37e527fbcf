"""Gradient descent on the outer objective, with state as plain named tensors so that saving it is trivial."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from selftaught.core.errors import SelftaughtError
from selftaught.core.types import Aux, LossFn, Params

Schedule = Literal["cosine", "constant"]


class NotFiniteError(SelftaughtError):
    """The loss or its gradient became NaN or infinite; the last checkpoint is still good."""

    exit_code = 7


@dataclass(frozen=True)
class Gradient:
    """Adam or SGD with linear warm-up and a cosine (or constant) schedule over `steps` outer steps.

    `weight_decay` is decoupled (AdamW) and spares vectors: biases, normalisation scales.
    `clip` bounds the norm of the whole gradient; 0 leaves it. The update itself is torch's. `rates` are pairs
    (prefix, rate) for parameters whose names begin so; the first that fits holds, under the same schedule.
    """

    rate: float = 1e-3
    steps: int = 1000
    algorithm: Literal["adam", "sgd"] = "adam"
    schedule: Schedule = "cosine"
    warmup: int = 0
    weight_decay: float = 0.0
    momentum: float = 0.9
    clip: float = 0.0
    rates: tuple[tuple[str, float], ...] = ()

    def init(self, params: Params) -> Params:
        """Zero moments for every parameter and the step count."""
        names = ("mean", "square") if self.algorithm == "adam" else ("mean",)
        opt = {f"{name}/{k}": torch.zeros_like(v) for name in names for k, v in params.items()}
        return opt | {"step": torch.zeros(())}

    def rate_at(self, step: int, rate: float | None = None) -> float:
        """The learning rate of outer step `step`, counted from 0; `rate` takes the place of the general one."""
        rate = self.rate if rate is None else rate
        if step < self.warmup:
            return rate * (step + 1) / self.warmup
        if self.schedule == "constant":
            return rate
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def step(self, loss_fn: LossFn, params: Params, opt: Params) -> tuple[Params, Params, Aux]:
        """One outer step. New dictionaries come back; the tensors passed in keep their numbers."""
        leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
        loss, aux = loss_fn(leaves)
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        grads = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves.values(), gradients, strict=True)]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        if not bool(torch.isfinite(norm) & torch.isfinite(loss)):
            raise NotFiniteError(
                f"loss {loss.item():.3g}, gradient norm {norm.item():.3g} at outer step {int(opt['step'])}: "
                "nothing was updated. Lower the learning rate or the inner rate, or set a gradient clip."
            )
        if self.clip:
            # Not in place: gradients can share memory with each other.
            grads = list(torch._foreach_mul(grads, float((self.clip / (norm + 1e-12)).clamp(max=1))))
        with torch.no_grad():
            new, new_opt = self._update(params, grads, opt)
        metrics = {"loss": loss.detach(), "gradient_norm": norm.detach(), **aux.metrics}
        return new, new_opt, Aux(metrics, aux.buffers, aux.carry)

    def _update(self, params: Params, grads: list[Tensor], opt: Params) -> tuple[Params, Params]:
        new = {k: v.clone() for k, v in params.items()}
        moved = {k: v.clone() for k, v in opt.items()}
        groups: dict[tuple[bool, float], list[tuple[str, Tensor]]] = {}
        for (k, v), g in zip(new.items(), grads, strict=True):
            groups.setdefault((v.ndim > 1, self._rate_of(k)), []).append((k, g))
        for (decayed, rate), chosen in groups.items():
            now, decay = self.rate_at(int(opt["step"]), rate), self.weight_decay if decayed else 0.0
            self._apply([k for k, _ in chosen], [g for _, g in chosen], new, moved, now, decay)
        moved["step"] = opt["step"] + 1
        return new, moved

    def _rate_of(self, name: str) -> float:
        return next((rate for prefix, rate in self.rates if name.startswith(prefix)), self.rate)

    def _apply(
        self, names: list[str], grads: list[Tensor], new: Params, opt: Params, rate: float, decay: float
    ) -> None:
        values = [new[k] for k in names]
        means = [opt[f"mean/{k}"] for k in names]
        if self.algorithm == "adam":
            squares = [opt[f"square/{k}"] for k in names]
            counts = [opt["step"].clone() for _ in names]
            adamw(
                values, grads, means, squares, [], counts, foreach=True, amsgrad=False, beta1=0.9, beta2=0.999,
                lr=rate, weight_decay=decay, eps=1e-8, maximize=False,
            )  # fmt: skip
        else:
            # torch's SGD starts its buffer from the first gradient; a zero buffer gives the same from step two
            # and (1 - dampening) = 1 makes the first step equal as well.
            torch._foreach_mul_(values, 1 - rate * decay)
            sgd(
                values, grads, list(means), foreach=True, weight_decay=0.0, momentum=self.momentum, lr=rate,
                dampening=0.0, nesterov=False, maximize=False,
            )  # fmt: skip
