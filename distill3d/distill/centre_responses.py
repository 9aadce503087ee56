"""What two centre heads say of every cell of the ground: CMKD's responses where its teacher is a CenterPoint.

CMKD, ECCV 2022, in two forms; no label is looked at:

- ``centre_*``, of one camera on KITTI: Cc-Hy/CMKD, pcdet/models/dense_heads/center_head_soft.py
  (CenterHeadSoft.get_loss).  KITTI's head gives eight numbers of a box, so the velocity is not compared.
- ``surround_*``, of several cameras on nuScenes: Cc-Hy/CMKD-MV, mmdet3d/models/detectors/bevdet.py (CMKD_BEVDet,
  QualityFocalLoss).  All ten numbers are compared.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from distill3d.distill.context import Context, same_grid
from distill3d.distill.precision import full_precision
from distill3d.errors import UserError
from distill3d.layers.heads.centre_head import BOX_BRANCHES, CODE, CentreHeadConfig, CentreTargets
from distill3d.layers.image.heatmap import PROBABILITY_MARGIN, clamped_sigmoid
from distill3d.transfers import constant

#: Leading numbers of a box that are compared: offset, height, log size, sine and cosine of the yaw.
COMPARED = CODE - BOX_BRANCHES["vel"]
#: The raw maps of a centre head.
CENTRE_MAPS = ("heatmap", "box")

#: What the cross-entropy of ``surround_class_loss`` takes the student's probabilities for.  As ``logits``, as released,
#: it pulls to 0 or 1 instead of to the teacher, and only the factor in front of it knows the goal.
SoftFocal = Literal["logits", "probabilities"]
#: How sure a teacher is of a task in a cell: ``of_sum``, as released, is the sigmoid of the SUM of its classes' logits,
#: less than that of any class where they are negative; ``probability`` the sum of its classes' probabilities.
BoxWeight = Literal["of_sum", "probability"]
#: What boxes are averaged over: all ``cells``, as released; or the ``positives``, where the teacher sees something.
BoxMean = Literal["cells", "positives"]


def centre_predictions(
    context: Context, teacher: str | None, tap: str, teacher_tap: str | None, instead: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], CentreHeadConfig]:
    """``CENTRE_MAPS`` of student and detached ``teacher`` (its stage), and the student's head.

    ``instead``: what a user without centre heads is advised to do.

    Raises:
        UserError: one of them has no centre head, or their heads differ in tasks or their maps in shape.
        ValueError: the student's ``tap`` and the teacher's ``teacher_tap`` lie on different grids.
    """
    source = context.named(teacher)
    same_grid(tap, context.student, source, teacher_tap)
    head = getattr(getattr(context.student_detector, "config", None), "head", None)
    if not isinstance(head, CentreHeadConfig):
        raise UserError(f"to compare centre heads the student needs one: {instead}")
    of_teacher = getattr(getattr(context.detector_named(teacher), "config", None), "head", None)
    if isinstance(of_teacher, CentreHeadConfig) and of_teacher.tasks != head.tasks:
        tasks = (" | ".join(map(", ".join, tasks)) for tasks in (head.tasks, of_teacher.tasks))
        raise UserError(
            "the tasks of the centre head are {} in the student and {} in the teacher: give both the same, in one "
            "order".format(*tasks)
        )
    sides = (context.student.predictions, source.predictions)
    for name in CENTRE_MAPS:
        found = [tuple(side[name].shape) if name in side else None for side in sides]
        if found[0] != found[1]:
            raise UserError(
                f"the centre map {name!r} is {found[0]} in the student and {found[1]} in the teacher: give both the "
                "same tasks and cells"
            )
    student, taught = ({name: side[name] for name in CENTRE_MAPS} for side in sides)
    return student, {name: prediction.detach() for name, prediction in taught.items()}, head


def labelled_centres(context: Context, method: str) -> CentreTargets:
    """The targets of the student's centre head; ``method`` asks for them.

    Raises:
        UserError: the student has none, or the batch has no annotations.
    """
    found = context.targets if isinstance(context.targets, CentreTargets) else getattr(context.targets, "centres", None)
    if not isinstance(found, CentreTargets):
        raise UserError(f"{method} looks at labelled objects: it needs a student with a centre head and annotations")
    return found


@full_precision
def centre_class_loss(
    student: Float[Tensor, "b k y x"], teacher: Float[Tensor, "b k y x"], head: CentreHeadConfig, positive: float
) -> Float[Tensor, ""]:
    """sum |p - t|^2 BCE(p, t) / max(1, #{t > ``positive``}), both over a task's classes and the batch's cells, summed
    over tasks; p the student's probabilities, clamped, t the teacher's, from logits."""
    p, t = clamped_sigmoid(student), teacher.sigmoid()
    return _per_sure_cell((p - t).square() * F.binary_cross_entropy(p, t, reduction="none"), t > positive, head)


@full_precision
def centre_box_loss(
    student: Float[Tensor, "b t c y x"],
    teacher: Float[Tensor, "b t c y x"],
    teacher_heatmap: Float[Tensor, "b k y x"],
    head: CentreHeadConfig,
    positive: float,
) -> Float[Tensor, ""]:
    """q sum_c smooth_l1(S_c - T_c) over the ``COMPARED`` raw numbers c, mean over those cells of the batch where
    q > ``positive``, summed over tasks.

    q is the sum of the teacher's probabilities of a task's classes in a cell, which may exceed 1.  The smooth L1 is
    quadratic up to 1.  0 for a task without such cells.
    """
    q = of_tasks(teacher_heatmap.sigmoid(), head)
    said, taught = (box[:, :, :COMPARED] for box in (student, teacher))
    error = F.smooth_l1_loss(said, taught, reduction="none").sum(2)
    return _mean_where(q > positive, q * error)


@full_precision
def surround_class_loss(
    student: Float[Tensor, "b k y x"], teacher: Float[Tensor, "b k y x"], head: CentreHeadConfig, positive: float,
    form: SoftFocal = "probabilities",
) -> Float[Tensor, ""]:  # fmt: skip
    """sum |p - t|^2 BCE(p, t) / max(1, #{t >= ``positive``}), over a task's classes and the batch's cells, summed over
    tasks; p and t the probabilities, from logits, clamped."""
    p, t = clamped_sigmoid(student), clamped_sigmoid(teacher)
    entropy = F.binary_cross_entropy if form == "probabilities" else F.binary_cross_entropy_with_logits
    return _per_sure_cell((p - t).square() * entropy(p, t, reduction="none"), t >= positive, head)


@full_precision
def surround_box_loss(
    student: Float[Tensor, "b t c y x"],
    teacher: Float[Tensor, "b t c y x"],
    teacher_heatmap: Float[Tensor, "b k y x"],
    head: CentreHeadConfig,
    positive: float,
    weight: BoxWeight = "probability",
    mean: BoxMean = "cells",
) -> Float[Tensor, ""]:
    """q smooth_l1(S - T), mean over the numbers of a branch and over cells, summed over branches and tasks.

    q from ``weight``.  With ``positives`` only cells where q > ``positive`` count; 0 for a task without any.
    """
    if weight == "of_sum":
        q = clamped_sigmoid(of_tasks(teacher_heatmap, head))
    else:
        q = of_tasks(teacher_heatmap.sigmoid(), head).clamp(min=PROBABILITY_MARGIN)
    error = F.smooth_l1_loss(student, teacher, reduction="none").split(tuple(BOX_BRANCHES.values()), dim=2)
    weighted = q * torch.stack([branch.mean(2) for branch in error]).sum(0)
    if mean == "cells":
        return weighted.mean((0, 2, 3)).sum()
    return _mean_where(q > positive, weighted)


def _mean_where(kept: Bool[Tensor, "b t y x"], values: Float[Tensor, "b t y x"]) -> Float[Tensor, ""]:
    """Each task's mean over the cells that are kept, 0 without any, summed over tasks."""
    return (torch.where(kept, values, 0).sum((0, 2, 3)) / kept.sum((0, 2, 3)).clamp(min=1)).sum()


def _per_sure_cell(
    error: Float[Tensor, "b k y x"], sure: Bool[Tensor, "b k y x"], head: CentreHeadConfig
) -> Float[Tensor, ""]:
    """Each task's error divided by its number of sure cells, at least 1, summed over tasks."""
    sums, counts = (of_tasks(v.sum((0, 2, 3))[None, :, None, None], head).flatten() for v in (error, sure.to(error)))
    return (sums / counts.clamp(min=1)).sum()


def of_tasks(values: Float[Tensor, "b k y x"], head: CentreHeadConfig) -> Float[Tensor, "b t y x"]:
    """Values of classes, summed over the classes of each task."""
    task = constant(head.task_of_class, values, torch.int64)
    sums = values.new_zeros(len(values), len(head.tasks), *values.shape[2:])
    return sums.index_add(1, task, values)
