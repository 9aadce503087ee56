"""Frames without labels in a training: whose boxes stand in them, and which losses ask for true ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from distill3d.boxes import IGNORE
from distill3d.data.augment.image import frame_generator
from distill3d.data.batching import picked
from distill3d.data.sample import Batch
from distill3d.data.surround import SurroundBatch
from distill3d.detectors.base import Detector, Outputs
from distill3d.distill.methods import objects_rule, unlabelled_use
from distill3d.distill.methods.pseudo_labels import PseudoLabelsConfig, unlabelled_rows, with_teachers_objects
from distill3d.distill.style import ObjectsConfig
from distill3d.train.recipe import StageConfig
from distill3d.train.teachers import Teacher


@dataclass(frozen=True)
class TeachersObjects:
    """How the frames of a stage that have no labels get a teacher's boxes as objects."""

    rule: ObjectsConfig
    teacher: str  # its stage
    as_labels: bool
    height_scale: float  # of the training difficulties
    seed: int

    @classmethod
    def of(cls, stage: StageConfig, height_scale: float, seed: int) -> TeachersObjects | None:
        """None for stages that see no such frames, and for methods that ask for no object."""
        if stage.method is None or not stage.unlabelled or unlabelled_use(stage.method) == "as_is":
            return None
        rule = objects_rule(stage.method)
        named = rule.teacher if isinstance(rule, PseudoLabelsConfig) else None
        as_labels = unlabelled_use(stage.method) == "labels"
        return cls(rule, named or stage.teachers[0], as_labels, height_scale, seed)

    def into(self, batch: Batch, teachers: Mapping[str, Teacher], epoch: int) -> Batch:
        """The batch with objects in all of its images; the same whatever the processes and workers are."""
        rows = unlabelled_rows(batch)
        if not rows:
            return batch
        soft = isinstance(self.rule, PseudoLabelsConfig) and self.rule.form == "soft"
        return with_teachers_objects(
            batch, teachers[self.teacher].detect(batch, rows), self.rule.least_score, self.height_scale, self.as_labels,
            [frame_generator(self.seed, epoch, _number(batch.frame_ids[row])) for row in rows] if soft else None,
        )  # fmt: skip


def _number(frame: str) -> int:
    """A number for a frame's name, to draw with; negative, as no frame's index is."""
    digest = hashlib.blake2b(frame.encode(), digest_size=8).digest()
    return -2 - (int.from_bytes(digest, "little") >> 2)


def supervised_losses(
    student: Detector, outputs: Outputs, batch: Batch | SurroundBatch, targets: Any
) -> dict[str, Tensor]:
    """The student's own loss, asked of the images that have labels alone: where others have objects, these are said by
    a teacher.  Of a batch without labels every term is 0.

    ``outputs`` and ``targets`` as ``Detector.loss`` takes them.
    """
    if not isinstance(batch, Batch) or batch.labelled is None or batch.objects is None or student.parts_labelled:
        return student.loss(outputs, batch, targets)
    rows = batch.labelled.nonzero()[:, 0].tolist()
    if rows:
        return student.loss(outputs.of_images(rows), picked(batch, rows), picked(targets, rows))
    # The same sums over processes as where there are labels, to which this process adds nothing.
    objects = batch.objects
    empty = replace(
        objects, label=torch.full_like(objects.label, IGNORE), present=torch.zeros_like(objects.present)
    )  # fmt: skip
    batch = replace(batch, objects=empty)
    return {name: 0 * value for name, value in student.loss(outputs, batch, student.encode(batch)).items()}
