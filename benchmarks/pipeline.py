"""Views per second of the batched augmentation against kornia's, on one core."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import kornia.augmentation as K
import torch
from torch import Tensor

from benchmarks.measure import Seconds, environment, in_fresh_process, summary
from selftaught.artifacts.files import write_json
from selftaught.data.augment import augment
from selftaught.data.views import PHOTO

OWN, KORNIA = "selftaught augment", "kornia AugmentationSequential"


@final
@dataclass(frozen=True)
class Pipeline:
    """Crop, mirror, colour jitter, grey and blur on one batch of colour pictures, views per second."""

    rounds: int = 9
    """Times that each pipeline runs, in turns."""
    batch: int = 256
    """Pictures at once."""
    size: int = 32
    """Height and width in pixels."""
    out: Path = Path("benchmarks/results/pipeline.json")
    """Where the numbers go."""

    def run(self) -> None:
        """Measure in a fresh process, print, write."""
        options = ["--rounds", str(self.rounds), "--batch", str(self.batch), "--size", str(self.size)]
        found = in_fresh_process(["augmentation", *options])
        rounds = {name: [Seconds(**s) for s in each] for name, each in found.items()}
        rows = [{"variant": name} | summary(each, rounds[KORNIA]) for name, each in rounds.items()]
        for row in rows:
            row |= {f"{kind}_views_per_s": round(self.batch / row[f"{kind}_s"]) for kind in ("cpu", "wall")}
        content = {
            "command": " ".join(["python -m benchmarks pipeline", *options]),
            "environment": environment(),
            "baseline": KORNIA,
            "rows": rows,
        }
        write_json(self.out, content)
        print(f"{self.batch} pictures {self.size}x{self.size}x3, 1 thread; time is a ratio to {KORNIA}")
        print(f"{'':32}{'views/s cpu':>13}{'wall':>9}{'time cpu':>10}{'wall':>8}")
        for r in rows:
            views = f"{r['cpu_views_per_s']:13,}{r['wall_views_per_s']:9,}"
            print(f"{r['variant']:32}{views}{r['cpu_ratio']:10.3f}{r['wall_ratio']:8.3f}")
        print(f"written to {self.out}")


def pipelines(batch: int, size: int) -> dict[str, Callable[[], Tensor]]:
    """Both pipelines on the same uint8 pictures [B 3 H W]; each hands back float views of the same shape.

    The operations and their ranges are those of the PHOTO recipe. kornia clamps and draws an order between
    colour changes and turns the hue in HSV; its 3x3 blur has the standard deviation of our binomial one.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (batch, 3, size, size), generator=generator, dtype=torch.uint8)
    peer = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=PHOTO.crop, ratio=(3 / 4, 4 / 3)),
        K.RandomHorizontalFlip(p=PHOTO.flip),
        K.RandomGaussianBlur((3, 3), (0.85, 0.85), p=PHOTO.blur),
        K.ColorJitter(PHOTO.brightness, PHOTO.contrast, PHOTO.saturation, PHOTO.hue, p=PHOTO.jitter),
        K.RandomGrayscale(p=PHOTO.grey),
        data_keys=["input"],
        same_on_batch=False,
    )
    return {KORNIA: lambda: peer(x.float() / 255), OWN: lambda: augment(x, PHOTO, generator)}
