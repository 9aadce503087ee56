"""Pseudo-labels: a teacher's boxes are the labels of frames that have none, for the student's own loss.

Peng et al., "Lidar Point Cloud Guided Monocular 3D Object Detection", ECCV 2022, arXiv:2104.09035 (LPCG): a LiDAR
detector labels KITTI's raw drives, and a camera detector of any kind trains on them as on any other label.  CMKD (ECCV
2022) takes a teacher's scores for targets as they are; ``soft`` is that idea for losses which cannot weigh an object.

    hard    every box with a score of at least ``least_score`` is a label
    soft    each of these is a label with the probability of its score, drawn anew each epoch: in expectation the
            heat map's target, and the weight of an object's other losses, is its score

Boxes below ``least_score`` are no objects: where they stand the student learns that nothing is there.  Labelled frames
keep their labels.  The teacher is any detector that answers with boxes in the camera's frame; its 2D boxes are not
used, for each is derived from the 3D box (data/kitti/detected.py), as an annotator would have drawn it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from distill3d.boxes import Boxes3D
from distill3d.camera import Camera
from distill3d.data.augment.image import place_objects
from distill3d.data.batching import moved_to
from distill3d.data.kitti.detected import label_lines
from distill3d.data.sample import Batch, ObjectBatch, Objects
from distill3d.distill.style import ObjectsConfig, UnlabelledUse
from distill3d.distill.term import Term


@dataclass(frozen=True)
class PseudoLabelsConfig(ObjectsConfig):
    """Which of whose boxes are labels.

    ``least_score``, 0.5 unless set otherwise: detectors whose score is a probability then find an object there more
    likely than not.  LPCG names no threshold; a missing box teaches that nothing is there, so a lower one may suit a
    teacher that is shy.
    """

    unlabelled: ClassVar[UnlabelledUse] = "labels"

    form: Literal["hard", "soft"] = "hard"
    teacher: str | None = None  # its stage; None: the only one
    teacher_bn: Literal["eval"] = "eval"


def terms(config: PseudoLabelsConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """None: it is the student's own loss that learns."""
    return []


def with_teachers_objects(
    batch: Batch, found: list[Boxes3D], least_score: float, height_scale: float, as_labels: bool,
    generators: list[torch.Generator] | None = None,
) -> Batch:  # fmt: skip
    """The batch with a teacher's boxes as the objects of its images without labels.

    Args:
        found: the scored boxes of each image without labels (``unlabelled_rows``), in the camera frame of its file.
        least_score: boxes of a lower score are left out.
        height_scale: as in ``training_difficulty``.
        as_labels: the images count as labelled from now on; otherwise ``labelled`` goes on to say that they are not.
        generators: for each of these images, to draw with which a box is kept with the probability of its score; None
            keeps all.
    """
    rows = unlabelled_rows(batch)
    lines = [_nothing()] * len(batch)
    camera, affine = moved_to(batch.source_camera, "cpu"), moved_to(batch.affine, "cpu")
    for i, (row, boxes) in enumerate(zip(rows, found, strict=True)):
        assert boxes.score is not None
        boxes = boxes[boxes.score >= least_score]
        if generators is not None and boxes.score is not None:
            boxes = boxes[torch.rand(len(boxes), generator=generators[i]) < boxes.score]
        of_image = type(affine)(*(getattr(affine, name)[row] for name in affine.__dataclass_fields__))
        width, height = map(int, of_image.source_size.tolist())
        objects = label_lines(boxes, Camera(camera.projection[row]), (width, height), height_scale)
        lines[row] = place_objects(objects, of_image)
    where = torch.zeros(len(batch), dtype=torch.bool)
    where[rows] = True
    pseudo = moved_to(_single(ObjectBatch.pad(lines)), batch.image.device)
    where = where.to(batch.image.device)
    objects = pseudo if batch.objects is None else batch.objects.overlaid(pseudo, where)
    return replace(batch, objects=objects, labelled=None if as_labels else ~where)


def unlabelled_rows(batch: Batch) -> list[int]:
    """The images of a batch that have no labels."""
    if batch.objects is None:
        return list(range(len(batch)))
    return [] if batch.labelled is None else (~batch.labelled).nonzero()[:, 0].tolist()


def _nothing() -> Objects:
    none = torch.zeros(0, dtype=torch.int64)
    return Objects(Boxes3D.empty("camera").to(torch.float64), torch.zeros(0, dtype=torch.float64), none, none)


def _single(objects: ObjectBatch) -> ObjectBatch:
    """In float32, as batches hold objects."""
    exact = {name: value for name, value in vars(objects).items() if isinstance(value, Tensor)}
    return ObjectBatch(**{name: v.float() if v.is_floating_point() else v for name, v in exact.items()})
