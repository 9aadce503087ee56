"""Detections in place of an annotator's labels: what a detector finds in a frame, as label lines of that frame."""

from __future__ import annotations

from dataclasses import replace

import torch

from distill3d.boxes import Boxes3D, wrap_angle
from distill3d.camera import Camera
from distill3d.data.augment.lidar import enclosing_boxes, projected_boxes
from distill3d.data.kitti.labels import training_difficulty
from distill3d.data.sample import Objects

#: A box of which the picture shows less than this in width or height (px) is not shown.
LEAST_SIDE = 1.0


def label_lines(boxes: Boxes3D, camera: Camera, size: tuple[int, int], height_scale: float = 1.0) -> Objects:
    """Detections of one frame as its label lines, best first, with their scores; float64.

    What KITTI's annotators say of an object and a 3D box does not is derived: ``box2d`` encloses the eight projected
    corners and is cut at the picture's edges; ``truncation`` is the share of it that was cut off; ``alpha`` is that of
    the ray to the box's centre; ``occlusion`` is 0, for of what hides an object nothing is known.  Boxes behind the
    camera, and those that the picture does not show, are left out.

    Args:
        boxes: in the camera frame of the picture's file.
        camera: behind the picture's file, (3, 4).
        size: of the picture, (width, height) px.
        height_scale: as in ``training_difficulty``.
    """
    boxes = boxes[boxes.centre[:, 2] > 0].to(torch.float64)
    if boxes.score is not None:
        boxes = boxes[boxes.score.argsort(descending=True, stable=True)]
    camera = Camera(camera.projection.double())
    whole, shown = enclosing_boxes(boxes, camera), projected_boxes(boxes, camera, size)
    sides, all_sides = (box[:, 2:] - box[:, :2] for box in (shown, whole))
    truncation = (1 - sides.prod(1) / all_sides.prod(1)).clamp(0, 1)
    alpha = wrap_angle(-boxes.yaw - torch.atan2(boxes.centre[:, 0], boxes.centre[:, 2]))
    occlusion = torch.zeros_like(boxes.label)
    difficulty = training_difficulty(shown, truncation, occlusion, height_scale)
    lines = Objects(replace(boxes, box2d=shown, alpha=alpha), truncation, occlusion, difficulty)
    return lines[(sides >= LEAST_SIDE).all(1)]
