"""Learned prototypes: directions that embeddings are compared with."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class CosineScores(nn.Module):
    """[B D] -> [B K]: cosines with K learned prototypes `weight` [K D].

    Both sides are brought to length one in every pass, so the weight's length never counts and its gradient is
    orthogonal to it.
    """

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(prototypes, width), dim=-1))
        self.width = prototypes

    def forward(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        return F.normalize(z, dim=-1) @ F.normalize(self.weight, dim=-1).mT


class WithPrototypes(nn.Module):
    """Encoder, projector and the prototypes that its output is compared with (SwAV, DINO)."""

    def __init__(self, encoder: nn.Module, projector: nn.Module, prototypes: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.prototypes = prototypes

    def forward(self, x: Tensor) -> Tensor:
        return self.prototypes(self.projector(self.encoder(x)))
