"""Overlap of upright 3D boxes that turn about the vertical, and what is built on it: IoU, non-maximum suppression.

Boxes are rows of the LiDAR frame: x, y, z of the centre, length, width, height (m), yaw about +z (rad).  Everything is
exact up to rounding and works on all pairs at once; ratios pass no gradient.

Sources: the rule of the nearest axis-aligned box and the unions' lower bound are open-mmlab/OpenPCDet's, as forked by
Cc-Hy/CMKD (pcdet/utils/box_utils.py, pcdet/ops/iou3d_nms); the areas are not computed as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.transfers import constant, places

#: Unions (m^2 or m^3) below this count as this much.
SMALLEST_UNION = 1e-6
#: Pairs whose exact intersection is computed at a time, and pairs whose distance is looked at: both bound the memory,
#: and let a processor's cache hold what is worked on.
PAIRS_AT_ONCE = 1 << 16
DISTANCES_AT_ONCE = 1 << 20
#: On accelerators, which are waited for after each such part.
FAR_DISTANCES_AT_ONCE = 1 << 27


# --------------------------------------------------------------------------------------------------- pairs in the plane


def rectangle_intersection(a: Float[Tensor, "pairs 5"], b: Float[Tensor, "pairs 5"]) -> Float[Tensor, "pairs"]:
    """Area of the intersection of two rotated rectangles, pair by pair.

    a, b: (P, 5) centre u, centre v, extent along the own first axis, extent along the own second axis, angle from u
    to v in radians.  Returns (P,) in squared units of the input.  Extents count by magnitude; extent 0 gives area 0.

    Seen from b, b is the axis-aligned region |u| <= h, |v| <= k.  By Green's theorem a's area is minus the line
    integral of v du around its corners; holding v within [-k, k] and u within [-h, h] along the way leaves the area
    inside b.  ``evaluate/iou.py`` has the same closed form in NumPy, for the official evaluation.
    """
    half_u, half_v = b[:, 2:3].abs() / 2, b[:, 3:4].abs() / 2  # (P, 1)
    u, v = _corners_seen_from(a, b)  # (P, 4) each, counter-clockwise
    du, dv = u.roll(-1, 1) - u, v.roll(-1, 1) - v

    # The stretch of each edge with |u| <= half_u.  An edge of constant u adds nothing, whatever its v.
    start_u, end_u = u.clamp(-half_u, half_u), (u + du).clamp(-half_u, half_u)
    start_v = v + dv * _fraction(start_u - u, du)
    end_v = v + dv * _fraction(end_u - u, du)

    return -((end_u - start_u) * _mean_clamped(start_v, end_v, half_v)).sum(1).clamp(max=0)


def _fraction(part: Float[Tensor, "pairs 4"], whole: Float[Tensor, "pairs 4"]) -> Float[Tensor, "pairs 4"]:
    """part / whole held within [0, 1], and 0 where the whole is 0."""
    return torch.where(whole == 0, 0, part / whole).clamp(0, 1)


def _corners_seen_from(
    a: Float[Tensor, "pairs 5"], b: Float[Tensor, "pairs 5"]
) -> tuple[Float[Tensor, "pairs 4"], Float[Tensor, "pairs 4"]]:
    """Corners of a, counter-clockwise, in the frame whose origin is b's centre and whose axes are b's."""
    offset_u, offset_v = (a[:, :2] - b[:, :2]).unbind(1)
    cos_b, sin_b = b[:, 4].cos(), b[:, 4].sin()
    centre_u, centre_v = cos_b * offset_u + sin_b * offset_v, cos_b * offset_v - sin_b * offset_u
    cos, sin = (a[:, 4] - b[:, 4]).cos()[:, None], (a[:, 4] - b[:, 4]).sin()[:, None]
    along = a[:, 2:3].abs() / 2 * constant([1.0, -1.0, -1.0, 1.0], a)
    across = a[:, 3:4].abs() / 2 * constant([1.0, 1.0, -1.0, -1.0], a)
    return centre_u[:, None] + cos * along - sin * across, centre_v[:, None] + sin * along + cos * across


def _mean_clamped(
    start: Float[Tensor, "pairs 4"], end: Float[Tensor, "pairs 4"], bound: Float[Tensor, "pairs 1"]
) -> Float[Tensor, "pairs 4"]:
    """Mean of clamp(value, -bound, bound) while value runs linearly from start to end."""
    low, high = torch.minimum(start, end), torch.maximum(start, end)
    span = high - low
    below = _fraction(-bound - low, span)  # of the way that is spent under -bound
    above = _fraction(high - bound, span)
    low, high = low.clamp(-bound, bound), high.clamp(-bound, bound)
    return above * bound - below * bound + (1 - below - above) * (low + high) / 2


# ------------------------------------------------------------------------------------------------------- rotated boxes


def _ground_area(box: Float[Tensor, "*n 7"]) -> Float[Tensor, "*n"]:
    return (box[..., 3] * box[..., 4]).abs()


def _ground_intersection(a: Float[Tensor, "pairs 7"], b: Float[Tensor, "pairs 7"]) -> Float[Tensor, "pairs"]:
    return rectangle_intersection(*(torch.cat((box[:, :2], box[:, 3:5], box[:, 6:7]), dim=1) for box in (a, b)))


def _bev_iou_of_pairs(a: Float[Tensor, "pairs 7"], b: Float[Tensor, "pairs 7"]) -> Float[Tensor, "pairs"]:
    shared = _ground_intersection(a, b)
    return shared / (_ground_area(a) + _ground_area(b) - shared).clamp(min=SMALLEST_UNION)


def _iou_3d_of_pairs(a: Float[Tensor, "pairs 7"], b: Float[Tensor, "pairs 7"]) -> Float[Tensor, "pairs"]:
    top = torch.minimum(a[:, 2] + a[:, 5] / 2, b[:, 2] + b[:, 5] / 2)
    bottom = torch.maximum(a[:, 2] - a[:, 5] / 2, b[:, 2] - b[:, 5] / 2)
    shared = _ground_intersection(a, b) * (top - bottom).clamp(min=0)
    volumes = _ground_area(a) * a[:, 5] + _ground_area(b) * b[:, 5]
    return shared / (volumes - shared).clamp(min=SMALLEST_UNION)


@torch.no_grad()
def overlapping_pairs(
    a: Float[Tensor, "n 7"], b: Float[Tensor, "m 7"], volume: bool,
    groups: tuple[Int[Tensor, "n"], Int[Tensor, "m"]] | None = None,
) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"], Float[Tensor, "pairs"]]:  # fmt: skip
    """The pairs that share something: rows of ``a``, rows of ``b`` in ascending order, and their IoU (> 0).

    ``volume``: whether the IoU is that of volumes, or that of footprints.  Rows that are not finite overlap nothing.
    ``groups``: a number for each row of both; only rows of equal numbers are looked at together.
    """
    return _overlap(a, b, _near_pairs(a, b, groups=groups), volume)


def _overlap(
    a: Float[Tensor, "n 7"], b: Float[Tensor, "m 7"], pairs: Int[Tensor, "pairs 2"], volume: bool
) -> tuple[Int[Tensor, "some"], Int[Tensor, "some"], Float[Tensor, "some"]]:
    """Those of ``pairs`` that share something, see ``overlapping_pairs``."""
    of_pairs: Callable[[Tensor, Tensor], Tensor] = _iou_3d_of_pairs if volume else _bev_iou_of_pairs
    iou = torch.cat([of_pairs(a[part[:, 0]], b[part[:, 1]]) for part in pairs.split(PAIRS_AT_ONCE)])
    ((shares,),) = places(iou > 0)
    return pairs[shares, 0], pairs[shares, 1], iou[shares]


def _near_pairs(
    a: Float[Tensor, "n 7"], b: Float[Tensor, "m 7"], ascending: bool = False,
    groups: tuple[Int[Tensor, "n"], Int[Tensor, "m"]] | None = None,
) -> Int[Tensor, "pairs 2"]:  # fmt: skip
    """Rows (of a, of b) whose circumscribed circles on the ground meet: all others share nothing.

    ``ascending`` leaves out the pairs whose second row is not above the first.
    """
    reach_b = b[:, 3:5].norm(dim=1) / 2
    reach_b = torch.where(b.isfinite().all(1), reach_b, torch.nan)  # no comparison with NaN is true
    parts = []
    rows = max(1, (DISTANCES_AT_ONCE if a.is_cpu else FAR_DISTANCES_AT_ONCE) // max(1, len(b)))
    for i, part in enumerate(a.split(rows)):
        reach_a = torch.where(part.isfinite().all(1), part[:, 3:5].norm(dim=1) / 2, torch.nan)
        squared = (part[:, 0, None] - b[:, 0]).square_() + (part[:, 1, None] - b[:, 1]).square_()
        near = squared <= (reach_a[:, None] + reach_b).square_()
        if groups is not None:
            near &= groups[0][i * rows : i * rows + len(part), None] == groups[1]
        pairs = torch.stack(places(near.triu(1 + i * rows) if ascending else near)[0], dim=1)
        pairs[:, 0] += i * rows
        parts.append(pairs)
    return torch.cat(parts)


@torch.no_grad()
def bev_iou(a: Float[Tensor, "n 7"], b: Float[Tensor, "m 7"]) -> Float[Tensor, "n m"]:
    """Intersection over union of the footprints of every pair."""
    return _matrix(a, b, volume=False)


@torch.no_grad()
def iou_3d(a: Float[Tensor, "n 7"], b: Float[Tensor, "m 7"]) -> Float[Tensor, "n m"]:
    """Intersection over union of the volumes of every pair; a box spans [z - height / 2, z + height / 2]."""
    return _matrix(a, b, volume=True)


@torch.no_grad()
def bev_iou_table(boxes: Float[Tensor, "*b n 7"]) -> Float[Tensor, "*b n n"]:
    """``bev_iou`` of boxes with each other, every pair computed, however far apart: for graphs of fixed shapes."""
    first, second = torch.broadcast_tensors(boxes[..., :, None, :], boxes[..., None, :, :])
    return _bev_iou_of_pairs(first.reshape(-1, 7), second.reshape(-1, 7)).view(first.shape[:-1])


def _matrix(a: Float[Tensor, "n 7"], b: Float[Tensor, "m 7"], volume: bool) -> Float[Tensor, "n m"]:
    row, column, iou = overlapping_pairs(a, b, volume)
    return a.new_zeros(len(a), len(b)).index_put((row, column), iou)


# -------------------------------------------------------------------------------------------------- nearest rectangles


def nearest_rectangle(boxes: Float[Tensor, "*n 7"]) -> Float[Tensor, "*n 4"]:
    """The footprints turned to the nearest axis: x1, y1, x2, y2 (m).

    A box whose yaw is within 45 degrees of the x axis, either way round, keeps its length along x; others lay it along
    y.  The size stays: this is not the rectangle that encloses the footprint.
    """
    yaw = boxes[..., 6]
    along_x = (yaw - torch.floor(yaw / math.pi + 0.5) * math.pi).abs() < math.pi / 4
    size = torch.where(along_x[..., None], boxes[..., 3:5], boxes[..., 3:5].flip(-1))
    return torch.cat((boxes[..., :2] - size / 2, boxes[..., :2] + size / 2), dim=-1)


def aligned_iou(a: Float[Tensor, "*n 4"], b: Float[Tensor, "*m 4"]) -> Tensor:
    """Intersection over union of axis-aligned rectangles x1, y1, x2, y2; leading dimensions broadcast."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = _area((high - low).clamp(min=0))
    areas = _area(a[..., 2:] - a[..., :2]) + _area(b[..., 2:] - b[..., :2])
    return shared / (areas - shared).clamp(min=SMALLEST_UNION)


def _area(size: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n"]:
    return size[..., 0] * size[..., 1]


def nearest_bev_iou(a: Float[Tensor, "n 7"], b: Float[Tensor, "m 7"]) -> Float[Tensor, "n m"]:
    """Intersection over union of every pair of nearest rectangles: what anchors are assigned by."""
    return aligned_iou(nearest_rectangle(a)[:, None], nearest_rectangle(b)[None])


# ------------------------------------------------------------------------------------------------------------------ NMS


@torch.no_grad()
def rotated_nms(
    boxes: Float[Tensor, "n 7"], scores: Float[Tensor, "n"], threshold: float, limit: int | None = None
) -> Int[Tensor, "kept"]:
    """Greedy non-maximum suppression on the ground: indices of the boxes kept, highest score first, at most ``limit``.

    A box is kept unless its footprint's IoU with a kept box of higher score exceeds ``threshold`` (>= 0); of equal
    scores the first counts as the higher.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked = boxes[order]
    higher, lower, iou = _overlap(ranked, ranked, _near_pairs(ranked, ranked, ascending=True), volume=False)
    suppresses = iou > threshold
    kept = _survivors(higher[suppresses], lower[suppresses], len(boxes))
    return order[kept][:limit]


def _survivors(higher: Int[Tensor, "pairs"], lower: Int[Tensor, "pairs"], count: int) -> Bool[Tensor, "_"]:
    """Which of ``count`` ranked boxes survive, where box ``higher[i]``, if it does, suppresses box ``lower[i]``.

    Every ``higher`` ranks before its ``lower``: then the statement "a box survives unless a survivor suppresses it" has
    one solution.  Repeating it from any start settles the boxes in order of rank, all chains of suppression at once.
    """
    kept = torch.ones(count, dtype=torch.bool, device=higher.device)
    while True:
        again = torch.ones_like(kept)
        again[lower[kept[higher]]] = False
        if torch.equal(again, kept):
            return kept
        kept = again
