"""Two SimCLR views of every picture: lightly's transform, in process and through a loader; torchvision's v2.

All start from pictures in memory and end in float tensors in 0..1, without normalisation. Options of the work are
the recipe: `crop` (smallest area), `flip`, `brightness`, `contrast`, `saturation`, `hue`, `jitter`, `grey`.
"""

import benchmarks.peers.torchvision_operators  # noqa: F401 # isort: skip

from collections.abc import Mapping
from typing import Any

import torch
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2  # type: ignore[import-not-found]

from benchmarks.peers.work import Step, Work

BATCH = 256
"""Pictures of a batch of the loader."""


def in_process(work: Work) -> Step:
    """lightly's transform, picture by picture."""
    pictures, transform = _opened(work), _simclr(work)

    def step() -> None:
        torch.stack([view for picture in pictures for view in transform(picture)])

    return step


def loader(work: Work) -> Step:
    """The same as a dataset of a loader with `workers` processes that stay; a step is one pass."""
    workers = int(work.options["workers"])
    batches = DataLoader(
        _Views(_opened(work), _simclr(work)),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )

    def step() -> None:
        for _ in batches:
            pass

    return step


def torchvision_v2(work: Work) -> Step:
    """The same changes by torchvision's v2 on tensors, picture by picture, twice."""
    o, x = work.options, work.tensors["x"]
    jitter = v2.ColorJitter(o["brightness"], o["contrast"], o["saturation"], o["hue"])
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(x.shape[2:], scale=(o["crop"], 1.0)),
            v2.RandomHorizontalFlip(o["flip"]),
            v2.RandomApply([jitter], p=o["jitter"]),
            v2.RandomGrayscale(o["grey"]),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )

    def step() -> None:
        torch.stack([transform(picture) for picture in x for _ in range(2)])

    return step


class _Views(Dataset[list[Tensor]]):
    """Two views of each picture."""

    def __init__(self, pictures: list[Image.Image], transform: Any) -> None:
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> list[Tensor]:
        views: list[Tensor] = self.transform(self.pictures[index])
        return views


def _opened(work: Work) -> list[Image.Image]:
    return [Image.fromarray(x.permute(1, 2, 0).contiguous().numpy()) for x in work.tensors["x"]]


def _simclr(work: Work) -> Any:
    o: Mapping[str, Any] = work.options
    return SimCLRTransform(
        input_size=work.tensors["x"].shape[-1],
        cj_prob=o["jitter"],
        cj_strength=1.0,
        cj_bright=o["brightness"],
        cj_contrast=o["contrast"],
        cj_sat=o["saturation"],
        cj_hue=o["hue"],
        min_scale=o["crop"],
        random_gray_scale=o["grey"],
        gaussian_blur=0.0,
        hf_prob=o["flip"],
        normalize=None,
    )
