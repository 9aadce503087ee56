"""SECOND: voxels of a LiDAR scan through a sparse 3D network, and an anchor head on the map of the ground.

Yan et al., "SECOND: Sparsely Embedded Convolutional Detection", Sensors 2018.  This is the residual form with 64
channels that CMKD and MonoTAKD learn from: Cc-Hy/CMKD tools/cfgs/kitti_models/CMKD/CMKD-scd/second_teacher.yaml,
pcdet/models/backbones_3d/spconv_backbone.py (VoxelResBackBone8x_c64).  Where they ran it on another range than they
had trained it on, the defaults here train on the range that students need.  With ``backbone.block`` plain and 128
``backbone.outputs`` it is open-mmlab/OpenPCDet's own (tools/cfgs/kitti_models/second.yaml).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.boxes import Boxes3D
from distill3d.data.augment.lidar import carry
from distill3d.data.sample import Batch
from distill3d.detectors.anchor_outputs import anchor_outputs, head_channels
from distill3d.detectors.base import Detector, FeatureMap, Outputs, bev_geometry
from distill3d.detectors.released import OF_TRAINING, ReleasedForm
from distill3d.layers.heads.anchor_head import (
    RELEASED_NAMES,
    RELEASED_STEPS,
    TINY_BACKBONE,
    AnchorHead,
    AnchorHeadConfig,
    AnchorTargets,
)
from distill3d.layers.heads.anchors import KITTI_ANCHORS
from distill3d.layers.points.sparse_conv import SparseResNet, SparseResNetConfig, SparseTensor
from distill3d.layers.points.voxels import STUDENT_RANGE, VoxelGrid, mean_of_points, voxelise
from distill3d.settings import Number
from distill3d.transfers import inverse


@dataclass(frozen=True)
class SECONDConfig:
    """Everything that makes one SECOND."""

    input: Literal["points"] = "points"
    voxels: VoxelGrid = VoxelGrid(STUDENT_RANGE, (0.04, 0.04, 0.1))
    max_points: Number = 5  # of a voxel
    train_voxels: Number = 20000  # of a scan
    test_voxels: Number = 40000
    backbone: SparseResNetConfig = field(default_factory=SparseResNetConfig)
    head: AnchorHeadConfig = field(default_factory=AnchorHeadConfig)


def tiny(**fields: Any) -> SECONDConfig:
    """The small configuration: voxels of 8 cm, a map of 64 channels at 0.64 m, cars only."""
    small = {
        "voxels": VoxelGrid(STUDENT_RANGE, (0.08, 0.08, 0.2)),
        "backbone": SparseResNetConfig(channels=(16, 24, 32, 32), padding_z=(1, 1, 1), blocks=1),
        "head": AnchorHeadConfig(classes=KITTI_ANCHORS[:1], backbone=TINY_BACKBONE),
    }  # fmt: skip
    return SECONDConfig(**{**small, **fields})


class LidarDetector(Detector):
    """What detectors of LiDAR scans with an anchor head share."""

    parts_labelled: ClassVar[bool] = True
    head: AnchorHead

    def encode(self, batch: Batch) -> AnchorTargets:
        return self.head.targets(batch)

    def loss(self, outputs: Outputs, batch: Batch, targets: AnchorTargets | None = None) -> dict[str, Tensor]:
        return self.head.losses(outputs.predictions, targets or self.encode(batch))

    @torch.no_grad()
    def decode(self, outputs: Outputs, batch: Batch) -> list[Boxes3D]:
        return self.head.detections(outputs.predictions, batch)


class SECOND(LidarDetector):
    """Voxel means, sparse backbone, 2D backbone and anchor head.

    Tap ``bev`` (B, C, Y, X): the sparse network's output with its layers stacked, >= 0 and mostly exact zeros; what the
    2D backbone sees.  Predictions are the head's.
    """

    name = "second"
    config: SECONDConfig

    def __init__(self, config: SECONDConfig) -> None:
        super().__init__()
        self.config = config
        self.geometry = bev_geometry(config.voxels, config.backbone.stride)
        self.backbone_3d = SparseResNet(config.backbone)
        channels = config.backbone.bev_channels(config.voxels.sparse_shape)
        cells = config.voxels.shape[1] // config.backbone.stride, config.voxels.shape[0] // config.backbone.stride
        self.head = AnchorHead(channels, config.voxels.extent, cells, config.head)
        self.tap_channels = {"bev": channels} | head_channels(self.head)

    def forward(self, batch: Batch) -> Outputs:
        """Map and raw predictions.

        Raises:
            ValueError: the batch has no points, or does not say where the LiDAR is.
        """
        config = self.config
        budget = config.train_voxels if self.training else config.test_voxels
        voxels = voxelise(lidar_scans(batch), config.voxels, config.max_points, budget)
        sparse = SparseTensor(mean_of_points(voxels), voxels.coords, config.voxels.sparse_shape, voxels.batch_size)
        bev = self.backbone_3d(sparse)
        return anchor_outputs(self.head, bev, {"bev": FeatureMap(bev, self.geometry)})


def lidar_scans(batch: Batch) -> list[Float[Tensor, "_ 4"]]:
    """The batch's points in the LiDAR's frame; those with a value that is not finite lie nowhere (NaN).

    Raises:
        ValueError: the batch has no points, or does not say where the LiDAR is.
    """
    if batch.points is None or batch.lidar_to_camera is None:
        raise ValueError("a detector with input 'points' needs scans and where the LiDAR is; the data set gives none")
    to_lidar = inverse(batch.lidar_to_camera)
    scans = [carry(points, pose) for points, pose in zip(batch.points, to_lidar, strict=True)]
    return [finite_or_nowhere(scan) for scan in scans]


def finite_or_nowhere(scan: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """A scan whose points with a value that is not finite are NaN: in no cell of any grid.  To leave them out would be
    to wait for their number."""
    return torch.where(scan.isfinite().all(1, keepdim=True), scan, torch.nan)


def released_form(config: SECONDConfig) -> ReleasedForm:
    """OpenPCDet's names, as Cc-Hy/CMKD and hoiliu-0801/MonoTAKD save this network."""
    return ReleasedForm(RELEASED_NAMES, dict.fromkeys(RELEASED_STEPS, OF_TRAINING), unused=RELEASED_STEPS)
