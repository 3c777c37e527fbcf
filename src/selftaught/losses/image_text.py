"""The symmetric contrastive loss of pictures and their texts: whole, in chunks, and over several processes.

Radford et al. 2021, arXiv 2103.00020, figure 3. Leaving out pairs that belong together without being a pair is our
choice; the paper's batch counts them as negatives.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from selftaught.core.errors import ConfigError
from selftaught.core.sharing import sum_in_shares


def symmetric_info_nce(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    scale: Tensor | float,
    said: Bool[Tensor, "B B"] | None = None,
    *,
    chunk: int = 0,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of finding each picture's text and each text's picture; row i of both is one pair.

    L = scale * cos(image_i, text_j),  loss = (CE(rows of L, i) + CE(columns of L, i)) / 2

    Features are L2-normalised here; `scale` multiplies the cosine and is already exponentiated. Where text j is
    `said`[i, j] of picture i too, the two are left out of each other's denominators. Only `chunk` rows of L exist
    at a time (0: all), forwards and backwards: the value is the same, and each row is computed twice. Where
    processes share the work (`core.sharing`), each has the rows of its own pairs only.
    Raises ConfigError for shapes that do not pair up.
    """
    _check(image, text)
    if said is not None and said.shape != (len(image), len(image)):
        raise ConfigError(f"said is {tuple(said.shape)} for {len(image)} pairs: give [pictures texts]")
    scale = torch.as_tensor(scale, dtype=image.dtype, device=image.device)

    def of(rows: slice, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        other = (None, None) if said is None else (said[rows], said.mT[rows])
        own = (image[rows], text[rows])
        return _loss(own, (image, text), scale, other, rows.start, chunk) * (len(own[0]) / len(image))

    return sum_in_shares(of, len(image), image, text, scale)


def gathered_info_nce(
    image: Float[Tensor, "b D"],
    text: Float[Tensor, "b D"],
    scale: Tensor | float,
    together: Int64[Tensor, " b"] | None = None,
    *,
    chunk: int = 0,
) -> Float[Tensor, ""]:
    """`symmetric_info_nce` of the batch that all processes hold together, asked about this process's own pairs.

    Every process has b pairs and sees those of all as candidates; pairs with equal numbers in `together` are no
    negatives of each other. The mean over processes of this value, and of the gradients it gives, are those of one
    process with the whole batch: average gradients as usual. Without a process group there is one process.
    """
    _check(image, text)
    if together is not None and together.shape != image.shape[:1]:
        raise ConfigError(f"together is {tuple(together.shape)} for {len(image)} pairs: give one number a pair")
    if not (dist.is_available() and dist.is_initialized()):
        said = None if together is None else together[:, None] == together[None]
        return symmetric_info_nce(image, text, scale, said, chunk=chunk)
    other = None if together is None else together[:, None] == torch.cat(_all(together))[None]
    everyones = (gather_rows(image), gather_rows(text))
    return _loss((image, text), everyones, scale, (other, other), dist.get_rank() * len(image), chunk)


def gather_rows(x: Float[Tensor, "b D"]) -> Float[Tensor, "B D"]:
    """The rows of all processes, in their order; a gradient finds its way back to the process of each row."""
    return _Gather.apply(x)


def _loss(
    own: tuple[Tensor, Tensor],
    everyones: tuple[Tensor, Tensor],
    scale: Tensor | float,
    other: tuple[Tensor | None, Tensor | None],
    first: int,
    chunk: int,
) -> Tensor:
    """Own pictures and texts against everybody's; row i belongs to column `first` + i, and `other` says which
    columns are also true of it."""
    image, text = (F.normalize(z, dim=-1) for z in own)
    images, texts = (F.normalize(z, dim=-1) for z in everyones)
    scale = torch.as_tensor(scale, dtype=image.dtype, device=image.device)
    right = torch.arange(first, first + len(image), device=image.device)
    total = image.new_zeros(())
    for a, b, also in ((image, texts, other[0]), (text, images, other[1])):
        for rows in torch.arange(len(a), device=a.device).split(chunk or len(a)):
            arguments = (a[rows], b, scale, right[rows], None if also is None else also[rows])
            if chunk:
                # Logits are made again on the way back; nothing in them is random.
                total = total + checkpoint(_one_way, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                total = total + _one_way(*arguments)
    return total / (2 * len(image))


def _one_way(a: Tensor, b: Tensor, scale: Tensor, right: Tensor, also: Tensor | None) -> Tensor:
    """Summed cross-entropy of rows `a` [n D] over candidates `b` [B D]; row i is right at column `right`[i]."""
    logits = scale * (a @ b.mT)
    if also is not None:
        itself = torch.arange(len(b), device=b.device)[None] == right[:, None]
        logits = logits.masked_fill(also & ~itself, -torch.inf)
    return F.cross_entropy(logits, right, reduction="sum")


def _check(image: Tensor, text: Tensor) -> None:
    if image.ndim != 2 or image.shape != text.shape or not len(image):
        raise ConfigError(
            f"pictures {tuple(image.shape)} and texts {tuple(text.shape)} are no pairs: give one row [D] of each "
            "for every pair"
        )


def _all(x: Tensor) -> list[Tensor]:
    x = x.contiguous()
    found = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(found, x)
    return found


class _Gather(torch.autograd.Function):
    """Backwards: the sum over processes of the gradients for this process's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return torch.cat(_all(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]
