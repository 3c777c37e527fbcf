"""Colour changes with draws of their own for every picture, as one matrix each or in a drawn order.

The draws are those of torchvision's RandomApply([ColorJitter]) and RandomGrayscale: three factors uniform about
1 and a turn of the hue uniform about 0, all of them with one probability; grey with another. Both ways to
apply them do the same where one change acts alone and nothing is clipped, except for the hue.

- `as_matrix`: brightness, contrast, saturation, hue in this order, without clipping in between, the hue as a
  rotation of the YIQ colour plane. That is linear, so it is one 3x4 matrix per picture. Our choice, for speed.
- `in_order`: as torchvision: the order drawn per picture, clipped to 0..1 after each change, hue in HSV.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from selftaught.data.geometry import uniform
from selftaught.data.views import Views

_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_LUMA = _YIQ[0]
# RGB to RGB by keeping only Y, keeping only I and Q, turning I and Q by a quarter.
_INNER = torch.zeros(3, 3, 3)
_INNER[0, 0, 0] = _INNER[1, 1, 1] = _INNER[1, 2, 2] = _INNER[2, 2, 1] = 1
_INNER[2, 1, 2] = -1
_TURNING = (torch.linalg.inv(_YIQ) @ _INNER @ _YIQ).flatten(1)
HUE = 3
"""Its number in `Colours.order`; 0 to 2 are brightness, contrast and saturation."""


@dataclass(frozen=True)
class Colours:
    """The draws for one batch: `factors` [3 B] of brightness, contrast and saturation, `turn` [B] of the hue in
    turns, `on` [B] bool (where not, the factors are 1 and the turn 0), `grey` [B] bool, `order` [4 B]: which of
    the four changes comes at each place, or None for the fixed order.
    """

    factors: Tensor
    turn: Tensor
    on: Tensor
    grey: Tensor
    order: Tensor | None = None


def changes_colour(views: Views) -> bool:
    """Whether a recipe changes colours at all."""
    return bool(views.brightness or views.contrast or views.saturation or views.hue or views.grey)


def draw_colours(batch: int, views: Views, generator: torch.Generator) -> Colours:
    """Independent draws for `batch` pictures, from `generator` on the CPU."""
    strengths = (views.brightness, views.contrast, views.saturation)
    factors = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
    rows = uniform([(0, 1), *factors, (-views.hue, views.hue), (0, 1)], batch, generator)
    on = rows[0] < views.jitter
    return Colours(
        factors=torch.where(on, rows[1:4], 1.0),
        turn=torch.where(on, rows[4], 0.0),
        on=on,
        grey=rows[5] < views.grey,
        order=torch.rand(4, batch, generator=generator).argsort(0) if views.exact_colour else None,
    )


def as_matrix(x: Tensor, drawn: Colours, out: Tensor | None = None) -> Tensor:
    """All changes of `x` [B C H W] in the fixed order, not clipped; written to `out` if given."""
    matrix, offset = (t.to(x.device) for t in colour_maps(drawn, x.mean((2, 3)).cpu()))
    if x.shape[1] == 1:
        return torch.addcmul(offset[:, :1, None, None], x, matrix.sum(-1)[:, :1, None, None], out=out)
    flat = None if out is None else out.flatten(2)
    return torch.baddbmm(offset[..., None], matrix, x.flatten(2), out=flat).view_as(x)


def colour_maps(drawn: Colours, mean: Tensor) -> tuple[Tensor, Tensor]:
    """matrix [B 3 3], offset [B 3] of `y = matrix @ rgb + offset` for pictures of mean colour [B C]."""
    brightness, contrast, saturation = drawn.factors
    chroma = torch.where(drawn.grey, 0.0, saturation)
    turn = drawn.turn * (2 * math.pi)
    # A sum of three fixed matrices: the light, the colour as it is, the colour a quarter turn on.
    parts = torch.stack([torch.ones_like(chroma), chroma * turn.cos(), chroma * turn.sin()], 1)
    matrix = (parts * (brightness * contrast)[:, None] @ _TURNING).view(-1, 3, 3)
    light = mean @ _LUMA if mean.shape[1] == 3 else mean[:, 0]
    offset = light * brightness * (1 - contrast)
    return matrix, offset[:, None].expand(-1, 3)


def in_order(x: Tensor, drawn: Colours) -> Tensor:
    """All changes of `x` [B C H W]: in the order drawn, each clipped to 0..1, then grey. Overwrites `x`."""
    order = torch.zeros_like(drawn.on) if drawn.order is None else drawn.order
    x, spare, one = x.clamp_(0, 1), torch.empty_like(x), torch.ones(())
    for place in order:
        # Matrices for what is linear; a hue is an identity here and turned below.
        linear = Colours(
            factors=torch.stack([torch.where(place == change, drawn.factors[change], one) for change in range(3)]),
            turn=torch.zeros_like(drawn.turn),
            on=drawn.on,
            grey=torch.zeros_like(drawn.grey),
        )
        x, spare = as_matrix(x, linear, out=spare).clamp_(0, 1), x
        index = ((place == HUE) & drawn.on).nonzero()[:, 0]
        if x.shape[1] == 3 and len(index):
            here = index.to(x.device)
            x.index_copy_(0, here, turn_hue(x.index_select(0, here), drawn.turn[index].to(x.device)))
    if x.shape[1] == 3:
        index = drawn.grey.nonzero()[:, 0].to(x.device)
        light = torch.tensordot(x.index_select(0, index), _LUMA.to(x.device), ([1], [0]))
        x.index_copy_(0, index, light[:, None].expand(-1, 3, -1, -1))
    return x


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Pictures [B 3 H W] in 0..1 with the hue of HSV moved on by `turn` [B] turns.

    Without a case for each sector of the hue h (in sixths of a turn from red). With R, G, B scaled to 0..1,
    |h - 3| = 2 + R - G - B, and h < 3 where G > B; the way back is R = |h - 3| - 1, G = 2 - |h - 2| and
    B = 2 - |h - 4|, each clipped to 0..1.
    """
    planes = x.flatten(2).transpose(0, 1).contiguous()  # [3 B H*W]
    r, g, b = planes.unbind(0)
    low = planes.amin(0)
    range_ = planes.amax(0).sub_(low)
    away = (r - g).sub_(b).add_(low).div_(range_.clamp(min=1e-12)).add_(2)
    from_cyan = torch.copysign(away, b - g).add_(6 * turn[:, None])  # h - 3
    from_cyan.sub_(from_cyan.div(6).round_(), alpha=6)
    torch.abs(from_cyan, out=r).sub_(1)
    torch.add(from_cyan, 1, out=g).abs_().neg_().add_(2)
    torch.sub(from_cyan, 1, out=b).abs_().neg_().add_(2)
    planes.clamp_(0, 1).mul_(range_).add_(low)
    return planes.transpose(0, 1).reshape(x.shape)
