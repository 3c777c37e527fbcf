"""Contrastive losses as pure functions of embeddings. All temperatures divide cosine similarities."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def nt_xent(z: Float[Tensor, "V B D"], temperature: float) -> Float[Tensor, ""]:
    """Normalised-temperature cross-entropy over V views of B pictures (SimCLR, Chen et al. 2020, eq. 1).

    With more than two views every other view of the same picture is a positive, averaged outside the
    logarithm (SupCon's L_out, Khosla et al. 2020, eq. 2). Embeddings are L2-normalised here.
    """
    return nt_xent_tasks(z[None], temperature)


def nt_xent_tasks(z: Float[Tensor, "T V N D"], temperature: float) -> Float[Tensor, ""]:
    """`nt_xent` inside each of T tasks (negatives come from the same task only), averaged over tasks."""
    views, ways = z.shape[1:3]
    if views < 2:
        raise ValueError(f"nt_xent needs at least two views, got embeddings {tuple(z.shape)}")
    flat = F.normalize(z, dim=-1).flatten(1, 2)
    rows = views * ways
    itself = torch.eye(rows, dtype=torch.bool, device=z.device)
    logits = (flat @ flat.mT / temperature).masked_fill(itself, -torch.inf)
    log_p = F.log_softmax(logits, dim=-1).masked_fill(itself, 0.0)
    positive = torch.eye(ways, device=z.device, dtype=z.dtype).repeat(views, views).masked_fill(itself, 0.0)
    return -(log_p * positive).sum() / (z.shape[0] * rows * (views - 1))


def similarity_logits(
    z: Float[Tensor, "*T Q D"], prototypes: Float[Tensor, "*T N D"], temperature: float
) -> Float[Tensor, "*T Q N"]:
    """Cosine similarity to each prototype over the temperature: the posterior of instance classification."""
    return F.normalize(z, dim=-1) @ F.normalize(prototypes, dim=-1).mT / temperature


def squared_distance_logits(
    z: Float[Tensor, "*T Q D"], prototypes: Float[Tensor, "*T N D"]
) -> Float[Tensor, "*T Q N"]:
    """Minus the squared Euclidean distance (ProtoNet, Snell et al. 2017, eq. 2).

    On L2-normalised embeddings, divided by 2 * temperature, it equals `similarity_logits` up to a constant.
    """
    cross = z @ prototypes.mT
    return 2 * cross - (z * z).sum(-1, keepdim=True) - (prototypes * prototypes).sum(-1)[..., None, :]


def info_nce(
    z: Float[Tensor, "*T Q D"], prototypes: Float[Tensor, "*T N D"], y: Tensor, temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy of the similarity posterior against class `y` [*T Q] (one-directional InfoNCE)."""
    return cross_entropy(similarity_logits(z, prototypes, temperature), y)


def cross_entropy(logits: Float[Tensor, "*T Q N"], y: Tensor) -> Float[Tensor, ""]:
    """Mean cross-entropy over all leading axes."""
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def view_means(z: Float[Tensor, "*T VN D"], ways: int) -> Float[Tensor, "*T N D"]:
    """Mean embedding per picture, rows ordered by view, then picture (see `core.types.Task`)."""
    return F.normalize(z, dim=-1).unflatten(-2, (-1, ways)).mean(-3)
