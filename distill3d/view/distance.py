"""How far detections are off, against how far the objects are away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from distill3d.evaluate.iou import pairs_within_groups
from distill3d.evaluate.kitti import Annotations
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
    count = len(objects.frame)
    offset, depth_error = np.full(count, MATCH_RADIUS), np.full(count, np.nan)
    g, d = pairs_within_groups(objects.frame, detections.frame, len(labels.frames))
    apart = np.hypot(*(objects.xyz[g] - detections.xyz[d])[:, [0, 2]].T)
    taken = np.zeros(len(detections.frame), dtype=bool)
    for pair in np.argsort(apart, kind="stable"):
        if apart[pair] > MATCH_RADIUS:
            break
        if np.isnan(depth_error[g[pair]]) and not taken[d[pair]]:
            taken[d[pair]] = True
            offset[g[pair]] = apart[pair]
            depth_error[g[pair]] = abs(objects.xyz[g[pair], 2] - detections.xyz[d[pair], 2])
    distance = np.hypot(objects.xyz[:, 0], objects.xyz[:, 2])
    return Matches(objects.frame, distance, ~np.isnan(depth_error), offset, depth_error)


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


def frame_errors(matches: Matches, frames: int) -> Float[np.ndarray, " f"]:
    """Mean offset (m) of the objects of each frame, a missed object counting ``MATCH_RADIUS``; NaN without objects."""
    objects = np.bincount(matches.frame, minlength=frames)
    total = np.bincount(matches.frame, weights=matches.offset, minlength=frames)
    return np.where(objects > 0, total / np.maximum(objects, 1), np.nan)
