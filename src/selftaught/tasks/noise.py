"""Randomness for a loss, brought by the task source: white noise in channels beside each picture.

A loss draws nothing here, for a step must repeat itself to the same bits. A method whose loss needs random numbers
(a mask, the draws of an augmentation) finds them in the channels behind the picture's own. Our choice.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.core.types import Task, TaskSource


@dataclass(frozen=True)
class NoiseBeside:
    """The tasks of `source` with `channels` of white noise, uniform on [0, 1), behind each support picture's own.

    `support.x` [(T) S C H W] becomes [(T) S C+channels H W]; the query stays as it is. The noise is drawn after
    the task, from the same generator, on the CPU. Raises ConfigError for fewer than one channel.
    """

    source: TaskSource
    channels: int = 1

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ConfigError(
                f"channels={self.channels}: noise needs one channel or more; use the source as it is"
            )

    def __call__(self, generator: torch.Generator) -> Task:
        task = self.source(generator)
        x = task.support.x
        noise = torch.rand(*x.shape[:-3], self.channels, *x.shape[-2:], generator=generator)
        return replace(task, support=replace(task.support, x=torch.cat([x, noise.to(x)], -3)))


def without_noise(x: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Pictures [... C H W] and their noise [... channels H W], of what `NoiseBeside` gave [... C+channels H W]."""
    return x[..., :-channels, :, :], x[..., -channels:, :, :]
