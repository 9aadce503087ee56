"""From the camera's view to the ground: image features spread over depth and read at the voxels of the LiDAR's frame.

A pixel's feature times its distribution over depth bins fills a frustum (B, C, D, h, w); every voxel centre is
projected into the image and reads the frustum there, trilinearly.  ``lift`` gives that volume without the frustum: a
trilinear sample of an outer product is the sum over four pixels of feature times distribution, the latter interpolated
along depth only.

Sources: CaDDN (Reading et al., CVPR 2021, arXiv:2103.01100; TRAILab/CaDDN) as changed by Cc-Hy/CMKD
(pcdet/models/backbones_3d/vfe/image_vfe_modules/f2v, .../ffn) and hoiliu-0801/MonoTAKD (depth_ffn_TAKD.py).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from distill3d.camera import Camera, DepthBins
from distill3d.layers.ground.weighted_rows import read_rows
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.transfers import constant

#: How pixels and bin numbers become coordinates of ``grid_sample`` (align_corners False).
#: ``released`` divides by size - 1, as that function's other mode asks for: column u / (W - 1) w - 1/2.
#: ``corners`` is that other mode, in which CaDDN's own code reads: column u / (W - 1) (w - 1), and bin b.
#: ``intended`` divides by what the map covers, all axes counting from their edge: column u / stride - 1/2, and
#: bin b - 1/2, for bin i reaches from i to i + 1 as depth targets are rounded down.
Normalisation = Literal["released", "intended", "corners"]

#: Coordinate that lies outside any map, in place of one that is not finite.
OUTSIDE = -2.0
#: Keeps the share of known pixels from 0 (Cc-Hy/CMKD depth_ffn.py).
SHARE_EPSILON = 1e-10


def voxel_centres(voxels: VoxelGrid) -> Float[Tensor, "y x z 3"]:
    """Centres (m, LiDAR frame) of the voxels, float64."""
    axes = [
        low + (torch.arange(count, dtype=torch.float64) + 0.5) * cell
        for low, count, cell in zip(voxels.extent[:3], voxels.shape, voxels.cell, strict=True)
    ]
    y, x, z = torch.meshgrid(axes[1], axes[0], axes[2], indexing="ij")
    return torch.stack((x, y, z), dim=-1)


def sampling_grid(
    voxels: VoxelGrid, camera: Camera, lidar_to_camera: Float[Tensor, "b 4 4"], bins: DepthBins,
    image_size: tuple[int, int], stride: int, normalisation: Normalisation = "released",
) -> Float[Tensor, "b y x z 3"]:  # fmt: skip
    """Where each voxel centre lies in the frustum: (column, row, bin) in the coordinates of ``grid_sample``, float32.

    The depth of a point is its third projected coordinate less that of the origin; coordinates that are not finite, as
    the bins of points behind the camera, become -2, which is outside.

    Args:
        camera: of the canvas, projection (B, 3, 4).
        image_size: (width, height) px of the canvas.
        stride: px per cell of the feature map, which has ceil(size / stride) cells.
    """
    pose = lidar_to_camera.double()
    centres = voxel_centres(voxels).to(pose.device, non_blocking=True)
    points = centres.flatten(0, 2) @ pose[:, :3, :3].transpose(-1, -2) + pose[:, None, :3, 3]
    uv, depth = Camera(camera.projection.double()).project(points, "homogeneous")
    position = bins.position(torch.where(depth > 0, depth, torch.nan))
    cells = [-(-size // stride) for size in image_size]
    if normalisation == "intended":
        extent = (*(count * stride for count in cells), bins.count)
    else:
        extent = (image_size[0] - 1, image_size[1] - 1, bins.count - 1)
    at = torch.cat((uv, position[..., None]), dim=-1)
    grid = 2 * at / constant(extent, at) - 1
    if normalisation == "corners":  # -1 and 1 are the centres of the first and the last cell
        grid = grid * (1 - 1 / constant((*cells, bins.count), at))
    grid = torch.where(grid.isfinite(), grid, OUTSIDE).float()
    return grid.unflatten(1, centres.shape[:3])


def frustum_volume(
    features: Float[Tensor, "b c h w"], probability: Float[Tensor, "b d h w"]
) -> Float[Tensor, "b c d h w"]:
    """Each pixel's feature times its distribution over depth bins."""
    return features[:, :, None] * probability[:, None]


def sample_volume(volume: Float[Tensor, "b c d h w"], grid: Float[Tensor, "b y x z 3"]) -> Float[Tensor, "b c z y x"]:
    """Any frustum read at the points of ``sampling_grid``: trilinear, zeros outside.  What ``lift`` is measured by."""
    return F.grid_sample(volume, grid.to(volume), align_corners=False).permute(0, 1, 4, 2, 3)


def lift(
    features: Float[Tensor, "b c h w"], probability: Float[Tensor, "b d h w"], grid: Float[Tensor, "b y x z 3"]
) -> Float[Tensor, "b c z y x"]:
    """``sample_volume(frustum_volume(features, probability), grid)`` to rounding, without the frustum.

    A voxel is a weighted sum of the four feature vectors around its projection; the weights are bilinear ones times
    each pixel's distribution interpolated at the voxel's depth.  In float32 or better, also under autocast.  In memory
    the channels of a voxel stand together, (B, Y, X, Z, C): ``HeightCollapse`` reads them so.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        index, weight = _frustum_cells(probability.to(dtype), grid)
        lifted = read_cells(features.to(dtype), index, weight)
    return lifted.unflatten(0, grid.shape[:4]).permute(0, 4, 3, 1, 2)


def _frustum_cells(
    probability: Float[Tensor, "b d h w"], grid: Float[Tensor, "b y x z 3"]
) -> tuple[Int[Tensor, "n 4"], Float[Tensor, "n 4"]]:
    """The pixels around each of n voxels, by ``surrounding_cells``, and what each of their features counts."""
    depths, height, width = probability.shape[1:]
    size = constant((width, height, depths), probability)
    at = (((grid.to(probability) + 1) * size - 1) / 2).flatten(1, 3)
    index, bilinear = surrounding_cells(at[..., :2], height, width)

    # a row per pixel with empty bins before the first and after the last, and an empty row for what is outside
    rows = F.pad(probability.permute(0, 2, 3, 1).flatten(0, 2), (1, 2, 0, 1))
    position = at[..., 2].flatten().clamp(-1, depths)
    low = position.floor()
    first = index * rows.shape[1] + (low.long() + 1)[:, None]
    nearer, farther = (rows.flatten().index_select(0, i.flatten()).view_as(i) for i in (first, first + 1))
    return index, bilinear * torch.lerp(nearer, farther, (position - low)[:, None])


def surrounding_cells(
    at: Float[Tensor, "b n 2"], height: int, width: int
) -> tuple[Int[Tensor, "m 4"], Float[Tensor, "m 4"]]:
    """The four cells around each point of B maps, and their bilinear weights, for all m = B n points.

    ``at`` is (column, row), cell (0, 0) having its centre at (0, 0).  Cells are numbered through all maps, row by row;
    B h w, the number after the last, stands for all that is outside.
    """
    size = constant((width, height), at)
    at = torch.minimum(at.clamp(min=-1), size)  # outside stays outside, and fits an integer
    low = at.floor()
    share = at - low
    column, row = low.long().unbind(-1)
    first = torch.arange(len(at), device=at.device)[:, None] * (height * width)
    indices, weights = [], []
    for down in (0, 1):
        for right in (0, 1):
            u, v = column + right, row + down
            inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
            indices.append(torch.where(inside, first + v * width + u, len(at) * height * width))
            across = share[..., 0] if right else 1 - share[..., 0]
            weights.append(across * (share[..., 1] if down else 1 - share[..., 1]))
    return torch.stack(indices, dim=-1).flatten(0, 1), torch.stack(weights, dim=-1).flatten(0, 1)


def read_cells(
    maps: Float[Tensor, "b c h w"], index: Int[Tensor, "m k"], weight: Float[Tensor, "m k"]
) -> Float[Tensor, "m c"]:
    """Weighted sums of k cells each, numbered as ``surrounding_cells`` does; what is outside is 0."""
    return read_rows(maps.permute(0, 2, 3, 1).flatten(0, 2), index, weight)


# ------------------------------------------------------------------------------------------------- depth distributions


def depth_probability(logits: Float[Tensor, "b n h w"]) -> Float[Tensor, "b d h w"]:
    """The distribution over d = n - 1 bins, float32 or better; the last class, beyond all bins, is dropped."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)[:, :-1]


def one_hot_depth(bins: Int[Tensor, "b h w"], count: int) -> Float[Tensor, "b d h w"]:
    """1 in each pixel's bin; pixels of bin ``count``, unknown or out of range, are 0 throughout."""
    batch, height, width = bins.shape
    empty = torch.zeros(batch, count + 1, height, width, device=bins.device)
    return empty.scatter(1, bins[:, None], 1.0)[:, :-1]


def sparse_average_pool(depth: Float[Tensor, "b 1 h w"], size: int) -> Float[Tensor, "b y x"]:
    """Mean of the known depths (m, not 0) of each ``size`` x ``size`` block, 0 where none is known; blocks at the right
    and bottom are filled up with unknown."""
    height, width = depth.shape[-2:]
    padded = F.pad(depth, (0, -width % size, 0, -height % size))
    known = F.avg_pool2d((padded != 0).to(padded), size)
    return (F.avg_pool2d(padded, size) / (known + SHARE_EPSILON))[:, 0]
