"""Hypergraph convolution in dense form, and PyG's `hyperedge_index` both ways.

Source: Bai, Zhang, Torr, "Hypergraph Convolution and Hypergraph Attention", 2019, arXiv 1901.08150, in the form
that PyG documents for its `HypergraphConv`, normalised by rows:

    X' = D^-1 H W B^-1 H^t X Theta,   D_n = sum_m w_m H_nm (nodes),   B_m = sum_n H_nm (hyperedges)

A node takes the weighted mean of its hyperedges, a hyperedge the mean of its nodes. Where a degree is zero the
mean is of nothing and the result 0 (PyG's rule too), so isolated nodes, empty hyperedges and padding need no mask.
Our choice: dense [B N M] incidence, because events are small and many, and `shift`, added to every hyperedge
before the nodes read it.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from selftaught.core.errors import DataError


def to_incidence(
    hyperedge_index: Int64[Tensor, "2 nnz"], nodes: int, edges: int | None = None
) -> Float[Tensor, "N M"]:
    """H [nodes edges] of 0 and 1 from PyG's form: row 0 the node, row 1 its hyperedge.

    `edges` is by default the largest number named, plus one. A pair named twice counts once: membership is a
    fact, not a number (PyG adds them up). Raises DataError for another shape or type and for numbers outside.
    """
    if hyperedge_index.ndim != 2 or len(hyperedge_index) != 2 or hyperedge_index.dtype != torch.int64:
        raise DataError(
            f"hyperedge_index is {hyperedge_index.dtype} {list(hyperedge_index.shape)}: give int64 [2, nnz], row "
            "0 nodes and row 1 hyperedges"
        )
    node, edge = hyperedge_index
    count = (int(edge.max()) + 1 if len(edge) else 0) if edges is None else edges
    for what, found, there in (("node", node, nodes), ("hyperedge", edge, count)):
        wrong = ((found < 0) | (found >= there)).nonzero().flatten()
        if len(wrong):
            column = int(wrong[0])
            raise DataError(
                f"hyperedge_index[:, {column}] = {hyperedge_index[:, column].tolist()} names {what} "
                f"{int(found[column])}, but there are {there}: number them from 0 to {there - 1}"
            )
    out = torch.zeros(nodes, count, device=hyperedge_index.device)
    out[node, edge] = 1
    return out


def to_hyperedge_index(incidence: Float[Tensor, "N M"]) -> Int64[Tensor, "2 nnz"]:
    """PyG's form of H, ordered by hyperedge, then node. Raises DataError where H is no matrix of 0 and 1."""
    if incidence.ndim != 2 or not bool(((incidence == 0) | (incidence == 1)).all()):
        raise DataError(f"an incidence matrix is [N M] of 0 and 1, not {list(incidence.shape)} of other numbers")
    edge, node = incidence.T.nonzero(as_tuple=True)
    return torch.stack([node, edge])


def hypergraph_mean(
    x: Float[Tensor, "*B N D"],
    incidence: Float[Tensor, "*B N M"],
    weight: Float[Tensor, "*B M"] | None = None,
    shift: Float[Tensor, " D"] | None = None,
) -> Float[Tensor, "*B N D"]:
    """D^-1 H W (B^-1 H^t x + shift): means to hyperedges and back; 0 for nodes without hyperedges.

    `weight` is W's diagonal, not negative, by default 1. Raises DataError for shapes that do not fit.
    """
    if incidence.shape[:-1] != x.shape[:-1]:
        raise DataError(f"an incidence of {list(incidence.shape)} has other nodes than features {list(x.shape)}")
    weighted = incidence if weight is None else incidence * weight[..., None, :]
    edges = _over(incidence.mT @ x, incidence.sum(-2))
    if shift is not None:
        edges = edges + shift
    return _over(weighted @ edges, weighted.sum(-1))


def _over(total: Tensor, degree: Tensor) -> Tensor:
    """total / degree, and 0 where the degree is 0, in the value and in every gradient."""
    return total * torch.where(degree > 0, 1 / torch.where(degree > 0, degree, 1), 0)[..., None]


class HypergraphLayer(nn.Module):
    """X [B N in_width], H [B N M] -> D^-1 H W B^-1 H^t X Theta + bias [B N out_width].

    Equal to PyG's `HypergraphConv(in_width, out_width, bias=bias)` with the same Theta, as long as no weights are
    given: PyG 2.7 leaves W out of the numerator (its issue 6918), the formula above does not. Without a bias nodes
    outside every hyperedge stay exactly 0. `shift`: learn a vector, zero at first, added to every hyperedge.
    """

    def __init__(self, in_width: int, out_width: int, *, bias: bool = False, shift: bool = False) -> None:
        super().__init__()
        self.theta = nn.Linear(in_width, out_width, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_width)) if bias else None
        self.shift = nn.Parameter(torch.zeros(out_width)) if shift else None

    def forward(self, x: Tensor, incidence: Tensor, weight: Tensor | None = None) -> Tensor:
        out = hypergraph_mean(self.theta(x), incidence, weight, self.shift)
        return out if self.bias is None else out + self.bias
