"""The generated characters: repeatable, distinct, and alike within a class."""

import pytest
import torch

from selftaught.core.errors import ConfigError
from selftaught.data.strokes import draw_strokes


def test_form() -> None:
    read = draw_strokes(25, 4)
    assert read.x.shape == (100, 1, 28, 28) and read.x.dtype == torch.uint8
    assert read.y is not None and read.y.tolist() == [n for n in range(25) for _ in range(4)]
    assert len(set(read.classes)) == 25 and len(set(read.names)) == 100
    assert read.groups == ("alphabet00",) * 80 + ("alphabet01",) * 20


def test_ink_is_bright_on_an_empty_sheet() -> None:
    read = draw_strokes(50, 4)
    assert int(read.x.amax((1, 2, 3)).min()) > 200
    share = (read.x > 127).float().mean((1, 2, 3))
    assert share.min() > 0.01 and share.max() < 0.5
    assert (read.x == 0).float().mean() > 0.6


def test_same_seed_same_pictures() -> None:
    state = torch.get_rng_state()
    one, again, other = draw_strokes(5, 3, seed=1), draw_strokes(5, 3, seed=1), draw_strokes(5, 3, seed=2)
    assert torch.equal(one.x, again.x) and not torch.equal(one.x, other.x)
    assert torch.equal(torch.get_rng_state(), state)


def test_drawings_of_a_class_differ_but_are_alike() -> None:
    read = draw_strokes(60, 10)
    flat = read.x.float().flatten(1).reshape(60, 10, -1)
    assert len(torch.unique(read.x.flatten(1), dim=0)) == 600
    # One example a class, the rest to be recognised: far above chance (1.7 %), far from solved by pixels.
    right = torch.cdist(flat[:, 1:].flatten(0, 1), flat[:, 0]).argmin(1) == torch.arange(60).repeat_interleave(9)
    assert 0.05 < right.float().mean() < 0.6


def test_thickness_varies() -> None:
    read = draw_strokes(1, 40)
    ink = read.x.float().mean((1, 2, 3))
    assert ink.max() > 1.3 * ink.min()


@pytest.mark.parametrize("size", [8, 16, 105])
def test_sizes_show_the_same_drawing(size: int) -> None:
    small, full = draw_strokes(10, 2, size=size), draw_strokes(10, 2, size=64)
    assert small.shape == (1, size, size)
    shares = [(p.x.float() / 255).mean((1, 2, 3)) for p in (small, full)]
    assert torch.allclose(*shares, rtol=0.35, atol=0.03)


def test_senseless_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        draw_strokes(0, 5)
    with pytest.raises(ConfigError, match="at least 8"):
        draw_strokes(2, 5, size=4)
