"""BEVFusion: surround cameras and LiDAR, each as a map of the ground, fused there by one convolution.

Liu et al., "BEVFusion: Multi-Task Multi-Sensor Fusion with Unified Bird's-Eye View Representation", ICRA 2023,
arXiv:2205.13542, in the plain form in which distillation has it as a teacher: UniDistill, CVPR 2023
(megvii-research/CVPR2023-UniDistill unidistill/exps/multisensor_fusion/nuscenes/BEVFusion), and SimDistill, AAAI 2024
(ViTAE-Transformer/SimDistill mmdet3d/models/fusion_models/bevfusion.py, fusers/conv.py).  C and P are the maps that the
encoders make of pictures and points, on the same cells; [C, P] has the channels of both, C's in front.

    C = lift(pictures)   as BEVDepth lifts them (layers/ground/camera_lift.py), with its loss of the depth
    P = encoder(points)  CenterPoint's, see detectors/centerpoint.py
    F = ReLU(BN(conv3x3([C, P])))
    heat maps, boxes = head(neck(blocks(F)))   CenterPoint's

With input ``rgb`` or ``points`` it is the same detector with one encoder, as UniDistill has its teachers and students:
F is C or P itself, or with ``fuse_alone`` what the convolution makes of it.

What the published networks have beside is left out: BEVFusion's Swin transformer, its finer ground that is brought down
to the LiDAR's cells, and its look at the scan for the depth; UniDistill's gate on the channels in front of the fusion.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from distill3d.boxes import NUSCENES_CLASSES
from distill3d.data.surround import SurroundBatch
from distill3d.detectors import bevdepth, centerpoint
from distill3d.detectors.base import CAMERA_INPUTS, POINT_INPUTS, BevGeometry, FeatureMap, Outputs, bev_geometry
from distill3d.detectors.bevdepth import LiftingDetector
from distill3d.detectors.centerpoint import (
    CODE_WEIGHTS,
    PillarEncoderConfig,
    VoxelEncoderConfig,
    check_encoders,
    check_head,
    ego_scans,
    level_geometries,
    point_encoder,
)
from distill3d.errors import UserError
from distill3d.layers.ground.bev_blocks import conv_fuser
from distill3d.layers.ground.bev_second import SECONDFPN, SECONDBlocks, SECONDBlocksConfig, SECONDFPNConfig
from distill3d.layers.ground.camera_lift import CameraLift, LiftConfig, normalised_frames
from distill3d.layers.heads.centre_head import CentreHead, CentreHeadConfig
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.settings import Channels

#: The ground of the published networks (m), its cells, and what is made of it.
PUBLISHED_RANGE, PUBLISHED_CELL = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), 0.6
PUBLISHED_VOXEL, PUBLISHED_VOXELS = (0.075, 0.075, 0.2), (120000, 160000)
PUBLISHED_CONTEXT = 256


@dataclass(frozen=True)
class BEVFusionConfig(LiftConfig):
    """Everything that makes one BEVFusion.

    The defaults are the sizes and the ground of BEVDepth with ResNet-50 and of CenterPoint at 0.1 m, so that students
    of these sizes lie on its cells; ``published_ground`` is BEVFusion's own.  Of ``voxels`` and ``pillars`` exactly one
    is given.  Settings of an encoder that the input does not ask for mean nothing.
    """

    #: Of pictures it sees the key frame alone, of however many frames the batch has.
    input: Literal["rgb+points", "rgb", "points"] = "rgb+points"
    classes: tuple[str, ...] = NUSCENES_CLASSES  # of the data set, in its order: what labels index
    voxels: VoxelEncoderConfig | None = field(default_factory=VoxelEncoderConfig)
    pillars: PillarEncoderConfig | None = None
    intensity: Literal["raw", "unit"] = "raw"  # 0..255 as released, or 0..1
    fused_channels: Channels = 256  # of F where it is fused
    fuse_alone: bool = False  # with one encoder too, so that its F is as wide as that of both
    backbone: SECONDBlocksConfig = field(default_factory=SECONDBlocksConfig)
    neck: SECONDFPNConfig = field(default_factory=SECONDFPNConfig)
    head: CentreHeadConfig = field(default_factory=lambda: CentreHeadConfig(code_weights=CODE_WEIGHTS))

    def __post_init__(self) -> None:
        check_encoders(self.voxels, self.pillars, "BEVFusion")

    @property
    def sees_images(self) -> bool:
        return self.input in CAMERA_INPUTS

    @property
    def sees_points(self) -> bool:
        return self.input in POINT_INPUTS

    @property
    def predicts_depth(self) -> bool:
        return self.sees_images


def published_ground(**fields: Any) -> BEVFusionConfig:
    """The ground of BEVFusion's own network, and of UniDistill's and SimDistill's: 180 x 180 cells of 0.6 m; ``fields``
    override."""
    x0, y0, z0, x1, y1, z1 = PUBLISHED_RANGE
    train_voxels, test_voxels = PUBLISHED_VOXELS
    large = {
        "grid": VoxelGrid(PUBLISHED_RANGE, (PUBLISHED_CELL, PUBLISHED_CELL, z1 - z0)),
        "context_channels": PUBLISHED_CONTEXT,
        "voxels": VoxelEncoderConfig(VoxelGrid(PUBLISHED_RANGE, PUBLISHED_VOXEL), train_voxels=train_voxels,
                                     test_voxels=test_voxels),
        "head": CentreHeadConfig(extent=(x0, y0, x1, y1), cell=PUBLISHED_CELL, code_weights=CODE_WEIGHTS),
    }  # fmt: skip
    return BEVFusionConfig(**{**large, **fields})


def tiny(**fields: Any) -> BEVFusionConfig:
    """The small configuration, of the encoders of the small BEVDepth and CenterPoint, on their 96 x 96 cells of 0.8 m;
    ``fields`` override."""
    camera, lidar = bevdepth.tiny(), centerpoint.tiny()
    small = {
        **{name: getattr(camera, name) for name in LiftConfig.__dataclass_fields__},
        **{name: getattr(lidar, name) for name in ("classes", "voxels", "pillars", "backbone", "neck", "head")},
        "fused_channels": lidar.backbone.channels[0],
    }  # fmt: skip
    return BEVFusionConfig(**{**small, **fields})


class BEVFusion(LiftingDetector):
    """An encoder for each sensor, the fusion, SECOND's blocks and neck, and the centre head.

    Taps, (B, C, Y, X) in the (augmented) key ego frame: ``bev_camera`` (C) and ``bev_lidar`` (P), those that the input
    asks for; ``bev`` (F); ``bev_stage1``, ``bev_stage2``, ..., the maps of the blocks' levels, >= 0; ``bev_neck``, what
    the head sees.  Predictions are the head's and, where there are pictures, ``depth`` (B * N, D, h, w), logits of each
    cell's depth in the key frame.

    The points' encoder, blocks, neck and head are named as in a CenterPoint, whose weights they can begin with
    (``inherit`` of a stage), and all modules as in a BEVFusion with one encoder.

    Raises:
        ValueError: the encoders' maps lie on different cells, the head's map is not what the neck gives, or the head
            has a class that the data set lacks.
    """

    name = "bevfusion"
    config: BEVFusionConfig

    def __init__(self, config: BEVFusionConfig) -> None:
        super().__init__()
        self.config = config
        self.camera = CameraLift(config) if config.sees_images else None
        self.encoder = point_encoder(config.voxels, config.pillars) if config.sees_points else None
        encoded: dict[str, tuple[int, BevGeometry]] = {}
        if self.camera is not None:
            ground = replace(bev_geometry(config.grid, 1), frame="ego")
            encoded["bev_camera"] = config.context_channels, ground
        if self.encoder is not None:
            encoded["bev_lidar"] = self.encoder.channels_out, self.encoder.geometry
        geometry = _common_cells({tap: ground for tap, (_, ground) in encoded.items()})
        widths = [channels for channels, _ in encoded.values()]
        self.fuser = conv_fuser(sum(widths), config.fused_channels) if len(widths) > 1 or config.fuse_alone else None
        fused = widths[0] if self.fuser is None else config.fused_channels

        levels = list(level_geometries(geometry, config.backbone).values())
        check_head(config.head, levels, config.neck, config.classes)
        self.backbone = SECONDBlocks(fused, config.backbone)
        self.neck = SECONDFPN(config.backbone.channels, config.neck)
        self.head = CentreHead(self.neck.channels_out, config.head)

        stages = [f"bev_stage{level}" for level in range(1, len(levels) + 1)]
        seen_by_head = BevGeometry(config.head.extent, config.head.cell, "ego")
        self.geometries = {
            **dict.fromkeys((*encoded, "bev"), geometry), **dict(zip(stages, levels, strict=True)),
            "bev_neck": seen_by_head,
        }  # fmt: skip
        self.tap_channels = {
            **{tap: channels for tap, (channels, _) in encoded.items()}, "bev": fused,
            **dict(zip(stages, config.backbone.channels, strict=True)), "bev_neck": self.neck.channels_out,
        }  # fmt: skip

    def forward(self, batch: SurroundBatch) -> Outputs:
        """Maps and raw predictions.

        Raises:
            UserError: the batch lacks the images or the points that the input asks for, or the images' sides are no
                multiples of 16 px.
        """
        encoded, depth = self._encoded(batch)
        fused = encoded[0] if self.fuser is None else self.fuser(torch.cat(encoded, dim=1))
        levels = self.backbone(fused)
        neck = self.neck(levels)
        maps = zip(self.geometries.items(), (*encoded, fused, *levels, neck), strict=True)
        features = {tap: FeatureMap(tensor, geometry) for (tap, geometry), tensor in maps}
        return Outputs(features, self.head(neck) | depth)

    def _encoded(self, batch: SurroundBatch) -> tuple[list[Tensor], dict[str, Tensor]]:
        """C and P, those that there are, and the prediction ``depth`` where there is C."""
        config = self.config
        maps: list[Tensor] = []
        predictions: dict[str, Tensor] = {}
        for what, wanted, found in (("images", self.camera, batch.images), ("points", self.encoder, batch.points)):
            if wanted is not None and found is None:
                raise UserError(f"bevfusion with input {config.input!r} looks at {what}: the data set gives none")
        if self.camera is not None:
            images = normalised_frames(batch, config, 1, self.name, pass_over=True)
            camera, logits, _ = self.camera.on_ground(batch, images)
            assert logits is not None
            maps.append(camera)
            predictions["depth"] = logits
        if self.encoder is not None:
            maps.append(self.encoder(ego_scans(batch, config.intensity)))
        return maps, predictions


def _common_cells(grounds: dict[str, BevGeometry]) -> BevGeometry:
    """The ground that all maps lie on.

    Raises:
        ValueError: they do not.
    """
    if len(set(grounds.values())) > 1:
        places = (f"{tap} has cells of {ground.cell} m over {ground.extent} m" for tap, ground in grounds.items())
        raise ValueError(f"maps are fused cell by cell, but {', '.join(places)}")
    return next(iter(grounds.values()))
