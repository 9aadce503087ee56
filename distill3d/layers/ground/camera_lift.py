"""Surround images lifted to the ground: the features of each camera, spread over a distribution of depth that is
predicted for each of their cells, and summed in the cells of the ground.

Li et al., "BEVDepth: Acquisition of Reliable Depth for Multi-view 3D Object Detection", AAAI 2023, arXiv:2206.10092;
released code Megvii-BaseDetection/BEVDepth, bevdepth/layers/backbones/base_lss_fpn.py.  Parameters are named as in
released weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from distill3d.camera import DepthBins
from distill3d.data.surround import SurroundBatch
from distill3d.errors import UserError
from distill3d.layers.ground.bev_second import SECONDFPN, SECONDFPNConfig
from distill3d.layers.ground.lift import frustum_volume
from distill3d.layers.ground.voxel_pooling import (
    CellRounding,
    PixelPositions,
    frustum,
    frustum_points,
    ground_cells,
    splat,
    voxel_pool,
)
from distill3d.layers.image.depth_net import DepthAggregation, DepthNet, camera_vector, depth_distribution
from distill3d.layers.image.pretrained import RGB_MEAN, RGB_STD
from distill3d.layers.image.resnet import ResNet, ResNetConfig
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.settings import Channels, Weight
from distill3d.transfers import constant

#: Pixels per cell of the map that is lifted, and by how much the trunk's maps, from fine to coarse, grow for it.
STRIDE = 16
IMAGE_SCALES = (0.25, 0.5, 1, 2)


#: Red first; or blue where the trunk looks for red, with red's mean, as released weights saw it.
ChannelOrder = Literal["rgb", "bgr_with_rgb_means"]


@runtime_checkable
class Lifting(Protocol):
    """Of a detector's settings, what the images' colours and places on the ground depend on."""

    @property
    def bins(self) -> DepthBins: ...
    @property
    def grid(self) -> VoxelGrid: ...
    @property
    def channel_order(self) -> ChannelOrder: ...
    @property
    def positions(self) -> PixelPositions: ...
    @property
    def rounding(self) -> CellRounding: ...


@dataclass(frozen=True)
class LiftConfig:
    """How images are lifted.  Defaults are BEVDepth's ResNet-50."""

    trunk: ResNetConfig = ResNetConfig(finest=4)
    frozen_stem: bool = False  # the trunk's stem and its batch norm stay as they are: asks for ImageNet weights
    neck_channels: Channels = 128  # of each of the trunk's four maps
    bins: DepthBins = DepthBins(2.0, 58.0, 112, "UD")
    depth_channels: Channels = 512  # inside the depth network
    context_channels: Channels = 80  # of each frame's map on the ground
    depth_aggregation: bool = False  # mixes the lifted volume before pooling; the released ``use_da``
    grid: VoxelGrid = VoxelGrid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), (0.8, 0.8, 8.0))  # of the ground, ego frame
    depth_weight: Weight = 3.0  # of the depth loss, in batches with depth
    # released versus intended
    channel_order: ChannelOrder = "rgb"
    positions: PixelPositions = "ends"
    rounding: CellRounding = "trunc"

    @property
    def predicts_depth(self) -> bool:
        """Whether images are lifted, and by a depth that is predicted."""
        return True

    @property
    def trains_depth(self) -> bool:
        """Whether that depth has a loss."""
        return self.predicts_depth and self.depth_weight > 0


class ImageNeck(SECONDFPN):
    """The neck on the image trunk: where sides are odd at some stride, maps are cut at the right and bottom."""

    def forward(self, maps: list[Tensor]) -> Float[Tensor, "n c h w"]:
        resized = [up(level) for up, level in zip(self.deblocks, maps, strict=True)]
        height, width = (min(m.shape[axis] for m in resized) for axis in (-2, -1))
        return torch.cat([m[..., :height, :width] for m in resized], dim=1)


class CameraLift(nn.Module):
    """Images and what is known of their cameras -> maps on the ground.

    Args:
        predicts_depth: where it does not, ``on_ground`` is given the depth.

    Raises:
        ValueError: the trunk does not give the maps that are read.
    """

    def __init__(self, config: LiftConfig, predicts_depth: bool = True) -> None:
        super().__init__()
        if config.trunk.finest != 4:
            raise ValueError("the lift reads the trunk's maps at strides 4 to 32: set trunk.finest to 4")
        self.config = config
        self.img_backbone = ResNet(config.trunk)
        necks = SECONDFPNConfig((config.neck_channels,) * len(IMAGE_SCALES), IMAGE_SCALES)
        self.img_neck = ImageNeck(config.trunk.outputs, necks)
        bins = config.bins.count if predicts_depth else 0
        self.depth_net = DepthNet(self.img_neck.channels_out, config.depth_channels, config.context_channels, bins)
        self.aggregation = DepthAggregation(config.context_channels) if config.depth_aggregation else None
        if config.frozen_stem:
            for module in self._stem():
                module.requires_grad_(False)

    def _stem(self) -> tuple[nn.Module, nn.Module]:
        return self.img_backbone.body.conv1, self.img_backbone.body.bn1

    def train(self, mode: bool = True) -> CameraLift:
        """As every module, but a frozen stem keeps to its statistics."""
        super().train(mode)
        if self.config.frozen_stem:
            for module in self._stem():
                module.eval()
        return self

    def forward(
        self, images: Float[Tensor, "n 3 height width"], camera: Float[Tensor, "n 27"]
    ) -> tuple[Float[Tensor, "n d h w"] | None, Float[Tensor, "n c h w"]]:
        """Depth logits, None where the depth is given, and context features at ``STRIDE``."""
        return self.depth_net(self.image_features(images), camera)

    def image_features(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n c h w"]:
        """What the depth network is shown of each image, at ``STRIDE``."""
        return self.img_neck(self.img_backbone(images))

    def on_ground(
        self, batch: SurroundBatch, images: Float[Tensor, "b s n 3 height width"], frame: int = 0, told: int = 0,
        depth: Float[Tensor, "bn d h w"] | None = None,
    ) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "bn d h w"] | None, Float[Tensor, "bn k h w"]]:  # fmt: skip
        """A frame's map on the ground, its depth logits and its image features.

        Args:
            images: as ``normalised_frames`` gives them.
            told: the frame whose cameras' numbers the depth network is told.
            depth: the distribution by which features are lifted, where none is predicted.
        """
        camera = camera_vector(
            batch.intrinsics[:, told], batch.image_affine, batch.bev_affine, batch.camera_to_ego[:, told]
        )
        pixels = images[:, frame].flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features = self.image_features(pixels)
        logits, context = self.depth_net(features, camera.to(pixels))
        if logits is not None:
            depth = depth_distribution(logits)
        assert depth is not None
        x, y, _ = self.config.grid.shape
        ground = self.to_ground(context, depth, lifted_cells(batch, self.config, frame), (y, x))
        return ground, logits, features

    def to_ground(
        self, context: Float[Tensor, "bn c h w"], depth: Float[Tensor, "bn d h w"], cells: Int[Tensor, "b n d h w"],
        size: tuple[int, int],
    ) -> Float[Tensor, "b c y x"]:  # fmt: skip
        """Context features spread over depth and summed in the cells of the ground."""
        if self.aggregation is None:
            return voxel_pool(depth, context, cells, size)
        volume = self.aggregation.volume(frustum_volume(context, depth)).unflatten(0, cells.shape[:2])
        return splat(volume.permute(0, 1, 3, 4, 5, 2).flatten(1, 4), cells.flatten(1), size)


def normalised_frames(
    batch: SurroundBatch, lifting: Lifting, frames: int, who: str, pass_over: bool = False
) -> Float[Tensor, "b s n 3 height width"]:
    """The batch's colours less ImageNet's mean, by its deviation, in the order that the trunk is shown.

    Args:
        frames: how many there are to be.
        who: the detector, which errors name.
        pass_over: the batch may have more, which are left out.

    Raises:
        UserError: the batch has no images, other frames, or sides that are no multiples of ``STRIDE``.
    """
    images = batch.images
    if images is None:
        raise UserError(f"{who} looks at images: the data set gives none")
    if pass_over:
        images = images[:, :frames]
    if images.shape[1] != frames:
        raise UserError(f"{who} is set to {frames} frames, the data set gives {images.shape[1]}")
    height, width = images.shape[-2:]
    if height % STRIDE or width % STRIDE:
        raise UserError(f"{who} sees images whose sides are multiples of {STRIDE} px, not {width} x {height} px")
    if lifting.channel_order == "bgr_with_rgb_means":
        images = images.flip(-3)
    mean, std = (constant(v, images)[:, None, None] for v in (RGB_MEAN, RGB_STD))
    return (images - mean) / std


def canvas_of(batch: SurroundBatch) -> tuple[int, int]:
    """Width and height (px) of the images."""
    assert batch.images is not None
    return batch.images.shape[-1], batch.images.shape[-2]


@torch.no_grad()
def lifted_cells(
    batch: SurroundBatch, lifting: Lifting, frame: int = 0, pose: int | None = None
) -> Int[Tensor, "b n d h w"]:
    """The cell of the ground at which each pixel of a frame's lifted maps lies, for each depth.

    With ``pose`` the cameras stand where they stood in that frame.
    """
    camera_to_ego = batch.camera_to_ego[:, frame if pose is None else pose]
    places = frustum(canvas_of(batch), STRIDE, lifting.bins, lifting.positions, batch.intrinsics.device)
    points = frustum_points(places, batch.image_affine, batch.intrinsics[:, frame], camera_to_ego, batch.bev_affine)
    return ground_cells(points, lifting.grid, lifting.rounding)
