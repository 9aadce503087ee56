"""Listen to the teacher only where it knows better: this project's own terms, no published method.

Two things that the published response terms leave out.  They copy the teacher's answers on every object, also where the
student is nearer to the truth already (MonoSTL, arXiv:2603.07464, calls that negative transfer and guesses it from
uncertainties; in training the truth itself is at hand).  And they do not touch the heat map, although the order of the
scores decides AP as much as the boxes do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from distill3d.detectors.monodle import DepthEncoding, MonoDLETargets, decode_depth
from distill3d.distill.context import Context
from distill3d.distill.masks import paint_gaussians
from distill3d.distill.precision import full_precision
from distill3d.distill.responses import response_losses
from distill3d.distill.style import StyledConfig
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.image.heatmap import gather_cells
from distill3d.settings import Weight

#: Exponent of the quality focal loss (Li et al., "Generalized Focal Loss", arXiv:2006.04388, section 4.1).
QUALITY_POWER = 2.0
#: Which objects the response counts: those whose depth the teacher knows better than the student, or all.
Trust = Literal["better", "all"]


@dataclass(frozen=True)
class TrustedConfig(StyledConfig):
    """Weights of the two terms; one of weight 0 is left out."""

    response_weight: Weight = 1.0
    heat_weight: Weight = 1.0
    trust: Trust = "better"
    teacher_bn: Literal["eval", "train"] = "eval"
    depth_input: DepthEncoding = "clean"


def terms(config: TrustedConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """The response and the heat term; they look at no tap."""
    both = [TrustedResponseTerm(config), HeatTerm(config)]
    return [term for term in both if term.weight != 0]


class TrustedResponseTerm(Term):
    """The sum of ``responses.response_losses`` around the objects of ``trusted_objects``, a cell being the nearest
    object's.

    Couples the batch: means over the region and the slots of all images of this process.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: TrustedConfig) -> None:
        super().__init__("response", config.response_weight)
        self.trust: Trust = config.trust

    def forward(self, context: Context) -> Tensor:
        targets, student = _targets(context, self.name), context.student.predictions
        teacher = {name: value.detach() for name, value in context.teacher.predictions.items()}
        trusted = trusted_objects(student, teacher, targets, self.trust)
        height, width = student["heatmap"].shape[-2:]
        stride = context.batch.image.shape[-1] // width
        order = targets.distance.argsort(dim=1, descending=True)
        weight, _ = paint_gaussians(trusted.float(), targets.box2d, targets.mask_2d, stride, (height, width), order)
        parts = response_losses(student, teacher, weight, targets, trusted)
        return torch.stack(list(parts.values())).sum().float()


class HeatTerm(Term):
    """``quality_focal`` of the student's heat map against the teacher's probabilities.

    Couples the batch: it is divided by the objects of all images of this process.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: TrustedConfig) -> None:
        super().__init__("heat", config.heat_weight)

    def forward(self, context: Context) -> Tensor:
        targets = _targets(context, self.name)
        teacher = context.teacher.predictions["heatmap"].detach()
        return quality_focal(context.student.predictions["heatmap"], teacher, targets.mask_2d).float()


@torch.no_grad()
@full_precision
def trusted_objects(
    student: dict[str, Tensor], teacher: dict[str, Tensor], targets: MonoDLETargets, trust: Trust
) -> Bool[Tensor, "b k"]:
    """Trained objects whose depth the teacher's map gives better than the student's in the object's cell, or all."""
    if trust == "all":
        return targets.mask_2d
    error = [
        (decode_depth(gather_cells(maps["depth"], targets.indices)[..., 0].float()) - targets.depth).abs()
        for maps in (student, teacher)
    ]
    return targets.mask_2d & (error[1] < error[0])


@full_precision
def quality_focal(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"], objects: Bool[Tensor, "b k"]
) -> Float[Tensor, ""]:
    """sum over cells and classes of |p_T - p_S|^2 BCE(p_S, p_T) / the number of objects (at least 1), from logits."""
    target = teacher.sigmoid()
    distance = (target - student.sigmoid()).abs() ** QUALITY_POWER
    loss = distance * F.binary_cross_entropy_with_logits(student, target, reduction="none")
    return loss.sum() / objects.sum().clamp(min=1)


def _targets(context: Context, name: str) -> MonoDLETargets:
    """The targets, of which a cell of the head maps is an object's.

    Raises:
        UserError: the student has no such maps.
    """
    if not isinstance(context.targets, MonoDLETargets) or "depth" not in context.student.predictions:
        raise UserError(f"term {name!r} compares MonoDLE's head maps; this student has none")
    return context.targets
