"""Low-rank adapters: a network's own weights stay, and small products are added to some of them.

Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685, section 4.1:

    W = W_0 + B A,   A [r, in] random,  B [out, r] zero at the start, so that nothing changes before training

The paper's: product, start and that after training it is added once and costs nothing. Our choice: its factor
alpha / r is 1 (the rate does the same under Adam, as the paper says); every linear layer, convolution (as a matrix
[out, in * height * width]) and the queries, keys and values of torch's attention have one, except where it would
not be smaller than the weight; biases, scales and shifts of the network stay too.
"""

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from selftaught.core.errors import ConfigError
from selftaught.core.types import Params


@final
class Adapters(nn.Module):
    """Products of rank `rank` for the weights of `net`, and its other numbers as buffers that nothing trains.

    Names of `net`'s tensors stay as they are. Raises ConfigError for a rank below 1, or one that no weight is
    large enough for.
    """

    def __init__(self, net: nn.Module, rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise ConfigError(f"the rank of adapters is at least 1, got {rank}")
        chosen = {k: v.detach() for k, v in adaptable(net).items() if rank * sum(_sides(v)) < v.numel()}
        if not chosen:
            raise ConfigError(f"no weight of this network is large enough for adapters of rank {rank}: lower it")
        self.names = tuple(chosen)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, weight in chosen.items():
            rows, columns = _sides(weight)
            start = torch.empty(rank, columns, dtype=weight.dtype)
            # As nn.Linear starts: uniform, bounded by the root of one over the inputs.
            self.down[_key(name)] = nn.Parameter(nn.init.kaiming_uniform_(start, a=math.sqrt(5)))
            self.up[_key(name)] = nn.Parameter(weight.new_zeros(rows, rank))
        _freeze(net)

    def weights(self, net: nn.Module) -> Params:
        """The weights of `net` with what was learned, under its own names; a gradient flows to both factors."""
        return {name: self._sum(name, net.get_buffer(name)) for name in self.names}

    def _sum(self, name: str, weight: Tensor) -> Tensor:
        return weight + (self.up[_key(name)] @ self.down[_key(name)]).reshape(weight.shape)

    @torch.no_grad()
    def merge_into(self, net: nn.Module) -> None:
        """Add what was learned to the weights of `net`, in place."""
        for name, weight in self.weights(net).items():
            net.get_buffer(name).copy_(weight)


def adaptable(net: nn.Module) -> Params:
    """The weights of linear layers, convolutions and torch's attention, each once, by name."""
    found: Params = {}
    for path, module in net.named_modules():
        name = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        weight = module._parameters.get(name)
        if weight is not None and isinstance(module, nn.Linear | _ConvNd | nn.MultiheadAttention):
            found[f"{path}.{name}" if path else name] = weight
    return found


def _sides(weight: Tensor) -> tuple[int, int]:
    """Rows and columns of a weight as a matrix."""
    return len(weight), weight[0].numel()


def _key(name: str) -> str:
    """Names of parameters have no dots."""
    return name.replace(".", "-")


def _freeze(net: nn.Module) -> None:
    """Turn every parameter of `net` into a buffer of the same name."""
    for module in net.modules():
        for name, tensor in list(module.named_parameters(recurse=False)):
            del module._parameters[name]
            module.register_buffer(name, tensor.detach())
