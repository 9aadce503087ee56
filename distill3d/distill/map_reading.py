"""What maps and volumes hold at points that lie between their cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from distill3d.layers.ground.lift import read_cells, surrounding_cells
from distill3d.transfers import constant

#: Places further outside than this (in sides of the map) are as far outside as this.
FAR_OUTSIDE = 1.0
#: Sample and row of each of N boxes, as ``nonzero`` of a mask gives them.
Rows = tuple[Int[Tensor, "k"], Int[Tensor, "k"]]


def read_at(
    maps: Float[Tensor, "b c *cells"], at: Float[Tensor, "b *n d"], rows: Rows | None = None
) -> Float[Tensor, "*read c"]:
    """Maps (B, C, Y, X) read at (column, row), or volumes (B, C, Z, Y, X) at (column, row, level), cell 0 being centred
    at 0: linearly between the cells' centres, 0 outside; (B, ..., C), or of the first two dimensions of the points the
    ``rows`` alone.

    In float32 or better, also under autocast.  No gradient to the points.
    """
    dtype = torch.promote_types(maps.dtype, torch.float32)
    at = at.detach().to(torch.promote_types(at.dtype, torch.float32))
    with torch.autocast(maps.device.type, enabled=False):
        if maps.dim() == 5:
            read = _read_volumes(maps.to(dtype), at.flatten(1, -2)).unflatten(1, at.shape[1:-1])
            return read if rows is None else read[rows]
        index, weight = surrounding_cells(at.flatten(1, -2), maps.shape[2], maps.shape[3])
        index, weight = (v.unflatten(0, at.shape[:-1]) for v in (index, weight.to(dtype)))
        if rows is not None:
            index, weight = index[rows], weight[rows]
        read = read_cells(maps.to(dtype), index.flatten(0, -2), weight.flatten(0, -2))
    return read.unflatten(0, index.shape[:-1])


def _read_volumes(volumes: Float[Tensor, "b c z y x"], at: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n c"]:
    sides = constant(volumes.shape[:1:-1], at)
    share = ((at + 0.5) / sides).clamp(-FAR_OUTSIDE, 1 + FAR_OUTSIDE)
    found = F.grid_sample(volumes, (2 * share - 1)[:, :, None, None].to(volumes), align_corners=False)
    return found.flatten(2).transpose(1, 2)


def cells_of(place: Float[Tensor, "*n d"], maps: Float[Tensor, "b c *cells"]) -> Float[Tensor, "*n d"]:
    """Places (x, y) of maps or (x, y, z) of volumes, each from 0 to 1 over the map, as ``read_at`` takes them."""
    return place * constant(maps.shape[:1:-1], place) - 0.5
