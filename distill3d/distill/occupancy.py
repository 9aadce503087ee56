"""Depth distributions of cameras as occupancy of the space around the vehicle, and where in it objects are.

Source: VCD, NeurIPS 2023, arXiv:2310.15670, OpenDriveLab/Birds-eye-view-Perception nuScenes_playground/VCD/mmdet3d/
models/necks/view_transformer.py (obtain_occupancy), models/dense_heads/centerpoint_head.py (get_3DHeatmaps) and
core/utils/gaussian.py (draw_heatmap_gaussian_3D).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.data.surround import SurroundObjectBatch
from distill3d.detectors.base import Style
from distill3d.distill.precision import full_precision
from distill3d.layers.ground.voxel_pooling import cell_index
from distill3d.layers.image.heatmap import gaussian_radius
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.transfers import constant

#: Of the objects' Gaussians, as of centre heads: IoU that a box shifted by the radius keeps, and least radius (voxels).
RADIUS_OVERLAP = 0.1
LEAST_RADIUS = 2


@full_precision
def occupancy(
    probability: Float[Tensor, "b n d h w"],
    points: Float[Tensor, "b n d h w 3"],
    grid: VoxelGrid,
    style: Style = "intended",
) -> Float[Tensor, "b x y z"]:
    """The sum of the probabilities of the points (m) that fall into each voxel, squashed: sigmoid(sum) - 1/2, 0..1/2.

    ``released`` counts what lies less than a voxel before the grid's lower bounds into its first voxels.
    """
    batch, (nx, ny, nz) = len(probability), grid.shape
    index = cell_index(points, grid, "trunc" if style == "released" else "floor").flatten(1, 4)
    inside = ((index >= 0) & (index < constant(grid.shape, index))).all(-1)
    x, y, z = index.unbind(-1)
    sample = torch.arange(batch, device=index.device)[:, None]
    voxels = batch * nx * ny * nz
    flat = torch.where(inside, ((sample * nx + x) * ny + y) * nz + z, voxels)  # the one after the last is outside
    summed = probability.new_zeros(voxels + 1).index_add(0, flat.flatten(), probability.flatten())
    return (summed[:-1].sigmoid() - 0.5).view(batch, nx, ny, nz)


@torch.no_grad()
def object_volume(
    objects: SurroundObjectBatch,
    grid: VoxelGrid,
    style: Style = "intended",
    ground_cells: tuple[int, int] | None = None,
) -> Float[Tensor, "b x y z"]:
    """Gaussian peaks of height 1 at the objects' centres, the largest where they overlap.

    A peak reaches r = max(2, radius) voxels: on the ground that of the length and the width, upwards the larger one of
    either with the height.  With s = (2 r + 1) / 6 along each axis it falls by exp(-(i / s_x)^2 / 2 - (j / s_y)^2 / 2 -
    (k / s_z)^2 / 2).

    ``released``: it falls by exp(-(i^2 + j^2 + k^2) / (s_x^2 + s_y^2 + s_z^2)); the volume's first two axes run along y
    and x, though those of ``occupancy`` run along x and y; objects are dropped whose voxel along x or y is no cell of a
    ground map of ``ground_cells`` (along x, y); and those less than a voxel before the lower bounds are kept.
    """
    released = style == "released"
    nx, ny, nz = grid.shape
    voxel = cell_index(objects.centre, grid, "trunc" if released else "floor")
    bound = grid.shape if ground_cells is None or not released else (*ground_cells, nz)
    upper = torch.minimum(constant(bound, voxel), constant(grid.shape, voxel))
    drawn = objects.present & (objects.size > 0).all(-1) & ((voxel >= 0) & (voxel < upper)).all(-1)
    sample = drawn.nonzero()[:, 0]
    volume = objects.centre.new_zeros(len(objects.centre), nx, ny, nz)
    if released:
        volume = volume.transpose(1, 2).contiguous()
    if len(sample) == 0:
        return volume

    length, width, height = objects.size[drawn].unbind(-1)
    flat_radius = gaussian_radius(length, width, RADIUS_OVERLAP)
    up_radius = torch.maximum(
        gaussian_radius(length, height, RADIUS_OVERLAP), gaussian_radius(width, height, RADIUS_OVERLAP)
    )
    radius = torch.stack((flat_radius, flat_radius, up_radius), dim=-1) / constant(grid.cell, flat_radius)
    radius = radius.long().clamp(min=LEAST_RADIUS)  # (n, 3)
    sigma = (2 * radius.to(volume) + 1) / 6

    reach = radius.amax(0).tolist()
    axes = [torch.arange(-r, r + 1, device=volume.device) for r in reach]
    offset = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)  # (o, 3)
    square = offset.to(volume).square()
    if released:
        exponent = -square.sum(-1) / sigma.square().sum(-1, keepdim=True)
    else:
        exponent = -(square / (2 * sigma[:, None].square())).sum(-1)  # (n, o)
    place = voxel[drawn][:, None] + offset
    kept = (offset.abs() <= radius[:, None]).all(-1) & (place >= 0).all(-1)
    kept &= (place < constant(grid.shape, place)).all(-1)
    x, y, z = place.unbind(-1)
    first, second, extent = (y, x, nx) if released else (x, y, ny)
    across = ny if released else nx
    flat = ((sample[:, None] * across + first) * extent + second) * nz + z
    drawn_volume = volume.flatten().scatter_reduce(0, flat[kept], exponent.exp()[kept], "amax")
    return drawn_volume.view_as(volume)
