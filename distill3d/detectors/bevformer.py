"""BEVFormer: queries on the ground gather what cameras see of them, and what was there a moment ago.

Li et al., "BEVFormer: Learning Bird's-Eye-View Representation from Multi-Camera Images via Spatiotemporal
Transformers", ECCV 2022, arXiv:2203.17270; released code fundamentalvision/BEVFormer (commit 66b65f3a)
projects/mmdet3d_plugin/bevformer: modules/transformer.py, encoder.py, temporal_self_attention.py,
spatial_cross_attention.py, decoder.py; dense_heads/bevformer_head.py; core/bbox.

With DA(query, reference, map): deformable attention, LN(x + found): a residual with layer norm, s: sigmoid.

ground      q = Q + MLP(signals), p = (column code, row code); tokens of a camera: map + camera code + level code
history     h(x) = previous(R x) about the vehicle, nearest cell, R by the change of heading; then shifted by
            (d ahead / length, d left / width) of the ground, d how far the vehicle has moved
encoder     x = LN(q + mean(DA((h, q + p), cell + shift, h), DA((h, q + p), cell, q)))     without history h = q
            x = LN(x + W sum over cameras of DA(x, pillar in the camera, its tokens) / cameras that see the cell)
            x = LN(x + FFN(x)), the next layer's query; in layers behind the first the present's tokens stay the
            first layer's q where there is a history, as released
decoder     y = LN(y + MHA(y + e, y + e, y)), y = LN(y + DA(y + e, r, ground)), y = LN(y + FFN(y))
            r' = s(delta(y)_(x, y, z) + logit r), without gradient for the next layer;  first r = s(linear(e))
code        (x, y, log width, log length, z, log height, sin yaw, cos yaw, vx, vy), x, y, z = r' over the ground's box
matching    2 focal cost + 0.25 L1 of the code's first 8, one to one, for each decoder layer
loss        for each layer: (2 focal loss of all queries + 0.25 sum |code - code*| w of matched ones) / objects
decode      the last layer's best pairs of query and class; no suppression

The ground is the vehicle's (x ahead, y left), the release's the LiDAR's (x to the right, y ahead).  No batch has the
vehicle's own signals (the CAN bus): shift and turn come from the poses, and with ``told="motion"`` the MLP sees what
these tell, the way driven, the heading and its change, other signals being 0; with ``"nothing"`` there is no MLP.
As the release trains, and other than it answers, which is with a map carried through the whole drive, the history is
that of the batch's frames.

What MonoTAKD (hoiliu-0801/MonoTAKD) adds to a student is here as in detectors/bevdepth.py, with the ground as V: a
second map P beside it, and the decoder looks at both.  That is inferred: of its BEVFormer no code was released.

What ``style="released"`` does otherwise: for a batch of several moments ``history_of="interleaved"`` and
``visible_in="first"``, which mix up moments, and ``turned_about="fixed"``, a point that is the vehicle's place on the
largest map alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill3d.boxes import NUSCENES_CLASSES, Boxes3D, BoxSlots
from distill3d.data.surround import SurroundBatch, SurroundObjectBatch
from distill3d.detectors.base import BevGeometry, Detector, FeatureMap, Outputs, Style, bev_geometry
from distill3d.detectors.bevdepth import in_eval_mode
from distill3d.detectors.monodle import RGB_MEAN, RGB_STD
from distill3d.errors import UserError
from distill3d.layers.distributed import across_processes, world_size
from distill3d.layers.ground.bev_blocks import FeatureFusion, PointwiseBlock, SkipFusion, SpatialAlignment
from distill3d.layers.heads.centre_head import TINY_TASKS, without_augmentation
from distill3d.layers.heads.matching import FOCAL_ALPHA, FOCAL_GAMMA, UNMATCHED, assign, focal_cost
from distill3d.layers.image.deformable_attention import DeformableAttention, Sizes, cell_centres
from distill3d.layers.image.fpn import FPN
from distill3d.layers.image.resnet import RESNET101, STRIDES, ResNet, ResNetConfig
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.layers.readout import LinearReadout
from distill3d.layers.transformer import FeedForward, Residual, xavier
from distill3d.settings import Between, Channels, Coordinate, Layers, Number, Share, Weight, added
from distill3d.transfers import constant, inverse, places

#: Sides of images (px) are multiples of the trunk's coarsest stride.
STRIDE = STRIDES[-1]
#: Numbers that the release's MLP is told of the vehicle; where the way driven (m, global axes) since the frame before
#: stands among them, the heading (rad) and its change (degrees).
SIGNALS = 18
DRIVEN, HEADING, TURNED = slice(0, 2), -2, -1
#: Of that MLP: channels between its layers, as a share of the ground's.
SIGNAL_SHARE = 2
#: The release's point (column, row, in cells from the corner) about which maps are turned, whatever their size.
FIXED_CENTRE = (100.0, 100.0)
#: The lowest and the highest points of a pillar lie this far (m) within the ground's box.
PILLAR_MARGIN = 0.5
#: Depth (m) in front of a camera from which it sees a point, and the least that is divided by.
NEAREST = 1e-5
#: Shares are kept this far from 0 and 1 before their logit is taken.
SHARE_MARGIN = 1e-5
#: Prior probability of a class at a query.
CLASS_PRIOR = 0.01
#: Numbers of a box's code, and how many of them, from the first, matching looks at.
CODE, MATCHED = 10, 8
#: Weights of both losses and both costs: of the class, of the box.
CLASS_WEIGHT, BOX_WEIGHT = 2.0, 0.25
#: Rows of the released-versus-intended table.
STYLES: dict[Style, dict[str, Any]] = {
    "released": {"history_of": "interleaved", "visible_in": "first", "turned_about": "fixed"},
    "intended": {"history_of": "own", "visible_in": "own", "turned_about": "vehicle"},
}


@dataclass(frozen=True)
class BEVFormerConfig:
    """Everything that makes one BEVFormer.  Defaults are the release's tiny one, for 800 x 480 px."""

    input: Literal["rgb"] = "rgb"
    classes: tuple[str, ...] = NUSCENES_CLASSES  # the data set's, which labels index; all are trained
    trunk: ResNetConfig = ResNetConfig()
    strides: tuple[Literal[8, 16, 32], ...] = (32,)  # of the trunk's maps that the cameras' pyramid begins with
    extra_levels: Annotated[int, Between(0, 4)] = 0  # coarser ones behind them
    channels: Channels = 256
    feed_forward: Channels = 512
    attention_heads: Layers = 8
    encoder_layers: Layers = 3
    decoder_layers: Layers = 6
    queries: Number = 900
    pillar_points: Layers = 4  # heights at which cells look for themselves in the images
    image_points: Layers = 8  # of deformable attention, per head and level: a multiple of ``pillar_points``
    ground_points: Layers = 4  # the same on the ground's maps
    dropout: Annotated[float, Between(0, 1, below=True)] = 0.1
    frames: Annotated[int, Between(1, 100)] = 3  # the key frame and earlier ones, which get no gradient
    cameras: Annotated[int, Between(0, 100)] = 6  # each of which has a code of its own; 0: any number, without codes
    grid: VoxelGrid = VoxelGrid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), (2.048, 2.048, 8.0))  # of the ground, ego frame
    told: Literal["motion", "nothing"] = "motion"  # to the MLP on the vehicle's signals
    # MonoTAKD's, which stay in the network at test time:
    spatial_alignment: bool = added(False)  # a second map of the ground, aligned: P, offered as tap and to ``fusion``
    #: What the decoder looks at: the ground V, FFM(V + P), or V plus what ``SkipFusion`` lets in of P.
    fusion: Literal["none", "ffm", "skip"] = added("none")
    code_weights: tuple[Weight, ...] = (1.0,) * MATCHED + (0.2, 0.2)
    top_k: Number = 300  # pairs of query and class that are decoded
    score_threshold: Share = 0.0
    #: x min, y min, z min, x max, y max, z max (m) of what is kept.
    post_extent: tuple[Coordinate, Coordinate, Coordinate, Coordinate, Coordinate, Coordinate] = (
        -61.2, -61.2, -10.0, 61.2, 61.2, 10.0,
    )  # fmt: skip
    # released versus intended
    #: Whose history queries are joined with before they choose where to look: their own moment's, or rows of the list
    #: (previous of the first, present of the first, previous of the second, ...) counted through as if one a moment.
    history_of: Literal["own", "interleaved"] = "own"
    visible_in: Literal["own", "first"] = "own"  # the moment whose cameras say which cells look at an image
    turned_about: Literal["vehicle", "fixed"] = "vehicle"  # the point of the previous map that stays

    @classmethod
    def styled(cls, style: Style, **fields: Any) -> BEVFormerConfig:
        """A configuration with every released-versus-intended row set by ``style``; ``fields`` override."""
        return cls(**{**STYLES[style], **fields})

    @property
    def geometry(self) -> BevGeometry:
        """Where the cells of the ground lie."""
        return replace(bev_geometry(self.grid, 1), frame="ego")

    @property
    def size(self) -> tuple[int, int]:
        """Cells of the ground along y and x."""
        x, y, _ = self.grid.shape
        return y, x

    @property
    def levels(self) -> int:
        """Of the cameras' pyramid."""
        return len(self.strides) + self.extra_levels


def _square(cells: int) -> VoxelGrid:
    """The release's ground of ``cells`` x ``cells``."""
    default = BEVFormerConfig.grid
    side = (default.extent[3] - default.extent[0]) / cells
    return VoxelGrid(default.extent, (side, side, default.cell[2]))


def released_tiny(**fields: Any) -> BEVFormerConfig:
    """The release's tiny one: 800 x 450 px padded to 480, ResNet-50, one level, 50 x 50 cells, 3 frames.

    As all three it begins with ImageNet weights, of which stem, first stage and batch norms stay.
    """
    return BEVFormerConfig(**{"trunk": ResNetConfig(pretrained=True, frozen=True), **fields})


def released_small(**fields: Any) -> BEVFormerConfig:
    """The release's small one: 1280 x 720 px padded to 736, one level, 150 x 150 cells, 3 frames.

    Its trunk is ResNet-101 with plain convolutions and ImageNet weights: the release's last two stages have deformable
    ones, and all of it begins as FCOS3D ended.
    """
    small = {"trunk": ResNetConfig(layers=RESNET101, pretrained=True, frozen=True), "grid": _square(150)}
    return BEVFormerConfig(**{**small, **fields})


def released_base(**fields: Any) -> BEVFormerConfig:
    """The release's base one: 1600 x 900 px padded to 928, four levels, 200 x 200 cells, 6 encoder layers, 4 frames;
    the trunk as in ``released_small``."""
    base = {
        "trunk": ResNetConfig(layers=RESNET101, pretrained=True, frozen=True), "strides": STRIDES, "extra_levels": 1,
        "encoder_layers": 6, "grid": _square(200), "frames": 4,
    }  # fmt: skip
    return BEVFormerConfig(**{**base, **fields})


def tiny(**fields: Any) -> BEVFormerConfig:
    """The small configuration, for six canvases of about 256 x 96 px: half a million parameters, 24 x 24 cells."""
    small = {
        "classes": tuple(name for task in TINY_TASKS for name in task),
        "trunk": ResNetConfig("basic", (1, 1, 1, 1), (16, 32, 48, 64)), "strides": (16, 32), "channels": 64,
        "feed_forward": 128, "attention_heads": 4, "encoder_layers": 1, "decoder_layers": 2, "queries": 60,
        "frames": 1, "grid": VoxelGrid((-38.4, -38.4, -5.0, 38.4, 38.4, 3.0), (3.2, 3.2, 8.0)),
    }  # fmt: skip
    return BEVFormerConfig(**{**small, **fields})


# ----------------------------------------------------------------------------------------------- geometry of the ground


def pillars(grid: VoxelGrid, points: int, like: Tensor) -> Float[Tensor, "q p 3"]:
    """Points above each cell's centre, row by row: x, y, z as shares of the ground's box.

    Heights go evenly from 0.5 m above its lower to 0.5 m below its upper end.

    Source: modules/encoder.py, get_reference_points.
    """
    x, y, _ = grid.shape
    height = grid.extent[5] - grid.extent[2]
    z = torch.linspace(PILLAR_MARGIN, height - PILLAR_MARGIN, points, dtype=like.dtype, device=like.device) / height
    centres = cell_centres(((y, x),), like)
    return torch.cat((centres[:, None].expand(-1, points, -1), z[:, None].expand(len(centres), -1, -1)), dim=-1)


def in_metres(shares: Float[Tensor, "*s 3"], grid: VoxelGrid) -> Float[Tensor, "*s 3"]:
    """x, y, z in m of shares of the ground's box."""
    low, high = constant(grid.extent, shares).view(2, 3)
    return low + shares * (high - low)


def seen_points(
    points: Float[Tensor, "q p 3"], to_image: Float[Tensor, "b n 4 4"], size: tuple[int, int]
) -> tuple[Float[Tensor, "b n q p 2"], Bool[Tensor, "b n q p"]]:
    """Where each camera sees points (m), as shares (x, y) of an image of ``size`` (height, width) in px, and whether it
    does: in front of it and strictly within the image.  In float32.

    ``to_image`` leads from (x, y, z, 1) to (column times depth, row times depth, depth, 1).

    Source: modules/encoder.py, point_sampling.
    """
    with torch.autocast(points.device.type, enabled=False):
        matrix = to_image.float()[:, :, None, None]
        seen = (matrix[..., :3, :3] @ points.float()[..., None])[..., 0] + matrix[..., :3, 3]
        depth = seen[..., 2:]
        shares = seen[..., :2] / depth.clamp(min=NEAREST) / constant((size[1], size[0]), seen)
        return shares, (depth[..., 0] > NEAREST) & ((shares > 0) & (shares < 1)).all(-1)


@dataclass(frozen=True)
class Views:
    """Which cells look at which images, L rows per camera: those that have a visible point, and others to fill up."""

    index: Int[Tensor, "b n l"]  # the cell of each row
    asked: Bool[Tensor, "b n l"]  # it has a visible point there
    points: Float[Tensor, "b n l p 2"]  # its pillar in the image, shares (x, y)
    cameras: Float[Tensor, "b q"]  # that see something of each cell, at least 1


def views_of(
    points: Float[Tensor, "b n q p 2"], visible: Bool[Tensor, "b n q p"], visible_in: Literal["own", "first"] = "own"
) -> Views:
    """The rows of what ``seen_points`` gives.  Waits for the device once, to know how many there are."""
    any_point = visible.any(-1)
    looking = any_point if visible_in == "own" else any_point[:1].expand_as(any_point)
    rows = max(int(looking.sum(-1).max()), 1)
    index = looking.byte().argsort(dim=-1, descending=True, stable=True)[..., :rows]
    at = index[..., None, None].expand(-1, -1, -1, *points.shape[-2:])
    return Views(index, looking.gather(-1, index), points.gather(2, at), any_point.sum(1).clamp(min=1).to(points))


def ground_shift(
    signals: Float[Tensor, "b 18"], length: tuple[float, float], ahead: Literal["x", "y"] = "x"
) -> Float[Tensor, "b 2"]:
    """How far the vehicle has moved along the map's x and y since the frame before, as shares of its ``length`` (m)
    along x and y.

    ``ahead`` is the axis along which the vehicle looks: on ours y is to its left, on the release's x to its right.

    Source: modules/transformer.py, get_bev_features.
    """
    way = signals[:, DRIVEN]
    angle = signals[:, HEADING] - torch.atan2(way[:, 1], way[:, 0])
    distance = way.norm(dim=-1)
    forward, right = distance * angle.cos(), distance * angle.sin()
    shift = torch.stack((right, forward) if ahead == "y" else (forward, -right), dim=-1)
    return shift / constant(length, shift)


def turned(
    maps: Float[Tensor, "b c y x"], degrees: Float[Tensor, "b"], centre: tuple[float, float]
) -> Float[Tensor, "b c y x"]:
    """The previous maps as a vehicle sees them that has turned left since, on axes of which y is left of x.

    Values of the nearest cells, 0 from off the map.  ``centre`` (column, row) stays; cell 0 spans 0..1.

    Source: modules/transformer.py, get_bev_features.
    """
    size = (maps.shape[-2], maps.shape[-1])
    extent, middle = constant((size[1], size[0]), degrees), constant(centre, degrees)
    offset = cell_centres((size,), degrees) * extent - middle  # (Q, 2) cells
    cos, sin = degrees.deg2rad().cos()[:, None], degrees.deg2rad().sin()[:, None]
    x, y = offset.unbind(-1)
    source = torch.stack((cos * x - sin * y, sin * x + cos * y), dim=-1) + middle
    grid = (2 * source / extent - 1).unflatten(1, size)
    exact = torch.promote_types(maps.dtype, torch.float32)  # half precision would miss cells
    with torch.autocast(maps.device.type, enabled=False):
        moved = F.grid_sample(maps.to(exact), grid.to(exact), mode="nearest", align_corners=False)
    return moved.to(maps.dtype)


@torch.no_grad()
def vehicle_signals(batch: SurroundBatch) -> Float[Tensor, "b s 18"]:
    """What the poses tell of the vehicle in each frame, float64: the way driven since the frame before (m, global
    axes), the heading (rad) and its change (degrees); other signals are 0, and so is motion in the first frame.

    Earlier frames' poses follow from those of the cameras, which keep their places on the vehicle: the mean over
    cameras of pose times inverse of the key frame's.  An augmented ground moves as its augmentation says.
    """
    poses = (batch.camera_to_ego @ inverse(batch.camera_to_ego[:, :1])).mean(2)  # (B, S, 4, 4) into the key frame
    augment, back = batch.bev_affine[:, None], inverse(batch.bev_affine)[:, None]
    poses = augment @ poses @ back
    frame = (batch.ego_to_global[:, None] @ back @ poses)[..., :2, 0]
    heading = torch.atan2(frame[..., 1], frame[..., 0])
    signals = poses.new_zeros(*poses.shape[:2], SIGNALS)
    signals[..., HEADING] = heading
    before = inverse(poses[:, :-1]) @ poses[:, 1:]  # of the frame before, as seen from each
    ahead, left = -before[..., 0, 3], -before[..., 1, 3]
    cos, sin = heading[:, :-1].cos(), heading[:, :-1].sin()
    signals[:, :-1, DRIVEN] = torch.stack((cos * ahead - sin * left, sin * ahead + cos * left), dim=-1)
    signals[:, :-1, TURNED] = -torch.atan2(before[..., 1, 0], before[..., 0, 0]).rad2deg()
    return signals


def ground_to_image(batch: SurroundBatch, frame: int) -> Float[Tensor, "b n 4 4"]:
    """From the (augmented) ground of a frame's own vehicle to the canvas of its cameras, as ``seen_points`` asks.

    The cameras stand on the vehicle as in the key frame.
    """
    affine = batch.image_affine.clone()  # of (u, v, depth, 1): its moves count per depth
    affine[..., :2, 2], affine[..., :2, 3] = batch.image_affine[..., :2, 3], 0
    camera = inverse(batch.bev_affine[:, None] @ batch.camera_to_ego[:, 0])
    return affine @ batch.intrinsics[:, frame] @ camera


# ---------------------------------------------------------------------------------------------------------- the encoder


class TemporalSelfAttention(nn.Module):
    """Cells look at the previous map and at the present one: the mean of both, without the residual."""

    def __init__(self, channels: int, heads: int, points: int, history_of: Literal["own", "interleaved"]) -> None:
        super().__init__()
        self.history_of = history_of
        self.attention = DeformableAttention(channels, 2, heads, points, query_channels=2 * channels, weigh="apart")

    def forward(
        self,
        query: Float[Tensor, "b q c"],
        position: Float[Tensor, "... q c"],
        history: Float[Tensor, "b 2 q c"] | None,
        reference: Float[Tensor, "b q 2 2"],
        size: tuple[int, int],
    ) -> Float[Tensor, "b q c"]:
        """``history`` is the previous map, turned, and what the present one is taken to be; None: twice the query.

        ``reference`` is each cell's place (x, y) on both, as shares.
        """
        if history is None:
            history = torch.stack((query, query), dim=1)
        joined = history[:, 0] if self.history_of == "own" else history.flatten(0, 1)[: len(history)]
        asking = torch.cat((joined, query + position), dim=-1)
        return self.attention(asking, reference[:, :, :, None], history.flatten(1, 2), (size, size))


class SpatialCrossAttention(nn.Module):
    """Cells look at the images that show them: the mean over these, without the residual."""

    def __init__(self, channels: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, levels, heads, points)

    def forward(
        self, query: Float[Tensor, "b q c"], tokens: Float[Tensor, "b n t c"], views: Views, sizes: Sizes
    ) -> Float[Tensor, "b q c"]:
        batch, cells, channels = query.shape
        first = cells * torch.arange(batch, device=query.device)[:, None, None]
        rows = (views.index + first).flatten()
        asking = query.flatten(0, 1).index_select(0, rows).unflatten(0, (-1, views.index.shape[-1]))  # (B N, L, C)
        repeats = self.attention.points // views.points.shape[-2]
        reference = views.points.repeat(1, 1, 1, repeats, 1).flatten(0, 1)[:, :, None]  # height after height
        found = self.attention.gather(asking, reference, tokens.flatten(0, 1), sizes)
        found = found * views.asked.flatten(0, 1)[..., None]
        total = found.new_zeros(batch * cells, channels).index_add(0, rows, found.flatten(0, 1))
        return self.attention.output(total.view(batch, cells, channels) / views.cameras[..., None])


class EncoderLayer(nn.Module):
    """Cells look back, at the images, and pass a feed-forward net."""

    def __init__(self, config: BEVFormerConfig) -> None:
        super().__init__()
        c, heads, dropout = config.channels, config.attention_heads, config.dropout
        self.temporal = TemporalSelfAttention(c, heads, config.ground_points, config.history_of)
        self.temporal_add = Residual(c, dropout)
        self.spatial = SpatialCrossAttention(c, config.levels, heads, config.image_points)
        self.spatial_add = Residual(c, dropout)
        self.feed_forward = FeedForward(c, config.feed_forward, dropout)

    def forward(
        self, query: Tensor, position: Tensor, history: Tensor | None, reference: Tensor, size: tuple[int, int],
        tokens: Tensor, views: Views, sizes: Sizes,
    ) -> Float[Tensor, "b q c"]:  # fmt: skip
        query = self.temporal_add(query, self.temporal(query, position, history, reference, size))
        return self.feed_forward(self.spatial_add(query, self.spatial(query, tokens, views, sizes)))


class SignalNet(nn.Sequential):
    """What the vehicle's signals add to every query of the ground."""

    def __init__(self, channels: int) -> None:
        hidden = channels // SIGNAL_SHARE
        super().__init__(
            xavier(nn.Linear(SIGNALS, hidden)), nn.ReLU(inplace=True),
            xavier(nn.Linear(hidden, channels)), nn.ReLU(inplace=True), nn.LayerNorm(channels),
        )  # fmt: skip


class GroundEncoder(nn.Module):
    """Maps of all cameras -> the ground's cells, row by row."""

    def __init__(self, config: BEVFormerConfig) -> None:
        super().__init__()
        self.config = config
        c, (rows, columns) = config.channels, config.size
        self.query = nn.Embedding(rows * columns, c)
        self.row, self.column = nn.Embedding(rows, c // 2), nn.Embedding(columns, c // 2)
        for code in (self.row, self.column):
            nn.init.uniform_(code.weight)
        self.level = nn.Embedding(config.levels, c)
        self.camera = nn.Embedding(config.cameras, c) if config.cameras else None
        self.signals = SignalNet(c) if config.told == "motion" else None
        self.layers = nn.ModuleList([EncoderLayer(config) for _ in range(config.encoder_layers)])

    def tokens(self, maps: list[Float[Tensor, "b n c _ _"]]) -> Float[Tensor, "b n t c"]:
        """The cells of all levels, finest first, with the codes of their camera and level."""
        levels = [m.flatten(3).transpose(2, 3) + code for m, code in zip(maps, self.level.weight, strict=True)]
        tokens = torch.cat(levels, dim=2)
        return tokens if self.camera is None else tokens + self.camera.weight[:, None]

    def queries(self, signals: Float[Tensor, "b 18"]) -> Float[Tensor, "b q c"]:
        """What the first layer asks."""
        query = self.query.weight.expand(len(signals), -1, -1)
        return query if self.signals is None else query + self.signals(signals)[:, None]

    def turned(self, previous: Float[Tensor, "b q c"], degrees: Float[Tensor, "b"]) -> Float[Tensor, "b q c"]:
        """The previous map's cells as the vehicle's new heading has them."""
        grid = self.config.grid
        vehicle = (-grid.extent[0] / grid.cell[0], -grid.extent[1] / grid.cell[1])
        centre = vehicle if self.config.turned_about == "vehicle" else FIXED_CENTRE
        maps = previous.transpose(1, 2).unflatten(2, self.config.size)
        return turned(maps, degrees, centre).flatten(2).transpose(1, 2)

    def forward(
        self,
        maps: list[Float[Tensor, "b n c _ _"]],
        views: Views,
        signals: Float[Tensor, "b 18"],
        previous: Float[Tensor, "b q c"] | None,
    ) -> Float[Tensor, "b q c"]:
        """``previous`` are the cells of the frame before, on its own ground; None where there was none."""
        size, (x0, y0, _, x1, y1, _) = self.config.size, self.config.grid.extent
        exact = self.query.weight
        sizes: Sizes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
        tokens, query = self.tokens(maps), self.queries(signals.to(exact))
        codes = (self.column.weight.expand(size[0], -1, -1), self.row.weight[:, None].expand(-1, size[1], -1))
        position = torch.cat(codes, dim=-1).flatten(0, 1)
        reference = cell_centres((size,), exact)[None, :, None].expand(len(signals), -1, 2, -1)
        history = None
        if previous is not None:
            shift = ground_shift(signals, (x1 - x0, y1 - y0)).to(exact)
            reference = reference + F.pad(shift[:, None, None], (0, 0, 0, 1))  # of the previous map alone
            history = torch.stack((self.turned(previous, signals[:, TURNED]).to(query), query), dim=1)
        for layer in self.layers:
            query = layer(query, position, history, reference, size, tokens, views, sizes)
        return query


# ---------------------------------------------------------------------------------------------------------- the decoder


class DecoderLayer(nn.Module):
    """Queries look at each other and at the ground."""

    def __init__(self, config: BEVFormerConfig) -> None:
        super().__init__()
        c, heads, dropout = config.channels, config.attention_heads, config.dropout
        self.self_attention = nn.MultiheadAttention(c, heads, dropout, batch_first=True)
        self.self_add = Residual(c, dropout)
        self.ground_attention = DeformableAttention(c, 1, heads, config.ground_points)
        self.ground_add = Residual(c, dropout)
        self.feed_forward = FeedForward(c, config.feed_forward, dropout)

    def forward(
        self,
        content: Float[Tensor, "b q c"],
        position: Float[Tensor, "q c"],
        reference: Float[Tensor, "b q 2"],
        ground: Float[Tensor, "b t c"],
        size: tuple[int, int],
    ) -> Float[Tensor, "b q c"]:
        placed = content + position
        content = self.self_add(content, self.self_attention(placed, placed, content, need_weights=False)[0])
        found = self.ground_attention(content + position, reference, ground, (size,))
        return self.feed_forward(self.ground_add(content, found))


class LayerHead(nn.Module):
    """What is read of the queries after one decoder layer; the last linear layers in float32."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()

        def hidden(norm: bool) -> list[nn.Module]:
            between = [nn.LayerNorm(channels)] if norm else []
            return [nn.Linear(channels, channels), *between, nn.ReLU(inplace=True)]

        last = LinearReadout(channels, classes)
        nn.init.constant_(last.bias, math.log(CLASS_PRIOR / (1 - CLASS_PRIOR)))
        self.kind = nn.Sequential(*hidden(True), *hidden(True), last)
        self.box = nn.Sequential(*hidden(False), *hidden(False), LinearReadout(channels, CODE))

    def forward(
        self, content: Float[Tensor, "b q c"], reference: Float[Tensor, "b q 3"], grid: VoxelGrid
    ) -> tuple[Float[Tensor, "b q k"], Float[Tensor, "b q 10"], Float[Tensor, "b q 3"]]:
        """Class logits, box codes, and the reference refined (shares of the ground's box)."""
        xy, width_length, z, others = self.box(content).split((2, 2, 1, CODE - 5), dim=-1)
        place = (torch.cat((xy, z), dim=-1) + torch.logit(reference.to(z), SHARE_MARGIN)).sigmoid()
        metres = in_metres(place, grid)
        code = torch.cat((metres[..., :2], width_length, metres[..., 2:], others), dim=-1)
        return self.kind(content), code, place


# ------------------------------------------------------------------------------------------------- targets and matching


@dataclass(frozen=True)
class BEVFormerTargets:
    """Training targets in the rows of the batch's objects; rows that are not trained hold zeros."""

    code: Float[Tensor, "b m 10"]  # NaN velocity where unknown
    label: Int[Tensor, "b m"]  # index into the classes
    mask: Bool[Tensor, "b m"]  # trained: of a class, with a size, its centre within the ground as seen from above


@torch.no_grad()
def box_targets(objects: SurroundObjectBatch, grid: VoxelGrid, classes: int) -> BEVFormerTargets:
    """The codes of a batch's objects."""
    centre, size, yaw = objects.centre, objects.size, objects.yaw[..., None]
    x0, y0, _, x1, y1, _ = grid.extent
    inside = (centre[..., :2] > constant((x0, y0), centre)) & (centre[..., :2] < constant((x1, y1), centre))
    known = (objects.label >= 0) & (objects.label < classes)
    mask = objects.present & known & inside.all(-1) & (size > 0).all(-1)
    length, width, height = size.log().split(1, dim=-1)
    parts = (centre[..., :2], width, length, centre[..., 2:], height, yaw.sin(), yaw.cos(), objects.velocity)
    code = torch.where(mask[..., None], torch.cat(parts, dim=-1), 0)
    return BEVFormerTargets(code, torch.where(mask, objects.label, 0), mask)


def class_cost(logits: Float[Tensor, "b l q k"], targets: BEVFormerTargets) -> Float[Tensor, "b l q m"]:
    """2 times the focal cost of every query for every object's class."""
    return CLASS_WEIGHT * focal_cost(logits, targets.label[:, None].expand(-1, logits.shape[1], -1))


def box_cost(codes: Float[Tensor, "b l q 10"], targets: BEVFormerTargets) -> Float[Tensor, "b l q m"]:
    """0.25 times the L1 distance of the codes without velocity, of every query to every object."""
    return BOX_WEIGHT * torch.cdist(codes[..., :MATCHED], targets.code[:, None, :, :MATCHED], p=1.0)


@torch.no_grad()
def match(
    logits: Float[Tensor, "b l q k"], codes: Float[Tensor, "b l q 10"], targets: BEVFormerTargets
) -> Int[Tensor, "b l m"]:
    """The query of each object for every decoder layer; ``UNMATCHED`` for objects that are not trained, and for the
    dearest where there are more than queries."""
    cost = class_cost(logits, targets) + box_cost(codes, targets)
    present = targets.mask[:, None].expand(-1, cost.shape[1], -1)
    return assign(cost.flatten(0, 1), present.flatten(0, 1)).unflatten(0, cost.shape[:2])


def layer_losses(
    logits: Float[Tensor, "b q k"], codes: Float[Tensor, "b q 10"], targets: BEVFormerTargets,
    matched: Int[Tensor, "b m"], code_weights: tuple[float, ...], found: tuple[Tensor, ...] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """The losses ``class`` and ``box`` of one decoder layer.

    Reduction: 2 times the sum over the batch's queries and classes of the focal loss, and 0.25 times the sum over
    matched queries of the weighted L1 distance of codes, both divided by the number of matched objects: the mean over
    processes, at least 1 (of all processes together).  Velocities that are unknown are left out.
    ``found``: sample and row of what is matched, where that is known.

    Source: dense_heads/bevformer_head.py, loss_single.
    """
    from torchvision.ops import sigmoid_focal_loss

    sample, row = found or (matched != UNMATCHED).nonzero(as_tuple=True)
    query = matched[sample, row]
    one_hot = torch.zeros_like(logits)
    one_hot[sample, query, targets.label[sample, row]] = one_hot.new_ones(())
    of_class = sigmoid_focal_loss(logits, one_hot, FOCAL_ALPHA, FOCAL_GAMMA, "sum")
    wanted = targets.code[sample, row]
    known = ~wanted.isnan()
    distance = torch.where(known, codes[sample, query] - wanted.where(known, 0), 0).abs()
    of_box = (distance * constant(code_weights, distance)).sum()
    count = across_processes(distance.new_full((), len(query))).clamp(min=1 / world_size())
    return {"class": CLASS_WEIGHT * of_class / count, "box": BOX_WEIGHT * of_box / count}


# --------------------------------------------------------------------------------------------------------------- decode


def rows_of(codes: Float[Tensor, "*s 10"]) -> Float[Tensor, "*s 9"]:
    """x, y, z of the centre, length, width, height (m), yaw (rad), velocity (m/s) of box codes."""
    x, y, width, length, z, height, sin, cos = codes[..., :MATCHED].split(1, dim=-1)
    sizes = (length.exp(), width.exp(), height.exp())
    return torch.cat((x, y, z, *sizes, torch.atan2(sin, cos), codes[..., MATCHED:]), dim=-1)


@dataclass(frozen=True)
class Best:
    """The K surest pairs of query and class of each sample, best first; a query may appear with several classes."""

    score: Float[Tensor, "b k"]
    label: Int[Tensor, "b k"]
    rows: Float[Tensor, "b k 9"]  # as ``rows_of`` gives them
    kept: Bool[Tensor, "b k"]  # sure enough, within ``post_extent``, and a box at all


def best_boxes(
    logits: Float[Tensor, "b q k"], codes: Float[Tensor, "b q 10"], top_k: int, post_extent: tuple[float, ...],
    score_threshold: float = 0.0,
) -> Best:  # fmt: skip
    """What one decoder layer says.

    Source: core/bbox/coders/nms_free_coder.py.
    """
    kinds = logits.shape[-1]
    score, pair = logits.sigmoid().flatten(1).topk(min(top_k, logits[0].numel()), dim=1)
    rows = rows_of(codes.gather(1, (pair // kinds)[..., None].expand(-1, -1, CODE)))
    low, high = constant(post_extent, rows).view(2, 3)
    within = ((rows[..., :3] >= low) & (rows[..., :3] <= high)).all(-1)
    real = rows.isfinite().all(-1) & (rows[..., 3:6] > 0).all(-1)
    return Best(score, pair % kinds, rows, (score >= score_threshold) & within & real)


# ------------------------------------------------------------------------------------------------------------- detector


class BEVFormer(Detector[SurroundBatch]):
    """Image trunk and pyramid, encoder of the ground, decoder of object queries with a head after every layer.

    Taps, (B, C, Y, X): ``bev_neck``, what the decoder looks at, without ``fusion`` the ground in the key frame; with
    ``spatial_alignment`` that ground itself as ``bev`` (V), and ``bev_spatial`` (P).

    Predictions, of all decoder layers, first to last, for methods that imitate centres, classes and boxes:
    ``logits`` (B, layers, queries, classes), raw;  ``codes`` (B, layers, queries, 10), as the header writes them in m,
    log m and m/s of the (augmented) key ego frame, predicted centres (x, y, z) being entries 0, 1, 4;  ``references``
    (B, layers, queries, 3), the places x, y, z that each layer started from, as shares of ``grid.extent``: those of
    the first are learnt for each query, a later layer's are the centres of the one before, without gradient.

    Raises:
        ValueError: settings that do not go together.
    """

    name = "bevformer"
    config: BEVFormerConfig

    def __init__(self, config: BEVFormerConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        c = config.channels
        self.backbone = ResNet(config.trunk)
        widths = dict(zip(STRIDES, config.trunk.outputs, strict=True))
        self.neck = FPN([widths[stride] for stride in config.strides], c, config.extra_levels)
        self.encoder = GroundEncoder(config)
        self.query_content, self.query_position = nn.Embedding(config.queries, c), nn.Embedding(config.queries, c)
        self.reference = xavier(LinearReadout(c, 3))
        self.decoder = nn.ModuleList([DecoderLayer(config) for _ in range(config.decoder_layers)])
        self.heads = nn.ModuleList([LayerHead(c, len(config.classes)) for _ in range(config.decoder_layers)])
        self.spatial_collapse = PointwiseBlock(c, c) if config.spatial_alignment else None
        self.alignment = SpatialAlignment(c) if config.spatial_alignment else None
        self.fusion = None
        if config.fusion != "none":
            self.fusion = SkipFusion(c) if config.fusion == "skip" else FeatureFusion(c)
        aligned = ("bev", "bev_spatial") if config.spatial_alignment else ()
        self.tap_channels = dict.fromkeys((*aligned, "bev_neck"), c)

    def forward(self, batch: SurroundBatch) -> Outputs:
        """The key frame's map and raw predictions.

        Raises:
            UserError: the batch has no images, not as many frames or cameras as the detector sees, or sides that are
                no multiples of 32 px.
        """
        images, signals = self._images(batch), vehicle_signals(batch)
        ground = None
        if self.config.frames > 1:
            with torch.no_grad(), in_eval_mode(self):
                for frame in reversed(range(1, self.config.frames)):
                    ground = self._ground(batch, images, signals, frame, ground)
            # Autocast keeps weights that it casts, these without a gradient, for the key frame, which needs one.
            torch.clear_autocast_cache()
        ground = self._ground(batch, images, signals, 0, ground)
        maps = self._ground_maps(ground.transpose(1, 2).unflatten(2, self.config.size))
        features = {tap: FeatureMap(tensor, self.config.geometry) for tap, tensor in maps.items()}
        return Outputs(features, self._decode_queries(maps["bev_neck"].flatten(2).transpose(1, 2)))

    def _ground_maps(self, ground: Float[Tensor, "b c y x"]) -> dict[str, Tensor]:
        """The taps' maps of the key frame's ground."""
        if self.spatial_collapse is None or self.alignment is None:
            return {"bev_neck": ground}
        spatial = self.alignment(self.spatial_collapse(ground))
        if self.fusion is None:
            fused = ground
        elif isinstance(self.fusion, SkipFusion):
            fused = self.fusion(ground, spatial)
        else:
            fused = self.fusion(ground + spatial)
        return {"bev": ground, "bev_spatial": spatial, "bev_neck": fused}

    def _images(self, batch: SurroundBatch) -> Float[Tensor, "b s n 3 height width"]:
        """Colours less ImageNet's mean, by its deviation."""
        config, images = self.config, batch.images
        if images is None:
            raise UserError("bevformer looks at images: the data set gives none")
        frames, cameras = images.shape[1:3]
        if frames != config.frames:
            raise UserError(f"bevformer is set to {config.frames} frames, the data set gives {frames}")
        if config.cameras and cameras != config.cameras:
            raise UserError(f"bevformer is set to {config.cameras} cameras, the data set gives {cameras}")
        height, width = images.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise UserError(
                f"bevformer sees images whose sides are multiples of {STRIDE} px, not {width} x {height} px"
            )
        mean, std = (constant(v, images)[:, None, None] for v in (RGB_MEAN, RGB_STD))
        return (images - mean) / std

    def _ground(
        self, batch: SurroundBatch, images: Float[Tensor, "b s n 3 height width"], signals: Float[Tensor, "b s 18"],
        frame: int, previous: Float[Tensor, "b q c"] | None,
    ) -> Float[Tensor, "b q c"]:  # fmt: skip
        """A frame's cells on its own ground."""
        pixels = images[:, frame].flatten(0, 1).contiguous(memory_format=torch.channels_last)
        trunk = dict(zip(STRIDES, self.backbone(pixels), strict=True))
        levels = self.neck([trunk[stride] for stride in self.config.strides])
        maps = [level.unflatten(0, (len(batch), -1)) for level in levels]
        return self.encoder(maps, self._views(batch, frame), signals[:, frame], previous)

    @torch.no_grad()
    def _views(self, batch: SurroundBatch, frame: int) -> Views:
        assert batch.images is not None
        config, size = self.config, (batch.images.shape[-2], batch.images.shape[-1])
        points = in_metres(pillars(config.grid, config.pillar_points, batch.images), config.grid)
        return views_of(*seen_points(points, ground_to_image(batch, frame), size), config.visible_in)

    def _decode_queries(self, ground: Float[Tensor, "b t c"]) -> dict[str, Tensor]:
        """All decoder layers, each starting from the centres that the one before found, and their heads."""
        position = self.query_position.weight
        content = self.query_content.weight.expand(len(ground), -1, -1)
        reference = self.reference(position).sigmoid().expand(len(ground), -1, -1)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for layer, head in zip(self.decoder, self.heads, strict=True):
            content = layer(content, position, reference[..., :2], ground, self.config.size)
            logits, codes, refined = head(content, reference, self.config.grid)
            found.append((logits, codes, reference))
            reference = refined.detach()
        names = ("logits", "codes", "references")
        return {name: torch.stack(values, dim=1) for name, values in zip(names, zip(*found, strict=True), strict=True)}

    @torch.no_grad()
    def encode(self, batch: SurroundBatch) -> BEVFormerTargets | None:
        """Targets of the batch's objects; None where it knows none."""
        return None if batch.objects is None else box_targets(batch.objects, self.config.grid, len(self.config.classes))

    def loss(
        self, outputs: Outputs, batch: SurroundBatch, targets: BEVFormerTargets | None = None
    ) -> dict[str, Tensor]:
        """``class`` and ``box`` of the last decoder layer, the earlier layers' with the layer's number behind; none of
        a batch without annotations."""
        targets = targets or self.encode(batch)
        if targets is None:
            return {}
        logits, codes = outputs.predictions["logits"], outputs.predictions["codes"]
        losses: dict[str, Tensor] = {}
        with torch.autocast(logits.device.type, enabled=False):
            matched = match(logits, codes, targets)
            found = places(*(matched != UNMATCHED).unbind(1))  # of all layers by one wait
            for layer in reversed(range(matched.shape[1])):
                suffix = "" if layer == matched.shape[1] - 1 else f"_{layer}"
                predicted = (logits[:, layer], codes[:, layer])
                of_layer = layer_losses(*predicted, targets, matched[:, layer], self.config.code_weights, found[layer])
                losses |= {f"{name}{suffix}": value for name, value in of_layer.items()}
        return losses

    def decode(self, outputs: Outputs, batch: SurroundBatch) -> list[Boxes3D]:
        return self.decode_slots(outputs, batch).boxes()

    @torch.no_grad()
    def decode_slots(self, outputs: Outputs, batch: SurroundBatch) -> BoxSlots:
        config, (logits, codes) = self.config, (outputs.predictions[name][:, -1] for name in ("logits", "codes"))
        best = best_boxes(logits, codes, config.top_k, config.post_extent, config.score_threshold)
        rows = without_augmentation(best.rows, batch.bev_affine)
        return BoxSlots(rows[..., :3], rows[..., 3:6], rows[..., 6], best.label, best.score, best.kept, "ego",
                        velocity=rows[..., 7:])  # fmt: skip


def _check(config: BEVFormerConfig) -> None:
    cells = bev_geometry(config.grid, 1).cell  # refuses cells that are not square
    x0, y0, _, x1, y1, _ = config.grid.extent
    for low, high, count in ((x0, x1, config.size[1]), (y0, y1, config.size[0])):
        if abs(count * cells - (high - low)) > 1e-3 * cells:
            raise ValueError(f"{low} to {high} m is no whole number of cells of {cells} m")
    if config.channels % (2 * config.attention_heads):
        raise ValueError(f"{config.channels} channels are no multiple of twice {config.attention_heads} heads")
    if config.image_points % config.pillar_points:
        raise ValueError(f"{config.image_points} image_points are no multiple of {config.pillar_points} pillar_points")
    if config.trunk.finest != STRIDES[0]:
        raise ValueError(f"bevformer reads the trunk's maps at strides {STRIDES}: set trunk.finest to {STRIDES[0]}")
    if not config.strides or config.strides != STRIDES[-len(config.strides) :]:
        raise ValueError(f"strides is {config.strides}, expected the last ones of {STRIDES}")
    if config.fusion != "none" and not config.spatial_alignment:
        raise ValueError(f"fusion is {config.fusion!r}, which fuses what spatial_alignment gives; switch that on")
    if len(config.code_weights) != CODE:
        raise ValueError(f"a box has {CODE} values, got {len(config.code_weights)} code weights")
