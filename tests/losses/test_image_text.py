"""The symmetric loss against loops, its identities, its chunks, and two processes against one."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from selftaught.core.errors import ConfigError
from selftaught.losses.image_text import gathered_info_nce, symmetric_info_nce


def pair(rows: int = 6, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return image, text


def slow_loss(image: Tensor, text: Tensor, scale: float, said: Tensor | None = None) -> float:
    """One pair at a time, cosines written out."""
    n, total = len(image), 0.0

    def logit(i: int, j: int) -> float:
        return scale * float(image[i] @ text[j] / (image[i].norm() * text[j].norm()))

    for i in range(n):
        texts = [j for j in range(n) if j == i or said is None or not said[i, j]]
        images = [j for j in range(n) if j == i or said is None or not said[j, i]]
        total += math.log(sum(math.exp(logit(i, j)) for j in texts)) - logit(i, i)
        total += math.log(sum(math.exp(logit(j, i)) for j in images)) - logit(i, i)
    return total / (2 * n)


def test_it_is_the_formula() -> None:
    image, text = pair()
    assert float(symmetric_info_nce(image, text, 7.0)) == pytest.approx(slow_loss(image, text, 7.0), rel=1e-12)
    said = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) < 0.4  # not symmetric, diagonal at random
    found = float(symmetric_info_nce(image, text, 7.0, said))
    assert found == pytest.approx(slow_loss(image, text, 7.0, said), rel=1e-12)
    assert found < float(symmetric_info_nce(image, text, 7.0))


def test_equal_features_cannot_be_told_apart() -> None:
    z = torch.ones(9, 4, dtype=torch.float64)
    assert float(symmetric_info_nce(z, z, 100.0)) == pytest.approx(math.log(9), abs=1e-12)
    everything = torch.ones(9, 9, dtype=torch.bool)
    assert float(symmetric_info_nce(z, z, 100.0, everything)) == pytest.approx(0, abs=1e-12)


def test_towers_can_be_swapped_and_pairs_permuted() -> None:
    image, text = pair()
    said = torch.eye(6, dtype=torch.bool).roll(1, 0)
    loss = symmetric_info_nce(image, text, 5.0, said)
    assert torch.allclose(symmetric_info_nce(text, image, 5.0, said.mT), loss, atol=1e-12)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = symmetric_info_nce(image[order], text[order], 5.0, said[order][:, order])
    assert torch.allclose(moved, loss, atol=1e-12)
    assert not torch.allclose(symmetric_info_nce(image[order], text, 5.0), loss, atol=1e-3)


def test_no_collision_leaves_the_papers_loss() -> None:
    image, text = pair()
    plain = symmetric_info_nce(image, text, 5.0)
    assert torch.equal(symmetric_info_nce(image, text, 5.0, torch.eye(6, dtype=torch.bool)), plain)


@pytest.mark.parametrize("chunk", [1, 4, 6, 50])
def test_chunks_give_the_same_value_and_gradients(chunk: int) -> None:
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    said = torch.eye(6, dtype=torch.bool).roll(2, 1)
    found = []
    for size in (0, chunk):
        image, text = (z.requires_grad_() for z in pair())
        loss = symmetric_info_nce(image, text, scale, said, chunk=size)
        found.append([loss, *torch.autograd.grad(loss, [image, text, scale])])
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*found, strict=True))


def test_chunks_keep_no_whole_matrix() -> None:
    """What is saved for the way back is no larger than a chunk of rows."""
    sizes: list[int] = []

    def note(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    image, text = (z.requires_grad_() for z in pair(40, 3))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        symmetric_info_nce(image, text, 5.0, chunk=4)
    assert max(sizes) < 40 * 40
    sizes.clear()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        symmetric_info_nce(image, text, 5.0)
    assert max(sizes) == 40 * 40


def test_what_is_no_pair_is_refused() -> None:
    image, text = pair()
    with pytest.raises(ConfigError, match="no pairs"):
        symmetric_info_nce(image[:4], text, 1.0)
    with pytest.raises(ConfigError, match="no pairs"):
        symmetric_info_nce(image[:0], text[:0], 1.0)
    with pytest.raises(ConfigError, match=r"said is \(2, 2\)"):
        symmetric_info_nce(image, text, 1.0, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ConfigError, match="together"):
        gathered_info_nce(image, text, 1.0, torch.zeros(3))


TOGETHER = torch.tensor([0, 1, 2, 0, 4, 1, 6, 4])


def test_without_a_group_there_is_one_process() -> None:
    image, text = pair(8)
    said = TOGETHER[:, None] == TOGETHER[None]
    assert torch.equal(gathered_info_nce(image, text, 5.0, TOGETHER), symmetric_info_nce(image, text, 5.0, said))
    assert torch.equal(gathered_info_nce(image, text, 5.0), symmetric_info_nce(image, text, 5.0))


def weights() -> list[Tensor]:
    """Two linear towers and a scale, the same in every process."""
    generator = torch.Generator().manual_seed(3)
    towers = [torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    return [*towers, torch.tensor(4.0, dtype=torch.float64, requires_grad=True)]


def share(rank: int, folder: str) -> None:
    """One of two processes: its half of the batch, and the mean over processes of what it gives."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    image, text = (z[4 * rank : 4 * rank + 4] for z in pair(8))
    a, b, scale = leaves = weights()
    loss = gathered_info_nce(image @ a, text @ b, scale, TOGETHER[4 * rank : 4 * rank + 4], chunk=3)
    found = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    for x in found:
        dist.all_reduce(x)
        x /= 2
    if rank == 0:
        torch.save(found, f"{folder}/found")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    spawn(share, args=(str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "found", weights_only=True)
    image, text = pair(8)
    a, b, scale = leaves = weights()
    loss = symmetric_info_nce(image @ a, text @ b, scale, TOGETHER[:, None] == TOGETHER[None])
    whole = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    assert all(torch.allclose(x, y, atol=1e-12) for x, y in zip(found, whole, strict=True))
