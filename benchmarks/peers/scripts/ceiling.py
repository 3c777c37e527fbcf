"""What this machine's convolutions and matrix products reach, measured in the same rounds as everything else."""

import time

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers.work import Step, Work

REPEATS = 4
PIXELS, WIDTH = 75 * 28 * 28, 64
SIDE = 1024
CONVOLUTION_FLOP = REPEATS * 2 * 9 * WIDTH * WIDTH * PIXELS
"""Floating-point operations of a step of `convolution`."""
PRODUCT_FLOP = REPEATS * 2 * SIDE**3
"""Floating-point operations of a step of `product`."""


def convolution(work: Work) -> Step:
    """Conv3x3 with 64 filters on 64 maps, on the batch, size and layout that are the fastest here."""
    weight = torch.randn(WIDTH, WIDTH, 3, 3)
    candidates: list[tuple[float, int, Tensor, Tensor]] = []
    for side in (28, 14, 7):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(PIXELS // side**2, WIDTH, side, side).to(memory_format=layout)
            w = weight.to(memory_format=layout)
            candidates.append((min(_seconds(x, w) for _ in range(3)), len(candidates), x, w))
    _, _, x, w = min(candidates)

    def step() -> None:
        for _ in range(REPEATS):
            F.conv2d(x, w, padding=1)

    return step


def product(work: Work) -> Step:
    """A product of two square matrices."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)

    def step() -> None:
        for _ in range(REPEATS):
            torch.mm(a, b)

    return step


def _seconds(x: Tensor, weight: Tensor) -> float:
    began = time.perf_counter()
    F.conv2d(x, weight, padding=1)
    return time.perf_counter() - began
