"""Attention inside a graph and between two graphs, dense and masked.

Inside: Velickovic et al., "Graph Attention Networks", ICLR 2018, arXiv 1710.10903, eq. 1-5 (heads side by side,
no dropout). Between: scaled dot products, Vaswani et al. 2017, arXiv 1706.03762, section 3.2.2.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError


class GraphAttention(nn.Module):
    """X [B N D], adjacency [B N N] -> [B N out], row i reading the nodes j with adjacency[i, j].

        e_ij = LeakyReLU_0.2( a . [W x_i ; W x_j] ),   alpha = softmax of e over the neighbours j of i
        x'_i = sum_j alpha_ij W x_j,                   for each head, heads side by side

    No self-loops are added: put them into the adjacency. A node without neighbours gets 0.
    Raises ConfigError where `heads` does not divide `out`.
    """

    def __init__(self, width: int, out: int, heads: int = 4) -> None:
        super().__init__()
        _check(out, heads)
        self.heads = heads
        self.project = nn.Linear(width, out, bias=False)
        self.reads = nn.Parameter(torch.empty(heads, out // heads))
        self.gives = nn.Parameter(torch.empty(heads, out // heads))
        for part in (self.reads, self.gives):
            nn.init.xavier_uniform_(part)

    def forward(self, x: Float[Tensor, "B N D"], adjacency: Bool[Tensor, "B N N"]) -> Float[Tensor, "B N out"]:
        h = rearrange(self.project(x), "b n (k d) -> b k n d", k=self.heads)
        reads, gives = (torch.einsum("bknd,kd->bkn", h, a) for a in (self.reads, self.gives))
        score = F.leaky_relu(reads[..., None] + gives[..., None, :], 0.2)
        return rearrange(masked_softmax(score, adjacency[:, None]) @ h, "b k n d -> b n (k d)")


class CrossAttention(nn.Module):
    """Queries [B Q D] read nodes [B N D] that `present` [B N] names: multi-head, no biases, [B Q D].

    Where nothing is present the result is 0. Raises ConfigError where `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        _check(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, queries: Float[Tensor, "B Q D"], nodes: Float[Tensor, "B N D"], present: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B Q D"]:
        q = rearrange(self.query(queries), "b q (k d) -> b k q d", k=self.heads)
        k, v = rearrange(self.key_value(nodes), "b n (two k d) -> two b k n d", two=2, k=self.heads)
        weights = masked_softmax(q @ k.mT / q.shape[-1] ** 0.5, present[:, None, None])
        return self.out(rearrange(weights @ v, "b k q d -> b q (k d)"))


def masked_softmax(score: Float[Tensor, "*B N"], there: Bool[Tensor, "*B N"]) -> Float[Tensor, "*B N"]:
    """Softmax over the last axis where `there`, 0 elsewhere; a row of nothing is 0, with finite gradients."""
    # The most negative number instead of -inf: a row of -inf is NaN, also on the way back.
    kept = score.masked_fill(~there, torch.finfo(score.dtype).min)
    return kept.softmax(-1) * there


def _check(width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ConfigError(f"a width of {width} cannot be split into {heads} heads: choose a multiple")
