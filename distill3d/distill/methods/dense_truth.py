"""A sceptic's control: no teacher at all, the labels themselves painted around each object.

Not a published method.  A teacher's answers reach the student in many cells, the detector's own loss in one cell per
object.  Whoever asks whether it takes a teacher, or just more supervised cells, compares with this: MonoDistill's
dense response (arXiv:2201.10830; ``responses.dense_losses``) of a teacher that is always right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill3d.detectors.monodle import MonoDLETargets, depth_logit
from distill3d.distill.context import Context
from distill3d.distill.masks import paint_gaussians
from distill3d.distill.responses import dense_losses
from distill3d.distill.style import StyledConfig, UnlabelledUse
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.settings import Weight


@dataclass(frozen=True)
class DenseTruthConfig(StyledConfig):
    """How much the painted labels count."""

    teacherless: ClassVar[bool] = True
    teacher_bn: ClassVar[Literal["eval"]] = "eval"
    unlabelled: ClassVar[UnlabelledUse] = "objects"  # in a mixture whose other parts have a teacher

    weight: Weight = 1.0


def terms(config: DenseTruthConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """The one term; it looks at no tap."""
    return [DenseTruthTerm(config)]


class DenseTruthTerm(Term):
    """Sum of ``responses.dense_losses`` against ``painted_truth``, in the cells where that is known.

    Couples the batch: means over the cells of all images of this process.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: DenseTruthConfig) -> None:
        super().__init__("dense_truth", config.weight)

    def forward(self, context: Context) -> Tensor:
        if not isinstance(context.targets, MonoDLETargets):
            raise UserError("dense truth is painted on MonoDLE's head maps; this student has other targets")
        student = context.student.predictions
        height, width = student["depth"].shape[-2:]
        truth, known = painted_truth(context.targets, context.batch.image.shape[-1] // width, (height, width))
        return torch.stack(list(dense_losses(student, truth, known).values())).sum().float()


@torch.no_grad()
def painted_truth(
    targets: MonoDLETargets, stride: int, size: tuple[int, int]
) -> tuple[dict[str, Float[Tensor, "b c h w"]], Bool[Tensor, "b h w"]]:
    """What MonoDLE's heads should say in every cell under the Gaussian of a trained object, and which cells those are.

    A cell belongs to the nearest object.  Positions point from the cell itself to the object's centres, in cells; depth
    is the raw logit.  Cells of objects without a trained 3D centre (crops, MonoDLE's rule) are not known.
    """
    height, width = size
    order = targets.distance.argsort(dim=1, descending=True)
    slot = torch.arange(targets.box2d.shape[1], device=targets.box2d.device, dtype=torch.float32)
    owner, known = paint_gaussians(
        slot.expand(targets.mask_3d.shape), targets.box2d, targets.mask_3d, stride, size, order
    )
    index = owner.flatten(1).long()[..., None]  # (b, h w, 1)

    def painted(value: Tensor) -> Tensor:
        rows = value.gather(1, index.expand(-1, -1, value.shape[-1]))
        return rows.transpose(1, 2).unflatten(2, size)

    column, row = targets.indices % width, targets.indices // width
    cell = torch.stack((column, row), dim=-1).float()
    y, x = torch.meshgrid(*(torch.arange(n, device=cell.device, dtype=torch.float32) for n in size), indexing="ij")
    here = torch.stack((x, y))
    return {
        "offset_2d": painted(cell + targets.offset_2d) - here,
        "size_2d": painted(targets.size_2d),
        "offset_3d": painted(cell + targets.offset_3d) - here,
        "size_3d": painted(targets.size_3d),
        "depth": painted(depth_logit(targets.depth)[..., None]),
    }, known
