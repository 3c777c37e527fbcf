"""A network with a primary and an auxiliary task, and beside it the generator of the auxiliary labels."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selftaught.nets.heads import width_of


class LabelGenerator(nn.Module):
    """[B C H W] -> [B K]: logits of K auxiliary classes, from an encoder of its own."""

    def __init__(self, encoder: nn.Module, auxiliary: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width_of(encoder), auxiliary)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        return self.head(self.encoder(x))


class MultiTask(nn.Module):
    """[B C H W] -> [B M + K]: logits of M `classes`, then of K `auxiliary` ones, on a shared encoder.

    `generator` is no part of the forward pass. Its encoder starts as a copy of the shared one, numbers included.
    """

    def __init__(self, encoder: nn.Module, classes: int, auxiliary: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.primary = nn.Linear(width_of(encoder), classes)
        self.auxiliary = nn.Linear(width_of(encoder), auxiliary)
        self.generator = LabelGenerator(copy.deepcopy(encoder), auxiliary)
        self.classes = classes

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B MK"]:
        z = self.encoder(x)
        return torch.cat([self.primary(z), self.auxiliary(z)], -1)
