"""UVTR's voxel space: image features read at voxels by their probable depth, encoded, and read by object queries.

Li et al., "Unifying Voxel-based Representation with Transformer for 3D Object Detection", NeurIPS 2022,
arXiv:2206.00630; released code dvlab-research/UVTR, projects/mmdet3d_plugin/models/utils/uni3d_viewtrans.py and
uni3d_detr.py.

No detector of this library is made of them yet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.layers.ground.lift import OUTSIDE
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.transfers import constant, inverse

#: Least depth (m) of what a camera sees.
LEAST_DEPTH = 1e-5


def corner_positions(grid: VoxelGrid) -> Float[Tensor, "y x z 3"]:
    """Places (m) of the voxels, spread from one end of the range to the other, ends included, float64: as released, not
    the voxels' centres."""
    low, high = grid.extent[:3], grid.extent[3:]
    axes = [torch.linspace(a, b, count, dtype=torch.float64) for a, b, count in zip(low, high, grid.shape, strict=True)]
    y, x, z = torch.meshgrid(axes[1], axes[0], axes[2], indexing="ij")
    return torch.stack((x, y, z), dim=-1)


def voxel_pixels(
    positions: Float[Tensor, "y x z 3"], projection: Float[Tensor, "b 4 4"], image_size: tuple[int, int], depths: int,
    frame: Float[Tensor, "b 3 3"] | None = None, image_affine: Float[Tensor, "2 3"] | None = None,
) -> Float[Tensor, "b y x z 3"]:  # fmt: skip
    """Where each place lies in a camera's frustum, (column, row, depth) in the coordinates of ``grid_sample``; what the
    camera does not see strictly inside its image and its depths lies outside.

    Args:
        projection: from the LiDAR's frame to pixels (u d, v d, d, 1) of B cameras.
        image_size: (width, height) px, after ``image_affine``.
        depths: bins of 1 m; bin i is read at i + 1/2 m.
        frame: the augmentation of the LiDAR's frame, turn times scale, which is undone.
        image_affine: from pixels of the cameras to those of the augmented images; one for all.
    """
    at = positions.to(projection).flatten(0, 2)
    points = at.expand(len(projection), -1, -1)
    if frame is not None:
        points = points @ inverse(frame).mT
    seen = points @ projection[:, :3, :3].mT + projection[:, None, :3, 3]
    depth = seen[..., 2:]
    pixel = seen[..., :2] / depth.clamp(min=LEAST_DEPTH)
    if image_affine is not None:
        pixel = pixel @ image_affine[:, :2].mT + image_affine[:, 2]
    place = 2 * torch.cat((pixel, depth), dim=-1) / constant((*image_size, depths), pixel) - 1
    inside = (depth > LEAST_DEPTH) & (place.abs() < 1).all(-1, keepdim=True)
    return torch.where(inside, place, OUTSIDE).unflatten(1, positions.shape[:3])


def voxel_features(
    levels: list[tuple[Float[Tensor, "b n c _ _"], Float[Tensor, "b n d _ _"]]], places: Float[Tensor, "b n y x z 3"]
) -> Float[Tensor, "b c z y x"]:
    """Of each voxel the sum over N cameras and the levels of (features, depth probabilities): the feature times the
    probability of the voxel's depth, each read between cells where the camera sees the voxel.

    Feature and probability are read apart, so this is no sample of their product as ``lift`` takes it.
    """
    total = []
    for features, probability in levels:
        flat = places.flatten(0, 1).to(features)
        grid = flat.flatten(1, 3)[:, :, None]  # (b n, v, 1, 3)
        read = F.grid_sample(features.flatten(0, 1), grid[..., :2], align_corners=False)
        share = F.grid_sample(probability.flatten(0, 1)[:, None], grid[..., None, :], align_corners=False)[..., 0]
        inside = (flat > OUTSIDE).all(-1).flatten(1)[:, None, :, None]
        of_view = (torch.where(inside, read * share, 0)).unflatten(0, features.shape[:2]).sum(1)[..., 0]
        total.append(of_view.unflatten(-1, places.shape[2:5]).permute(0, 1, 4, 2, 3))
    return torch.stack(total).sum(0)


class VoxelEncoder(nn.Module):
    """``layers`` times a 3 x 3 x 3 convolution with bias, batch norm and ReLU; channels stay."""

    def __init__(self, channels: int, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv3d(channels, channels, 3, padding=1), nn.BatchNorm3d(channels)) for _ in range(layers)
        )

    def forward(
        self, x: Float[Tensor, "b c z y x"]
    ) -> tuple[Float[Tensor, "b c z y x"], list[Float[Tensor, "b c z y x"]]]:
        """The encoded volume, and what each layer gives before its ReLU: the maps that UVTR's transfer compares."""
        before = []
        for layer in self.layers:
            before.append(layer(x))
            x = before[-1].relu()
        return x, before


class VoxelAttention(nn.Module):
    """One place of each volume for each object query, weighed by the query: no heads, no softmax, no offsets."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Linear(channels, 1)
        self.output = nn.Linear(channels, channels)
        self.position = nn.Sequential(
            nn.Linear(3, channels), nn.LayerNorm(channels), nn.ReLU(),
            nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU(),
        )  # fmt: skip

    def forward(
        self, query: Float[Tensor, "b q c"], position: Float[Tensor, "b q c"], reference: Float[Tensor, "b q 3"],
        volumes: list[Float[Tensor, "b c _ _ _"]],
    ) -> Float[Tensor, "b q c"]:  # fmt: skip
        """The query plus what it reads, summed over volumes.

        ``position`` is the query's code, ``reference`` its x, y, z before a sigmoid makes them 0..1 over the range.
        """
        grid = 2 * reference.sigmoid()[:, :, None, None] - 1
        read = [F.grid_sample(v, grid.to(v), align_corners=False).flatten(2).mT for v in volumes]
        weight = self.weight(query + position).sigmoid()
        return self.output(weight * torch.stack(read).sum(0)) + query + self.position(reference)
