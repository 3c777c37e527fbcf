"""Contrast with pseudo-shots: against its slow form, by hand, and where it is another loss by another name."""

import math

import pytest
import torch
from torch import Tensor

from selftaught.losses.momentum_contrast import queue_contrast
from selftaught.losses.pseudo_shots import pseudo_shot_contrast, top_shots


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def slow(q: Tensor, queue: Tensor, member: Tensor, temperature: float) -> float:
    """Query by query, shot by shot."""
    candidates = [j for j in range(len(queue)) if any(member[b, j] for b in range(len(q)))]
    total = 0.0
    for b in range(len(q)):
        own = [j for j in range(len(queue)) if member[b, j]]
        below = sum(math.exp(cosine(q[b], queue[i]) / temperature) for i in candidates)
        total += sum(-math.log(math.exp(cosine(q[b], queue[j]) / temperature) / below) for j in own) / len(own)
    return total / len(q)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
@pytest.mark.parametrize("shots", [1, 3])
def test_it_equals_the_loop(shots: int, temperature: float) -> None:
    q, queue = normal(4, 3), 2 * normal(9, 3, seed=1)
    member = top_shots(normal(4, 9, seed=2), shots)
    assert 0 < int(member.any(0).sum()) < 9
    assert float(pseudo_shot_contrast(q, queue, member, temperature)) == pytest.approx(
        slow(q, queue, member, temperature), rel=1e-12
    )


def test_by_hand() -> None:
    """Two queries, their two shots at cosines 1 and -1, and an item that nobody chose."""
    q = torch.tensor([[2.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    queue = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    member = torch.tensor([[True, False, False], [False, True, False]])
    assert float(pseudo_shot_contrast(q, queue, member, 0.5)) == pytest.approx(math.log(1 + math.exp(-4)))


def test_one_item_for_everybody_asks_nothing() -> None:
    member = torch.zeros(4, 9, dtype=torch.bool)
    member[:, 5] = True
    q = normal(4, 3).requires_grad_()
    loss = pseudo_shot_contrast(q, normal(9, 3, seed=1), member, 0.2)
    assert float(loss.detach()) == 0 and not torch.autograd.grad(loss, q)[0].any()


def test_all_items_marked_for_all_is_the_mean_over_positives() -> None:
    q, queue = normal(4, 3), normal(9, 3, seed=1)
    logits = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(queue, dim=-1).mT / 0.2
    expected = (logits.logsumexp(-1) - logits.mean(-1)).mean()
    found = pseudo_shot_contrast(q, queue, torch.ones(4, 9, dtype=torch.bool), 0.2)
    assert torch.allclose(found, expected, rtol=1e-12)


def test_one_query_with_its_key_among_all_items_is_the_queues_contrast() -> None:
    """Where another query's shots are the rest of the queue, both losses of PsCo are one."""
    q, key, queue = normal(1, 3), normal(1, 3, seed=1), normal(7, 3, seed=2)
    items = torch.cat([key, queue])
    member = torch.zeros(2, 8, dtype=torch.bool)
    member[0, 0], member[1, 1:] = True, True
    both = pseudo_shot_contrast(torch.cat([q, q]), items, member, 0.3)
    logits = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(items, dim=-1).mT / 0.3
    rest = (logits.logsumexp(-1) - logits[:, 1:].mean(-1)).mean()
    assert torch.allclose(2 * both - rest, queue_contrast(q, key, queue, 0.3), rtol=1e-12)


def test_queries_alone_get_a_gradient() -> None:
    q, queue = normal(4, 3).requires_grad_(), normal(9, 3, seed=1).requires_grad_()
    member = top_shots(normal(4, 9, seed=2), 2)
    found = torch.autograd.grad(pseudo_shot_contrast(q, queue, member, 0.2), [q, queue], allow_unused=True)
    assert [g is None for g in found] == [False, True] and found[0].any()
    assert torch.autograd.gradcheck(lambda x: pseudo_shot_contrast(x, queue, member, 0.5), q)


def test_top_shots_marks_the_largest_of_each_row() -> None:
    codes = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]])
    assert top_shots(codes, 1).tolist() == [[False, True, False], [True, False, False]]
    assert top_shots(codes, 2).tolist() == [[False, True, True], [True, False, True]]
    assert top_shots(codes, 9).all()
