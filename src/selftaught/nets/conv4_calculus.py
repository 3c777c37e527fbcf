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
channels-last memory. A large batch goes through the stem and the convolution after it in parts, since the C
library maps blocks of more than 32 MiB anew each time: every line of the stem is a sum over positions, so what its
parts give is added, and a block's x, z and dz are tuples of maps, one for each part. Our derivation; tests hold it
against autograd and finite differences in float64.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Maps = tuple[Tensor, ...]
"""A map [B C H W] in parts of some pictures each."""

_PART = 2**17
"""Positions of pictures in one part: 8 MiB of the stem's pooled map for 64 filters in float32."""
_PIECE = 2**18
"""Numbers of a feature map of the stem alive at once: what the cache of one core holds."""


@dataclass(frozen=True)
class Patches:
    """Pictures [B C H W] as the stem reads them: 3x3 patches of the zero-padded pictures less a constant, one
    column [9C] for each position. `mean` [9C], `covariance` [9C 9C] and `count`, M = B * H * W, are those of the
    whole batch, of which these may be a part; `shift` is the constant."""

    columns: Tensor
    size: tuple[int, int, int]
    shift: Tensor
    mean: Tensor
    covariance: Tensor
    count: int


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


def patches(x: Tensor) -> tuple[Patches, ...]:
    """Of pictures [B C H W], moved to a mean of zero: normalisation forgets a constant, and sums of squares about
    zero keep the digits of small variances."""
    count, shift = x.numel() // x.shape[1], x.mean()
    found = [(_columns(part, shift), len(part)) for part in x.chunk(-(-count // _PART))]
    mean = total([columns.sum(1) for columns, _ in found]) / count
    covariance = total([columns @ columns.t() for columns, _ in found]) / count - torch.outer(mean, mean)
    height, width = x.shape[2:]
    return tuple(Patches(columns, (n, height, width), shift, mean, covariance, count) for columns, n in found)


def _columns(x: Tensor, shift: Tensor) -> Tensor:
    """[9C M]: one pixel of all patches is a copy of whole lines."""
    padded = (F.pad(x, (1, 1, 1, 1)) - shift).transpose(0, 1)
    lines = padded.unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)
    return lines.permute(0, 2, 3, 1, 4, 5).reshape(9 * x.shape[1], -1)


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

    x: Maps
    weight: Tensor
    z: Maps
    index: Tensor
    normed: Normed


def block(x: Maps, weight: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Block:
    """[B C H W] -> `.normed.out` [B C_out H/2 W/2]."""
    z = tuple(_conv(part, weight) for part in x)
    count = _positions(z)
    mean, variance = _moments(z, count)
    top, index = (
        _joined(v) for v in zip(*(F.max_pool2d(part, 2, return_indices=True) for part in z), strict=True)
    )
    return Block(x, weight, z, index, normalise(top, mean, variance, gamma, beta, eps, count))


def block_back(k: Block, d_out: Tensor, keep: bool) -> tuple[Slope, Maps, Tensor, Maps]:
    """The slope, dz (empty if it is not to be kept), dw and dx."""
    slope = normalise_back(k.normed, d_out)
    still = slope.c - slope.u * k.normed.mean
    kept, dw, dx = [], [], []
    for x, z, pooled, index in _by_parts(k, slope.pooled):
        dz = _spread(pooled, index, z).addcmul_(z, slope.u).add_(still)
        found = _convolution_backward(dz, x, k.weight, [True, True, False])
        dx.append(found[0])
        dw.append(found[1])
        kept += [dz] if keep else []
    return slope, tuple(kept), total(dw), tuple(dx)


def block_dot(k: Block, x: Maps, weight: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Maps, Dot]:
    """z' and the rest, along (x, weight, gamma, beta). Both terms of z' in one convolution."""
    both = torch.cat([k.weight, weight], 1)
    z = tuple(_conv(torch.cat([a, b], 1), both) for a, b in zip(x, k.x, strict=True))
    count = _positions(z)
    mean = total([_sum(part) for part in z]) / count
    product = total([_sum(a * b) for a, b in zip(k.z, z, strict=True)])
    top = _joined([_at(part, index) for part, (*_, index) in zip(z, _by_parts(k, k.index), strict=True)])
    return z, normalise_dot(k.normed, top, mean, product / count - k.normed.mean * mean, gamma, beta)


def block_dot_back(
    k: Block, slope: Slope, dz: Maps, direction: tuple[Maps, Tensor, Maps], dot: Dot, d_out: Tensor
) -> tuple[SlopeDot, Tensor, Maps]:
    """dw' and dx'; `direction` is (x', w', z'). Both terms of each in one convolution."""
    xs, weight, zs = direction
    s = normalise_dot_back(k.normed, slope, dot, d_out)
    still, weights = s.c - s.u * k.normed.mean - slope.u * dot.mean, torch.cat([k.weight, weight])
    dw, dx = [], []
    for (x, z, pooled, index), x_dot, z_dot, own in zip(_by_parts(k, s.pooled), xs, zs, dz, strict=True):
        dz_dot = _spread(pooled, index, z).addcmul_(z, s.u).addcmul_(z_dot, slope.u).add_(still)
        like, both = torch.cat([x_dot, x]), torch.cat([dz_dot, own], 1)
        dw.append(_convolution_backward(torch.cat([own, dz_dot]), like, k.weight, [False, True, False])[1])
        dx.append(_convolution_backward(both, x, weights, [True, False, False])[0])
    return s, total(dw), tuple(dx)


def total(parts: Sequence[Tensor]) -> Tensor:
    """Their sum; of one, itself."""
    return functools.reduce(torch.add, parts)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _by_parts(k: Block, pooled: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """x, z, and of every part what belongs to it of `pooled` and the indices."""
    if len(k.z) == 1:
        return iter([(k.x[0], k.z[0], pooled, k.index)])
    sizes = [len(z) for z in k.z]
    return zip(k.x, k.z, pooled.split(sizes), k.index.split(sizes), strict=True)


def _moments(z: Maps, count: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the whole from those of its parts."""
    found = [torch.batch_norm_update_stats(part, None, None, 0.0) for part in z]
    if len(z) == 1:
        return _of_channels(found[0][0]), _of_channels(found[0][1])
    shares = [_positions((part,)) / count for part in z]
    mean = total([m * share for (m, _), share in zip(found, shares, strict=True)])
    variance = total([(v + (m - mean).square()) * share for (m, v), share in zip(found, shares, strict=True)])
    return _of_channels(mean), _of_channels(variance)


def _of_channels(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


def _sum(x: Tensor) -> Tensor:
    return x.sum((0, 2, 3), keepdim=True)


def _positions(z: Maps) -> int:
    return sum(part.shape[0] * part.shape[2] * part.shape[3] for part in z)


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
