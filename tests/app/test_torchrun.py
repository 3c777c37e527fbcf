"""The command line in two processes: one run folder, one voice, a resumed run, and the same model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import selftaught
from selftaught.app import pretrain as training
from selftaught.artifacts.run import Run
from selftaught.artifacts.tensors import load_tensors
from selftaught.data.strokes import draw_strokes
from selftaught.methods import BMSSL

SCRIPT = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import selftaught
from selftaught.artifacts.tensors import save_tensors
from selftaught.data.strokes import draw_strokes
from selftaught.methods import BMSSL

place = Path(sys.argv[1])
strokes = draw_strokes(6, 4, size=16, seed=1)
tiny = {"size": 16, "channels": 1, "views": "glyph", "quiet": True}
method = BMSSL(ways=6, hidden=8, out=8)
selftaught.pretrain(strokes, out=place / "new", method=method, steps=2, **tiny)
model = selftaught.pretrain(strokes, out=place / "cut", resume=True, quiet=True)
weights = {k: v.detach().contiguous() for k, v in model.encoder.state_dict().items()}
save_tensors(place / f"seen-{os.environ['RANK']}.safetensors", weights, {})
"""


def test_two_processes_make_and_resume_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strokes, method = draw_strokes(6, 4, size=16, seed=1), BMSSL(ways=6, hidden=8, out=8)
    tiny = {"size": 16, "channels": 1, "views": "glyph", "quiet": True}
    alone = selftaught.pretrain(strokes, out=tmp_path / "alone", method=method, steps=4, **tiny)
    real = training.train

    def cut(*args, **kwargs):
        for n, item in enumerate(real(*args, **kwargs)):
            if n == 2:
                raise RuntimeError("power cut")
            yield item

    monkeypatch.setattr(training, "train", cut)
    with pytest.raises(RuntimeError, match="power cut"):
        selftaught.pretrain(strokes, out=tmp_path / "cut", method=method, steps=4, **tiny)
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *launch, str(tmp_path / "script.py"), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (load_tensors(tmp_path / f"seen-{rank}.safetensors")[0] for rank in range(2))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    for name, steps in (("new", 2), ("cut", 4)):
        run = Run.open(tmp_path / name)
        assert run.finished and run.load_checkpoint().step == steps
        assert [line["step"] for line in run.metrics()] == [steps]
    # Two steps in single precision; equality in double is a matter of the conformance tests.
    for k, v in alone.encoder.state_dict().items():
        assert torch.allclose(first[k].float(), v.float(), rtol=0.05, atol=5e-3), k
