"""How far detections are off, against how far the objects are away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from distill3d.evaluate.iou import pairs_within_groups
from distill3d.evaluate.kitti import Annotations, refuse_crowds
from distill3d.evaluate.matching import objects_of_interest

#: m on the ground between the centres of an object and its detection: the widest match of the nuScenes detection metric
#: (nutonomy/nuscenes-devkit configs/detection_cvpr_2019.json, ``dist_ths``).
MATCH_RADIUS = 4.0
#: Detections that are less sure are not looked at: below it MonoDLE and its descendants write none
#: (xinzhuma/monodle experiments/example/kitti_example.yaml, ``tester.threshold``).
LEAST_SCORE = 0.2
#: Bins with fewer objects say nothing about the error and are left out.
LEAST_OBJECTS = 5
BIN_WIDTH = 10.0  # m


@dataclass(frozen=True)
class Matches:
    """Each object of one class and the detection that lies nearest to it, G objects in file order."""

    frame: Int[np.ndarray, " g"]  # index into the frames that were compared
    distance: Float[np.ndarray, " g"]  # m on the ground, from the camera to the object
    found: Bool[np.ndarray, " g"]  # a detection lies within MATCH_RADIUS
    offset: Float[np.ndarray, " g"]  # m on the ground between the centres; MATCH_RADIUS where not found
    depth_error: Float[np.ndarray, " g"]  # |dz| in m; NaN where not found


@dataclass(frozen=True)
class Binned:
    """Errors in bins of distance; B bins."""

    edges: Float[np.ndarray, " b1"]  # m, B + 1
    objects: Int[np.ndarray, " b"]
    depth_error: Float[np.ndarray, " b"]  # mean |dz| of found objects, m; NaN below LEAST_OBJECTS of them
    found: Float[np.ndarray, " b"]  # share of objects found, 0..1; NaN below LEAST_OBJECTS objects


def match_nearest(
    labels: Annotations, detections: Annotations, name: str = "car", min_height_scale: float = 1.0
) -> Matches:
    """Match the objects of class ``name`` one to one with detections of that class, nearest centres first.

    Both must hold the same frames in the same order. Detections with a score under ``LEAST_SCORE`` are not looked at.

    Raises:
        ValueError: other frames in one than in the other.
    """
    if labels.frames != detections.frames:
        raise ValueError("labels and detections must hold the same frames in the same order")
    objects = labels.rows(objects_of_interest(labels, name, min_height_scale))
    detections = detections.rows((np.char.lower(detections.name) == name) & (detections.score >= LEAST_SCORE))
    refuse_crowds(objects, detections)
    partner, offset = nearest_partners(
        objects.frame, objects.xyz[:, [0, 2]], detections.frame, detections.xyz[:, [0, 2]], len(labels.frames)
    )
    found, depth_error = partner >= 0, np.full(len(partner), np.nan)
    depth_error[found] = np.abs(objects.xyz[found, 2] - detections.xyz[partner[found], 2])
    distance = np.hypot(objects.xyz[:, 0], objects.xyz[:, 2])
    return Matches(objects.frame, distance, found, offset, depth_error)


def nearest_partners(
    object_group: Int[np.ndarray, " g"], object_ground: Float[np.ndarray, "g 2"],
    detection_group: Int[np.ndarray, " d"], detection_ground: Float[np.ndarray, "d 2"], groups: int,
) -> tuple[Int[np.ndarray, " g"], Float[np.ndarray, " g"]]:  # fmt: skip
    """The detection of each object, -1 for none, and how far apart their centres are on the ground (m).

    Within each group the nearest pairs come first; each detection serves one object, and none farther away than
    ``MATCH_RADIUS``, which is also the distance of an object without one. Both sides are sorted by group.
    """
    partner, offset = np.full(len(object_group), -1), np.full(len(object_group), MATCH_RADIUS)
    g, d = pairs_within_groups(object_group, detection_group, groups)
    apart = np.hypot(*(object_ground[g] - detection_ground[d]).T)
    taken = np.zeros(len(detection_group), dtype=bool)
    for pair in np.argsort(apart, kind="stable"):
        if apart[pair] > MATCH_RADIUS:
            break
        if partner[g[pair]] < 0 and not taken[d[pair]]:
            taken[d[pair]] = True
            partner[g[pair]], offset[g[pair]] = d[pair], apart[pair]
    return partner, offset


def bin_edges(distances: Sequence[Float[np.ndarray, " g"]]) -> Float[np.ndarray, " b1"]:
    """Edges (m) of bins that hold all the distances."""
    farthest = max((float(d.max()) for d in distances if len(d)), default=BIN_WIDTH)
    return np.arange(0.0, np.floor(farthest / BIN_WIDTH) * BIN_WIDTH + 2 * BIN_WIDTH, BIN_WIDTH)


def error_by_distance(matches: Matches, edges: Float[np.ndarray, " b1"]) -> Binned:
    """Mean depth error and share found in each bin [edge, next edge)."""
    bins = len(edges) - 1
    index = np.searchsorted(edges, matches.distance, side="right") - 1
    objects = np.bincount(index, minlength=bins)
    hits = np.bincount(index[matches.found], minlength=bins)
    total = np.bincount(index[matches.found], weights=matches.depth_error[matches.found], minlength=bins)
    error = np.where(hits >= LEAST_OBJECTS, total / np.maximum(hits, 1), np.nan)
    found = np.where(objects >= LEAST_OBJECTS, hits / np.maximum(objects, 1), np.nan)
    return Binned(edges, objects, error, found)


def frame_errors(frame: Int[np.ndarray, " g"], offset: Float[np.ndarray, " g"], frames: int) -> Float[np.ndarray, " f"]:
    """Mean offset (m) of the objects of each frame, a missed object counting ``MATCH_RADIUS``; NaN without objects."""
    objects = np.bincount(frame, minlength=frames)
    total = np.bincount(frame, weights=offset, minlength=frames)
    return np.where(objects > 0, total / np.maximum(objects, 1), np.nan)
