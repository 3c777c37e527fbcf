"""Masks of patches, and what a masked network may see."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.nets import build_encoder
from selftaught.nets.masked import MaskedAutoencoder, PatchDecoder, channels_of, hidden_patches
from selftaught.nets.vit import sincos_positions

SIZES: dict[str, dict[str, Any]] = {
    "vit": {"width": 16, "depth": 2, "heads": 2},
    "conv4": {"width": 8},
    "resnet12": {"widths": (8, 8, 8, 8)},
    "resnet18": {"width": 64},
}
VITS: list[dict[str, Any]] = [
    {},
    {"pool": "cls"},
    {"positions": "learned"},
    {"pool": "cls", "positions": "learned"},
]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(name: str, channels: int = 1, size: int = 16, **options: Any) -> Any:
    encoder = build_encoder(name, channels, size, 0, **(SIZES[name] | options))
    torch.manual_seed(0)
    net = MaskedAutoencoder(encoder, 4, 0.75, width=8, heads=2).double().eval()
    with torch.no_grad():
        # Away from zero, where nothing that depends on it would show.
        net.fill.add_(torch.linspace(-0.3, 0.4, len(net.fill)))
        for extra in (getattr(encoder, "cls", None), getattr(encoder, "positions", None)):
            if isinstance(extra, nn.Parameter):
                extra.normal_()
    return net


@pytest.mark.parametrize(("ratio", "count"), [(0.75, 12), (0.5, 8), (0.01, 1), (0.99, 15), (0.3, 5)])
def test_every_picture_hides_the_same_number(ratio: float, count: int) -> None:
    hidden = hidden_patches(noise(50, 1, 16, 16), 4, ratio)
    assert hidden.shape == (50, 16) and hidden.dtype == torch.bool
    assert (hidden.sum(1) == count).all()


def test_the_lowest_noise_is_hidden_and_patches_count_row_by_row() -> None:
    x = torch.full((1, 1, 8, 12), 0.9)
    x[0, 0, 4, 8], x[0, 0, 0, 4] = 0.1, 0.2  # first pixels of the patches (1, 2) and (0, 1)
    x[0, 0, 1:3, 1:3] = 0.0  # no first pixel
    assert hidden_patches(x, 4, 1 / 3)[0].tolist() == [False, True, False, False, False, True]
    assert hidden_patches(torch.zeros(1, 1, 8, 8), 4, 0.5)[0].tolist() == [True, True, False, False]


def test_masks_are_uniform() -> None:
    hidden = hidden_patches(noise(4000, 1, 8, 12), 4, 0.5).double()
    assert torch.allclose(hidden.mean(0), torch.full((6,), 0.5, dtype=torch.float64), atol=0.04)
    # Three of six: two given patches are hidden together in one fifth of the pictures.
    assert abs(float((hidden[:, 0] * hidden[:, 5]).mean()) - 0.2) < 0.03


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_predictions_never_depend_on_hidden_pixels(name: str, channels: int) -> None:
    size = 32 if name.startswith("resnet") else 16
    net = network(name, channels, size)
    assert channels_of(net.encoder) == channels
    x = noise(3, channels + 1, size, size)
    hidden = hidden_patches(x[:, -1:], 4, 0.75).unflatten(1, (size // 4, -1))
    pixels = hidden.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    before = net(x)
    assert before.shape == (3, (size // 4) ** 2, channels * 16)
    other = x.clone()
    other[:, :-1] = torch.where(pixels, noise(3, channels, size, size, seed=1), x[:, :-1])
    assert torch.equal(net(other), before)
    seen = x.clone()
    seen[:, :-1] = torch.where(pixels, x[:, :-1], noise(3, channels, size, size, seed=1))
    assert not torch.allclose(net(seen), before)


@pytest.mark.parametrize("options", VITS)
def test_a_vit_on_the_seen_patches_is_a_vit_on_a_shorter_sequence(options: dict[str, Any]) -> None:
    """Picture by picture and token by token, through the modules themselves."""
    net = network("vit", **options)
    vit, decoder = net.encoder, net.decoder
    x = noise(3, 2, 16, 16)
    hidden = hidden_patches(x[:, 1:], 4, 0.75)
    places = vit.place(4, 4, x)
    found = net(x)
    own_places = sincos_positions(4, 4, decoder.width, x)
    for b in range(3):
        cells = [x[b, 0, 4 * (n // 4) :, 4 * (n % 4) :][:4, :4].flatten() for n in range(16)]
        seen = [n for n in range(16) if not hidden[b, n]]
        assert len(seen) == 4
        tokens = [vit.embed(cells[n]) + places[n] for n in seen]
        lead = [] if vit.cls is None else [vit.cls]
        out = decoder.embed(vit.final(vit.blocks(torch.stack(lead + tokens)[None])))[0]
        rows = {n: out[len(lead) + i] for i, n in enumerate(seen)}
        every = [rows.get(n, net.fill) + own_places[n] for n in range(16)]
        whole = decoder(torch.stack([*out[: len(lead)], *every])[None])[0, len(lead) :]
        assert torch.allclose(found[b], whole, rtol=1e-9, atol=1e-12)


def test_a_convolution_sees_the_learned_colour() -> None:
    net = network("conv4", channels=3)
    x = noise(2, 4, 16, 16)
    hidden = hidden_patches(x[:, 3:], 4, 0.75)
    painted = x[:, :3].clone()
    for b in range(2):
        for n in range(16):
            if hidden[b, n]:
                r, c = 4 * (n // 4), 4 * (n % 4)
                painted[b, :, r : r + 4, c : c + 4] = net.fill[:, None, None]
    assert torch.equal(net._painted(x[:, :3], hidden, 4), painted)
    assert net.fill.shape == (3,)


@pytest.mark.parametrize("name", ["vit", "conv4"])
def test_every_parameter_learns(name: str) -> None:
    net = network(name, pool="cls") if name == "vit" else network(name)
    net.train()
    x = noise(4, 2, 16, 16)
    net(x).square().sum().backward()
    assert not [k for k, v in net.named_parameters() if v.grad is None or not v.grad.any()]


def test_what_does_not_fit_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="ViT has patches of 8 px, the mask of 4: use equal"):
        network("vit", patch=8)

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.width = nn.Linear(256, 6), 6

    with pytest.raises(ConfigError, match="Flat has neither patches nor a convolution"):
        MaskedAutoencoder(Flat(), 4, 0.75)
    for width, depth in ((10, 1), (12, 1), (8, 0)):
        with pytest.raises(ConfigError, match="multiple of 4 and of heads"):
            PatchDecoder(6, width, depth, 8, 4)
