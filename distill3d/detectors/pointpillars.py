"""PointPillars: columns of LiDAR points as pixels of a picture of the ground, and a 2D network on it.

Lang et al., "PointPillars: Fast Encoders for Object Detection from Point Clouds", CVPR 2019, arXiv:1812.05784.  This is
the form that CMKD learns from: Cc-Hy/CMKD tools/cfgs/kitti_models/CMKD/CMKD-pp/pointpillar_teacher.yaml,
pcdet/models/backbones_3d/vfe/pillar_vfe.py.  With ``stride`` 1 and a ``head.backbone`` that
halves the map it is open-mmlab/OpenPCDet's own (tools/cfgs/kitti_models/pointpillar.yaml).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.data.sample import Batch
from distill3d.detectors.anchor_outputs import anchor_outputs, head_channels
from distill3d.detectors.base import FeatureMap, Outputs, bev_geometry
from distill3d.detectors.released import OF_TRAINING, ReleasedForm
from distill3d.detectors.second import LidarDetector, lidar_scans
from distill3d.layers.heads.anchor_head import (
    RELEASED_NAMES,
    RELEASED_STEPS,
    TINY_BACKBONE,
    AnchorHead,
    AnchorHeadConfig,
    focal_head,
)
from distill3d.layers.heads.anchors import KITTI_ANCHORS
from distill3d.layers.points.sparse_conv import normalise_rows, row_norm
from distill3d.layers.points.voxels import STUDENT_RANGE, VoxelGrid, Voxels, voxelise
from distill3d.settings import Channels, Layers, Number, Stride
from distill3d.transfers import constant, places

#: Values of a point: x, y, z, intensity.
POINT_VALUES = 4
#: What a point is told beside its values: the offsets from the mean of the pillar's points, and those from its centre.
OFFSETS = 3 + 3


@dataclass(frozen=True)
class PointPillarsConfig:
    """Everything that makes one PointPillars."""

    input: Literal["points"] = "points"
    pillars: VoxelGrid = VoxelGrid(STUDENT_RANGE, (0.16, 0.16, 4.0))
    max_points: Number = 32  # of a pillar
    train_pillars: Number = 20000  # of a scan
    test_pillars: Number = 40000
    channels: Channels = 128
    stride: Stride = 2  # of the first convolution on the pillars' picture; 1: the picture itself is the tap
    layers: Layers = 5  # convolutions that follow it
    head: AnchorHeadConfig = field(default_factory=focal_head)
    #: Slots that batch norm sees: all, the empty ones too, as released, or those that hold a point.
    norm_slots: Literal["all", "filled"] = "all"


def tiny(**fields: Any) -> PointPillarsConfig:
    """The small configuration: pillars of 32 cm, a map of 64 channels at 0.64 m, cars only."""
    small = {
        "pillars": VoxelGrid(STUDENT_RANGE, (0.32, 0.32, 4.0)), "max_points": 16, "channels": 64, "layers": 1,
        "head": focal_head(classes=KITTI_ANCHORS[:1], backbone=TINY_BACKBONE),
    }  # fmt: skip
    return PointPillarsConfig(**{**small, **fields})


class PillarFeatures(nn.Module):
    """Each pillar's points, told where they lie in it, through one linear layer; the largest value of each channel.

    ``point_values``: numbers of a point, of which x, y, z (m) come first.
    """

    def __init__(
        self, grid: VoxelGrid, channels: int, norm_slots: Literal["all", "filled"], point_values: int = POINT_VALUES
    ) -> None:
        super().__init__()
        self.grid, self.norm_slots = grid, norm_slots
        self.linear = nn.Linear(point_values + OFFSETS, channels, bias=False)
        self.norm = row_norm(channels)

    def forward(self, pillars: Voxels) -> Float[Tensor, "v channels"]:
        slots = pillars.slots
        filled = torch.arange(slots.shape[1], device=slots.device) < pillars.counts[:, None]
        mean = slots[..., :3].sum(1) / pillars.counts.clamp(min=1)[:, None]
        cell, low = constant(self.grid.cell, slots), constant(self.grid.extent[:3], slots)
        centre = (pillars.coords[:, 1:].flip(1) + 0.5) * cell + low
        offsets = [slots[..., :3] - where[:, None] for where in (mean, centre)]
        features = self.linear(torch.cat((slots, *offsets), dim=-1) * filled[..., None])
        if self.norm_slots == "all":
            return normalise_rows(self.norm, features.flatten(0, 1)).relu().view(features.shape).amax(1)
        (points,) = places(filled)
        values = normalise_rows(self.norm, features[points]).relu()
        return torch.zeros_like(features).masked_scatter(filled[..., None], values.to(features)).amax(1)


class PointPillars(LidarDetector):
    """Pillar features, scattered to a picture of the ground, a few convolutions, 2D backbone and anchor head.

    Tap ``bev`` (B, C, Y, X): what those convolutions give, >= 0.  Predictions are the head's.
    """

    name = "pointpillars"
    config: PointPillarsConfig

    def __init__(self, config: PointPillarsConfig) -> None:
        super().__init__()
        self.config = config
        self.geometry = bev_geometry(config.pillars, config.stride)
        self.features = PillarFeatures(config.pillars, config.channels, config.norm_slots)
        steps = () if config.stride == 1 else (config.stride, *(1,) * config.layers)
        self.convs = nn.Sequential(*(_conv(config.channels, step) for step in steps))
        nx, ny, _ = config.pillars.shape
        cells = ny // config.stride, nx // config.stride
        self.head = AnchorHead(config.channels, config.pillars.extent, cells, config.head)
        self.tap_channels = {"bev": config.channels} | head_channels(self.head)

    def forward(self, batch: Batch) -> Outputs:
        """Map and raw predictions.

        Raises:
            ValueError: the batch has no points, or does not say where the LiDAR is.
        """
        config = self.config
        budget = config.train_pillars if self.training else config.test_pillars
        pillars = voxelise(lidar_scans(batch), config.pillars, config.max_points, budget)
        bev = self.convs(picture(self.features(pillars), pillars, config.pillars))
        return anchor_outputs(self.head, bev, {"bev": FeatureMap(bev, self.geometry)})


def picture(features: Float[Tensor, "v c"], pillars: Voxels, grid: VoxelGrid) -> Float[Tensor, "b c y x"]:
    """The pillars' features at their cells of the ground, 0 elsewhere."""
    nx, ny, _ = grid.shape
    sample, _, y, x = pillars.coords.unbind(1)
    blank = features.new_zeros(pillars.batch_size * ny * nx, features.shape[1])
    rows = blank.index_copy(0, (sample * ny + y) * nx + x, features)
    return rows.view(pillars.batch_size, ny, nx, -1).permute(0, 3, 1, 2)


def _conv(channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    )


def released_form(config: PointPillarsConfig) -> ReleasedForm:
    """OpenPCDet's names, as Cc-Hy/CMKD saves this network."""
    convs = {
        f"map_to_bev_module.conv_layers.{i}.{layer}": f"convs.{i}.{j}"
        for i in range(config.layers + 1) for j, layer in enumerate(("conv", "bn"))
    }  # fmt: skip
    return ReleasedForm(
        RELEASED_NAMES | {"vfe.pfn_layers.0": "features"} | convs, dict.fromkeys(RELEASED_STEPS, OF_TRAINING),
        unused=RELEASED_STEPS,
    )  # fmt: skip
