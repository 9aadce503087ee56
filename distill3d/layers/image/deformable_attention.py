"""Multi-scale deformable attention: each query reads a few points, chosen by itself, on every level of a pyramid.

Zhu et al., "Deformable DETR", ICLR 2021, arXiv:2010.04159, section 4.1, with bilinear sampling of torch in place of the
released CUDA extension.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.transfers import constant

#: (height, width) in cells of each level, finest first.
Sizes = tuple[tuple[int, int], ...]


def cell_centres(sizes: Sizes, like: Tensor) -> Float[Tensor, "t 2"]:
    """Centres (x, y) of all cells, level after level and row by row, each level's map spanning 0..1."""
    levels = []
    for height, width in sizes:
        y, x = ((torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) / n for n in (height, width))
        levels.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))
    return torch.cat(levels)


def sample_levels(
    value: Float[Tensor, "b t h d"],
    sizes: Sizes,
    locations: Float[Tensor, "b q h levels p 2"],
    weights: Float[Tensor, "b q h levels p"],
) -> Float[Tensor, "b q h d"]:
    """The weighted sum of every head's sampled values, in float32 or better.

    ``value`` holds the cells of all levels as ``cell_centres`` orders them.  ``locations`` (x, y) span 0..1 over each
    level; between cell centres values are bilinear, and outside the map they are 0.
    """
    value, locations, weights = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (value, locations, weights))
    # Points lie outside of queries: a sum over the innermost few would go number by number.
    grid = (2 * locations - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # (levels, b h, p, q, 2)
    share = weights.permute(3, 0, 2, 4, 1).flatten(1, 2)  # (levels, b h, p, q)
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).split([height * width for height, width in sizes], dim=-1)
    total = torch.zeros((), dtype=value.dtype, device=value.device)
    for level, size in enumerate(sizes):
        sampled = F.grid_sample(maps[level].unflatten(-1, size), grid[level], align_corners=False)  # (b h, d, p, q)
        total = total + (sampled * share[level, :, None]).sum(2)
    return total.unflatten(0, (value.shape[0], -1)).permute(0, 3, 1, 2)


class DeformableAttention(nn.Module):
    """Attention of queries to ``points`` places per head and level about their reference.

    Sampling geometry and sums leave autocast; the linear projections stay in it.

    Args:
        channels: of the tokens and of what is gathered.
        query_channels: of the queries; None: as many.
        weigh: what a head's weights sum to 1 over: all its points (``"together"``), or each level's alone, whose
            results are averaged (``"apart"``).
    """

    def __init__(
        self, channels: int, levels: int, heads: int, points: int, *, query_channels: int | None = None,
        weigh: Literal["together", "apart"] = "together",
    ) -> None:  # fmt: skip
        super().__init__()
        self.levels, self.heads, self.points, self.weigh = levels, heads, points, weigh
        asked = query_channels or channels
        self.offset = nn.Linear(asked, heads * levels * points * 2)
        self.weight = nn.Linear(asked, heads * levels * points)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self._reset()

    def _reset(self) -> None:
        """Point i of a head starts i cells away from the reference, in the head's own direction, weights alike."""
        for layer in (self.offset, self.weight, self.value, self.output):
            nn.init.zeros_(layer.bias)
        for layer in (self.offset, self.weight):
            nn.init.zeros_(layer.weight)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)[:, None]
        start = (direction[:, None, None] * steps).expand(-1, self.levels, -1, -1)  # (heads, levels, points, 2)
        with torch.no_grad():
            self.offset.bias.copy_(start.flatten())

    def locations(
        self, query: Float[Tensor, "b q a"], reference: Float[Tensor, "b q *r"], sizes: Sizes
    ) -> Float[Tensor, "b q h levels p 2"]:
        """Where each query looks, as ``sample_levels`` takes it.

        ``reference`` is a point (x, y), about which offsets count in cells, or a point with the distances to the sides
        of its box (x, y, left, right, top, bottom), about which ``points`` offsets of 1 reach half the box's size; or
        a point of its own for each level, each of a head's points or both: (B, Q, levels or 1, points or 1, 2).
        """
        offset = self.offset(query).unflatten(-1, (self.heads, self.levels, self.points, 2))
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        own = reference.dim() == 5
        centre = reference[:, :, None] if own else reference[:, :, None, None, None, :2]
        if reference.shape[-1] == 2:
            scale = 1 / constant([(width, height) for height, width in sizes], offset)[:, None]  # (levels, 1, 2)
        else:
            box = torch.stack((reference[..., 2] + reference[..., 3], reference[..., 4] + reference[..., 5]), dim=-1)
            scale = box[:, :, None, None, None] / (2 * self.points)
        return centre + offset * scale

    def gather(
        self, query: Float[Tensor, "b q a"], reference: Float[Tensor, "b q *r"], tokens: Float[Tensor, "b t c"],
        sizes: Sizes,
    ) -> Float[Tensor, "b q c"]:  # fmt: skip
        """What the queries gather from the ``tokens`` of all levels, before ``output``; in float32 or better."""
        value = self.value(tokens).unflatten(-1, (self.heads, -1))
        weights = self.weight(query).unflatten(-1, (self.heads, self.levels, self.points))
        if self.weigh == "apart":
            weights = weights.softmax(-1) / self.levels
        else:
            weights = weights.flatten(-2).softmax(-1).unflatten(-1, (self.levels, self.points))
        locations = self.locations(query, reference, sizes)
        with torch.autocast(query.device.type, enabled=False):
            return sample_levels(value, sizes, locations, weights).flatten(-2)

    def forward(
        self,
        query: Float[Tensor, "b q a"],
        reference: Float[Tensor, "b q *r"],
        tokens: Float[Tensor, "b t c"],
        sizes: Sizes,
    ) -> Float[Tensor, "b q c"]:
        """What the queries gather from the ``tokens`` of all levels; ``reference`` as in ``locations``."""
        return self.output(self.gather(query, reference, tokens, sizes))
