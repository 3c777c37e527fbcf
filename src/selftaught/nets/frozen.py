"""Batch normalisation that keeps the statistics a network came with."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught.core.errors import ConfigError


@final
class FrozenNorm(nn.Module):
    """Batch normalisation by the statistics it came with: a scale and a shift per channel, both still trained.

    Names of tensors are those of the module it stands for, whose parts (timm joins an activation to it) run after
    it. No statistic moves, so tasks may run batched and every derivative is that of a product and a sum.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None:
            raise ConfigError(
                "a batch normalisation without running statistics cannot be frozen: use norm='batch'"
            )
        self.eps, self.num_features = norm.eps, norm.num_features
        for name, tensor in norm.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(tensor.detach().clone()))
        for name, statistic in norm.named_buffers(recurse=False):
            self.register_buffer(name, statistic.detach().clone())
        for name, module in norm.named_children():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = getattr(self, "weight", None), getattr(self, "bias", None)
        scale: Tensor = torch.rsqrt(self.running_var + self.eps)
        scale = scale if weight is None else scale * weight
        shift = -self.running_mean * scale
        shift = shift if bias is None else shift + bias
        shape = (1, -1, *[1] * (x.ndim - 2))
        x = x * scale.view(shape) + shift.view(shape)
        for module in self.children():
            x = module(x)
        return x


def freeze_statistics(net: nn.Module) -> nn.Module:
    """`net` with every batch normalisation replaced by a `FrozenNorm` of the same tensors."""
    if isinstance(net, _BatchNorm):
        return FrozenNorm(net)
    for name, child in list(net.named_children()):
        setattr(net, name, freeze_statistics(child))
    return net
