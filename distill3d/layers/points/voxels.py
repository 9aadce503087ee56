"""Points of a LiDAR scan sorted into the cells of a regular grid.

Sources: open-mmlab/OpenPCDet as forked by Cc-Hy/CMKD (pcdet/datasets/processor, pcdet/models/backbones_3d/vfe).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from distill3d.errors import UserError
from distill3d.settings import Coordinate, Side, is_in_range
from distill3d.transfers import constant, places

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
    rows, sample = torch.cat(points), sample_of_rows(points)
    low, cell, cells = (constant(v, rows, torch.float32) for v in (grid.extent[:3], grid.cell, grid.shape))
    place = ((rows[:, :3].float() - low) / cell).floor()
    inside = ((place >= 0) & (place < cells)).all(1)
    coords = torch.cat((sample[:, None], torch.where(inside[:, None], place, 0).long().flip(1)), dim=1)

    # Points of one cell side by side, in their order; those off the grid behind all others.
    keys, order = torch.where(inside, _cell_numbers(coords, grid), torch.iinfo(torch.int64).max).sort(stable=True)
    number = torch.arange(len(rows), device=device)
    begins = torch.ones_like(inside)
    begins[1:] = keys[1:] != keys[:-1]
    start = torch.where(begins, number, 0).cummax(0).values
    # A cell appears with its first point; the points of all samples stand one sample after the other, and so do cells.
    appears = torch.zeros_like(inside).index_put((order,), begins) & inside
    appeared = appears.cumsum(0)
    before = F.pad(appeared, (1, 0))[torch.searchsorted(sample, sample)]  # in earlier samples
    kept = appears & (appeared - before <= max_voxels)
    first = order[start]
    (cell_at,), (taken,) = places(kept, kept[first] & (number - start < max_points))

    voxel = (kept.cumsum(0) - 1)[first[taken]]
    slots = rows.new_zeros(len(cell_at), max_points, rows.shape[1])
    slots[voxel, number[taken] - start[taken]] = rows[order[taken]]
    counts = torch.zeros_like(cell_at).index_add(0, voxel, torch.ones_like(voxel))
    return Voxels(slots, counts, coords[cell_at], len(points))


def sample_of_rows(points: Sequence[Shaped[Tensor, "_ c"]]) -> Int64[Tensor, "n"]:
    """Of which scan the rows of several are, one scan after the other."""
    sizes, number = [len(scan) for scan in points], torch.arange(len(points), device=points[0].device)
    return number.repeat_interleave(constant(sizes, number), output_size=sum(sizes))


def _cell_numbers(coords: Int64[Tensor, "n 4"], grid: VoxelGrid) -> Int64[Tensor, "n"]:
    nx, ny, nz = grid.shape
    b, z, y, x = coords.unbind(1)
    return ((b * nz + z) * ny + y) * nx + x


def mean_of_points(voxels: Voxels) -> Float[Tensor, "v c"]:
    """The mean of each cell's points; 0 without any.

    Source: pcdet/models/backbones_3d/vfe/mean_vfe.py.
    """
    return voxels.slots.sum(1) / voxels.counts.clamp(min=1)[:, None]
