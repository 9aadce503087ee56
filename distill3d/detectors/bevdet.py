"""BEVDet, BEVDet4D and BEVDepth in the form of the BEVDet code base: the student of DistillBEV and of TiG-BEV.

Huang et al., "BEVDet: High-performance Multi-camera 3D Object Detection in Bird-Eye-View", arXiv:2112.11790; Huang and
Huang, "BEVDet4D: Exploit Temporal Cues in Multi-camera 3D Object Detection", arXiv:2203.17054; released code
HuangJunJie2017/BEVDet (mmdet3d/models/necks/view_transformer.py, necks/lss_fpn.py, backbones/resnet.py,
detectors/bevdet.py, configs/bevdet, configs/bevdet4d, configs/bevdepth).

    x   = neck(trunk(image)), at stride 16;    logits, c = view(x, camera);    p = softmax over depth of logits
    bev = sum over cameras, depths and pixels of p c in the cell of the ground into which they fall
    4D:   each frame's bev goes through two residual blocks; an earlier one is lifted as if the cameras stood where they
          stand today, then moved by what the first camera's pose says, detached, and put behind the key frame's
    boxes = head(neck of the ground(stages(bev)))
    L = heat + box + depth_weight BCE of depth

With input ``rgb+gt_depth`` it is a teacher of the same form: the LiDAR's depth stands for p.  CMKD's student for
several cameras (Cc-Hy/CMKD-MV mmdet3d/models/detectors/bevdet.py) has its map brought nearer to the teacher's, of as
many channels (``adapted_channels``); behind it that code has CenterPoint's blocks, here are BEVDet's own.

Beside detectors/bevdepth.py, which is the official BEVDepth: no stem on the ground but 3x3 shortcuts, a neck of two
levels, another depth network, and earlier maps that are moved instead of lifted to today's ground.

As everywhere here the ground is the vehicle's frame, where the released code has the LiDAR's.  Its head suppresses
boxes by the overlap of turned boxes scaled by class: ``head.nms`` "scaled", which the recipes set.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from distill3d.boxes import NUSCENES_CLASSES
from distill3d.camera import DepthBins
from distill3d.data.surround import SurroundBatch
from distill3d.detectors.base import BevGeometry, FeatureMap, Outputs, Style, bev_geometry
from distill3d.detectors.bevdepth import BEVDepthTargets, LiftingDetector, in_eval_mode
from distill3d.detectors.centerpoint import CODE_WEIGHTS, check_head
from distill3d.errors import UserError
from distill3d.layers.ground.bev_blocks import PointwiseBlock, SCNet
from distill3d.layers.ground.bev_residual import (
    LAST_UP,
    CellPoint,
    ResidualStages,
    TwoLevelNeck,
    planar_motion,
    shift_map,
    stage_strides,
)
from distill3d.layers.ground.bev_second import SECONDFPNConfig
from distill3d.layers.ground.camera_lift import STRIDE, ChannelOrder, lifted_cells, normalised_frames
from distill3d.layers.ground.voxel_pooling import CellRounding, PixelPositions, voxel_pool
from distill3d.layers.heads.centre_head import CODE, TINY_TASKS, CentreHead, CentreHeadConfig, tiny_head
from distill3d.layers.image.depth_net import depth_distribution, depth_loss, nearest_depth_bins
from distill3d.layers.image.lift_nets import (
    CameraAwareLift,
    FeatureLift,
    PlainLift,
    TopDownNeck,
    mean_depth_loss,
    whole_camera_vector,
)
from distill3d.layers.image.resnet import ResNet, ResNetConfig
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.settings import Between, Channels, Layers, Stride, Weight, added, is_in_range

#: Weight of ``mean_depth_loss``, and of BEVDepth's own depth loss.
MEAN_WEIGHT, LABELLED_WEIGHT = 100.0, 3.0
#: Rows of the released-versus-intended table beside the head's.
STYLES: dict[Style, dict[str, Any]] = {
    "released": {"channel_order": "bgr_with_rgb_means", "positions": "ends", "rounding": "trunc", "past_norm": "train",
                 "moved_by": "corner", "depth_cells": "nearest", "depth_mean": "all", "depth_weight": MEAN_WEIGHT},
    "intended": {"channel_order": "rgb", "positions": "centres", "rounding": "floor", "past_norm": "eval",
                 "moved_by": "middle", "depth_cells": "block", "depth_mean": "labelled",
                 "depth_weight": LABELLED_WEIGHT},
}  # fmt: skip


@dataclass(frozen=True)
class BEVDetConfig:
    """Everything that makes one BEVDet.  Defaults are bevdet-r50's, on one frame of 704 x 256 px.

    Raises:
        UserError: the stages' settings differ in number, or are of fewer than two stages.
    """

    #: ``rgb+gt_depth`` lifts by the batch's depth; cells without any lift nothing.  It sees the key frame alone, of
    #: however many frames the batch has.
    input: Literal["rgb", "rgb+gt_depth"] = "rgb"
    classes: tuple[str, ...] = NUSCENES_CLASSES  # the data set's, which labels index; the head's are among them
    trunk: ResNetConfig = ResNetConfig()  # of its maps those at strides 16 and 32 are looked at
    neck_channels: Channels = 512
    #: ``lss`` asks one convolution for the depth, without supervision; ``bevdepth`` a network that knows the camera.
    view: Literal["lss", "bevdepth"] = "lss"
    depth_channels: Channels = 256  # inside that network
    depth_layers: Layers = 3  # its residual blocks
    bins: DepthBins = DepthBins(1.0, 60.0, 59, "UD")
    context_channels: Channels = 64  # of each frame's map on the ground
    grid: VoxelGrid = VoxelGrid((-51.2, -51.2, -10.0, 51.2, 51.2, 10.0), (0.8, 0.8, 20.0))  # of the ground, ego frame
    frames: Annotated[int, Between(1, 100)] = 1  # the key frame and earlier ones, which get no gradient
    frame_layers: Layers = 2  # residual blocks that look at each frame's map, where there are several
    #: CMKD's, which stays in the network at test time: channels that the frames' maps are collapsed to and adapted in.
    adapted_channels: Channels | None = added(None)
    bev_channels: tuple[Channels, ...] = (128, 256, 512)  # of the stages on the ground
    bev_layers: tuple[Layers, ...] = (2, 2, 2)  # their blocks
    bev_strides: tuple[Stride, ...] = (2, 2, 2)  # the first 1 or 2: the head's map has the grid's cells
    bev_neck_channels: Channels = 256
    bev_neck_norm: bool = False  # batch norm and ReLU behind the neck; DistillBEV's scripts, ``extra_norm_act``
    head: CentreHeadConfig = CentreHeadConfig(code_weights=CODE_WEIGHTS)
    depth_weight: Weight = MEAN_WEIGHT  # of the depth loss of view ``bevdepth``, in batches with depth
    # released versus intended
    channel_order: ChannelOrder = "rgb"
    positions: PixelPositions = "ends"
    rounding: CellRounding = "trunc"
    past_norm: Literal["train", "eval"] = "train"  # of batch norms while earlier frames pass in training
    moved_by: CellPoint = "corner"  # what stands for a cell of an earlier map when it is moved
    #: A point's depth is that of the cell whose position is ``nearest`` to its pixel, counted from the image's corner,
    #: or of the 16 x 16 px ``block`` that it lies in.
    depth_cells: Literal["nearest", "block"] = "nearest"
    #: ``mean_depth_loss`` over ``all`` cells, of sigmoids, where lifting takes the softmax; or BEVDepth's own over the
    #: ``labelled`` ones, of the softmax, whose weight is about ``LABELLED_WEIGHT``.
    depth_mean: Literal["all", "labelled"] = "all"

    def __post_init__(self) -> None:
        lengths = {len(v) for v in (self.bev_channels, self.bev_layers, self.bev_strides)}
        if is_in_range(self) and (len(lengths) > 1 or min(lengths) < 2):
            raise UserError("bev_channels, bev_layers and bev_strides need one number for each of two stages or more")

    @classmethod
    def styled(cls, style: Style, **fields: Any) -> BEVDetConfig:
        """A configuration with every released-versus-intended row set by ``style``, that of a head that is not given
        among ``fields`` included; ``fields`` override."""
        head = replace(cls().head, rounding={"released": "trunc", "intended": "floor"}[style])
        return cls(**{**STYLES[style], "head": head, **fields})

    @property
    def predicts_depth(self) -> bool:
        """Whether images are lifted by a depth that is predicted."""
        return self.input == "rgb"

    @property
    def trains_depth(self) -> bool:
        """Whether the depth distribution has a loss."""
        return self.predicts_depth and self.view == "bevdepth" and self.depth_weight > 0

    @property
    def stages(self) -> dict[str, int]:
        """The taps of the stages on the ground, and their strides."""
        return {f"bev_stage{i}": stride for i, stride in enumerate(stage_strides(self.bev_strides), start=1)}

    @property
    def geometry(self) -> BevGeometry:
        """Where the cells of the finest maps on the ground lie."""
        return self.geometry_at(1)

    def geometry_at(self, stride: int) -> BevGeometry:
        """Where the cells lie of a map with one cell for ``stride`` x ``stride`` of the grid's."""
        return replace(bev_geometry(self.grid, stride), frame="ego")


def bevdepth4d(**fields: Any) -> BEVDetConfig:
    """bevdepth4d-r50, the student of DistillBEV and TiG-BEV: supervised depth, two frames, velocity at full weight;
    ``fields`` override."""
    head = CentreHeadConfig(code_weights=(1.0,) * CODE)
    return BEVDetConfig(**{"view": "bevdepth", "frames": 2, "head": head, **fields})


def tiny(**fields: Any) -> BEVDetConfig:
    """The small configuration, for six canvases of about 256 x 96 px: supervised depth, 96 x 96 cells; ``fields``
    override."""
    head = tiny_head()
    x0, y0, x1, y1 = head.extent
    small = {
        "classes": tuple(name for task in TINY_TASKS for name in task), "head": head,
        "trunk": ResNetConfig("basic", (1, 1, 1, 1), (32, 48, 64, 96)), "neck_channels": 64, "view": "bevdepth",
        "depth_channels": 64, "depth_layers": 1, "bins": DepthBins(1.0, 60.0, 59, "UD"), "context_channels": 32,
        "grid": VoxelGrid((x0, y0, -10.0, x1, y1, 10.0), (head.cell, head.cell, 20.0)), "frame_layers": 1,
        "bev_channels": (32, 64, 96), "bev_layers": (1, 1, 1), "bev_neck_channels": 48,
    }  # fmt: skip
    return BEVDetConfig(**{**small, **fields})


# ----------------------------------------------------------------------------------------------------------- image side


class LiftBackbone(nn.Module):
    """Images and what is known of their cameras -> depth logits, None where the depth is given, and features at stride
    16."""

    def __init__(self, config: BEVDetConfig) -> None:
        super().__init__()
        self.trunk = ResNet(config.trunk)
        fine, coarse = config.trunk.outputs[-2:]
        self.neck = TopDownNeck(fine, coarse, config.neck_channels)
        sizes = config.neck_channels, config.bins.count, config.context_channels
        if not config.predicts_depth:
            self.view = FeatureLift(config.neck_channels, config.context_channels)
        elif config.view == "bevdepth":
            self.view = CameraAwareLift(*sizes, config.depth_channels, config.depth_layers)
        else:
            self.view = PlainLift(*sizes)

    def forward(
        self, images: Float[Tensor, "n 3 height width"], camera: Float[Tensor, "n 33"]
    ) -> tuple[Float[Tensor, "n d h w"] | None, Float[Tensor, "n c h w"]]:
        fine, coarse = self.trunk(images)[-2:]
        return self.view(self.neck(fine, coarse), camera)


# ------------------------------------------------------------------------------------------------------------- detector


class BEVDet(LiftingDetector):
    """Image backbone, pooling to the ground, residual stages and a neck there, and a centre head.

    Taps, (B, C, Y, X) on the ground: ``bev`` (what the stages see: the frames' maps one behind another, the key frame's
    in front, or with ``adapted_channels`` what is made of them), ``bev_stage1``, ``bev_stage2``, ... (the stages' maps,
    >= 0; of the default at strides 2, 4 and 8), and ``bev_neck`` (what the head sees).  Predictions are the head's and,
    with input ``rgb``, ``depth`` (B * N, D, h, w), logits of each cell's depth in the key frame, which nothing
    supervises in view ``lss``.

    Raises:
        ValueError: settings that do not go together.
    """

    name = "bevdet"
    config: BEVDetConfig

    def __init__(self, config: BEVDetConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        lifted, seen = config.context_channels, config.frames * config.context_channels
        self.backbone = LiftBackbone(config)
        self.of_frame = None
        if config.frames > 1:
            self.of_frame = ResidualStages(lifted, (lifted,), (config.frame_layers,), (1,))
        self.adaptation = None
        if config.adapted_channels is not None:
            lidar = config.adapted_channels
            self.adaptation = nn.Sequential(PointwiseBlock(seen, lidar), SCNet(lidar))
            seen = lidar
        self.stages = ResidualStages(seen, config.bev_channels, config.bev_layers, config.bev_strides)
        first, *later = config.bev_strides
        self.neck = TwoLevelNeck(
            config.bev_channels[0], config.bev_channels[-1], config.bev_neck_channels,
            stage_strides(tuple(later))[-1], first == LAST_UP, config.bev_neck_norm,
        )  # fmt: skip
        self.head = CentreHead(config.bev_neck_channels, config.head)
        self.geometries = {"bev": config.geometry} | {
            tap: config.geometry_at(stride) for tap, stride in config.stages.items()
        } | {"bev_neck": config.geometry}  # fmt: skip
        widths = seen, *config.bev_channels, config.bev_neck_channels
        self.tap_channels = dict(zip(self.geometries, widths, strict=True))

    def forward(self, batch: SurroundBatch) -> Outputs:
        """Maps and raw predictions.

        Raises:
            UserError: the batch has no images, not as many frames as the detector sees, sides that are no multiples of
                16 px, or lacks the depth that the input asks for.
        """
        has_depth = not self.config.predicts_depth
        images = normalised_frames(batch, self.config, self.config.frames, self.name, pass_over=has_depth)
        # First the key frame: autocast would keep weights that it casts without a gradient for those that need one.
        key, logits = self._frame(batch, images, 0)
        with torch.no_grad(), in_eval_mode(self) if self.config.past_norm == "eval" else nullcontext():
            past = [self._moved(batch, self._frame(batch, images, s)[0], s) for s in range(1, self.config.frames)]
        bev = torch.cat((key, *past), dim=1)
        if self.adaptation is not None:
            bev = self.adaptation(bev)
        stages = self.stages(bev)
        neck = self.neck(stages[0], stages[-1])
        maps = zip(self.geometries.items(), (bev, *stages, neck), strict=True)
        features = {tap: FeatureMap(tensor, geometry) for (tap, geometry), tensor in maps}
        return Outputs(features, self.head(neck) | ({} if logits is None else {"depth": logits}))

    def _frame(
        self, batch: SurroundBatch, images: Float[Tensor, "b s n 3 height width"], frame: int
    ) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "bn d h w"] | None]:
        """A frame's map on the ground around the vehicle of that frame, and its depth logits.

        The cameras stand in the vehicle as in the key frame.
        """
        camera = whole_camera_vector(
            batch.intrinsics[:, frame], batch.image_affine, batch.bev_affine, batch.camera_to_ego[:, 0]
        )
        pixels = images[:, frame].flatten(0, 1).contiguous(memory_format=torch.channels_last)
        logits, context = self.backbone(pixels, camera.to(pixels))
        depth = self.true_depth(batch) if logits is None else depth_distribution(logits)
        x, y, _ = self.config.grid.shape
        bev = voxel_pool(depth, context, lifted_cells(batch, self.config, frame, pose=0), (y, x))
        return bev if self.of_frame is None else self.of_frame(bev)[-1], logits

    def _moved(self, batch: SurroundBatch, bev: Float[Tensor, "b c y x"], frame: int) -> Float[Tensor, "b c y x"]:
        """A frame's map on the ground around the vehicle of the key frame."""
        first = batch.bev_affine[:, None] @ batch.camera_to_ego[:, :, 0]  # pose of the first camera in each frame
        x, y, *_ = self.config.grid.extent
        motion = planar_motion(first[:, 0], first[:, frame])
        return shift_map(bev, motion, (x, y), self.config.grid.cell[0], self.config.moved_by)

    def _depth_bins(self, depth: Float[Tensor, "b n height width"]) -> Int[Tensor, "b n h w"]:
        """The bin of the nearest depth of each cell, those out of range left out.

        Source of ``nearest``: mmdet3d/datasets/pipelines/loading.py of the code base, where a pixel's cell is
        round(pixel / 16); pixels that round to a cell beyond the last are dropped.
        """
        config = self.config
        if config.depth_cells == "nearest":
            half = STRIDE // 2
            depth = F.pad(depth, (half, -half, half, -half))
        known = torch.where((depth >= config.bins.near) & (depth < config.bins.far), depth, 0)
        return nearest_depth_bins(known, config.bins, STRIDE)

    def depth_log_scale(self, outputs: Outputs, batch: SurroundBatch, targets: BEVDepthTargets) -> Float[Tensor, "b m"]:
        if self.config.view == "lss" and self.config.predicts_depth:
            raise NotImplementedError(
                "bevdet in view 'lss' predicts a depth that nothing supervises and has no uncertainty of it, in view "
                "'bevdepth' it has one"
            )
        return super().depth_log_scale(outputs, batch, targets)

    def _depth_loss(self, logits: Float[Tensor, "n d h w"], target: Int[Tensor, "n h w"]) -> Float[Tensor, ""]:
        return mean_depth_loss(logits, target) if self.config.depth_mean == "all" else depth_loss(logits, target)


def _check(config: BEVDetConfig) -> None:
    if config.bev_strides[0] > LAST_UP:
        raise ValueError(f"bev_strides begin with {config.bev_strides[0]}, expected 1 or 2 for the neck to undo")
    if not config.predicts_depth and config.frames > 1:
        raise ValueError(f"input {config.input!r} and {config.frames} frames: depth is known of the key frame only")
    neck = SECONDFPNConfig((config.bev_neck_channels,), (1,))
    check_head(config.head, [config.geometry], neck, config.classes)
