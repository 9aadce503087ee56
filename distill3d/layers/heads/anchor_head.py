"""The 2D network on a bird's-eye view map, and the anchor head on top of it: SECOND's, PointPillars', CMKD's.

Sources: open-mmlab/OpenPCDet as forked by Cc-Hy/CMKD (pcdet/models/backbones_2d/base_bev_backbone.py,
pcdet/models/dense_heads/anchor_head_*.py, pcdet/models/model_utils/model_nms_utils.py, pcdet/datasets/kitti/
kitti_dataset.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill3d.boxes import (
    IGNORE,
    KITTI_CLASSES,
    Boxes3D,
    BoxSlots,
    box_corners,
    camera_rows,
    label_names,
    lidar_rows,
    lidar_to_camera,
    wrap_angle,
)
from distill3d.camera import Camera
from distill3d.data.augment.image import mirror_boxes
from distill3d.data.augment.lidar import projected_boxes
from distill3d.data.sample import Batch
from distill3d.layers.distributed import world_size
from distill3d.layers.ground.bev_second import BevBackbone, BevBackboneConfig
from distill3d.layers.ground.rotated import bev_iou_table, rotated_nms
from distill3d.layers.heads.anchors import (
    BACKGROUND,
    DIRECTION_BINS,
    IGNORED,
    KITTI_ANCHORS,
    YAW,
    AnchorClass,
    ClaimedTarget,
    anchor_grid,
    assign,
    decode,
    decode_directed,
    direction_bin,
    encode,
    overlap_quality,
    quality_focal,
    sine_difference,
    smooth_l1,
)
from distill3d.layers.heads.centre_nms import first_kept
from distill3d.layers.readout import Readout
from distill3d.settings import Number, Share, Weight, added
from distill3d.transfers import constant, fetched, inverse, places

#: Chance that an untrained head gives to each class of an anchor, and the spread of its box weights.
CLASS_PRIOR = 0.01
BOX_STD = 0.001
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
CODE = 7
#: Released beginnings of names, and ours in detectors whose part ``head`` is this head.
RELEASED_NAMES = {"backbone_2d": "head.backbone", "dense_head": "head"}
#: Names and shapes of what released networks with this head save of their training: its steps.
RELEASED_STEPS = {"global_step": (1,)}
#: Boxes that enter the suppression where shapes are fixed and the overlap of every pair is computed.
SLOTS = 512
#: Of the small configurations, for maps of 64 channels: one for all, so that students can take over a teacher's.
TINY_BACKBONE = BevBackboneConfig(layers=(2, 2), channels=(64, 96), up_channels=(64, 64))


# ----------------------------------------------------------------------------------------------------------------- head


@dataclass(frozen=True)
class AnchorHeadConfig:
    """Everything that makes one anchor head.  Defaults are the SECOND teacher's of CMKD; ``focal_head`` gives
    PointPillars'.

    ``classification``: ``focal`` trains foreground anchors towards 1; ``quality_focal`` trains every anchor towards the
    3D IoU of the box that it currently predicts.
    """

    classes: tuple[AnchorClass, ...] = KITTI_ANCHORS
    vocabulary: tuple[str, ...] = added(KITTI_CLASSES[:3])  # the data set's classes, in the order that labels number
    classification: Literal["focal", "quality_focal"] = "quality_focal"
    cls_weight: Weight = 8.0
    loc_weight: Weight = 2.0
    dir_weight: Weight = 0.2
    backbone: BevBackboneConfig = field(default_factory=BevBackboneConfig)
    score_threshold: Share = 0.1
    nms_threshold: Share = 0.01  # IoU on the ground
    candidates: Number = 4096  # best boxes that enter the suppression
    max_detections: Number = 500
    # released versus intended
    claimed: ClaimedTarget = "anchor"
    quality_batch: Literal["sum", "mean"] = "sum"  # of the quality focal loss over images; weights suit a sum over 8
    #: Whether the map that the read-outs see is a tap of the detector (``HEAD_TAP`` of detectors/anchor_outputs.py).
    offers_map: bool = added(False)


def focal_head(**fields: Any) -> AnchorHeadConfig:
    """The ordinary head, as PointPillars and the first SECOND have it; ``fields`` override."""
    return AnchorHeadConfig(**{"classification": "focal", "cls_weight": 1.0, **fields})


@dataclass(frozen=True)
class AnchorTargets:
    """The objects of B images in the LiDAR frame, and what each of N anchors is to learn from them."""

    boxes: Float[Tensor, "b m 7"]  # x, y, z of the centre, length, width, height (m), yaw (rad); 0 where not trained
    classes: Int[Tensor, "b m"]  # index into the head's classes; IGNORE where not trained
    labels: Int[Tensor, "b n"]  # IGNORED, BACKGROUND or 1 + class; all IGNORED in images without labels
    matched: Int[Tensor, "b n"]  # row of ``boxes`` that a foreground anchor learns
    labelled: Bool[Tensor, "b"]


class AnchorHead(nn.Module):
    """Scores, boxes and direction bins of the anchors in every cell of a bird's-eye view map, or of one that is coarser
    by the backbone's ``stride``.

    Anchors of a cell are ordered by class, then rotation; N counts cells row by row, then their anchors.

    Args:
        channels_in: of the map.
        extent: x min, y min, z min, x max, y max, z max (m) of the LiDAR's frame; the map covers its x and y, and only
            objects with a corner inside are trained.
        cells: of the map along y and x.

    Raises:
        ValueError: the levels of the backbone do not divide the map, or a class is unknown.
    """

    _anchors: Float[Tensor, "n 7"]

    def __init__(
        self, channels_in: int, extent: tuple[float, float, float, float, float, float], cells: tuple[int, int],
        config: AnchorHeadConfig,
    ) -> None:  # fmt: skip
        super().__init__()
        divisor = config.backbone.divisor
        if any(side % divisor for side in cells):
            raise ValueError(f"a map of {cells[0]} x {cells[1]} cells: both must be multiples of {divisor}")
        self.names = label_names(config.vocabulary)
        unknown = [c.name for c in config.classes if c.name not in self.names]
        if unknown:
            raise ValueError(f"unknown classes {', '.join(unknown)}; expected some of {', '.join(self.names)}")
        self.config, self.extent = config, extent
        rows, columns = (side // config.backbone.stride for side in cells)
        grid = anchor_grid(config.classes, (extent[0], extent[1], extent[3], extent[4]), (rows, columns))
        # As rows: modules are moved to channels last, which torch refuses for five dimensions.
        self._grid = tuple(grid.shape)
        self.register_buffer("_anchors", grid.flatten(0, 3), persistent=False)
        in_cell = grid.shape[2] * grid.shape[3]
        self.backbone = BevBackbone(channels_in, config.backbone)
        width = self.backbone.channels_out
        self.conv_cls = Readout(width, in_cell * len(config.classes), 1)
        self.conv_box = Readout(width, in_cell * CODE, 1)
        self.conv_dir_cls = Readout(width, in_cell * DIRECTION_BINS, 1)
        assert self.conv_cls.bias is not None
        nn.init.constant_(self.conv_cls.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))
        nn.init.normal_(self.conv_box.weight, std=BOX_STD)

    @property
    def anchors(self) -> Float[Tensor, "y x class rotation 7"]:
        """The anchor boxes of every cell."""
        return self._anchors.view(self._grid)

    def forward(self, bev: Float[Tensor, "b c y x"]) -> dict[str, Tensor]:
        """Raw maps, channel-last, in float32 also under autocast: ``cls`` (B, Y, X, A K) logits, ``box`` (B, Y, X, A 7)
        codes, ``dir`` (B, Y, X, A 2) logits, for A anchors per cell of ``anchors`` and K classes."""
        return self.read(self.backbone(bev))

    def read(self, features: Float[Tensor, "b c y x"]) -> dict[str, Tensor]:
        """The raw maps of ``forward`` from the backbone's output."""
        layers = {"cls": self.conv_cls, "box": self.conv_box, "dir": self.conv_dir_cls}
        return {name: layer(features).permute(0, 2, 3, 1).contiguous() for name, layer in layers.items()}

    def rows(self, predictions: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The raw maps by anchor: scores (B, N, K), codes (B, N, 7), directions (B, N, 2), float32 or better."""
        widths = {"cls": len(self.config.classes), "box": CODE, "dir": DIRECTION_BINS}
        scores, codes, directions = (
            predictions[name].flatten(1).unflatten(1, (-1, width)) for name, width in widths.items()
        )
        kind = torch.promote_types(scores.dtype, torch.float32)
        return scores.to(kind), codes.to(kind), directions.to(kind)

    # ------------------------------------------------------------------------------------------------------- training

    @torch.no_grad()
    def targets(self, batch: Batch) -> AnchorTargets:
        """Targets for the objects of the head's classes that have a corner within the extent.

        Raises:
            ValueError: the batch does not know the way from the LiDAR to the camera.
        """
        anchors = self.anchors
        if batch.objects is None:
            boxes = anchors.new_zeros(len(batch), 1, CODE)
            classes = torch.full((len(batch), 1), IGNORE, device=anchors.device)
            labelled = torch.zeros(len(batch), dtype=torch.bool, device=anchors.device)
        else:
            o = batch.objects
            rows = lidar_rows(o.centre.double(), o.size.double(), o.yaw.double(), inverse(_pose(batch)))
            number = [IGNORE] * (len(self.names) + 1)  # the last one is that of label IGNORE
            for i, kind in enumerate(self.config.classes):
                number[self.names.index(kind.name)] = i
            classes = constant(number, o.label)[o.label]
            trained = o.present & (classes >= 0) & self._within(rows)
            labelled = trained.new_ones(len(batch)) if batch.labelled is None else batch.labelled
            trained = trained & labelled[:, None]
            boxes = torch.where(trained[..., None], rows, 0).to(anchors)
            classes = torch.where(trained, classes, IGNORE)
        labels, matched = assign(anchors, self.config.classes, boxes, classes, self.config.claimed)
        return AnchorTargets(boxes, classes, labels.where(labelled[:, None], IGNORED), matched, labelled)

    def _within(self, rows: Float[Tensor, "b m 7"]) -> Bool[Tensor, "b m"]:
        """Which boxes have at least one corner within the extent."""
        flat = rows.flatten(0, 1)
        corners = box_corners(flat[:, :3], flat[:, 3:6], flat[:, YAW], "lidar")
        low, high = constant(self.extent[:3], corners), constant(self.extent[3:], corners)
        return ((corners >= low) & (corners <= high)).all(-1).any(-1).view(rows.shape[:2])

    def losses(self, predictions: dict[str, Tensor], targets: AnchorTargets) -> dict[str, Tensor]:
        """Weighted terms ``cls``, ``loc`` and ``dir``, scalars in float32 or better; images without labels add 0.

        ``loc`` is the smooth L1 distance of the seven code differences (of the yaw: its sine), ``dir`` the cross
        entropy of the direction bins: each is summed over the foreground anchors of an image, divided by their number,
        and the mean over all images of the batch is taken.  ``cls`` with ``focal`` is the focal loss against the
        classes, reduced in the same way; with ``quality_focal`` the quality focal loss against the 3D IoU of the
        current boxes: the sum over an image is divided by the number of its anchors whose box overlaps an object, then
        the images are summed, as released, or their mean is taken (``quality_batch``).
        """
        scores, codes, directions = self.rows(predictions)
        with torch.autocast(scores.device.type, enabled=False):
            classification = self._focal if self.config.classification == "focal" else self._quality
            ((image, anchor),) = places(targets.labels > BACKGROUND)
            count = (targets.labels > BACKGROUND).sum(1).clamp(min=1)
            share = 1 / (count[image] * len(codes))  # of each foreground anchor in the mean
            anchors = self._anchors[anchor]
            code = encode(targets.boxes[image, targets.matched[image, anchor]], anchors)
            direction = direction_bin(code[:, YAW] + anchors[:, YAW])
            loc = smooth_l1(sine_difference(codes[image, anchor], code)).sum(1)
            turn = F.cross_entropy(directions[image, anchor], direction, reduction="none")
            return {
                "cls": self.config.cls_weight * classification(scores, codes, targets),
                "loc": self.config.loc_weight * (loc * share).sum(),
                "dir": self.config.dir_weight * (turn * share).sum(),
            }

    def _focal(
        self, scores: Float[Tensor, "b n k"], codes: Float[Tensor, "b n 7"], targets: AnchorTargets
    ) -> Float[Tensor, ""]:
        from torchvision.ops import sigmoid_focal_loss

        number = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
        wanted = (targets.labels[..., None] == number).to(scores)
        loss = sigmoid_focal_loss(scores, wanted, FOCAL_ALPHA, FOCAL_GAMMA).sum(-1)
        count = (targets.labels > BACKGROUND).sum(1).clamp(min=1)
        return ((loss * (targets.labels != IGNORED)).sum(1) / count).mean()

    def _quality(
        self, scores: Float[Tensor, "b n k"], codes: Float[Tensor, "b n 7"], targets: AnchorTargets
    ) -> Float[Tensor, ""]:
        with torch.no_grad():  # without the direction bins: half a turn changes no overlap
            predicted = decode(codes.detach(), self._anchors)
            quality = overlap_quality(predicted, targets.boxes, targets.classes, scores.shape[-1])
            count = (quality > 0).any(-1).sum(1).clamp(min=1)
        of_images = quality_focal(scores, quality).flatten(1).sum(1) / count * targets.labelled
        # Gradients are averaged over processes, see layers/distributed.py.
        return of_images.sum() * world_size() if self.config.quality_batch == "sum" else of_images.mean()

    # --------------------------------------------------------------------------------------------------------- boxes

    @torch.no_grad()
    def detections(self, predictions: dict[str, Tensor], batch: Batch) -> list[Boxes3D]:
        """Boxes of each image in the camera frame of its file, best first, with ``score``, ``box2d`` and ``alpha``.

        ``box2d`` (px of the image file) encloses the eight projected corners and is cut at the image's edges.

        Raises:
            ValueError: the batch does not know the way from the LiDAR to the camera.
        """
        names = ("rows", "label", "score", "usable", "pose", "camera", "size", "flip")
        values = (*self._candidates(predictions, self.config.candidates), _pose(batch), batch.source_camera.projection,
                  batch.affine.source_size, batch.affine.flip)  # fmt: skip
        # Suppression asks its own rounds for whether to go on: on the CPU nobody waits for the answers.
        told = fetched(dict(zip(names, values, strict=True)))
        rows, label, score, pose, size = (told[name] for name in ("rows", "label", "score", "pose", "size"))
        found = []
        for i, use in enumerate(told["usable"]):
            kept = rotated_nms(rows[i][use], score[i][use], self.config.nms_threshold, self.config.max_detections)
            boxes = _in_camera(rows[i][use][kept], label[i][use][kept], score[i][use][kept], pose[i])
            boxes = mirror_boxes(boxes) if told["flip"][i] else boxes
            found.append(replace(boxes, box2d=projected_boxes(boxes, Camera(told["camera"][i]), size[i]).to(rows)))
        return found

    @torch.no_grad()
    def detection_slots(self, predictions: dict[str, Tensor], batch: Batch) -> BoxSlots:
        """``detections`` in fixed shapes, best first, without ``box2d`` and ``alpha``; no more than ``SLOTS`` boxes
        enter the suppression.

        Raises:
            ValueError: the batch does not know the way from the LiDAR to the camera.
        """
        rows, label, score, usable = self._candidates(predictions, min(self.config.candidates, SLOTS))
        near = bev_iou_table(rows) > self.config.nms_threshold
        kept = first_kept(near, usable, self.config.max_detections)
        centre, yaw = camera_rows(rows[..., :3], rows[..., 3:6], rows[..., YAW], _pose(batch))
        flip = batch.affine.flip[:, None]
        centre = torch.where(flip[..., None], centre * constant((-1.0, 1.0, 1.0), centre), centre)
        yaw = torch.where(flip, wrap_angle(math.pi - yaw), yaw)
        return BoxSlots(centre, rows[..., 3:6], yaw, label, score, kept, "camera")

    def _candidates(self, predictions: dict[str, Tensor], count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The ``count`` surest boxes of each image, best first: rows of the LiDAR's frame (B, K, 7), labels, scores,
        and whether they are sure enough and boxes at all (B, K)."""
        scores, codes, directions = self.rows(predictions)
        score, kind = scores.sigmoid().max(-1)
        score, anchor = score.topk(min(count, score.shape[1]))
        picked = anchor[..., None].expand(-1, -1, CODE)
        direction = directions.gather(1, anchor[..., None].expand(-1, -1, DIRECTION_BINS))
        rows = decode_directed(codes.gather(1, picked), direction, self._anchors[anchor])
        label = constant([self.names.index(c.name) for c in self.config.classes], kind)[kind.gather(1, anchor)]
        usable = (score >= self.config.score_threshold) & rows.isfinite().all(-1) & (rows[..., 3:6] > 0).all(-1)
        return rows, label, score, usable


def _pose(batch: Batch) -> Float[Tensor, "b 4 4"]:
    if batch.lidar_to_camera is None:
        raise ValueError("anchors stand in the LiDAR's frame; this batch does not know the way to the camera")
    return batch.lidar_to_camera


def _in_camera(
    rows: Float[Tensor, "n 7"], label: Int[Tensor, "n"], score: Float[Tensor, "n"], pose: Float[Tensor, "4 4"]
) -> Boxes3D:
    """Rows of the LiDAR frame as camera-frame boxes with score and observation angle.

    As released, the angle is that under which the LiDAR sees the box, not the camera.
    """
    boxes = lidar_to_camera(Boxes3D(rows[:, :3], rows[:, 3:6], rows[:, YAW], label, "lidar", score=score), pose)
    return replace(boxes, alpha=wrap_angle(-torch.atan2(-rows[:, 1], rows[:, 0]) - boxes.yaw))
