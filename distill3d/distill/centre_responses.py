"""What two centre heads say of every cell of the ground: CMKD's responses where its teacher is a CenterPoint.

CMKD, ECCV 2022; released code Cc-Hy/CMKD, pcdet/models/dense_heads/center_head_soft.py (CenterHeadSoft.get_loss), for
one camera on KITTI.  No label is looked at.  Of the ten numbers of a box the eight that KITTI's head has are compared,
the velocity is not: that nuScenes' heads compare no more is inferred.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from distill3d.distill.context import Context, same_grid
from distill3d.distill.precision import full_precision
from distill3d.errors import UserError
from distill3d.layers.heads.centre_head import BOX_BRANCHES, CODE, CentreHeadConfig
from distill3d.layers.image.heatmap import clamped_sigmoid

#: Leading numbers of a box that are compared: offset, height, log size, sine and cosine of the yaw.
COMPARED = CODE - BOX_BRANCHES["vel"]
#: The raw maps of a centre head.
CENTRE_MAPS = ("heatmap", "box")


def centre_predictions(
    context: Context, teacher: str | None, tap: str, teacher_tap: str | None, instead: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], CentreHeadConfig]:
    """``CENTRE_MAPS`` of student and detached ``teacher`` (its stage), and the student's head.

    ``instead``: what a user without centre heads is advised to do.

    Raises:
        UserError: one of them has no centre head, or their maps differ in shape.
        ValueError: the student's ``tap`` and the teacher's ``teacher_tap`` lie on different grids.
    """
    source = context.named(teacher)
    same_grid(tap, context.student, source, teacher_tap)
    head = getattr(getattr(context.student_detector, "config", None), "head", None)
    if not isinstance(head, CentreHeadConfig):
        raise UserError(f"to compare centre heads the student needs one: {instead}")
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


@full_precision
def centre_class_loss(
    student: Float[Tensor, "b k y x"], teacher: Float[Tensor, "b k y x"], head: CentreHeadConfig, positive: float
) -> Float[Tensor, ""]:
    """sum |p - t|^2 BCE(p, t) / max(1, #{t > ``positive``}), both over a task's classes and the batch's cells, summed
    over tasks; p the student's probabilities, clamped, t the teacher's, from logits."""
    p, t = clamped_sigmoid(student), teacher.sigmoid()
    error = (p - t).square() * F.binary_cross_entropy(p, t, reduction="none")
    sure = (t > positive).to(error)
    sums, counts = (of_tasks(v.sum((0, 2, 3))[None, :, None, None], head).flatten() for v in (error, sure))
    return (sums / counts.clamp(min=1)).sum()


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
    kept = q > positive
    return (torch.where(kept, q * error, 0).sum((0, 2, 3)) / kept.sum((0, 2, 3)).clamp(min=1)).sum()


def of_tasks(values: Float[Tensor, "b k y x"], head: CentreHeadConfig) -> Float[Tensor, "b t y x"]:
    """Values of classes, summed over the classes of each task."""
    task = torch.tensor(head.task_of_class, device=values.device)
    sums = values.new_zeros(len(values), len(head.tasks), *values.shape[2:])
    return sums.index_add(1, task, values)
