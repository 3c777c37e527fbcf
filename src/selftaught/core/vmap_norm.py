"""Normalisation with a right second derivative, under `torch.func.vmap` and without.

Two errors of torch 2.13 make a meta-gradient wrong in silence; `tests/core` holds both against finite differences:

- Under `vmap`, batch, instance and layer normalisation take the saved mean and deviation for constants in the
  gradient of their scale, so its derivative by the input is wrong (functorch issue 534, open). Without scale
  and shift they are right: `BatchedNorms` applies these apart, by a product and a sum.
- Weight normalisation has a wrong second derivative everywhere: `write_out_weight_norm`.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from selftaught.core.errors import ConfigError

_NAMES = re.compile("(batch|instance|layer)_?norm", re.IGNORECASE)
_WAY_OUT = "use path='loop' or 'threads'"


@final
class BatchedNorms(TorchFunctionMode):
    """While it is entered, on this thread, normalisations under `vmap` can be differentiated twice.

    It acts on torch's functions (`F.batch_norm`, `torch.batch_norm` and so on), so it holds for any module that
    calls them. Raises ConfigError where a normalisation would move running averages, and where torch offers it in
    a form not known to be right. Every call of a torch function costs some microseconds more, which shows on
    small tasks: enter it where `has_norms` or `calls_norms` says so.
    """

    def __init__(self) -> None:
        super().__init__()
        self._table = dict(_BATCHED)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self._table:
            # The table learns what is right as it is, so that a name is looked at once.
            _check_name(str(getattr(func, "__name__", "")))
            self._table[func] = func
        return self._table[func](*args, **(kwargs or {}))


def has_norms(net: nn.Module) -> bool:
    """Whether a module of `net` is one of torch's normalisations of features."""
    return any(isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm) for module in net.modules())


def calls_norms(losses: Tensor) -> bool:
    """Whether the graph of `losses` holds batch, instance or layer normalisation, whoever called it.

    Looks at each node once: less than a microsecond a node. What leaves no node has no derivative to be wrong.
    """
    seen: set[Any] = set()
    ahead = [losses.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _NAMES.search(node.name()):
            return True
        ahead.extend(below for below, _ in node.next_functions)
    return False


def check_modules(net: nn.Module) -> None:
    """Raises ConfigError for a module that hides its normalisation from `BatchedNorms`."""
    for name, module in net.named_modules():
        if isinstance(module, nn.SyncBatchNorm | torch.jit.ScriptModule):
            raise ConfigError(
                f"{name or 'the network'} is a {type(module).__name__}, whose normalisation is not known to have "
                f"a right second derivative in batched tasks: {_WAY_OUT}"
            )


def _check_name(name: str) -> None:
    if _NAMES.search(name):
        raise ConfigError(
            f"{name} is not known to have a right second derivative in batched tasks: {_WAY_OUT}, or call "
            "torch.nn.functional.batch_norm, instance_norm or layer_norm"
        )


def has_weight_norm(net: nn.Module) -> bool:
    """Whether `net` holds torch's weight normalisation, as a parametrisation or as a hook."""
    return any(True for _ in _weight_norms(net))


def write_out_weight_norm(net: nn.Module) -> None:
    """Change the weight normalisations of `net` (a copy) to elementary operations, right to any order."""
    for norm in _weight_norms(net):
        if isinstance(norm, nn.Module):
            dim = norm.dim
            norm.forward = lambda g, v, dim=dim: _weight_norm(v, g, dim)
        else:
            norm.compute_weight = functools.partial(_hooked_weight, norm.name, norm.dim)


def _weight_norms(net: nn.Module) -> Iterator[Any]:
    for module in net.modules():
        if type(module).__name__ == "_WeightNorm":
            yield module
        yield from (h for h in module._forward_pre_hooks.values() if type(h).__name__ == "WeightNorm")


def _hooked_weight(name: str, dim: int, module: nn.Module) -> Tensor:
    return _weight_norm(getattr(module, name + "_v"), getattr(module, name + "_g"), dim)


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


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`F.group_norm`, which is right but takes no other memory layout under `vmap` (torch 2.13)."""
    return F.group_norm(input.contiguous(), num_groups, weight, bias, eps)


def _weight_norm(v: Tensor, g: Tensor, dim: int) -> Tensor:
    """`torch._weight_norm`: `v` with length `g` along all axes but `dim` (-1: along all)."""
    axes = [d for d in range(v.dim()) if dim == -1 or d != dim]
    return v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=True))


_BATCHED: dict[Any, Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.batch_norm: _torch_batch_norm,
    torch.instance_norm: _torch_instance_norm,
    torch.layer_norm: _layer_norm,
}
