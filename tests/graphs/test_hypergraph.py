"""Hypergraph convolution and graph attention: slow loops, PyG where installed, nothing from nothing."""

import pytest
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError, DataError
from selftaught.graphs.attention import CrossAttention, GraphAttention, masked_softmax
from selftaught.graphs.hypergraph import HypergraphLayer, hypergraph_mean, to_hyperedge_index, to_incidence

INDEX = torch.tensor([[0, 1, 2, 1, 3, 0, 3], [0, 0, 0, 1, 1, 3, 3]])
"""Node 4 is in nothing, hyperedge 2 holds nothing."""


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slowly(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Node by node and hyperedge by hyperedge, from the list of pairs."""
    pairs = index.T.tolist()
    out = torch.zeros_like(x)
    for node in range(len(x)):
        degree, total = 0.0, torch.zeros_like(x[0])
        for edge in [e for n, e in pairs if n == node]:
            members = [n for n, e in pairs if e == edge]
            total = total + weight[edge] * sum(x[n] for n in members) / len(members)
            degree += float(weight[edge])
        if degree:
            out[node] = total / degree
    return out


def test_it_is_the_formula_node_by_node() -> None:
    x, weight = some(5, 3), torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
    h = to_incidence(INDEX, 5).double()
    assert h.shape == (5, 4)
    assert torch.allclose(hypergraph_mean(x, h, weight), slowly(x, INDEX, weight), atol=1e-12)
    layer = HypergraphLayer(3, 2, bias=True).double()
    assert layer.bias is not None
    torch.nn.init.normal_(layer.bias)
    wanted = slowly(x @ layer.theta.weight.T, INDEX, weight) + layer.bias
    assert torch.allclose(layer(x, h, weight), wanted, atol=1e-12)
    batched = layer(torch.stack([x, 2 * x]), torch.stack([h, h]), torch.stack([weight, weight]))
    assert torch.allclose(batched[0], wanted, atol=1e-12) and not torch.allclose(batched[1], wanted)


@pytest.mark.oracle
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_pygs(bias: bool) -> None:
    nn = pytest.importorskip("torch_geometric.nn")
    theirs, ours = nn.HypergraphConv(3, 2, bias=bias).double(), HypergraphLayer(3, 2, bias=bias).double()
    ours.theta.weight.data.copy_(theirs.lin.weight.data)
    x = some(5, 3)
    # Without weights: PyG 2.7 documents W but leaves it out of the numerator (its issue 6918).
    assert torch.allclose(ours(x, to_incidence(INDEX, 5).double()), theirs(x, INDEX, num_edges=4), atol=1e-12)


@pytest.mark.oracle
def test_attention_is_pygs() -> None:
    nn = pytest.importorskip("torch_geometric.nn")
    theirs, ours = (
        nn.GATConv(3, 2, heads=2, add_self_loops=False, bias=False).double(),
        GraphAttention(3, 4, 2).double(),
    )
    ours.project.weight.data.copy_(theirs.lin.weight.data)
    ours.reads.data.copy_(theirs.att_dst.data[0])
    ours.gives.data.copy_(theirs.att_src.data[0])
    x, adjacency = some(4, 3), torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]]).bool()
    edges = torch.stack(adjacency.T.nonzero(as_tuple=True))  # [source, target]
    assert torch.allclose(ours(x[None], adjacency[None])[0], theirs(x, edges), atol=1e-12)


def test_what_is_in_nothing_gets_nothing_and_no_nan() -> None:
    layer = HypergraphLayer(3, 2, shift=True).double()
    assert layer.shift is not None
    torch.nn.init.ones_(layer.shift)
    x = some(5, 3).requires_grad_()
    out = layer(x, to_incidence(INDEX, 5, edges=6).double())
    assert torch.equal(out[4], torch.zeros(2).double()) and bool((out[:4] != 0).all())
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert bool(gradient.isfinite().all()) and torch.equal(gradient[4], torch.zeros(3).double())
    nothing = layer(x, torch.zeros(5, 0).double())
    assert torch.equal(nothing, torch.zeros(5, 2).double())


def test_a_weight_of_zero_is_no_hyperedge() -> None:
    x, h = some(5, 3), to_incidence(INDEX, 5).double()
    without = torch.tensor([1.0, 1, 1, 0], dtype=torch.float64)
    assert torch.allclose(hypergraph_mean(x, h, without), hypergraph_mean(x, h[:, :3]), atol=1e-12)


def test_indices_go_both_ways() -> None:
    h = to_incidence(INDEX, 5)
    assert torch.equal(to_incidence(to_hyperedge_index(h), 5, edges=4), h)
    assert set(map(tuple, to_hyperedge_index(h).T.tolist())) == set(map(tuple, INDEX.T.tolist()))
    assert to_incidence(torch.empty(2, 0, dtype=torch.int64), 3).shape == (3, 0)
    assert torch.equal(to_incidence(torch.cat([INDEX, INDEX], 1), 5), h)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (torch.tensor([[0, 5], [0, 0]]), r"hyperedge_index\[:, 1\] = \[5, 0\] names node 5, but there are 5"),
        (torch.tensor([[-1], [0]]), "names node -1"),
        (torch.tensor([[0, 1], [0, 9]]), "names hyperedge 9, but there are 2"),
        (torch.tensor([[0.0], [0.0]]), "float32"),
        (torch.tensor([0, 1]), r"\[2, nnz\]"),
        (torch.zeros(3, 2, dtype=torch.int64), r"\[3, 2\]"),
    ],
)
def test_absent_nodes_are_named(index: Tensor, says: str) -> None:
    with pytest.raises(DataError, match=says):
        to_incidence(index, 5, edges=2)


def test_other_matrices_are_refused() -> None:
    with pytest.raises(DataError, match="0 and 1"):
        to_hyperedge_index(torch.full((2, 2), 0.5))
    with pytest.raises(DataError, match="other nodes"):
        hypergraph_mean(torch.zeros(3, 2), torch.zeros(4, 1))
    with pytest.raises(ConfigError, match="heads"):
        GraphAttention(4, 6, heads=4)


def test_graph_attention_is_its_formula() -> None:
    layer = GraphAttention(3, 4, heads=2).double()
    x, adjacency = some(4, 3), torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    found = layer(x[None], adjacency[None])[0]
    for head in range(2):
        w = layer.project.weight[2 * head : 2 * head + 2]
        a = torch.cat([layer.reads[head], layer.gives[head]])
        for i in range(4):
            near = [j for j in range(4) if adjacency[i, j]]
            total = torch.zeros(2).double()
            if near:
                score = [torch.nn.functional.leaky_relu(a @ torch.cat([w @ x[i], w @ x[j]]), 0.2) for j in near]
                total = sum(s * (w @ x[j]) for s, j in zip(torch.stack(score).softmax(0), near, strict=True))
            assert torch.allclose(found[i, 2 * head : 2 * head + 2], total, atol=1e-12)


def test_attention_reads_only_what_is_there() -> None:
    layer = CrossAttention(4, heads=2).double()
    queries, nodes, there = some(2, 3, 4), some(2, 5, 4, seed=1), torch.tensor([[1, 1, 0, 0, 0], [0] * 5]).bool()
    found = layer(queries, nodes, there)
    assert torch.equal(found[1], torch.zeros(3, 4).double())
    assert torch.allclose(found[0], layer(queries[:1], nodes[:1, :2], there[:1, :2])[0], atol=1e-12)
    score = torch.zeros(2, 2, requires_grad=True)
    soft = masked_softmax(score, torch.tensor([[True, False], [False, False]]))
    assert soft.tolist() == [[1, 0], [0, 0]]
    assert bool(torch.autograd.grad(soft.square().sum(), score)[0].isfinite().all())
