"""Overlap of boxes, pair by pair: axis-aligned in the image, rotated in bird's-eye view (BEV), and in 3D.

Every function takes two arrays with one box per pair and works on all pairs at once. The area of two rotated rectangles
is exact up to rounding: it is a closed form, not a sampled or iterated one.

Two ratios are used by the KITTI evaluation: the intersection over the union, and the *coverage*, which is the
intersection over the first box alone (how much of a detection lies inside a DontCare region).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

# Columns of a KITTI box, in the order of the label file: height, width, length, then the bottom centre x, y, z, then
# rotation_y. Camera frame: x right, y down, z forward; metres and radians.
HEIGHT, WIDTH, LENGTH, X, Y, Z, ROTATION = range(7)

Overlap = Callable[[Float[np.ndarray, "pairs n"], Float[np.ndarray, "pairs n"]], Float[np.ndarray, " pairs"]]


def _ratio(part: Float[np.ndarray, " pairs"], whole: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    """part / whole, and 0 where the whole is empty."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def rectangle_intersection(
    a: Float[np.ndarray, "pairs 5"], b: Float[np.ndarray, "pairs 5"]
) -> Float[np.ndarray, " pairs"]:
    """Area of the intersection of two rotated rectangles.

    a, b: (P, 5) centre u, centre v, extent along the own first axis, extent along the own second axis, angle from u
    to v in radians. Returns (P,) in squared units of the input. Extents count by magnitude; extent 0 gives area 0.

    Seen from b, b is the axis-aligned region |u| <= h, |v| <= k. By Green's theorem a's area is minus the line integral
    of v du around its corners; holding v within [-k, k] and u within [-h, h] along the way leaves the area inside b.
    Each of the four edges has a closed form that stays accurate for edges that are parallel, shared or identical,
    because a clamped edge never leaves the range of its own end points.
    """
    half_u, half_v = np.abs(b[:, 2, None]) / 2, np.abs(b[:, 3, None]) / 2  # (P, 1)
    u, v = _corners_seen_from(a, b)  # (P, 4) each, counter-clockwise
    du, dv = np.roll(u, -1, axis=1) - u, np.roll(v, -1, axis=1) - v

    # The stretch of each edge with |u| <= half_u. An edge of constant u adds nothing, whatever its v.
    start_u, end_u = np.clip(u, -half_u, half_u), np.clip(u + du, -half_u, half_u)
    start_v = v + dv * _fraction(start_u - u, du)
    end_v = v + dv * _fraction(end_u - u, du)

    return np.maximum(-((end_u - start_u) * _mean_clamped(start_v, end_v, half_v)).sum(axis=1), 0.0)


def _fraction(part: Float[np.ndarray, "pairs 4"], whole: Float[np.ndarray, "pairs 4"]) -> Float[np.ndarray, "pairs 4"]:
    """part / whole held within [0, 1], and 0 where the whole is 0."""
    return np.clip(np.divide(part, whole, out=np.zeros_like(part), where=whole != 0), 0.0, 1.0)


def _corners_seen_from(
    a: Float[np.ndarray, "pairs 5"], b: Float[np.ndarray, "pairs 5"]
) -> tuple[Float[np.ndarray, "pairs 4"], Float[np.ndarray, "pairs 4"]]:
    """Corners of a, counter-clockwise, in the frame whose origin is b's centre and whose axes are b's."""
    offset_u, offset_v = a[:, 0] - b[:, 0], a[:, 1] - b[:, 1]
    cos_b, sin_b = np.cos(b[:, 4]), np.sin(b[:, 4])
    centre_u, centre_v = cos_b * offset_u + sin_b * offset_v, cos_b * offset_v - sin_b * offset_u
    cos, sin = np.cos(a[:, 4] - b[:, 4])[:, None], np.sin(a[:, 4] - b[:, 4])[:, None]
    along = np.abs(a[:, 2, None]) / 2 * np.array([1.0, -1.0, -1.0, 1.0])
    across = np.abs(a[:, 3, None]) / 2 * np.array([1.0, 1.0, -1.0, -1.0])
    return centre_u[:, None] + cos * along - sin * across, centre_v[:, None] + sin * along + cos * across


def _mean_clamped(
    start: Float[np.ndarray, "pairs 4"], end: Float[np.ndarray, "pairs 4"], bound: Float[np.ndarray, "pairs 1"]
) -> Float[np.ndarray, "pairs 4"]:
    """Mean of clip(value, -bound, bound) while value runs linearly from start to end."""
    low, high = np.minimum(start, end), np.maximum(start, end)
    span = high - low
    below = _fraction(-bound - low, span)  # of the way that is spent under -bound
    above = _fraction(high - bound, span)
    low, high = np.clip(low, -bound, bound), np.clip(high, -bound, bound)
    return above * bound - below * bound + (1 - below - above) * (low + high) / 2


def image_intersection(a: Float[np.ndarray, "pairs 4"], b: Float[np.ndarray, "pairs 4"]) -> Float[np.ndarray, " pairs"]:
    """Area (px²) shared by image boxes (P, 4) x1, y1, x2, y2; 0 where they do not overlap or are degenerate."""
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    return np.where((width > 0) & (height > 0), width * height, 0.0)


def _image_area(box: Float[np.ndarray, "pairs 4"]) -> Float[np.ndarray, " pairs"]:
    return (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])


def image_iou(a: Float[np.ndarray, "pairs 4"], b: Float[np.ndarray, "pairs 4"]) -> Float[np.ndarray, " pairs"]:
    """Intersection over union of image boxes (P, 4) x1, y1, x2, y2 in px."""
    shared = image_intersection(a, b)
    return _ratio(shared, _image_area(a) + _image_area(b) - shared)


def image_coverage(a: Float[np.ndarray, "pairs 4"], b: Float[np.ndarray, "pairs 4"]) -> Float[np.ndarray, " pairs"]:
    """Share of a's area that lies in b, for image boxes (P, 4) x1, y1, x2, y2 in px."""
    return _ratio(image_intersection(a, b), _image_area(a))


def bev_intersection(a: Float[np.ndarray, "pairs 7"], b: Float[np.ndarray, "pairs 7"]) -> Float[np.ndarray, " pairs"]:
    """Area (m²) shared on the ground by KITTI boxes (P, 7) h, w, l, x, y, z, rotation_y."""
    # Most pairs of a frame are far apart: only those whose circumscribed circles meet can share area.
    reach = (np.hypot(a[:, LENGTH], a[:, WIDTH]) + np.hypot(b[:, LENGTH], b[:, WIDTH])) / 2
    near = np.flatnonzero(np.hypot(a[:, X] - b[:, X], a[:, Z] - b[:, Z]) <= reach)
    area = np.zeros(len(a))
    area[near] = rectangle_intersection(_footprint(a[near]), _footprint(b[near]))
    return area


def _footprint(box: Float[np.ndarray, "pairs 7"]) -> Float[np.ndarray, "pairs 5"]:
    """The rectangle on the x-z plane. Rotation about y (down) turns z towards x, hence the minus sign."""
    return np.stack([box[:, X], box[:, Z], box[:, LENGTH], box[:, WIDTH], -box[:, ROTATION]], axis=1)


def _ground_area(box: Float[np.ndarray, "pairs 7"]) -> Float[np.ndarray, " pairs"]:
    return np.abs(box[:, LENGTH] * box[:, WIDTH])


def _volume(box: Float[np.ndarray, "pairs 7"]) -> Float[np.ndarray, " pairs"]:
    return _ground_area(box) * box[:, HEIGHT]


def _shared_height(a: Float[np.ndarray, "pairs 7"], b: Float[np.ndarray, "pairs 7"]) -> Float[np.ndarray, " pairs"]:
    """Metres of height that both boxes span; y points down and is the bottom, so a box spans [y - h, y]."""
    bottom = np.minimum(a[:, Y], b[:, Y])
    top = np.maximum(a[:, Y] - a[:, HEIGHT], b[:, Y] - b[:, HEIGHT])
    return np.maximum(bottom - top, 0.0)


def bev_iou(a: Float[np.ndarray, "pairs 7"], b: Float[np.ndarray, "pairs 7"]) -> Float[np.ndarray, " pairs"]:
    """Intersection over union on the ground, of KITTI boxes (P, 7) h, w, l, x, y, z, rotation_y."""
    return bev_and_3d_iou(a, b)[0]


def iou_3d(a: Float[np.ndarray, "pairs 7"], b: Float[np.ndarray, "pairs 7"]) -> Float[np.ndarray, " pairs"]:
    """Intersection over union of volumes, of KITTI boxes (P, 7) h, w, l, x, y (bottom), z, rotation_y."""
    return bev_and_3d_iou(a, b)[1]


def bev_and_3d_iou(
    a: Float[np.ndarray, "pairs 7"], b: Float[np.ndarray, "pairs 7"]
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Both `bev_iou` and `iou_3d` of (P, 7) boxes for the price of one."""
    ground = bev_intersection(a, b)
    space = ground * _shared_height(a, b)
    bev = _ratio(ground, _ground_area(a) + _ground_area(b) - ground)
    return bev, _ratio(space, _volume(a) + _volume(b) - space)


def bev_and_3d_coverage(
    a: Float[np.ndarray, "pairs 7"], b: Float[np.ndarray, "pairs 7"]
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Shares of a's ground area and of a's volume that lie in b, for KITTI boxes (P, 7)."""
    ground = bev_intersection(a, b)
    return _ratio(ground, _ground_area(a)), _ratio(ground * _shared_height(a, b), _volume(a))


def pairs_within_groups(group_a: np.ndarray, group_b: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of every (a, b) that share a group (a frame), in order of a, then of b.

    group_a: (A,), group_b: (B,) non-decreasing integers in [0, groups). Returns two (P,) index arrays.
    """
    count_b = np.bincount(group_b, minlength=groups)
    first_b = np.cumsum(count_b) - count_b
    partners = count_b[group_a]  # how many b each a meets
    index_a = np.repeat(np.arange(len(group_a)), partners)
    position = np.arange(len(index_a)) - np.repeat(np.cumsum(partners) - partners, partners)
    return index_a, first_b[group_a][index_a] + position
