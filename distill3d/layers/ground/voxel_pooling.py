"""From surround cameras to the ground by pushing: every pixel's feature, spread over depth, falls into cells.

``frustum`` and ``frustum_points`` say where each pixel lies at each depth, ``ground_cells`` into which cell that falls,
``voxel_pool`` sums what falls into each.  A pixel's feature times its distribution over depth bins is never held: the
sum is linear in the features, a sparse matrix of cells by pixels whose entries are probabilities.

Sources: Philion and Fidler, "Lift, Splat, Shoot", ECCV 2020, arXiv:2008.05711; Megvii-BaseDetection/BEVDepth
(bevdepth/layers/backbones/base_lss_fpn.py, bevdepth/ops/voxel_pooling_train).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from distill3d.camera import DepthBins
from distill3d.layers.ground.weighted_rows import add_rows
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.transfers import constant, inverse

#: Pixels at which the frustum's columns and rows lie: ``ends`` spreads them from the image's first pixel to its last,
#: as released; ``centres`` are the middles of the feature map's cells.
PixelPositions = Literal["ends", "centres"]
#: How a position in cells becomes a cell: ``trunc`` counts what lies less than a cell before the first into it, as
#: released; ``floor`` does not.
CellRounding = Literal["trunc", "floor"]
#: Cell number of points that lie in none.
NO_CELL = -1


# ------------------------------------------------------------------------------------------------------------- geometry


def frustum(
    image_size: tuple[int, int], stride: int, bins: DepthBins, positions: PixelPositions = "ends",
    device: torch.device | None = None,
) -> Float[Tensor, "d h w 4"]:  # fmt: skip
    """Column u, row v (px), depth (m, at which the bin begins) and 1 of each depth of each cell of a feature map.

    ``image_size`` is (width, height) px and a multiple of ``stride``.

    Source: bevdepth/layers/backbones/base_lss_fpn.py, create_frustum.
    """
    u, v = (pixel_positions(side, stride, positions, device) for side in image_size)
    depths = bins.depth(torch.arange(bins.count, dtype=torch.float64, device=device)).float()
    d, v, u = torch.meshgrid(depths, v, u, indexing="ij")
    return torch.stack((u, v, d, torch.ones_like(d)), dim=-1)


def pixel_positions(
    side: int, stride: int, positions: PixelPositions, device: torch.device | None = None
) -> Float[Tensor, "n"]:
    """Where (px) the cells along one side of an image lie."""
    cells = side // stride
    if positions == "ends":
        return torch.linspace(0, side - 1, cells, device=device)
    return (torch.arange(cells, device=device) + 0.5) * stride


def nearest_cell(
    pixel: Float[Tensor, "*s"], side: int, stride: int, positions: PixelPositions = "ends"
) -> Int[Tensor, "*s"]:
    """The cell along one side whose position is nearest to each pixel; the first or last beyond the image."""
    cells = side // stride
    index = pixel * ((cells - 1) / (side - 1)) if positions == "ends" else pixel / stride - 0.5
    return index.clamp(0, cells - 1).round().long()


def frustum_points(
    frustum: Float[Tensor, "d h w 4"], image_affine: Float[Tensor, "b n 4 4"], intrinsics: Float[Tensor, "b n 4 4"],
    camera_to_ego: Float[Tensor, "b n 4 4"], bev_affine: Float[Tensor, "b 4 4"],
) -> Float[Tensor, "b n d h w 3"]:  # fmt: skip
    """The frustum's points (m) in the augmented ego frame, float64.

    q = image_affine^-1 (u, v, d, 1) undoes the image's augmentation, then X = bev_affine camera_to_ego intrinsics^-1
    (q_u d, q_v d, d, 1).

    Source: bevdepth/layers/backbones/base_lss_fpn.py, get_geometry.
    """
    on_file = frustum.double().flatten(0, 2) @ inverse(image_affine.double()).transpose(-1, -2)  # (B, N, D h w, 4)
    scaled = torch.cat((on_file[..., :2] * on_file[..., 2:3], on_file[..., 2:]), dim=-1)
    to_ground = bev_affine.double()[:, None] @ camera_to_ego.double() @ inverse(intrinsics.double())
    return (scaled @ to_ground[..., :3, :].transpose(-1, -2)).unflatten(2, frustum.shape[:3])


def camera_pixels(
    points: Float[Tensor, "b m 3"], image_affine: Float[Tensor, "b n 4 4"], intrinsics: Float[Tensor, "b n 4 4"],
    camera_to_ego: Float[Tensor, "b n 4 4"], bev_affine: Float[Tensor, "b 4 4"],
) -> tuple[Float[Tensor, "b n m 2"], Float[Tensor, "b n m"]]:  # fmt: skip
    """The inverse of ``frustum_points``: where each camera sees points (m) of the augmented ego frame, float64.

    Pixels of the canvas, without meaning where the second, the depth (m), is not positive.
    """
    to_ground = bev_affine.double()[:, None] @ camera_to_ego.double() @ inverse(intrinsics.double())
    homogeneous = F.pad(points.double(), (0, 1), value=1.0)[:, None]  # (B, 1, M, 4)
    scaled = homogeneous @ inverse(to_ground).transpose(-1, -2)
    depth = scaled[..., 2:3]
    on_file = torch.cat((scaled[..., :2] / depth, depth, torch.ones_like(depth)), dim=-1)
    return (on_file @ image_affine.double().transpose(-1, -2))[..., :2], depth[..., 0]


def cell_index(points: Float[Tensor, "*s 3"], grid: VoxelGrid, rounding: CellRounding = "trunc") -> Int[Tensor, "*s 3"]:
    """Cell along x, y, z of each point (m); those off the grid get numbers that are negative or too large."""
    low, cell = (constant(v, points) for v in (grid.extent[:3], grid.cell))
    position = (points - low) / cell
    return (position.trunc() if rounding == "trunc" else position.floor()).long()


def flat_cells(index: Int[Tensor, "*s 3"], cells: tuple[int, int, int]) -> Int[Tensor, "*s"]:
    """y * X + x of cell numbers along x, y, z, whatever z; ``NO_CELL`` where one of the three is out of range.

    ``cells`` are the numbers of cells along x, y, z.
    """
    inside = ((index >= 0) & (index < constant(cells, index))).all(-1)
    return torch.where(inside, index[..., 1] * cells[0] + index[..., 0], NO_CELL).long()


def ground_cells(points: Float[Tensor, "*s 3"], grid: VoxelGrid, rounding: CellRounding = "trunc") -> Int[Tensor, "*s"]:
    """The cell y * X + x of the ground into which each point (m) falls, ``NO_CELL`` where it leaves the grid."""
    return flat_cells(cell_index(points, grid, rounding), grid.shape)


# -------------------------------------------------------------------------------------------------------------- pooling


def splat(
    features: Float[Tensor, "b p c"], cells: Int[Tensor, "b p"], size: tuple[int, int]
) -> Float[Tensor, "b c y x"]:
    """The sum of the features of the points in each cell y * X + x of a map of ``size`` (Y, X), ``NO_CELL`` dropped.

    What ``voxel_pool`` is measured by.

    Source: bevdepth/ops/voxel_pooling_train.
    """
    count = size[0] * size[1]
    out = features.new_zeros(len(features) * count + 1, features.shape[-1])
    out = out.index_add(0, _batched(cells, count).flatten(), features.flatten(0, 1))
    return out[:-1].view(len(features), *size, -1).permute(0, 3, 1, 2)


def voxel_pool(
    depth: Float[Tensor, "bn d h w"], context: Float[Tensor, "bn c h w"], cells: Int[Tensor, "b n d h w"],
    size: tuple[int, int],
) -> Float[Tensor, "b c y x"]:  # fmt: skip
    """The ground map of ``size`` (Y, X): sum over cameras, depths and pixels of depth times context in each cell.

    Equal to ``splat`` of their outer product to rounding, without it; always summed in the same order, in float32 or
    better also under autocast.  In memory the channels of a cell stand together.

    Args:
        depth: each pixel's distribution over D depth bins, of B * N images.
        cells: y * X + x of each point, or ``NO_CELL``.
    """
    dtype = torch.promote_types(context.dtype, torch.float32)
    count = size[0] * size[1]
    with torch.autocast(context.device.type, enabled=False):
        weight = depth.to(dtype).permute(0, 2, 3, 1).flatten(0, 2)
        rows = context.to(dtype).permute(0, 2, 3, 1).flatten(0, 2)
        numbers = _batched(cells, count).permute(0, 1, 3, 4, 2).reshape(weight.shape)
        out = add_rows(rows, numbers, weight, len(cells) * count)
    return out.view(len(cells), *size, -1).permute(0, 3, 1, 2)


def _batched(cells: Int[Tensor, "b *s"], count: int) -> Int[Tensor, "b *s"]:
    """Cells counted through the maps of a batch; the number after the last stands for ``NO_CELL``."""
    first = count * torch.arange(len(cells), device=cells.device).view(-1, *[1] * (cells.dim() - 1))
    return torch.where(cells < 0, count * len(cells), cells + first)
