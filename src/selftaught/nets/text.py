"""A small causal text transformer, and the two towers of CLIP."""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.nets.heads import width_of

START_SCALE, MOST_SCALE = 1 / 0.07, 100.0
"""The paper's: the factor of the cosines starts at 1 / 0.07 and never exceeds 100."""


@runtime_checkable
class ImageTextModel(Protocol):
    """Anything that puts pictures and texts into one space: ours, or an open_clip model as it is.

    `encode_image` [B C H W] -> [B D], `encode_text` [B L] token numbers -> [B D]; neither has to normalise.
    """

    def encode_image(self, image: Tensor) -> Tensor: ...

    def encode_text(self, text: Tensor) -> Tensor: ...


class CausalBlock(nn.Module):
    """Pre-norm transformer block [B L D] -> [B L D] in which a token sees itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class TextTransformer(nn.Module):
    """Token numbers [B L] -> [B width], read where the text ends: at the largest number of each row.

    After openai/CLIP's text tower: learned positions, causal blocks, layer normalisation, no dropout. Sizes are
    ours. What stands behind the end does not count, so rows can be filled up with anything smaller.
    Raises ConfigError for a width that `heads` does not divide, and for texts longer than `context`.
    """

    def __init__(self, tokens: int, context: int, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        if width % heads or depth < 1 or tokens < 2 or context < 2:
            raise ConfigError(
                f"text tower: width {width} must be a multiple of heads {heads}, and depth {depth} at least 1, "
                f"tokens {tokens} and context {context} at least 2"
            )
        self.width = width
        self.embed = nn.Embedding(tokens, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.Sequential(*(CausalBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, tokens: Int64[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        if tokens.shape[-1] > len(self.positions):
            raise ConfigError(
                f"texts of {tokens.shape[-1]} tokens for a context of {len(self.positions)}: cut them first"
            )
        end = tokens.argmax(-1)
        tokens = tokens[:, : int(end.max()) + 1]  # nothing looks behind the last end
        x = self.norm(self.blocks(self.embed(tokens) + self.positions[: tokens.shape[-1]]))
        return x[torch.arange(len(x), device=x.device), end]


class TwoTowers(nn.Module):
    """Pictures and texts, each through a tower and a projection without bias, into one space of `out` numbers.

    Called with floating pictures [B C H W] it is `encode_image`, with whole numbers [B L] `encode_text`, so that
    it can stand in `core.functional.apply` either way. `log_scale` is the logarithm of the factor of the cosines.
    """

    def __init__(self, encoder: nn.Module, text: TextTransformer, out: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.image_projection = nn.Linear(width_of(encoder), out, bias=False)
        self.text = text
        self.text_projection = nn.Linear(text.width, out, bias=False)
        self.log_scale = nn.Parameter(_start_scale())
        self.width = out

    def encode_image(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E"]:
        """Projected features of pictures, not normalised."""
        return self.image_projection(self.encoder(image))

    def encode_text(self, text: Int64[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        """Projected features of texts, not normalised."""
        return self.text_projection(self.text(text))

    def forward(self, x: Tensor) -> Tensor:
        return self.encode_image(x) if x.is_floating_point() else self.encode_text(x)


class Plugged(nn.Module):
    """A model from elsewhere with `encode_image` and `encode_text`, in the form of `TwoTowers` (open_clip's fit).

    Its own `logit_scale`, a logarithm there too, is used where it has one. Raises ConfigError for a model without
    the two functions.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, ImageTextModel):
            raise ConfigError(
                f"{type(model).__name__} has no encode_image and encode_text: wrap it so that it has"
            )
        self.model = model
        found = getattr(model, "logit_scale", None)
        self.log_scale = found if isinstance(found, nn.Parameter) else nn.Parameter(_start_scale())

    def encode_image(self, image: Tensor) -> Tensor:
        """As the model does it."""
        return self.model.encode_image(image)

    def encode_text(self, text: Tensor) -> Tensor:
        """As the model does it."""
        return self.model.encode_text(text)

    def forward(self, x: Tensor) -> Tensor:
        return self.encode_image(x) if x.is_floating_point() else self.encode_text(x)


def clamped_scale(log_scale: Tensor) -> Tensor:
    """exp(log_scale), at most 100. The gradient passes the limit, so that a scale beyond it can come back."""
    limit = log_scale.detach().clamp(max=math.log(MOST_SCALE))
    return (limit + (log_scale - log_scale.detach())).exp()


def _start_scale() -> Tensor:
    return torch.tensor(math.log(START_SCALE))
