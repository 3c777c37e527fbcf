"""A small vision transformer whose attention can be differentiated twice."""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError


class Attention(nn.Module):
    """Multi-head self-attention [B N D] -> [B N D] (Vaswani et al., 2017).

    Written out, because the fused kernels behind `scaled_dot_product_attention` have no second derivative.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        mixing = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        return self.out(rearrange(mixing @ v, "b h n d -> b n (h d)"))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)); [B N D] -> [B N D]."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def sincos_positions(rows: int, columns: int, width: int, like: Tensor) -> Float[Tensor, "N D"]:
    """Fixed sine and cosine positions of a grid, [rows*columns width], in the device and dtype of `like`.

    The first half of the features codes the row, the second the column, each with width/4 wavelengths from
    2 pi to 20 000 pi patches (Vaswani et al., 2017, along each axis).
    """
    step = torch.arange(width // 4, device=like.device, dtype=like.dtype) / (width // 4)
    rate = 10000.0**-step

    def axis(n: int) -> Tensor:
        angle = torch.arange(n, device=like.device, dtype=like.dtype)[:, None] * rate
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    row = axis(rows)[:, None].expand(rows, columns, -1)
    column = axis(columns)[None].expand(rows, columns, -1)
    return torch.cat([row, column], dim=-1).flatten(0, 1)


class ViT(nn.Module):
    """Vision transformer [B C H W] -> [B width] for any H, W that `patch` divides (Dosovitskiy et al., 2021).

    `pool` is the mean over patches or the class token (`"cls"`). Positions are fixed sine-cosine, or learned
    for pictures of `size` px and resampled (bicubic) for other sizes.
    """

    last = "final"

    def __init__(
        self,
        channels: int = 3,
        patch: int = 4,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: int = 4,
        pool: Literal["mean", "cls"] = "mean",
        positions: Literal["sincos", "learned"] = "sincos",
        size: int = 32,
    ) -> None:
        super().__init__()
        if width % heads or width % 4 or depth < 1:
            raise ConfigError(
                f"ViT: width {width} must be a multiple of 4 and of heads {heads}, depth {depth} at least 1"
            )
        if positions == "learned" and size % patch:
            raise ConfigError(f"ViT: size {size} must be a multiple of patch ({patch}) for learned positions")
        self.patch = patch
        self.width = width
        self.embed = nn.Linear(channels * patch * patch, width)
        self.cls = nn.Parameter(torch.zeros(width)) if pool == "cls" else None
        grid = size // patch
        self.positions = nn.Parameter(torch.zeros(width, grid, grid)) if positions == "learned" else None
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio) for _ in range(depth - 1)))
        # The closing norm belongs to the last block, so that one name holds all that `upper` computes with.
        self.final = nn.Sequential(Block(width, heads, mlp_ratio), nn.LayerNorm(width))
        self._init()

    def _init(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        # Patches meet the net at the scale of the positions, not at 0.02.
        nn.init.xavier_uniform_(self.embed.weight)
        for extra in (self.cls, self.positions):
            if extra is not None:
                nn.init.trunc_normal_(extra, std=0.02)

    def place(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """Positions [N D] of a grid of patches."""
        if self.positions is None:
            return sincos_positions(rows, columns, self.width, like)
        grid: Tensor = self.positions
        if grid.shape[1:] != (rows, columns):
            grid = F.interpolate(grid[None], (rows, columns), mode="bicubic", align_corners=False)[0]
        return rearrange(grid, "d r c -> (r c) d")

    def lower(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """Patches and all blocks but the last: [B C H W] -> [B N D]; ConfigError if `patch` does not fit."""
        height, width = x.shape[-2:]
        if height % self.patch or width % self.patch or not height * width:
            raise ConfigError(
                f"ViT with patches of {self.patch} px got pictures of {height} x {width}; "
                f"resize them, or build the network with a patch that divides both"
            )
        patches = rearrange(x, "b c (r p) (s q) -> b (r s) (c p q)", p=self.patch, q=self.patch)
        tokens = self.embed(patches) + self.place(height // self.patch, width // self.patch, x)
        if self.cls is not None:
            tokens = torch.cat([self.cls.expand(len(tokens), 1, -1), tokens], dim=1)
        return self.blocks(tokens)

    def upper(self, h: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """The last block, the closing norm, and the pool: [B N D] -> [B D]."""
        tokens = self.final(h)
        return tokens.mean(dim=1) if self.cls is None else tokens[:, 0]

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        return self.upper(self.lower(x))
