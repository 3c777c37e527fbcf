"""Networks that see a picture in part and predict the rest: random masks of patches, encoder, light decoder."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.nets.heads import width_of
from selftaught.nets.vit import Block, ViT, sincos_positions


def hidden_patches(noise: Float[Tensor, "B 1 H W"], patch: int, ratio: float) -> Bool[Tensor, "B P"]:
    """Which patches to hide: in every picture the `ratio` of them whose noise is lowest, one at least, never all.

    Patches count row by row; the noise of a patch is that of its first pixel, so the mask is uniform among those
    of its size. The number is rounded half to even.
    """
    scores = noise[:, 0, ::patch, ::patch].flatten(1)
    count = min(max(1, round(ratio * scores.shape[1])), scores.shape[1] - 1)
    return scores.argsort(stable=True).argsort() < count


class PatchDecoder(nn.Module):
    """Tokens [B N inside] -> [B N out]: transformer blocks of a `width` of their own, and a linear layer."""

    def __init__(self, inside: int, width: int, depth: int, heads: int, out: int) -> None:
        super().__init__()
        if width % heads or width % 4 or depth < 1:
            raise ConfigError(
                f"decoder: use a width (here {width}) that is a multiple of 4 and of heads ({heads}), and a depth "
                f"(here {depth}) of 1 or more"
            )
        self.width = width
        self.embed = nn.Linear(inside, width)
        self.blocks = nn.Sequential(*(Block(width, heads, 4) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, out)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N E"]:
        """Of tokens that `embed` has brought to this width."""
        return self.out(self.norm(self.blocks(tokens)))


class MaskedAutoencoder(nn.Module):
    """Pictures with one channel of noise [B C+1 H W] -> predictions [B P E] of all patches, E = C * patch^2.

    The mask is `hidden_patches` of the noise. A `ViT` gets the patches that are seen and no others; hidden ones
    enter at the decoder, as one learned token. Any other encoder, [B C H W] -> [B D], gets the picture with hidden
    patches painted in one learned colour, and the decoder makes every patch of the D numbers and its place.
    Raises ConfigError for a ViT of other patches and an encoder whose weights do not tell a picture's channels.
    """

    def __init__(
        self, encoder: nn.Module, patch: int, ratio: float, width: int = 64, depth: int = 1, heads: int = 4
    ) -> None:
        super().__init__()
        if isinstance(encoder, ViT) and encoder.patch != patch:
            raise ConfigError(f"the ViT has patches of {encoder.patch} px, the mask of {patch}: use equal ones")
        channels = channels_of(encoder)
        self.patch, self.ratio = patch, ratio
        self.encoder = encoder
        self.decoder = PatchDecoder(width_of(encoder), width, depth, heads, channels * patch * patch)
        fills = width if isinstance(encoder, ViT) else channels
        self.fill = nn.Parameter(torch.zeros(fills) if isinstance(encoder, ViT) else torch.full((fills,), 0.5))

    def forward(self, x: Float[Tensor, "B C+1 H W"]) -> Float[Tensor, "B P E"]:
        picture, hidden = x[:, :-1], hidden_patches(x[:, -1:], self.patch, self.ratio)
        rows, columns = (side // self.patch for side in x.shape[-2:])
        places = sincos_positions(rows, columns, self.decoder.width, x)
        if isinstance(self.encoder, ViT):
            return self._from_seen(self.encoder, picture, hidden, places)
        z = self.decoder.embed(self.encoder(self._painted(picture, hidden, rows)))
        return self.decoder(z[:, None] + places)

    def _painted(self, x: Tensor, hidden: Tensor, rows: int) -> Tensor:
        """[B C H W] with the learned colour in hidden patches."""
        grid = hidden.unflatten(1, (rows, -1))
        pixels = grid.repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)
        return torch.where(pixels[:, None], self.fill[:, None, None].to(x.dtype), x)

    def _from_seen(self, vit: ViT, x: Tensor, hidden: Tensor, places: Tensor) -> Tensor:
        """The encoder on the seen patches, then all of them in their order through the decoder."""
        seen = (~hidden).nonzero()[:, 1].view(len(x), -1)  # [B P'], as many in every picture
        patches = rearrange(x, "b c (r p) (s q) -> b (r s) (c p q)", p=self.patch, q=self.patch)
        rows, columns = (side // self.patch for side in x.shape[-2:])
        tokens = vit.embed(_rows(patches, seen)) + vit.place(rows, columns, x)[seen]
        if vit.cls is not None:
            tokens = torch.cat([vit.cls.expand(len(tokens), 1, -1), tokens], 1)
        tokens = self.decoder.embed(vit.final(vit.blocks(tokens)))
        lead = tokens.shape[1] - seen.shape[1]
        every = self.fill.to(tokens.dtype).expand(len(x), *hidden.shape[1:], -1)
        index = seen[..., None].expand(-1, -1, tokens.shape[-1])
        every = every.scatter(1, index, tokens[:, lead:]) + places
        return self.decoder(torch.cat([tokens[:, :lead], every], 1))[:, lead:]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """[B P E], [B P'] -> [B P' E]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def channels_of(encoder: nn.Module) -> int:
    """C of the pictures that an encoder takes, as its first layer says.

    Raises ConfigError for an encoder that is no `ViT` and has no convolution.
    """
    if isinstance(encoder, ViT):
        return encoder.embed.in_features // encoder.patch**2
    for weight in encoder.parameters():
        if weight.ndim == 4:
            return weight.shape[1]
    raise ConfigError(
        f"{type(encoder).__name__} has neither patches nor a convolution that tells a picture's channels; use "
        "one of build_encoder's, or begin it with a convolution"
    )
