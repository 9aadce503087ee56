"""BEVDepth: surround images lifted to the ground by a supervised depth distribution, and a centre head on that map.

Li et al., "BEVDepth: Acquisition of Reliable Depth for Multi-view 3D Object Detection", AAAI 2023, arXiv:2206.10092;
released code Megvii-BaseDetection/BEVDepth (bevdepth/layers, bevdepth/exps/nuscenes).  It is LabelDistill's student.
With input ``rgb+gt_depth`` it is a teaching assistant as MonoTAKD builds them: the LiDAR's depth lifts the features.

What MonoTAKD (hoiliu-0801/MonoTAKD) adds to a student is here as in detectors/caddn.py, built from the blocks of its
KITTI network.  That is inferred: of its surround-view form neither code nor configuration was released.

With ``simulated`` it is SimDistill's student on BEVDepth's lift: it has a second map of the ground, which is to be a
LiDAR's, see layers/ground/simulated_lift.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from distill3d.boxes import NUSCENES_CLASSES, Boxes3D, BoxSlots
from distill3d.camera import DepthBins
from distill3d.data.surround import SurroundBatch
from distill3d.detectors.base import (
    BevGeometry,
    Detector,
    FeatureMap,
    ImageGeometry,
    Modality,
    Outputs,
    Style,
    bev_geometry,
)
from distill3d.detectors.centerpoint import check_head, head_names
from distill3d.detectors.released import OF_TRAINING, OTHER_NETWORKS, ReleasedForm, Weights
from distill3d.errors import UserError
from distill3d.layers.ground.bev_blocks import FeatureFusion, PointwiseBlock, SkipFusion, SpatialAlignment
from distill3d.layers.ground.bev_second import SECONDFPN, SECONDFPNConfig
from distill3d.layers.ground.bev_trunk import MAP_STRIDES, BevTrunk
from distill3d.layers.ground.camera_lift import STRIDE, CameraLift, LiftConfig, canvas_of, normalised_frames
from distill3d.layers.ground.lift import one_hot_depth
from distill3d.layers.ground.simulated_lift import SimulatedBranchConfig, TwoBranchLift
from distill3d.layers.ground.voxel_pooling import (
    PixelPositions,
    camera_pixels,
    frustum,
    nearest_cell,
)
from distill3d.layers.heads.centre_head import (
    TINY_TASKS,
    CentreHead,
    CentreHeadConfig,
    CentreTargets,
    centre_losses,
    centre_slots,
    centre_targets,
    tiny_head,
)
from distill3d.layers.image.depth_net import (
    depth_log_scales,
    depth_loss,
    nearest_depth_bins,
)
from distill3d.layers.image.resnet import ResNetConfig
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.settings import Between, Channels, Layers, added, check_settings
from distill3d.transfers import constant

#: Cells of the ground per cell of the maps that the head's neck joins: what is lifted, then the stages behind it.
BEV_STRIDES = (1, *MAP_STRIDES)
#: The tap of what is lifted.
IMAGE_TAP = "image_neck"
#: Names of the stages' maps.
STAGE_TAPS = ("bev_stage1", "bev_stage2", "bev_stage3")
#: Weights of the box code in the configurations that see one frame: velocity counts half.
ONE_FRAME_CODE_WEIGHTS = (1.0,) * 8 + (0.5, 0.5)
#: No object's centre is seen by any camera.
UNSEEN = -1
#: What the released code saves of its settings: side (m), middle of the first (m) and number of the grid's cells along
#: x, y, z; and column, row, depth and 1 of each place of the lifted maps.
GRID_BUFFERS = ("backbone.voxel_size", "backbone.voxel_coord", "backbone.voxel_num")
FRUSTUM_BUFFER = "backbone.frustum"
#: Width and height (px) of the canvas for which published weights of BEVDepth and LabelDistill hold it.
RELEASED_CANVAS = (704, 256)
#: Digits after the point to which metres of files in single precision are read, and how far off (px, m) a place may be.
METRE_DIGITS, PLACE_TOLERANCE = 4, 1e-3
#: Rows of the released-versus-intended table beside the head's.
STYLES: dict[Style, dict[str, Any]] = {
    "released": {"channel_order": "bgr_with_rgb_means", "positions": "ends", "rounding": "trunc",
                 "past_camera": "key", "past_norm": "train"},
    "intended": {"channel_order": "rgb", "positions": "centres", "rounding": "floor", "past_camera": "own",
                 "past_norm": "eval"},
}  # fmt: skip


@dataclass(frozen=True)
class BEVDepthConfig(LiftConfig):
    """Everything that makes one BEVDepth.  Defaults are the paper's ResNet-50 on one frame of 704 x 256 px."""

    #: ``rgb+gt_depth`` lifts by the batch's depth; cells without any lift nothing.  It sees the key frame alone, of
    #: however many frames the batch has.
    input: Literal["rgb", "rgb+gt_depth"] = "rgb"
    classes: tuple[str, ...] = NUSCENES_CLASSES  # the data set's, which labels index; the head's are among them
    frames: Annotated[int, Between(1, 100)] = 1  # the key frame and earlier ones, which get no gradient
    # MonoTAKD's, all of which stay in the network at test time:
    bev_channels: Channels | None = None  # to which the frames' maps are collapsed, those of the map that is imitated
    spatial_alignment: bool = False  # a second collapse, aligned: P, offered as tap and to ``fusion``
    #: What the network on the ground sees: V, FFM(V + P), or V plus what ``SkipFusion`` lets in of P.
    fusion: Literal["none", "ffm", "skip"] = "none"
    #: SimDistill's second branch, which stays in the network at test time.  Where it reads the LiDAR's depth then, that
    #: is what the input ``rgb+gt_depth`` says, and the depth by which features are lifted is still predicted.
    simulated: SimulatedBranchConfig | None = added(None)
    image_tap: bool = added(False)  # offers what is lifted to methods; the network is the same
    bev_base: Channels | None = None  # first width of the network on the ground; None: twice ``context_channels``
    bev_layers: tuple[Layers, ...] = (2, 2, 2)  # blocks of its stages
    bev_neck_channels: Channels = 64  # of each of its four maps
    head: CentreHeadConfig = CentreHeadConfig(code_weights=ONE_FRAME_CODE_WEIGHTS)
    # released versus intended
    past_camera: Literal["key", "own"] = "key"  # whose numbers the depth network is told for earlier frames
    past_norm: Literal["train", "eval"] = "train"  # of batch norms (and dropout) while earlier frames pass in training

    @classmethod
    def styled(cls, style: Style, **fields: Any) -> BEVDepthConfig:
        """A configuration with every released-versus-intended row set by ``style``, those of a head that is not given
        among ``fields`` included; ``fields`` override."""
        of_head = {
            "released": {"output_init": "default", "rounding": "trunc"},
            "intended": {"output_init": "prior", "rounding": "floor"},
        }[style]
        return cls(**{**STYLES[style], "head": replace(cls().head, **of_head), **fields})

    @property
    def predicts_depth(self) -> bool:
        return self.input == "rgb" or self.simulated is not None

    @property
    def neck(self) -> SECONDFPNConfig:
        """How the maps on the ground are joined."""
        return SECONDFPNConfig((self.bev_neck_channels,) * len(BEV_STRIDES), BEV_STRIDES)

    @property
    def geometry(self) -> BevGeometry:
        """Where the cells of the finest maps on the ground lie."""
        return self.geometry_at(1)

    def geometry_at(self, stride: int) -> BevGeometry:
        """Where the cells lie of a map with one cell for ``stride`` x ``stride`` of the grid's."""
        return replace(bev_geometry(self.grid, stride), frame="ego")


def tiny(**fields: Any) -> BEVDepthConfig:
    """The small configuration, for six canvases of about 256 x 96 px: 1.5 million parameters, 96 x 96 cells."""
    head = tiny_head()
    x0, y0, x1, y1 = head.extent
    small = {
        "classes": tuple(name for task in TINY_TASKS for name in task), "head": head,
        "trunk": ResNetConfig("basic", (1, 1, 1, 1), (32, 48, 64, 96), finest=4), "neck_channels": 32,
        "bins": DepthBins(2.0, 58.0, 56, "UD"), "depth_channels": 64, "context_channels": 32,
        "grid": VoxelGrid((x0, y0, -5.0, x1, y1, 3.0), (head.cell, head.cell, 8.0)),
        "bev_base": 32, "bev_layers": (1, 1, 1), "bev_neck_channels": 16,
    }  # fmt: skip
    return BEVDepthConfig(**{**small, **fields})


@dataclass(frozen=True)
class BEVDepthTargets:
    """Training targets; None where nothing is trained on them, or the batch does not know them."""

    centres: CentreTargets | None
    depth_bins: Int[Tensor, "b n h w"] | None  # of each cell of the lifted maps; ``bins.count`` is none
    #: Where each row of the batch's objects is seen best: n h w + row w + column of a lifted map, or ``UNSEEN``.
    seen_at: Int[Tensor, "b m"] | None


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Within it, all of the module is in eval mode; after it, each part in its own again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


# ------------------------------------------------------------------------------------------------------------- detector


class LiftingDetector(Detector[SurroundBatch]):
    """What detectors share that lift images by a depth which they predict and learn, and have a centre head.

    ``config`` is a ``Lifting`` with ``classes``, ``head``, ``depth_weight`` and ``trains_depth``.
    """

    @classmethod
    def also_trained_on(cls, config: Any) -> frozenset[Modality]:
        """Depth, for the depth loss."""
        return frozenset({"depth"} if config.trains_depth else ())

    @torch.no_grad()
    def encode(self, batch: SurroundBatch) -> BEVDepthTargets:
        """Targets of the head and of the depth loss, as far as they are trained and the batch knows them."""
        config, objects = self.config, batch.objects
        centres = None if objects is None else centre_targets(config.head, objects, config.classes)
        bins = None
        if config.trains_depth and batch.depth is not None:
            bins = self._depth_bins(batch.depth)
        seen = None if objects is None or batch.images is None else best_view(batch, config.positions)
        return BEVDepthTargets(centres, bins, seen)

    def loss(self, outputs: Outputs, batch: SurroundBatch, targets: BEVDepthTargets | None = None) -> dict[str, Tensor]:
        """The head's ``heat`` and ``box``, and ``depth`` times ``depth_weight``; terms that the settings or the batch
        leave out are absent."""
        targets = targets or self.encode(batch)
        terms: dict[str, Tensor] = {}
        if targets.centres is not None:
            terms |= centre_losses(outputs.predictions, targets.centres, self.config.head)
        if targets.depth_bins is not None:
            loss = self._depth_loss(outputs.predictions["depth"], targets.depth_bins.flatten(0, 1))
            terms["depth"] = self.config.depth_weight * loss
        return terms

    def true_depth(self, batch: SurroundBatch) -> Float[Tensor, "bn d h w"]:
        """The batch's depth as a distribution: all in the bin of the nearest point of a cell, or nowhere.

        Raises:
            UserError: the batch has no depth.
        """
        if batch.depth is None:
            raise UserError("a detector with input 'rgb+gt_depth' needs depth images; the data set gives none")
        return one_hot_depth(self._depth_bins(batch.depth).flatten(0, 1), self.config.bins.count)

    def _depth_bins(self, depth: Float[Tensor, "b n height width"]) -> Int[Tensor, "b n h w"]:
        return nearest_depth_bins(depth, self.config.bins, STRIDE)

    def _depth_loss(self, logits: Float[Tensor, "n d h w"], target: Int[Tensor, "n h w"]) -> Float[Tensor, ""]:
        return depth_loss(logits, target)

    def decode(self, outputs: Outputs, batch: SurroundBatch) -> list[Boxes3D]:
        return self.decode_slots(outputs, batch).boxes()

    def decode_slots(self, outputs: Outputs, batch: SurroundBatch) -> BoxSlots:
        config = self.config
        return centre_slots(outputs.predictions, batch.bev_affine, config.classes, config.head)

    def depth_log_scale(self, outputs: Outputs, batch: SurroundBatch, targets: BEVDepthTargets) -> Float[Tensor, "b m"]:
        """Of the depth distribution in the cell of the key frame's images that shows each object's centre best, see
        ``best_view``; slots are the rows of the batch's objects, those whose centre no camera sees mean nothing."""
        if "depth" not in outputs.predictions or targets.seen_at is None:
            return super().depth_log_scale(outputs, batch, targets)
        scales = depth_log_scales(outputs.predictions["depth"], self.config.bins)
        seen = targets.seen_at
        return torch.where(seen == UNSEEN, 0, scales.view(len(seen), -1).gather(1, seen.clamp(min=0)))


class BEVDepth(LiftingDetector):
    """Image backbone, pooling to the ground, a residual network there, and a centre head.

    Taps, (B, C, Y, X) on the ground: ``bev`` (what the network on the ground sees without ``fusion``: the frames' maps
    one after another, the key frame's in front, or with ``bev_channels`` V, what they are collapsed to),
    ``bev_stage1``, ``bev_stage2``, ``bev_stage3`` (that network's stages, at strides 2, 4 and 8), ``bev_neck`` (what
    the head sees), and with ``spatial_alignment`` ``bev_spatial`` (P).  With ``simulated`` ``bev_camera`` and
    ``bev_simulated``, of which ``bev`` is the fusion.  With ``image_tap`` also ``image_neck`` (B * N, C, h, w), the key
    frame's image features before they are lifted.  Predictions are the head's and, where it is predicted, ``depth``
    (B * N, D, h, w), logits of each cell's depth in the key frame, with ``simulated`` those of the camera's branch.

    Raises:
        ValueError: settings that do not go together.
    """

    name = "bevdepth"
    config: BEVDepthConfig

    def __init__(self, config: BEVDepthConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        lifted = config.context_channels * config.frames
        seen = config.bev_channels or lifted
        if config.simulated is None:
            self.backbone = CameraLift(config, config.predicts_depth)
        else:
            self.backbone, seen = TwoBranchLift(config, config.simulated), config.simulated.fused_channels
        self.collapse = None if config.bev_channels is None else PointwiseBlock(lifted, seen)
        self.spatial_collapse = PointwiseBlock(lifted, seen) if config.spatial_alignment else None
        self.alignment = SpatialAlignment(seen) if config.spatial_alignment else None
        self.fusion = None
        if config.fusion != "none":
            self.fusion = SkipFusion(seen) if config.fusion == "skip" else FeatureFusion(seen)
        self.trunk = BevTrunk(seen, config.bev_base or 2 * config.context_channels, config.bev_layers)
        self.neck = SECONDFPN((seen, *self.trunk.channels), config.neck)
        self.head = CentreHead(self.neck.channels_out, config.head)
        self.tap_channels = {"bev": seen, **dict(zip(STAGE_TAPS, self.trunk.channels, strict=True)),
                             "bev_neck": self.neck.channels_out}  # fmt: skip
        self.tap_channels |= {"bev_spatial": seen} if config.spatial_alignment else {}
        if config.simulated is not None:
            self.tap_channels |= dict.fromkeys(("bev_camera", "bev_simulated"), config.context_channels)
        self.tap_channels |= {IMAGE_TAP: self.backbone.img_neck.channels_out} if config.image_tap else {}

    def forward(self, batch: SurroundBatch) -> Outputs:
        """Maps and raw predictions.

        Raises:
            UserError: the batch has no images, not as many frames as the detector sees, sides that are no multiples of
                16 px, or lacks the depth that the input asks for.
        """
        config, has_depth = self.config, self.config.input == "rgb+gt_depth"
        images = normalised_frames(batch, config, config.frames, self.name, pass_over=has_depth)
        if isinstance(self.backbone, TwoBranchLift):
            maps, logits, looked = self.backbone.branches(batch, images)
            seen = maps["bev"]
        else:
            # First the key frame: autocast would keep weights that it casts without a gradient for those that need one.
            key, logits, looked = self._frame(batch, images, 0)
            with torch.no_grad(), in_eval_mode(self.backbone) if self.config.past_norm == "eval" else nullcontext():
                past = [self._frame(batch, images, frame)[0] for frame in range(1, self.config.frames)]
            maps, seen = self._ground_maps(torch.cat((key, *past), dim=1))
        stages = self.trunk(seen)
        neck = self.neck([seen, *stages])
        maps |= {**dict(zip(STAGE_TAPS, stages, strict=True)), "bev_neck": neck}
        strides = dict.fromkeys(maps, 1) | dict(zip(STAGE_TAPS, MAP_STRIDES, strict=True))
        features = {tap: FeatureMap(m, self.config.geometry_at(strides[tap])) for tap, m in maps.items()}
        if config.image_tap:
            features[IMAGE_TAP] = FeatureMap(looked, ImageGeometry(STRIDE))
        return Outputs(features, self.head(neck) | ({} if logits is None else {"depth": logits}))

    def _ground_maps(self, frames: Float[Tensor, "b c y x"]) -> tuple[dict[str, Tensor], Float[Tensor, "b k y x"]]:
        """The taps ``bev`` and ``bev_spatial`` of the frames' maps, and what the network on the ground sees."""
        maps = {"bev": frames if self.collapse is None else self.collapse(frames)}
        if self.spatial_collapse is not None and self.alignment is not None:
            maps["bev_spatial"] = self.alignment(self.spatial_collapse(frames))
        if isinstance(self.fusion, SkipFusion):
            return maps, self.fusion(maps["bev"], maps["bev_spatial"])
        return maps, maps["bev"] if self.fusion is None else self.fusion(maps["bev"] + maps["bev_spatial"])

    def _frame(
        self, batch: SurroundBatch, images: Float[Tensor, "b s n 3 height width"], frame: int
    ) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "bn d h w"] | None, Float[Tensor, "bn k h w"]]:
        """A frame's map on the ground, its depth logits and its image features."""
        told = frame if self.config.past_camera == "own" else 0
        depth = None if self.config.predicts_depth else self.true_depth(batch)
        return self.backbone.on_ground(batch, images, frame, told, depth)


def _check(config: BEVDepthConfig) -> None:
    check_head(config.head, [config.geometry_at(s) for s in BEV_STRIDES], config.neck, config.classes)
    if config.frames < 1 or (config.input == "rgb+gt_depth" and config.frames > 1):
        raise ValueError(f"input {config.input!r} and {config.frames} frames: depth is known of the key frame only")
    if config.spatial_alignment and config.bev_channels is None:
        raise ValueError("spatial_alignment gives a second map beside the collapsed one: set bev_channels")
    if config.fusion != "none" and not config.spatial_alignment:
        raise ValueError(f"fusion is {config.fusion!r}, which fuses what spatial_alignment gives; switch that on")
    if config.simulated is not None:
        _check_simulated(config, config.simulated)


def _check_simulated(config: BEVDepthConfig, branch: SimulatedBranchConfig) -> None:
    if config.frames > 1 or config.bev_channels is not None or config.spatial_alignment:
        raise ValueError("the simulated branch is of one frame, and without bev_channels and spatial_alignment")
    expected = "rgb+gt_depth" if branch.depth_at_test == "read" else "rgb"
    if config.input != expected:
        raise ValueError(
            f"simulated.depth_at_test is {branch.depth_at_test!r}, which goes with the input {expected!r}, not with "
            f"{config.input!r}: the LiDAR's depth is looked at, at test time too, or it is not"
        )


def best_view(batch: SurroundBatch, positions: PixelPositions) -> Int[Tensor, "b m"]:
    """The cell n h w + row w + column of the key frame's lifted maps, in the camera that shows an object's centre
    nearest to its image's middle; ``UNSEEN`` where none shows it, and in padding rows."""
    assert batch.objects is not None
    width, height = canvas_of(batch)
    pixel, depth = camera_pixels(
        batch.objects.centre, batch.image_affine, batch.intrinsics[:, 0], batch.camera_to_ego[:, 0], batch.bev_affine
    )
    size = constant((width, height), pixel)
    shown = (depth > 0) & (pixel >= 0).all(-1) & (pixel < size).all(-1)  # (B, N, M)
    off_middle = torch.where(shown, (pixel - size / 2).norm(dim=-1), torch.inf)
    camera = off_middle.argmin(1, keepdim=True)
    column = nearest_cell(pixel[..., 0].gather(1, camera)[:, 0], width, STRIDE, positions)
    row = nearest_cell(pixel[..., 1].gather(1, camera)[:, 0], height, STRIDE, positions)
    cell = (camera[:, 0] * (height // STRIDE) + row) * (width // STRIDE) + column
    return torch.where(shown.any(1) & batch.objects.present, cell, UNSEEN)


# ------------------------------------------------------------------------------------------------------ authors' names


def released_form(config: BEVDepthConfig) -> ReleasedForm:
    """Megvii-BaseDetection/BEVDepth's names, with the grid and the places of the lifted maps among the weights.

    Raises:
        UserError: the network aligns its map or simulates a LiDAR's, as none of theirs does.
    """
    if config.spatial_alignment or config.simulated is not None:
        raise UserError("no authors' code has a BEVDepth with spatial_alignment or a simulated branch")
    return ReleasedForm(
        renamed={"backbone.img_backbone": "backbone.img_backbone.body",
                 "backbone.depth_aggregation_net": "backbone.aggregation", "head.trunk": "trunk", "head.neck": "neck",
                 **head_names("head", config.head)},
        settings=(*GRID_BUFFERS, FRUSTUM_BUFFER), read_settings=_read_buffers, write_settings=_write_buffers,
    )  # fmt: skip


def labeldistill_form(config: BEVDepthConfig) -> ReleasedForm:
    """The student's names in sanmin0312/LabelDistill's file of a whole distillation."""
    others, adapters = ("centerpoint", "label_encoder"), ("distill_encoder_lidar", "distill_encoder_label")
    dropped = dict.fromkeys(others, OTHER_NETWORKS) | dict.fromkeys(adapters, OF_TRAINING)
    return replace(released_form(config), dropped=dropped)


def released_settings(config: BEVDepthConfig, weights: Weights) -> BEVDepthConfig:
    """The settings of released weights: how that code feeds them, and frames, channels, bins and grid as the file's
    shapes and buffers have them.

    Raises:
        UserError: the buffers are of no grid, or of places that no setting gives.
    """
    config = _read_buffers(weights, replace(config, **STYLES["released"]))
    context, trunk = (weights.get(f"{name}.weight") for name in ("backbone.depth_net.context_conv", "head.trunk.conv1"))
    if context is None or trunk is None or trunk.dim() < 2 or trunk.shape[1] % len(context):
        return config  # that these do not fit is said where shapes are compared
    return replace(config, context_channels=len(context), frames=trunk.shape[1] // len(context))


def released_canvas(weights: Weights) -> tuple[int, int] | None:
    """Width and height (px) of the pictures that a released network lifts, if its file tells."""
    places = weights.get(FRUSTUM_BUFFER)
    return None if places is None else (STRIDE * places.shape[2], STRIDE * places.shape[1])


def _read_buffers(found: Weights, config: BEVDepthConfig) -> BEVDepthConfig:
    """Grid and bins as the buffers have them.

    Raises:
        UserError: they are of no grid, or of places that no setting gives.
    """
    if all(name in found for name in GRID_BUFFERS):
        config = _on_grid(config, [found[name].double() for name in GRID_BUFFERS])
    if FRUSTUM_BUFFER in found:
        config = _at_places(config, found[FRUSTUM_BUFFER].double())
    check_settings(config, "settings among the weights")
    return config


def _on_grid(config: BEVDepthConfig, buffers: list[Tensor]) -> BEVDepthConfig:
    if any(buffer.shape != (3,) for buffer in buffers):
        raise UserError(f"{', '.join(GRID_BUFFERS)} are {buffers}, expected numbers along x, y and z each")
    side, first, count = buffers
    x0, y0, z0, x1, y1, z1 = _metres(torch.cat((first - side / 2, first - side / 2 + count * side)))
    x, y, z = _metres(side)
    if x != y:
        raise UserError(f"{GRID_BUFFERS[0]} is {x}, {y}, {z} m, expected cells as long as wide")
    head = replace(config.head, extent=(x0, y0, x1, y1), cell=x)
    return replace(config, grid=VoxelGrid((x0, y0, z0, x1, y1, z1), (x, y, z)), head=head)


def _at_places(config: BEVDepthConfig, places: Tensor) -> BEVDepthConfig:
    if places.dim() != 4 or places.shape[-1] != 4 or len(places) < 2:
        raise UserError(f"{FRUSTUM_BUFFER} has the shape {tuple(places.shape)}, expected (bins, rows, columns, 4)")
    width, height = STRIDE * places.shape[2], STRIDE * places.shape[1]
    depths = places[:, 0, 0, 2]
    step = (depths[-1] - depths[0]) / (len(depths) - 1)
    near, far = _metres(torch.stack((depths[0], depths[0] + len(depths) * step)))
    bins = DepthBins(near, far, len(depths), "UD")
    expected = frustum((width, height), STRIDE, bins, config.positions).double()
    if not torch.allclose(places, expected, rtol=0, atol=PLACE_TOLERANCE):
        raise UserError(
            f"{FRUSTUM_BUFFER} holds other places than those of {len(depths)} equal bins from {near} to {far} m on "
            f"pictures of {width} x {height} px with positions {config.positions!r}"
        )
    return replace(config, bins=bins)


def _metres(values: Tensor) -> list[float]:
    return [round(value, METRE_DIGITS) for value in values.tolist()]


def _write_buffers(config: BEVDepthConfig) -> dict[str, Tensor]:
    """For ``RELEASED_CANVAS``: a network fits any, and settings hold none."""
    side, low = torch.tensor(config.grid.cell), torch.tensor(config.grid.extent[:3])
    places = frustum(RELEASED_CANVAS, STRIDE, config.bins, config.positions)
    return dict(zip(GRID_BUFFERS, (side, low + side / 2, torch.tensor(config.grid.shape)), strict=True)) | {
        FRUSTUM_BUFFER: places
    }
