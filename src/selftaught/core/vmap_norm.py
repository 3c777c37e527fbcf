"""Normalisation with a right second derivative, under `torch.func.vmap` and without.

Two errors of torch 2.13 make a meta-gradient wrong in silence; `tests/core` holds both against finite differences:

- Under `vmap`, batch, instance and layer normalisation take the saved mean and deviation for constants in the
  gradient of their scale, so its derivative by the input is wrong (torch's functorch issue 534). Without scale
  and shift they are right: here these are applied apart, by a product and a sum.
- Weight normalisation has a wrong second derivative everywhere. Here it is written out.
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from selftaught.core.errors import ConfigError

_WAY_OUT = "use path='loop' or 'threads'"


def second_order_norms(net: nn.Module, batched: bool) -> AbstractContextManager[Any]:
    """While it is entered, on this thread, the normalisations that `net` calls can be differentiated twice.

    It acts on torch's functions, so it holds for any module that calls them, and costs about a microsecond for
    each call of a torch function; not `batched` and without weight normalisation in `net` it does nothing. Raises
    ConfigError, now or while it is entered, for batched tasks with normalisation that would move running
    averages, that is not seen from here (synchronised, scripted), or that is not known to be right.
    """
    if batched:
        _check_modules(net)
        return _SecondOrderNorms(_BATCHED, refuse=re.compile("(batch|instance|layer)_?norm"))
    if any(_has_weight_norm(module) for module in net.modules()):
        return _SecondOrderNorms(_ANYWHERE)
    return contextlib.nullcontext()


@final
class _SecondOrderNorms(TorchFunctionMode):
    """Calls `table[func]` in place of `func`, and refuses other functions by their name."""

    def __init__(self, table: Mapping[Any, Callable[..., Tensor]], refuse: re.Pattern[str] | None = None) -> None:
        super().__init__()
        self._table = dict(table)
        self._refuse = refuse

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self._table:
            # The table learns what needs nothing, so that the name is looked at once.
            self._check_name(str(getattr(func, "__name__", "")))
            self._table[func] = func
        return self._table[func](*args, **(kwargs or {}))

    def _check_name(self, name: str) -> None:
        if self._refuse and self._refuse.search(name.lower()):
            raise ConfigError(
                f"{name} is not known to have a right second derivative in batched tasks: {_WAY_OUT}, or call "
                "torch.nn.functional.batch_norm, instance_norm or layer_norm"
            )


def _check_modules(net: nn.Module) -> None:
    for name, module in net.named_modules():
        if isinstance(module, nn.SyncBatchNorm | torch.jit.ScriptModule):
            raise ConfigError(
                f"{name or 'the network'} is a {type(module).__name__}, whose normalisation is not known to have "
                f"a right second derivative in batched tasks: {_WAY_OUT}"
            )


def _has_weight_norm(module: nn.Module) -> bool:
    """Weight normalisation in torch's new form (a parametrisation) or its old one (a hook)."""
    if type(module).__name__ == "_WeightNorm":
        return True
    return any(type(hook).__name__ == "WeightNorm" for hook in module._forward_pre_hooks.values())


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm`; the names of the arguments are torch's."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    _refuse_moving("batch_norm", running_mean, running_var)
    out = F.batch_norm(input, None, None, None, None, True, momentum, eps)
    return _affine(out, _by_channel(weight, out), _by_channel(bias, out))


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.instance_norm`."""
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    _refuse_moving("instance_norm", running_mean, running_var)
    out = F.instance_norm(input, None, None, None, None, True, momentum, eps)
    return _affine(out, _by_channel(weight, out), _by_channel(bias, out))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """`F.layer_norm` and `torch.layer_norm`."""
    return _affine(F.layer_norm(input, list(normalized_shape), None, None, eps), weight, bias)


def _torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """`torch.batch_norm`, whose arguments stand in another order."""
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _torch_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """`torch.instance_norm`, likewise."""
    return _instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _affine(out: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = out if weight is None else out * weight
    shifted = scaled if bias is None else scaled + bias
    # Mixed precision: wide parameters leave the type of the features alone, as in torch's own kernels.
    return shifted.to(out.dtype)


def _by_channel(x: Tensor | None, like: Tensor) -> Tensor | None:
    """[C] as [C 1 1 ...], to stand beside [B C ...]."""
    return None if x is None else x.view(-1, *[1] * (like.dim() - 2))


def _refuse_moving(name: str, *averages: Tensor | None) -> None:
    if any(a is not None for a in averages):
        raise ConfigError(
            f"{name} would move its running averages inside batched tasks, where no task comes first: call "
            f"set_norm(net, 'batch') and move them after the step (apply_update), or {_WAY_OUT}"
        )


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """`torch._weight_norm`: the direction of `v` along `dim` (-1: all of it) with length `g`."""
    axes = [d for d in range(v.dim()) if d != dim] if dim != -1 else list(range(v.dim()))
    return v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=True))


_ANYWHERE: dict[Any, Callable[..., Tensor]] = {torch._weight_norm: _weight_norm}

_BATCHED: dict[Any, Callable[..., Tensor]] = _ANYWHERE | {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    torch.batch_norm: _torch_batch_norm,
    torch.instance_norm: _torch_instance_norm,
    torch.layer_norm: _layer_norm,
}
