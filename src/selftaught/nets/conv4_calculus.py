"""Gradient and Hessian-vector product of Conv4's blocks in closed form: no autograd graph, no double backward.

One block maps x to relu(pool(batchnorm(conv(x)))). Pooling commutes with what follows it when gamma >= 0 (all
of it is monotone; the caller arranges the signs), so everything after the convolution runs on a quarter of the
pixels. With z = conv(x, w) over M = B*H*W positions a channel, m and v its mean and biased variance,
r = 1 / sqrt(v + eps), top = pool(z), hat = (top - m) r, out = relu(gamma hat + beta):

    backward   dy = d_out where out > 0;  d_beta = sum dy;  d_gamma = sum dy hat;  s = gamma r
               dz = spread(s dy) + u (z - m) + c,   u = -s r d_gamma / M,   c = -s d_beta / M
               dw = correlate(x, dz),  dx = transposed conv(dz, w)

and the derivative of every line along a direction (w', gamma', beta', x'), written with a prime in formulas
and with `_dot` in names, gives the Hessian-vector product: forward over reverse. The stem, the first block,
never needs dx, and its x stays the same while weights change. So its sums over positions come from the mean
and the covariance of x's 3x3 patches, V = cov(patch): m = w mean, v = w V w^T, cov(z, z') = w V w'^T and
correlate(x, u (z - m) + c) = M (u w V + c mean); z itself is made piece by piece and forgotten.

What belongs to a channel has the shape [1 C 1 1] throughout, pooled maps are [B C h w], and all maps lie in
channels-last memory. Our derivation; tests hold it against autograd and finite differences in float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_OVER = (0, 2, 3)
_PIECE = 2**18
"""Numbers of a feature map of the stem alive at once: what the cache of one core holds."""


@dataclass(frozen=True)
class Patches:
    """Pictures [B C H W] as the stem reads them: 3x3 patches of the zero-padded pictures less a constant, one
    column [9C] for each of M positions, with their mean [9C] and covariance [9C 9C]; `shift` is the constant."""

    columns: Tensor
    size: tuple[int, int, int]
    shift: Tensor
    mean: Tensor
    covariance: Tensor

    @property
    def count(self) -> int:
        """M = B * H * W, positions of all pictures."""
        return self.columns.shape[1]


@dataclass(frozen=True)
class Normed:
    """What normalising, scaling and rectifying the pooled map leaves for the way back."""

    count: int
    gamma: Tensor
    mean: Tensor
    rstd: Tensor
    hat: Tensor
    out: Tensor


@dataclass(frozen=True)
class Slope:
    """The backward pass below the convolution: dz = spread(pooled) + u (z - m) + c, pooled = s dy."""

    pooled: Tensor
    dy: Tensor
    d_gamma: Tensor
    d_beta: Tensor
    s: Tensor
    u: Tensor
    c: Tensor


@dataclass(frozen=True)
class Dot:
    """The forward pass along a direction; `lean` is r' / r."""

    gamma: Tensor
    mean: Tensor
    lean: Tensor
    hat: Tensor
    out: Tensor


@dataclass(frozen=True)
class SlopeDot:
    """The backward pass along a direction: dz' = spread(pooled) + u' (z - m) + u (z' - m') + c'."""

    pooled: Tensor
    d_gamma: Tensor
    d_beta: Tensor
    u: Tensor
    c: Tensor


def patches(x: Tensor) -> Patches:
    """Of pictures [B C H W], moved to a mean of zero: normalisation forgets a constant, and sums of squares about
    zero keep the digits of small variances. As columns, a pixel of all patches is a copy of whole lines."""
    count, channels, height, width = x.shape
    shift = x.mean()
    padded = (F.pad(x, (1, 1, 1, 1)) - shift).transpose(0, 1)
    lines = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
    columns = lines.reshape(9 * channels, -1)
    mean = columns.mean(1)
    covariance = columns @ columns.t() / columns.shape[1] - torch.outer(mean, mean)
    return Patches(columns, (count, height, width), shift, mean, covariance)


def normalise(
    top: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, eps: float, count: int
) -> Normed:
    """`top`, the pooled convolution, is overwritten."""
    rstd = (variance + eps).rsqrt_()
    hat = top.sub_(mean).mul_(rstd)
    gamma = _of_channels(gamma)
    return Normed(count, gamma, mean, rstd, hat, torch.addcmul(_of_channels(beta), hat, gamma).relu_())


def normalise_back(n: Normed, d_out: Tensor) -> Slope:
    """From d_out [B C h w]."""
    dy = _where_live(d_out, n)
    product = dy * n.hat
    d_gamma, d_beta, s = _sum(product), _sum(dy), n.gamma * n.rstd
    share = s / -n.count
    # The product's memory serves again: pages that are new to the process cost more than the sum.
    return Slope(torch.mul(dy, s, out=product), dy, d_gamma, d_beta, s, share * n.rstd * d_gamma, share * d_beta)


def normalise_dot(n: Normed, top: Tensor, mean: Tensor, covariance: Tensor, gamma: Tensor, beta: Tensor) -> Dot:
    """From top' = z' where z was largest, m' and cov(z, z'): v' = 2 cov, so r' = -r^3 cov. Overwrites `top`."""
    lean = n.rstd * n.rstd * -covariance
    hat = top.sub_(mean).mul_(n.rstd).addcmul_(n.hat, lean)
    gamma = _of_channels(gamma)
    out = torch.addcmul(_of_channels(beta), n.hat, gamma).addcmul_(hat, n.gamma)
    return Dot(gamma, mean, lean, hat, _where_live(out, n))


def normalise_dot_back(n: Normed, slope: Slope, dot: Dot, d_out: Tensor) -> SlopeDot:
    """From d_out' [B C h w]."""
    dy = _where_live(d_out, n)
    d_beta, d_gamma = _sum(dy), _sum((dy * n.hat).addcmul_(slope.dy, dot.hat))
    rstd = n.rstd * dot.lean
    s = torch.addcmul(dot.gamma * n.rstd, n.gamma, rstd)
    turned = torch.addcmul(s * n.rstd, slope.s, rstd)
    u = torch.addcmul(turned * slope.d_gamma, slope.s * n.rstd, d_gamma) / -n.count
    c = torch.addcmul(s * slope.d_beta, slope.s, d_beta) / -n.count
    return SlopeDot((dy * slope.s).addcmul_(slope.dy, s), d_gamma, d_beta, u, c)


@dataclass(frozen=True)
class Stem:
    """The first block at one set of weights; `leaning` is w V [C_out 9C]."""

    patches: Patches
    weight: Tensor
    leaning: Tensor
    index: Tensor
    normed: Normed


def stem(p: Patches, weight: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Stem:
    """`weight` [C_out C 3 3] as the network has it."""
    flat = weight.flatten(1)
    leaning = flat @ p.covariance
    variance = (leaning * flat).sum(1).clamp_(min=0)
    top, index = _pooled_like(p, weight)
    size = _size(p, weight)
    for x, t, i in zip(_pieces(p, size), top.split(size), index.split(size), strict=True):
        torch.ops.aten.max_pool2d_with_indices.out(_map(x.t() @ flat.t(), p), [2, 2], out=t, indices=i)
    mean, variance = _of_channels(flat @ p.mean), _of_channels(variance)
    return Stem(p, weight, leaning, index, normalise(top, mean, variance, gamma, beta, eps, p.count))


def stem_back(k: Stem, d_out: Tensor) -> tuple[Slope, Tensor]:
    """And dw; there is nothing to hand further down."""
    slope = normalise_back(k.normed, d_out)
    return slope, _stem_correlate(k, slope.pooled, slope.u.view(-1, 1) * k.leaning, slope.c)


def stem_dot(k: Stem, weight: Tensor, gamma: Tensor, beta: Tensor) -> Dot:
    """Along (weight, gamma, beta); x' is zero."""
    p, flat = k.patches, weight.flatten(1)
    covariance = (k.leaning * flat).sum(1)
    size = _size(p, weight)
    found = [_at(_map(x.t() @ flat.t(), p), i) for x, i in zip(_pieces(p, size), k.index.split(size), strict=True)]
    mean = _of_channels(flat @ p.mean)
    return normalise_dot(k.normed, torch.cat(found), mean, _of_channels(covariance), gamma, beta)


def stem_dot_back(k: Stem, slope: Slope, weight: Tensor, dot: Dot, d_out: Tensor) -> tuple[SlopeDot, Tensor]:
    """And dw'; `weight` is the direction again."""
    s = normalise_dot_back(k.normed, slope, dot, d_out)
    also = (slope.u.view(-1, 1) * weight.flatten(1)) @ k.patches.covariance
    rows = torch.addcmul(also, s.u.view(-1, 1), k.leaning)
    return s, _stem_correlate(k, s.pooled, rows, s.c)


@dataclass(frozen=True)
class Block:
    """A later block at one set of weights."""

    x: Tensor
    weight: Tensor
    z: Tensor
    index: Tensor
    normed: Normed


def block(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Block:
    """[B C H W] -> `.normed.out` [B C_out H/2 W/2]."""
    z = _conv(x, weight)
    mean, variance = torch.batch_norm_update_stats(z, None, None, 0.0)
    top, index = F.max_pool2d(z, 2, return_indices=True)
    mean, variance = _of_channels(mean), _of_channels(variance)
    return Block(x, weight, z, index, normalise(top, mean, variance, gamma, beta, eps, _positions(z)))


def block_back(k: Block, d_out: Tensor) -> tuple[Slope, Tensor, Tensor, Tensor]:
    """The slope, dz, dw and dx."""
    n, slope = k.normed, normalise_back(k.normed, d_out)
    dz = _spread(slope.pooled, k.index, k.z)
    dz.addcmul_(k.z, slope.u).add_(slope.c - slope.u * n.mean)
    dx, dw = _convolution_backward(dz, k.x, k.weight, [True, True, False])
    return slope, dz, dw, dx


def block_dot(k: Block, x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Dot]:
    """z' and the rest, along (x, weight, gamma, beta). Both terms of z' in one convolution."""
    z = _conv(torch.cat([x, k.x], 1), torch.cat([k.weight, weight], 1))
    count = _positions(z)
    mean = _sum(z) / count
    covariance = _sum(k.z * z) / count - k.normed.mean * mean
    return z, normalise_dot(k.normed, _at(z, k.index), mean, covariance, gamma, beta)


def block_dot_back(
    k: Block, slope: Slope, dz: Tensor, direction: tuple[Tensor, Tensor, Tensor], dot: Dot, d_out: Tensor
) -> tuple[SlopeDot, Tensor, Tensor]:
    """dw' and dx'; `direction` is (x', w', z'). Both terms of each in one convolution."""
    x, weight, z = direction
    s = normalise_dot_back(k.normed, slope, dot, d_out)
    dz_dot = _spread(s.pooled, k.index, k.z)
    dz_dot.addcmul_(k.z, s.u).addcmul_(z, slope.u).add_(s.c - s.u * k.normed.mean - slope.u * dot.mean)
    like, both = torch.cat([x, k.x]), torch.cat([dz_dot, dz], 1)
    dw = _convolution_backward(torch.cat([dz, dz_dot]), like, k.weight, [False, True, False])[1]
    dx = _convolution_backward(both, k.x, torch.cat([k.weight, weight]), [True, False, False])[0]
    return s, dw, dx


def _of_channels(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


def _sum(x: Tensor) -> Tensor:
    return x.sum((0, 2, 3), keepdim=True)


def _positions(z: Tensor) -> int:
    return z.shape[0] * z.shape[2] * z.shape[3]


def _where_live(x: Tensor, n: Normed) -> Tensor:
    return torch.ops.aten.threshold_backward.default(x, n.out, 0)


def _conv(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def _convolution_backward(dz: Tensor, x: Tensor, weight: Tensor, want: list[bool]) -> tuple[Tensor, Tensor]:
    one = [1, 1]
    both = torch.ops.aten.convolution_backward.default
    return both(dz, x, weight, None, one, one, one, False, [0, 0], 1, want)[:2]


def _spread(pooled: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Each pooled number back where the largest stood, zeros elsewhere; only the shape of `like` counts."""
    two = [2, 2]
    back = torch.ops.aten.max_pool2d_with_indices_backward.default
    return back(pooled, like, two, two, [0, 0], [1, 1], False, index)


def _at(z: Tensor, index: Tensor) -> Tensor:
    return z.flatten(2).gather(2, index.flatten(2)).view_as(index)


def _size(p: Patches, weight: Tensor) -> int:
    """Pictures of one piece."""
    _, height, width = p.size
    return max(1, _PIECE // (len(weight) * height * width))


def _pieces(p: Patches, size: int) -> tuple[Tensor, ...]:
    return p.columns.split(size * p.size[1] * p.size[2], 1)


def _map(rows: Tensor, p: Patches) -> Tensor:
    """Rows of positions [b*H*W C] as a map [b C H W] in channels-last memory, and no copy."""
    return rows.view(-1, p.size[1], p.size[2], rows.shape[1]).permute(0, 3, 1, 2)


def _pooled_like(p: Patches, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the pooled map and its indices."""
    shape = (p.size[0], len(weight), p.size[1] // 2, p.size[2] // 2)
    top = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last)
    return top, torch.empty_like(top, dtype=torch.int64)


def _stem_correlate(k: Stem, pooled: Tensor, rows: Tensor, c: Tensor) -> Tensor:
    """sum over positions of (spread(pooled) + what sums to M (rows + c mean)) times patch, [C_out C 3 3]."""
    p, size = k.patches, _size(k.patches, k.weight)
    total = torch.addcmul(rows, c.view(-1, 1), p.mean).mul_(p.count).t()
    for x, d, i in zip(_pieces(p, size), pooled.split(size), k.index.split(size), strict=True):
        like = _map(x.new_empty(x.shape[1], len(k.weight)), p)
        total = torch.addmm(total, x, _spread(d, i, like).permute(0, 2, 3, 1).reshape(x.shape[1], -1))
    return total.t().reshape(k.weight.shape)
