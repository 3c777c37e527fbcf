"""How many floating-point operations a meta-step needs: those of its convolutions, which are nearly all.

A multiplication and an addition count as two. With f_l the operations of convolution l on one picture, F their
sum and f_1 those of the first one (whose input needs no gradient), one picture costs

    forward                              F
    forward and backward                 3 F - f_1
    backward through that backward       6 F - 4 f_1     (four convolutions a layer for the derivative of the
                                                          two in it, two more through the forward pass; in the
                                                          first layer one and one)

so that K inner steps on S support pictures and a loss on Q query pictures cost, for each task,

    first order     (K S + Q) (3 F - f_1)
    second order    (K S + Q) (3 F - f_1) + K S (6 F - 4 f_1)
    only the head   (S + Q) (3 F - f_1)

This counts an implementation that repeats nothing; one that does more is not credited for it.
"""

from collections.abc import Sequence

from benchmarks.variants import Shape


def convolutions(shape: Shape) -> list[int]:
    """f_l: a 3x3 convolution of `width` filters on C maps of n x n pixels is 2 * 9 * C * width * n * n."""
    channels = [shape.channels] + [shape.width] * 3
    return [18 * c * shape.width * (shape.size >> layer) ** 2 for layer, c in enumerate(channels)]


def forward(f: Sequence[int]) -> int:
    """F of one picture."""
    return sum(f)


def backward_too(f: Sequence[int]) -> int:
    """Forward and backward of one picture."""
    return 3 * sum(f) - f[0]


def backward_twice(f: Sequence[int]) -> int:
    """What the second derivative of one picture's inner step adds."""
    return 6 * sum(f) - 4 * f[0]


def meta_step(shape: Shape, steps: int, algorithm: str) -> int:
    """All tasks of one step of "maml", "first-order" or "anil"."""
    f = convolutions(shape)
    support, query = shape.ways * shape.shots, shape.ways * shape.queries
    if algorithm == "anil":
        return shape.tasks * (support + query) * backward_too(f)
    once = (steps * support + query) * backward_too(f)
    twice = steps * support * backward_twice(f) if algorithm == "maml" else 0
    return shape.tasks * (once + twice)
