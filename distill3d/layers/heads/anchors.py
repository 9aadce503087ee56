"""Anchor boxes: where they stand, how boxes are coded relative to them, which of them a labelled box trains.

Boxes and anchors are rows of the LiDAR frame: x, y, z of the centre, length, width, height (m), yaw about +z (rad).

Sources: open-mmlab/OpenPCDet as forked by Cc-Hy/CMKD (pcdet/models/dense_heads/target_assigner, pcdet/utils/
box_coder_utils.py, pcdet/utils/loss_utils.py, pcdet/models/dense_heads/anchor_head_template.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.layers.ground.rotated import aligned_iou, nearest_rectangle, overlapping_pairs
from distill3d.settings import Coordinate, Share, Side
from distill3d.transfers import constant, places

#: Where the smooth L1 distance of box codes turns from a parabola into a line.
SMOOTH_L1_BETA = 1 / 9
#: Column of the yaw in a box row and in its code.
YAW = 6
#: The two headings (rad) of the anchors in every cell; the second is not pi / 2.
ROTATIONS = (0.0, 1.57)
#: Sizes (m) are raised to this before their logarithm is taken.
SMALLEST_SIZE = 1e-5
#: Where the first of the two direction bins begins (rad): clear of the headings that most objects have.
DIRECTION_OFFSET = 0.78539
DIRECTION_BINS = 2
#: What an anchor is to learn, beside 1 + the index of its class.
IGNORED, BACKGROUND = -1, 0

#: ``difference`` codes a yaw as its difference to the anchor's, ``sincos`` as those of cosine and sine (8 numbers).
YawCode = Literal["difference", "sincos"]
#: Which box an anchor learns that a box claimed for itself, because no anchor fits that box better: the one that fits
#: the ``anchor`` best, as released, or the ``claiming`` one, as intended.
ClaimedTarget = Literal["anchor", "claiming"]


@dataclass(frozen=True)
class AnchorClass:
    """The anchors of one class, and which overlap with a box of it makes them foreground or background."""

    name: str
    size: tuple[Side, Side, Side]  # length, width, height (m)
    bottom: Coordinate  # z of the bottom face (m), LiDAR frame
    matched: Share  # least IoU of foreground
    unmatched: Share  # IoU of background lies below


#: The classes of KITTI (Cc-Hy/CMKD tools/cfgs/kitti_models/CMKD/CMKD-scd/second_teacher.yaml).
KITTI_ANCHORS = (
    AnchorClass("Car", (3.9, 1.6, 1.56), bottom=-1.78, matched=0.6, unmatched=0.45),
    AnchorClass("Pedestrian", (0.8, 0.6, 1.73), bottom=-0.6, matched=0.5, unmatched=0.35),
    AnchorClass("Cyclist", (1.76, 0.6, 1.73), bottom=-0.6, matched=0.5, unmatched=0.35),
)


def anchor_grid(
    classes: tuple[AnchorClass, ...], extent: tuple[float, float, float, float], cells: tuple[int, int]
) -> Float[Tensor, "y x class rotation 7"]:
    """The anchors of a map of ``cells`` = (rows along y, columns along x), float32.

    ``extent`` is (x min, y min, x max, y max) in m.  As released, the first and the last anchors stand on the edges of
    the extent and not in the middle of their cells.
    """
    x0, y0, x1, y1 = extent
    y, x = torch.linspace(y0, y1, cells[0]), torch.linspace(x0, x1, cells[1])
    grid = torch.empty(*cells, len(classes), len(ROTATIONS), 7)
    grid[..., 0] = x[None, :, None, None]
    grid[..., 1] = y[:, None, None, None]
    grid[..., 2] = torch.tensor([c.bottom + c.size[2] / 2 for c in classes])[:, None]
    grid[..., 3:6] = torch.tensor([c.size for c in classes])[:, None]
    grid[..., YAW] = torch.tensor(ROTATIONS)
    return grid


# --------------------------------------------------------------------------------------------------------------- coding


def encode(
    boxes: Float[Tensor, "*#s row"], anchors: Float[Tensor, "*#s row"], yaw: YawCode = "difference"
) -> Float[Tensor, "*#s code"]:
    """Boxes relative to their anchors: x and y over the anchor's diagonal, z over its height, logarithms of the ratios
    of sizes, the yaw, and plain differences of further columns (velocity)."""
    box_yaw, anchor_yaw = boxes[..., YAW : YAW + 1], anchors[..., YAW : YAW + 1]
    turn = [box_yaw - anchor_yaw]
    if yaw == "sincos":
        turn = [box_yaw.cos() - anchor_yaw.cos(), box_yaw.sin() - anchor_yaw.sin()]
    anchor_size = _sizes(anchors)
    offset = (boxes[..., :3] - anchors[..., :3]) / _units(anchor_size)
    more = boxes[..., YAW + 1 :] - anchors[..., YAW + 1 :]
    return torch.cat((offset, (_sizes(boxes) / anchor_size).log(), *turn, more), dim=-1)


def decode(
    codes: Float[Tensor, "*s code"], anchors: Float[Tensor, "*#s row"], yaw: YawCode = "difference"
) -> Float[Tensor, "*s row"]:
    """The inverse of ``encode``; one set of anchors serves any number of images."""
    turns = 2 if yaw == "sincos" else 1
    turn, more = codes[..., YAW : YAW + turns], codes[..., YAW + turns :]
    anchor_yaw = anchors[..., YAW : YAW + 1]
    heading = turn + anchor_yaw
    if yaw == "sincos":
        heading = torch.atan2(turn[..., 1:] + anchor_yaw.sin(), turn[..., :1] + anchor_yaw.cos())
    anchor_size = _sizes(anchors)
    centre = codes[..., :3] * _units(anchor_size) + anchors[..., :3]
    size = codes[..., 3:6].exp() * anchor_size
    return torch.cat((centre, size, heading, more + anchors[..., YAW + 1 :]), dim=-1)


def _sizes(rows: Float[Tensor, "*s row"]) -> Float[Tensor, "*s 3"]:
    return rows[..., 3:6].clamp(min=SMALLEST_SIZE)


def _units(size: Float[Tensor, "*s 3"]) -> Float[Tensor, "*s 3"]:
    """What the three coordinates of a centre are counted in: diagonal, diagonal, height (m)."""
    diagonal = (size[..., 0].square() + size[..., 1].square()).sqrt()
    return torch.stack((diagonal, diagonal, size[..., 2]), dim=-1)


def direction_bin(yaw: Float[Tensor, "*s"]) -> Int[Tensor, "*s"]:
    """Which half turn a yaw (rad) points into: 0 from ``DIRECTION_OFFSET`` on, 1 for the other."""
    turned = _remainder(yaw - DIRECTION_OFFSET, 2 * math.pi)
    return (turned / (2 * math.pi / DIRECTION_BINS)).floor().long().clamp(0, DIRECTION_BINS - 1)


def decode_directed(
    codes: Float[Tensor, "*s 7"], direction: Float[Tensor, "*s bins"], anchors: Float[Tensor, "*#s 7"]
) -> Float[Tensor, "*s 7"]:
    """Boxes of codes whose yaw is known up to half a turn, turned into the likelier direction bin of the logits
    ``direction``.  The yaw lies in [0.785, 7.07) rad and is not wrapped."""
    boxes = decode(codes, anchors)
    half_turn = 2 * math.pi / DIRECTION_BINS
    yaw = _remainder(boxes[..., YAW:] - DIRECTION_OFFSET, half_turn) + DIRECTION_OFFSET
    yaw = yaw + half_turn * direction.argmax(-1, keepdim=True).to(yaw)
    return torch.cat((boxes[..., :YAW], yaw), dim=-1)


def _remainder(angle: Float[Tensor, "*s"], period: float) -> Float[Tensor, "*s"]:
    """The angle in [0, period), rounded as the released code does it."""
    return angle - (angle / period).floor() * period


# ----------------------------------------------------------------------------------------------------------- assignment


#: Stands for a value that no other is to be compared with, all others being 0 or more.
NO_VALUE = -1.0


@torch.no_grad()
def assign(
    anchors: Float[Tensor, "y x class rotation 7"],
    kinds: tuple[AnchorClass, ...],
    boxes: Float[Tensor, "b m 7"],
    classes: Int[Tensor, "b m"],
    claimed: ClaimedTarget = "anchor",
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """What each of the N = Y X C R anchors is to learn in each image, and from which row of ``boxes``.

    Anchors compete for the boxes of their own class, by the IoU of the nearest axis-aligned rectangles.  Foreground are
    those that reach ``matched``, and those that fit some box as well as no other anchor does, if at all; of the others,
    background are those below ``unmatched``.  Of equally good boxes the first row counts.

    Args:
        anchors: as ``anchor_grid`` gives them: rows of the grid share y, columns share x.
        kinds: the classes in the order of the grid.
        classes: index into ``kinds``; negative rows are padding.

    Returns:
        labels: ``IGNORED``, ``BACKGROUND`` or 1 + class, and the row of each foreground anchor (0 elsewhere).
    """
    ((image, row),) = places(classes >= 0)
    kind = classes[image, row]
    rectangle, box = nearest_rectangle(anchors), nearest_rectangle(boxes[image, row])

    # Rectangles meet where their intervals do along x and along y: only there is an IoU computed.
    column, line = (r.transpose(0, 1)[kind] for r in (rectangle[0], rectangle[:, 0]))  # (G, X, R, 4), (G, Y, R, 4)
    ((g, y, x, rotation),) = places(_meet(line, box, 1)[:, :, None] & _meet(column, box, 0)[:, None])
    iou = aligned_iou(rectangle[y, x, kind[g], rotation], box[g])
    shape = (len(boxes), *anchors.shape[:4])
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    index = (image[g], y, x, kind[g], rotation)
    anchor = torch.stack([i * stride for i, stride in zip(index, strides, strict=True)]).sum(0)

    best, matched = best_of(iou, row[g], anchor, math.prod(shape))
    highest = iou.new_zeros(len(box)).scatter_reduce(0, g, iou, "amax")
    claims = (iou == highest[g]) & (iou > 0)
    is_claimed = torch.zeros_like(matched).scatter_reduce(0, anchor, claims.long(), "amax") > 0
    if claimed == "claiming":
        of_claims = best_of(torch.where(claims, iou, NO_VALUE), row[g], anchor, math.prod(shape))[1]
        matched = torch.where(is_claimed, of_claims, matched)

    def of_kind(values: list[float]) -> Tensor:
        return constant(values, best)[:, None]

    overlap = best.view(shape)
    foreground = (overlap >= of_kind([k.matched for k in kinds])) | is_claimed.view(shape)
    number = torch.arange(1, len(kinds) + 1, device=boxes.device)[:, None]
    background = overlap < of_kind([k.unmatched for k in kinds])
    labels = torch.where(foreground, number, torch.where(background, BACKGROUND, IGNORED))
    return labels.flatten(1), torch.where(foreground, matched.view(shape), 0).flatten(1)


def _meet(anchors: Float[Tensor, "g n r 4"], box: Float[Tensor, "g 4"], axis: int) -> Bool[Tensor, "g n r"]:
    """Whether intervals of rectangles overlap along x (axis 0) or y (axis 1)."""
    low, high = box[:, None, None, axis], box[:, None, None, axis + 2]
    return torch.minimum(anchors[..., axis + 2], high) > torch.maximum(anchors[..., axis], low)


def best_of(
    value: Float[Tensor, "pairs"], row: Int[Tensor, "pairs"], group: Int[Tensor, "pairs"], groups: int
) -> tuple[Float[Tensor, "groups"], Int[Tensor, "groups"]]:
    """The highest value (>= 0) of each group, and the lowest row that has it; both 0 in groups without pairs, among
    which those with a value of ``NO_VALUE`` do not count."""
    best = value.new_zeros(groups).scatter_reduce(0, group, value, "amax")
    beyond = torch.iinfo(row.dtype).max
    first = row.new_full((groups,), beyond)
    first = first.scatter_reduce(0, group, torch.where(value == best[group], row, beyond), "amin")
    return best, torch.where(first == beyond, 0, first)


@torch.no_grad()
def overlap_quality(
    predicted: Float[Tensor, "b n 7"], boxes: Float[Tensor, "b m 7"], classes: Int[Tensor, "b m"], count: int
) -> Float[Tensor, "b n count"]:
    """How well each predicted box fits: its best 3D IoU with a box of the image, at that box's class; 0 elsewhere.

    ``classes`` are 0..count - 1, negative in rows of padding.  Of equally good boxes the first row counts.
    """
    images, anchors = predicted.shape[:2]
    ((image, slot),) = places(classes >= 0)
    found, kind = boxes[image, slot], classes[image, slot]
    of_image = torch.arange(images, device=image.device).repeat_interleave(anchors)
    anchor, row, iou = overlapping_pairs(predicted.flatten(0, 1), found, volume=True, groups=(of_image, image))
    best, first = best_of(iou, row, anchor, images * anchors)
    quality = predicted.new_zeros(images * anchors, count)
    if len(found):
        quality = quality.scatter(1, kind[first][:, None], torch.where(best > 0, best, 0)[:, None])
    return quality.unflatten(0, (images, anchors))


# --------------------------------------------------------------------------------------------------------------- losses


def smooth_l1(difference: Float[Tensor, "*s"], beta: float = SMOOTH_L1_BETA) -> Float[Tensor, "*s"]:
    """Element-wise d^2 / (2 beta) where |d| < beta, |d| - beta / 2 elsewhere."""
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=beta)


def sine_difference(prediction: Float[Tensor, "*s code"], target: Float[Tensor, "*s code"]) -> Float[Tensor, "*s code"]:
    """Differences of box codes, of the yaw (column 6) its sine, so that opposite headings agree: the direction bin
    tells them apart.  Where the target is NaN the difference is 0 and passes no gradient.

    The released code writes sin(p) cos(t) - cos(p) sin(t), which is sin(p - t) with the same gradient.
    """
    difference = prediction - torch.where(target.isnan(), prediction, target)
    yaw = difference[..., YAW : YAW + 1].sin()
    return torch.cat((difference[..., :YAW], yaw, difference[..., YAW + 1 :]), dim=-1)


def quality_focal(logits: Float[Tensor, "*s"], target: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Element-wise |sigmoid(logit) - target|^2 times the binary cross entropy against a soft ``target`` (0..1).

    The factor takes part in the gradient (Li et al., "Generalized Focal Loss", arXiv:2006.04388, eq. 2 with beta 2).
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (logits.sigmoid() - target).square() * entropy
