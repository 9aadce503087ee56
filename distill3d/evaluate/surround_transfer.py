"""Positive and negative transfer on surround views: which object a detector found there, and how far off it was.

What is counted, and how, is that of ``evaluate.transfer``; the pieces are nuScenes':

* An object counts as it does in the official evaluation: nearer than its class's range, with a LiDAR or radar point in
  it, outside bicycle racks.
* It is found where the official evaluation at ``reach`` has a true positive for it (``match_at_distances``): boxes of
  any score choose in order of score, by the distance between the centres on the ground.  Unlike in one camera's image
  the place has a say in it, so that no error is larger than ``reach``: a box beyond it is a lost object.
* Its depth is its distance from the vehicle on the ground, r, and the depth error |r - r_true|: the part of a
  misplacement that lies along the line of sight, which is what a camera has to guess.  Cameras stand 1 to 2 m from the
  vehicle's origin; lines of sight are taken to start there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from distill3d.evaluate.iou import iou_3d
from distill3d.evaluate.matching import MISSED
from distill3d.evaluate.nuscenes import OFFICIAL, GroundTruth, filtered, match_at_distances
from distill3d.evaluate.nuscenes_boxes import CLASSES, PREDICTED_POINTS, DetectionBoxes
from distill3d.evaluate.nuscenes_submission import MOVING_SPEED
from distill3d.evaluate.transfer import Found, Grouping, JudgeSettings
from distill3d.settings import Side

#: LiDAR and radar points in an object, upper ends of bins; the last bin is open.
POINT_EDGES = (5, 20, 100)


@dataclass(frozen=True)
class SurroundTransferSettings(JudgeSettings):
    """What counts as found, as transfer and as enough."""

    classes: tuple[str, ...] = CLASSES
    reach: Side = OFFICIAL.tp_distance  # m between the centres on the ground; one of the metric's distances


@dataclass(frozen=True)
class SurroundLabelled:
    """The G objects that count, in the order of the annotations."""

    boxes: DetectionBoxes
    row: Int[np.ndarray, " g"]  # in the ground truth
    ego_position: Float[np.ndarray, "s 3"]  # m, the vehicle in each sample, global frame

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def frames(self) -> tuple[str, ...]:
        """The samples' tokens."""
        return self.boxes.samples

    @property
    def frame(self) -> Int[np.ndarray, " g"]:
        return self.boxes.sample

    @property
    def name(self) -> np.ndarray:
        """(G,) strings."""
        return np.array(self.boxes.classes)[self.boxes.label]

    @property
    def distance(self) -> Float[np.ndarray, " g"]:
        """m, from the vehicle on the ground."""
        return self.boxes.ego_distance

    @property
    def depth(self) -> Float[np.ndarray, " g"]:
        """The same, m."""
        return self.boxes.ego_distance

    @property
    def speed(self) -> Float[np.ndarray, " g"]:
        """m/s; NaN unknown."""
        return np.linalg.norm(self.boxes.velocity, axis=1)

    def own_groupings(self) -> list[Grouping]:
        """By the points in them, which tell how hidden or far they are, and by whether they move."""
        ends = [str(edge) for edge in POINT_EDGES]
        starts = [str(edge + 1) for edge in (0, *POINT_EDGES[:-1])]
        labels = (*(f"{low}–{high}" for low, high in zip(starts, ends, strict=True)), f"over {ends[-1]}")
        moving = np.where(np.isfinite(self.speed), (self.speed > MOVING_SPEED).astype(np.int64), -1)
        return [
            Grouping("points", "LiDAR and radar points inside", labels,
                     np.searchsorted(POINT_EDGES, self.boxes.num_pts, side="left")),
            Grouping("motion", "motion", ("at rest", f"faster than {MOVING_SPEED:g} m/s"), moving),
        ]  # fmt: skip


@dataclass(frozen=True)
class SurroundFound(Found):
    """What one detector says of G objects; ``box`` as ``kitti_form`` has it."""

    detections: DetectionBoxes
    row: Int[np.ndarray, " g"]  # in ``detections``, or MISSED

    def at(self, index: np.ndarray) -> DetectionBoxes:
        """The boxes of some objects (mask or indices), all of which were found."""
        return self.detections[self.row[index]]


def counted_objects(truth: GroundTruth, classes: Sequence[str]) -> SurroundLabelled:
    """The objects of some classes that count in the official evaluation."""
    labels = [truth.boxes.classes.index(name) for name in classes]
    chosen = np.flatnonzero(np.isin(truth.boxes.label, labels))
    # Scores of annotations are never looked at: they carry the rows through the filters.
    boxes, _ = filtered(replace(truth.boxes[chosen], score=chosen.astype(np.float64)), truth.racks)
    row = boxes.score.astype(np.int64)
    return SurroundLabelled(truth.boxes[row], row, truth.ego_position)


def find_around(
    truth: GroundTruth, detections: DetectionBoxes, objects: SurroundLabelled, reach: float
) -> SurroundFound:
    """What a detector says of each object.

    detections: of the same samples and classes as ``truth``, in the global frame, of any score.

    Raises:
        ValueError: other samples on one side than on the other, or ``reach`` is no distance of the metric.
    """
    if truth.boxes.samples != detections.samples or truth.boxes.classes != detections.classes:
        raise ValueError("annotations and predictions must number the same samples and classes")
    if reach not in OFFICIAL.distances:
        raise ValueError(f"reach must be one of {OFFICIAL.distances}, not {reach}")
    counted, _ = filtered(detections.seen_from(truth.ego_position), truth.racks)
    match = match_at_distances(objects.boxes, counted)[:, OFFICIAL.distances.index(reach)]
    hit = np.flatnonzero(match != MISSED)
    row = np.full(len(objects), MISSED)
    row[match[hit]] = hit
    found = np.flatnonzero(row != MISSED)
    said, true = counted[row[found]], objects.boxes[found]
    columns = {name: np.full(len(objects), np.nan) for name in ("score", "depth_error", "centre_error", "iou_3d")}
    columns["score"][found] = said.score
    columns["depth_error"][found] = np.abs(said.ego_distance - true.ego_distance)
    columns["centre_error"][found] = np.linalg.norm(said.translation - true.translation, axis=1)
    box = np.full((len(objects), 7), np.nan)
    # Places in the world are large numbers: overlaps are computed about the objects.
    here = kitti_form(replace(said, translation=said.translation - true.translation))
    columns["iou_3d"][found] = iou_3d(here, kitti_form(replace(true, translation=np.zeros_like(true.translation))))
    box[found] = kitti_form(said)
    return SurroundFound(box=box, detections=counted, row=row, **columns)


def kitti_form(boxes: DetectionBoxes) -> Float[np.ndarray, "n 7"]:
    """Boxes as KITTI's label files order them: height, width, length, bottom centre, angle.

    The world's x, y, z stand for a camera's right, forward and up: (x, -z, y), and yaw for -rotation_y.
    """
    x, y, z = boxes.translation.T
    width, length, height = boxes.wlh.T
    return np.stack((height, width, length, x, height / 2 - z, y, -boxes.yaw), axis=1)


def as_predictions(objects: SurroundLabelled) -> DetectionBoxes:
    """The objects as a perfect detector would write them."""
    sure = {"score": np.ones(len(objects)), "num_pts": np.full(len(objects), PREDICTED_POINTS)}
    return replace(objects.boxes, **sure)
