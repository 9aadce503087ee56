"""Which labelled objects count, and which detection belongs to which of them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from distill3d.evaluate.iou import image_iou
from distill3d.evaluate.kitti import MAX_OCCLUSION, MAX_TRUNCATION, MIN_HEIGHT, NEIGHBOUR, Annotations, frame_pairs

#: Row of an object that no detection was matched to.
MISSED = -1


def objects_of_interest(labels: Annotations, name: str, min_height_scale: float) -> Bool[np.ndarray, " n"]:
    """Which rows are objects of class ``name`` that count at KITTI's hard difficulty.

    ``min_height_scale`` as in ``evaluate.kitti.evaluate``.
    """
    hard = -1
    own = np.char.lower(labels.name) == name
    easy_enough = (labels.occlusion <= MAX_OCCLUSION[hard]) & (labels.truncation <= MAX_TRUNCATION[hard])
    return own & easy_enough & (labels.box_height >= MIN_HEIGHT[hard] * min_height_scale)


def match_in_image(labels: Annotations, detections: Annotations, least_overlap: float) -> Int[np.ndarray, " n"]:
    """The row of the detection that belongs to each of N label rows, or ``MISSED``.

    Detections choose in order of score (equal ones in file order): each takes the object of its class, or of the class
    that KITTI forgives it (a van for a car), whose image box it overlaps most among those that are still free, if the
    intersection over union is at least ``least_overlap``. Each object and each detection is used at most once. Depth
    has no say in it, so that a depth error of any size can be seen.

    Raises:
        ValueError: other frames in one than in the other.
        UserError: a frame with too many objects (``frame_pairs``).
    """
    if labels.frames != detections.frames:
        raise ValueError("labels and detections must hold the same frames in the same order")
    forgiven = {other: name for name, other in NEIGHBOUR.items()}
    # Objects that stand there many times over, one after the other, are taken from the first to the last.
    first, places = labels.equal_runs()
    objects = labels.rows(first)
    detected = np.char.lower(detections.name)
    labelled = np.char.lower(objects.name)
    for other, name in forgiven.items():
        labelled = np.where(labelled == other, name, labelled)
    g, d = frame_pairs(objects, detections)
    same_class = labelled[g] == detected[d]
    g, d = g[same_class], d[same_class]
    overlap = image_iou(objects.box2d[g], detections.box2d[d])
    near = overlap >= least_overlap
    g, d, overlap = g[near], d[near], overlap[near]
    match = np.full(len(labels.frame), MISSED)
    used = np.zeros(len(first), dtype=np.int64)
    taken = np.zeros(len(detections.frame), dtype=bool)
    for pair in np.lexsort((g, -overlap, d, -detections.score[d])):
        if used[g[pair]] < places[g[pair]] and not taken[d[pair]]:
            match[first[g[pair]] + used[g[pair]]] = d[pair]
            used[g[pair]] += 1
            taken[d[pair]] = True
    return match
