"""Soft and hard ranks of whole feature maps, batched over rows, in plain PyTorch.

Source: Blondel et al. 2020, "Fast Differentiable Sorting and Ranking" (arXiv:2002.08871).  The soft rank of θ is the
projection of z = θ / strength onto the permutahedron of (n, ..., 1).  With s = z sorted descending and w = (n, ..., 1)
it is an isotonic regression: rank = s - v, where v is the non-increasing vector nearest to s - w.  v is constant on
blocks, so the gradient is a matter of block means.

How the blocks are found, without a Python loop over elements:

1. ``max |z - mean z| <= n / 4`` is sufficient for a single block: a closed form, no sort.  Whole feature maps at
   strength 1 always take it.
2. Otherwise the blocks are the edges of the least concave majorant of the cumulative sums of s - w.  Each round cuts
   every open block at the point that lies highest above its chord (quick hull on points already in order); blocks with
   no point above the chord are done and leave the work.  About log2(n) to 3 log2(n) rounds on real rows.
3. Several highest points of one block lie on one edge, and rounding may have cut a block too: adjacent violators are
   pooled until the block values strictly decrease, as the reference does.

Everything runs in float64: ranks of 245,760 elements leave float32 only about 0.01 of a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill3d.transfers import constant

Regularization = Literal["l2", "kl"]


def soft_rank(
    values: Float[Tensor, "*rows n"], strength: float = 1.0, regularization: Regularization = "l2",
    one_block: bool | None = None,
) -> Float[Tensor, "*rows n"]:  # fmt: skip
    """Differentiable ascending ranks along the last dimension: the largest value tends to n, each row sums to n(n+1)/2.

    The smaller ``strength``, the nearer to ``hard_rank``; the larger, the nearer to z - mean z + (n+1)/2 (``"l2"``).
    ``"kl"`` projects with the entropic form: rank = exp(s - v), v = LSE(s) - LSE(log w) on each block.
    Equal values always share a block, hence a rank.  Computed in float64; returned in the dtype of ``values``, at least
    float32.  ``one_block``: whether ``is_one_block`` holds of ``values / strength``, where that is known: to find it
    out is to wait for the device.  Source: arXiv:2002.08871 sections 3 to 5; the convention is that of
    teddykoker/torchsort.
    """
    if values.numel() == 0:
        return values
    ranks = _SoftRank.apply(_scaled(values, strength), regularization, one_block)
    return ranks.view(values.shape).to(torch.promote_types(values.dtype, torch.float32))


def soft_ranks(values: Sequence[Float[Tensor, "b _"]], strengths: Sequence[float]) -> list[Float[Tensor, "b _"]]:
    """``soft_rank`` (``"l2"``) of several batches of rows that are not empty; waits for the device once for all, where
    they are single blocks."""
    single = [is_one_block(_scaled(v.detach(), strength)) for v, strength in zip(values, strengths, strict=True)]
    told = torch.stack(single).tolist()
    return [soft_rank(v, strength, "l2", one) for v, strength, one in zip(values, strengths, told, strict=True)]


def _scaled(values: Float[Tensor, "*rows n"], strength: float) -> Float[Tensor, "r n"]:
    return values.reshape(-1, values.shape[-1]).double() / strength


@torch.no_grad()
def hard_rank(values: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
    """Ascending ranks 1..n along the last dimension in float64, equal values sharing a mean rank; no gradient."""
    ordered, order = values.sort(dim=-1)
    below = torch.searchsorted(ordered, ordered)
    up_to = torch.searchsorted(ordered, ordered, right=True)
    average = (below + up_to + 1).double() / 2
    return torch.empty_like(average).scatter_(-1, order, average)


def is_one_block(z: Float[Tensor, "*rows n"]) -> Bool[Tensor, ""]:
    """Whether the sufficient test for a single block holds in every row: max |z - mean z| <= n / 4.

    Then the partial sums of sorted deviations stay below k(n-k)/2 for every k, which is the exact condition.
    """
    return (z - z.mean(-1, keepdim=True)).abs().amax() <= z.shape[-1] / 4


class _SoftRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Float[Tensor, "r n"], regularization: Regularization, one_block: bool | None
    ) -> Float[Tensor, "r n"]:
        n = z.shape[1]
        ctx.closed_form = regularization == "l2" and (bool(is_one_block(z)) if one_block is None else one_block)
        if ctx.closed_form:
            return z - z.mean(1, keepdim=True) + (n + 1) / 2
        s, order = z.sort(dim=1, descending=True)
        w = torch.arange(n, 0, -1, dtype=z.dtype, device=z.device).expand_as(s)
        starts = _isotonic_starts(s, w, regularization)
        block, length = _blocks(starts)
        s, w = s.flatten(), w.flatten()
        if regularization == "l2":  # s - mean(s - w), arranged so that a block of one gives w exactly
            ranks = s - _sums(s, length)[block] / length[block] + _sums(w, length)[block] / length[block]
        else:
            ranks = torch.exp(s - _block_values(s, w, block, length, "kl")[block])
        ctx.save_for_backward(order, starts, ranks if regularization == "kl" else None)
        return torch.empty_like(z).scatter_(1, order, ranks.view_as(z))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Vector-Jacobian product.  L2: g - mean g of the block.  KL: r (g - sum r g / sum r), sums over the block."""
        (gradient,) = grad_outputs
        if ctx.closed_form:
            return gradient - gradient.mean(1, keepdim=True), None, None
        order, starts, ranks = ctx.saved_tensors
        block, length = _blocks(starts)
        g = gradient.gather(1, order).flatten()
        if ranks is None:
            g = g - (_sums(g, length) / length)[block]
        else:
            g = ranks * (g - (_sums(ranks * g, length) / _sums(ranks, length))[block])
        return torch.empty_like(gradient).scatter_(1, order, g.view_as(gradient)), None, None


def _isotonic_starts(
    s: Float[Tensor, "r n"], w: Float[Tensor, "r n"], regularization: Regularization
) -> Bool[Tensor, " m"]:
    """Where the blocks of the isotonic regression begin, in all rows one after another (m = r n); s descends."""
    starts = torch.zeros_like(s, dtype=torch.bool)
    starts[:, 0] = True
    row_starts, starts = starts.flatten(), starts.flatten().clone()
    s, w = s.flatten(), w.flatten()

    open_ = torch.arange(len(s), device=s.device)  # elements of blocks that may still fall apart
    while len(open_):
        block, length = _blocks(starts[open_])
        height = _height_over_chord(s[open_], w[open_], block, length, regularization)
        peak = torch.segment_reduce(height, "max", lengths=length, unsafe=True)
        split = peak > 0
        summit = ((height == peak[block]) & split[block]).nonzero()[:, 0]
        starts[open_[summit + 1]] = True
        open_ = open_[split[block]]

    while True:
        block, length = _blocks(starts)
        value = _block_values(s, w, block, length, regularization)
        begin = length.cumsum(0) - length
        pooled = begin[1:][(value[1:] >= value[:-1]) & ~row_starts[begin[1:]]]
        if len(pooled) == 0:
            return starts
        starts[pooled] = False


def _height_over_chord(
    s: Float[Tensor, " m"], w: Float[Tensor, " m"], block: Int[Tensor, " m"], length: Int[Tensor, " k"],
    regularization: Regularization,
) -> Float[Tensor, " m"]:  # fmt: skip
    """How far the cumulative sums stand above the chord of their block; 0 at each block's end.

    L2 sums s - w; KL sums exp(s) against w, scaled by the block's largest exp(s) so that nothing overflows.
    """
    value = _block_values(s, w, block, length, regularization)[block]
    last = length.cumsum(0) - 1
    if regularization == "l2":
        excess = s - w - value
    else:
        largest = s[last + 1 - length][block]
        excess = torch.exp(s - largest) - w * torch.exp(value - largest)
    height = excess.cumsum(0)
    # A block's excess sums to 0 up to rounding; what earlier blocks left over is taken away.
    left_over = torch.zeros_like(height[last])
    left_over[1:] = height[last[:-1]]
    height -= left_over[block]
    height[last] = 0
    return height


def _block_values(
    s: Float[Tensor, " m"], w: Float[Tensor, " m"], block: Int[Tensor, " m"], length: Int[Tensor, " k"],
    regularization: Regularization,
) -> Float[Tensor, " k"]:  # fmt: skip
    """v of each block: mean(s - w) for L2; LSE(s) - log(sum w) for KL, where a block's first s is its largest."""
    if regularization == "l2":
        return _sums(s - w, length) / length
    largest = s[length.cumsum(0) - length]
    return largest + torch.log(_sums(torch.exp(s - largest[block]), length)) - torch.log(_sums(w, length))


def _blocks(starts: Bool[Tensor, " m"]) -> tuple[Int[Tensor, " m"], Int[Tensor, " k"]]:
    """The block of each element, and the length of each block."""
    begin = starts.nonzero()[:, 0]
    end = torch.cat((begin[1:], constant([len(starts)], begin)))
    return starts.cumsum(0) - 1, end - begin


def _sums(x: Float[Tensor, " m"], length: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
    return torch.segment_reduce(x, "sum", lengths=length, unsafe=True)
