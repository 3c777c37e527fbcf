"""Few-shot classifiers on features, as pure functions over any number of leading episode axes.

Support rows are ordered by shot, then class (row `k * ways + n` is shot k of class n) unless labels `y` are
given, which also allows unequal counts. Sources: nearest prototype, Snell et al. 2017 (arXiv 1703.05175);
ridge, Bertinetto et al. 2019 (arXiv 1805.08136), here with an unpenalised intercept.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from selftaught.core.errors import ConfigError

Distance = Literal["cosine", "squared"]


def normalise(z: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """Rows of length one; a row of zeros stays as it is."""
    return F.normalize(z, dim=-1)


def one_hot(support: int, ways: int, y: Int64[Tensor, "... S"] | None, like: Tensor) -> Float[Tensor, "... S N"]:
    """Class membership of the support rows, in the type and on the device of `like`."""
    if y is None:
        if support % ways:
            raise ConfigError(f"{support} support rows do not divide into {ways} ways; pass their labels y")
        y = torch.arange(ways, device=like.device).repeat(support // ways)
    # A comparison, not F.one_hot: it passes through vmap.
    return (y.unsqueeze(-1) == torch.arange(ways, device=like.device)).to(like.dtype)


def prototypes(
    z: Float[Tensor, "... S D"], ways: int, y: Int64[Tensor, "... S"] | None = None
) -> Float[Tensor, "... N D"]:
    """The mean support feature of every class. A class without support gets a row of nan.

    Raises ConfigError where rows do not divide into `ways` and no labels are given.
    """
    member = one_hot(z.shape[-2], ways, y, z)
    if y is None:
        return z.unflatten(-2, (z.shape[-2] // ways, ways)).mean(-3)
    return (member.transpose(-1, -2) @ z) / member.sum(-2).unsqueeze(-1)


def distance_logits(
    z: Float[Tensor, "... Q D"], centres: Float[Tensor, "... N D"], distance: Distance = "cosine"
) -> Float[Tensor, "... Q N"]:
    """Minus the squared distance, or the cosine, of every query to every prototype."""
    if distance == "cosine":
        return normalise(z) @ normalise(centres).transpose(-1, -2)
    if distance == "squared":
        cross = z @ centres.transpose(-1, -2)
        return 2 * cross - z.square().sum(-1, keepdim=True) - centres.square().sum(-1).unsqueeze(-2)
    raise ConfigError(f"distance must be 'cosine' or 'squared', got {distance!r}")


def prototype_logits(
    support: Float[Tensor, "... S D"],
    query: Float[Tensor, "... Q D"],
    ways: int,
    y: Int64[Tensor, "... S"] | None = None,
    distance: Distance = "cosine",
) -> Float[Tensor, "... Q N"]:
    """Nearest-prototype logits. With "cosine" the prototype is the mean of the *normalised* support."""
    if distance == "cosine":
        support = normalise(support)
    return distance_logits(query, prototypes(support, ways, y), distance)


def ridge(
    z: Float[Tensor, "... S D"], target: Float[Tensor, "... S N"], penalty: float = 1.0
) -> tuple[Float[Tensor, "... D N"], Float[Tensor, "... N"]]:
    """Weight and intercept of least squares with `penalty` times the squared weight; closed form.

    The intercept is free of the penalty. Solves the smaller of the S x S (dual) and D x D (primal) systems;
    differentiable. Raises ConfigError unless `penalty` is above zero.
    """
    if penalty <= 0:
        raise ConfigError(f"the ridge penalty must be above 0, got {penalty}")
    mean_z, mean_t = z.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    x, t = z - mean_z, target - mean_t
    rows, width = x.shape[-2:]
    xt = x.transpose(-1, -2)
    eye = penalty * torch.eye(min(rows, width), dtype=z.dtype, device=z.device)
    if rows <= width:
        # Transposed twice: batched products with one long row a class are three times faster in this layout.
        weight = (torch.linalg.solve(x @ xt + eye, t).mT @ x).mT
    else:
        weight = torch.linalg.solve(xt @ x + eye, xt @ t)
    return weight, (mean_t - mean_z @ weight).squeeze(-2)


def ridge_logits(
    support: Float[Tensor, "... S D"],
    query: Float[Tensor, "... Q D"],
    ways: int,
    y: Int64[Tensor, "... S"] | None = None,
    penalty: float = 1.0,
) -> Float[Tensor, "... Q N"]:
    """Ridge regression from normalised features onto one-hot labels."""
    target = one_hot(support.shape[-2], ways, y, support)
    weight, bias = ridge(normalise(support), target, penalty)
    return normalise(query) @ weight + bias.unsqueeze(-2)


def logistic_logits(
    support: Float[Tensor, "S D"],
    query: Float[Tensor, "Q D"],
    ways: int,
    y: Int64[Tensor, " S"] | None = None,
    C: float = 1.0,
) -> Float[Tensor, "Q N"]:
    """scikit-learn's logistic regression on normalised features; one episode at a time, no gradient.

    `C` is the inverse penalty (the result depends on it and on the normalisation). Every class 0 .. ways - 1
    must have support; raises ConfigError otherwise.
    """
    # Here, because loading scikit-learn takes as long as loading torch and training has no use for it.
    from sklearn.linear_model import LogisticRegression

    rows = one_hot(len(support), ways, y, support).argmax(-1).cpu().numpy()
    if len(np.unique(rows)) != ways:
        raise ConfigError(f"logistic regression needs support for each of the {ways} classes")
    model = LogisticRegression(C=C, max_iter=1000)
    model.fit(normalise(support.detach()).double().cpu().numpy(), rows)
    scores = model.decision_function(normalise(query.detach()).double().cpu().numpy())
    if ways == 2:  # scikit-learn then gives one column
        scores = np.stack([-scores / 2, scores / 2], 1)
    return torch.from_numpy(scores).to(support)
