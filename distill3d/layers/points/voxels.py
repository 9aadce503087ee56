"""Points of a LiDAR scan sorted into the cells of a regular grid.

Sources: open-mmlab/OpenPCDet as forked by Cc-Hy/CMKD (pcdet/datasets/processor, pcdet/models/backbones_3d/vfe).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from distill3d.errors import UserError
from distill3d.settings import Coordinate, Side, is_in_range

#: Where students look (m, LiDAR frame).
STUDENT_RANGE = (2.0, -30.08, -3.0, 46.8, 30.08, 1.0)
#: Where CMKD trains its teachers; networks are convolutional, so their weights run on either.
TEACHER_RANGE = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0)


#: Cells of a grid along an axis.
MOST_CELLS = 65_536


@dataclass(frozen=True)
class VoxelGrid:
    """A box of the LiDAR's frame and the cells that it is cut into.

    Raises:
        UserError: the box is turned inside out, or cells are too small for it.
    """

    extent: tuple[
        Coordinate, Coordinate, Coordinate, Coordinate, Coordinate, Coordinate
    ]  # x min, y min, z min, x max, y max, z max (m)
    cell: tuple[Side, Side, Side]  # along x, y, z (m)

    def __post_init__(self) -> None:
        if is_in_range(self) and not all(1 <= cells <= MOST_CELLS for cells in self.shape):
            raise UserError(
                f"a grid of {self.shape} cells along x, y, z: extent {self.extent} and cell {self.cell} must give "
                f"1 to {MOST_CELLS} along each"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Cells along x, y, z."""
        low, high = self.extent[:3], self.extent[3:]
        nx, ny, nz = (round((b - a) / c) for a, b, c in zip(low, high, self.cell, strict=True))
        return nx, ny, nz

    @property
    def sparse_shape(self) -> tuple[int, int, int]:
        """Cells along z, y, x of the grid that a sparse backbone sees: one empty layer more on top, as released
        (pcdet/models/backbones_3d/spconv_backbone.py)."""
        nx, ny, nz = self.shape
        return nz + 1, ny, nx


@dataclass(frozen=True)
class Voxels:
    """The occupied cells of a batch of scans, sample after sample, each in the order in which points met them."""

    slots: Float[Tensor, "v slots c"]  # the first points of each cell, in their order; zeros behind them
    counts: Int64[Tensor, "v"]  # points in ``slots``
    coords: Int64[Tensor, "v 4"]  # b, z, y, x
    batch_size: int  # of the batch, also where its last samples have no points


def voxelise(points: list[Float[Tensor, "_ c"]], grid: VoxelGrid, max_points: int, max_voxels: int) -> Voxels:
    """The cells that hold points: of each cell its first ``max_points``, of each sample its first ``max_voxels`` cells.

    ``points`` are a sample's rows x, y, z (m, LiDAR frame), then anything.  Points off the grid (its upper bounds
    included) and points with NaN coordinates are dropped, and so are points that would begin a cell too many.  Cells
    are those of float32 division, as in the released code.

    Source: pcdet/datasets/processor/data_processor.py, transform_points_to_voxels.
    """
    device = points[0].device
    sizes = torch.tensor([len(scan) for scan in points], device=device)
    rows, sample = torch.cat(points), torch.arange(len(points), device=device).repeat_interleave(sizes)
    low, cell, cells = (
        torch.tensor(v, dtype=torch.float32, device=device) for v in (grid.extent[:3], grid.cell, grid.shape)
    )
    place = ((rows[:, :3].float() - low) / cell).floor()
    inside = ((place >= 0) & (place < cells)).all(1)
    rows, coords = rows[inside], torch.cat((sample[inside, None], place[inside].long().flip(1)), dim=1)

    # Points of one cell side by side, in their order.
    order, start, group = _group(_cell_numbers(coords, grid))
    rank = torch.arange(len(order), device=device) - start[group]
    # Cells by their first point; the points of all samples stand one sample after the other, and so do cells now.
    first = order[start]
    by_appearance = torch.argsort(first)
    owner = coords[first[by_appearance], 0]
    begin = torch.searchsorted(owner, owner)
    kept = by_appearance[torch.arange(len(owner), device=device) - begin < max_voxels]
    voxel = torch.full_like(start, -1)
    voxel[kept] = torch.arange(len(kept), device=device)

    voxel = voxel[group]
    taken = (voxel >= 0) & (rank < max_points)
    slots = rows.new_zeros(len(kept), max_points, rows.shape[1])
    slots[voxel[taken], rank[taken]] = rows[order[taken]]
    return Voxels(slots, torch.bincount(voxel[taken], minlength=len(kept)), coords[first[kept]], len(points))


def _cell_numbers(coords: Int64[Tensor, "n 4"], grid: VoxelGrid) -> Int64[Tensor, "n"]:
    nx, ny, nz = grid.shape
    b, z, y, x = coords.unbind(1)
    return ((b * nz + z) * ny + y) * nx + x


def _group(keys: Int64[Tensor, "n"]) -> tuple[Int64[Tensor, "n"], Int64[Tensor, "g"], Int64[Tensor, "n"]]:
    """An order that puts equal keys side by side and else changes nothing; where each group begins in it; and, in this
    order, the group of each."""
    keys, order = torch.sort(keys, stable=True)
    begins = torch.ones_like(keys, dtype=torch.bool)
    begins[1:] = keys[1:] != keys[:-1]
    return order, begins.nonzero()[:, 0], begins.cumsum(0) - 1


def mean_of_points(voxels: Voxels) -> Float[Tensor, "v c"]:
    """The mean of each cell's points; 0 without any.

    Source: pcdet/models/backbones_3d/vfe/mean_vfe.py.
    """
    return voxels.slots.sum(1) / voxels.counts.clamp(min=1)[:, None]
