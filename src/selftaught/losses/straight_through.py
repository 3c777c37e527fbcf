"""The value of one scalar with the gradient of another."""

from jaxtyping import Float
from torch import Tensor


def straight_through(value: Float[Tensor, "*B"], surrogate: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """`value` to look at, d `surrogate` to follow: for directions that are not the gradient of what is logged.

    The form of the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432). Both must be finite.
    """
    return value.detach() + (surrogate - surrogate.detach())
