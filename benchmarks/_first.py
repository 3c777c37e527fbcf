"""The process that `first_step` times; prints JSON. Loads only the standard library before its clock runs."""

import json
import os
import sys
import time

STAGES = ("torch loaded", "library loaded", "first step", "second step")
"""What the process reports, in this order; all but the last count from its start."""
BEGAN = "SELFTAUGHT_BENCHMARK_BEGAN"
"""The variable that says when it was started."""


def stages(method: str, size: int, threads: int) -> dict[str, dict[str, float]]:
    """In the new process: everything that a program of a few lines does."""
    began = float(os.environ.get(BEGAN, "nan"))

    def now() -> dict[str, float]:
        return {"cpu": time.process_time(), "wall": time.monotonic() - began}

    import torch

    torch.set_num_threads(threads)
    marks = [now()]
    from selftaught.core.train import start, train
    from selftaught.data.strokes import draw_strokes
    from selftaught.data.views import GLYPH
    from selftaught.methods import METHODS
    from selftaught.nets import build_encoder
    from selftaught.optimizers.gradient import Gradient

    marks.append(now())
    pictures = draw_strokes(classes=24, per_class=24, size=size, seed=0)
    made = METHODS[method]()
    net, optimizer = made.network(build_encoder("conv4", 1, size, 0)), Gradient(steps=2)
    taken = train(made, net, made.source(pictures, GLYPH), optimizer, start(made, net, optimizer, 0), 2)
    marks += [now() for _ in taken]
    marks[-1] = {kind: marks[-1][kind] - marks[-2][kind] for kind in marks[-1]}
    return dict(zip(STAGES, marks, strict=True))


if __name__ == "__main__":
    print(json.dumps(stages(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
