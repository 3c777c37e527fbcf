"""What takes long before the first step says so, and lines of the log stand above a live bar."""

import logging
import re
import sys
from pathlib import Path

import pytest
import torch

import selftaught
from selftaught.app.progress import bar
from selftaught.data.strokes import draw_strokes
from selftaught.tasks.clusters import partitions_of, principal
from selftaught.tasks.interpolation import VAEPlan, trained_vae


@pytest.mark.parametrize("live", [True, False])
def test_the_log_stands_above_the_bar(
    live: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if live else "0")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    log, handler, stream = logging.getLogger("selftaught.somewhere"), logging.StreamHandler(sys.stderr), sys.stderr
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with bar("name", 3, quiet=not live) as tick:
            log.error("first thing")
            tick(1, "")
            log.error("second thing")
    finally:
        root.removeHandler(handler)
    assert handler.stream is stream and sys.stderr is stream
    said = capsys.readouterr().err
    assert ("name" in said) == live
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part) for part in re.split(r"[\r\n]+", said)]
    assert "first thing" in lines and "second thing" in lines, "the bar and the log share a line"


def test_clustering_tells_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "selftaught"):
        z = principal(torch.rand(20, 6, generator=torch.Generator().manual_seed(0)), 3, 0)
        partitions_of(z, 4, 3, 0)
    assert caplog.messages == ["principal components of 20 pictures: 3 of 6 numbers"] + [
        f"k-means of 20 pictures, 4 clusters: {p} of 3" for p in (1, 2, 3)
    ]


@pytest.mark.parametrize(("epochs", "lines"), [(0, 0), (3, 3), (10, 10), (25, 10)])
def test_a_vae_tells_how_far_it_is(epochs: int, lines: int, caplog: pytest.LogCaptureFixture) -> None:
    pictures = draw_strokes(2, 4, size=16, seed=1)
    with caplog.at_level(logging.INFO, "selftaught"):
        trained_vae(pictures, VAEPlan(hidden=4, latent=2, epochs=epochs))
    assert len(caplog.messages) == lines
    assert not epochs or re.match(rf"VAE of 8 pictures: epoch {epochs} of {epochs}, loss \d", caplog.messages[-1])


def test_a_run_keeps_these_lines(tmp_path: Path) -> None:
    options = {"ways": 2, "queries": 1, "clusters": 2, "partitions": 2}
    selftaught.pretrain(
        draw_strokes(3, 4, size=16, seed=1), out=tmp_path / "run", method="cactus", options=options, size=16,
        channels=1, views="flat", steps=1, quiet=True,
    )  # fmt: skip
    assert "k-means of 12 pictures, 2 clusters: 2 of 2" in (tmp_path / "run" / "train.log").read_text()
