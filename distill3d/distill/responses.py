"""What two detectors say of the same objects, compared head by head.

The dense part is MonoDistill's (arXiv:2201.10830; lib/losses/head_distill_loss.py), the part on regions of interest
MonoSKD's (arXiv:2310.11316; released on DID-M3D, its mapping to GUPNet is ours).  Neither heat maps nor uncertainties
are compared.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill3d.distill.context import Context
from distill3d.distill.distances import Empty, kl_divergence, l1, weighted_mean
from distill3d.distill.masks import ObjectTargets, gaussian_mask, gaussian_weight
from distill3d.distill.precision import full_precision
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.image.heatmap import gather_cells

#: Head maps compared cell by cell, and how many of their leading channels: of depth the value, not the log scale.
DENSE_HEADS = {"offset_2d": 2, "size_2d": 2, "offset_3d": 2, "size_3d": 3, "depth": 1}
#: What two-stage detectors say of a region, by slot (b, k, ...).
ROI_HEADS = ("roi_offset_3d", "roi_size_3d", "roi_visual_depth", "roi_attribute_depth", "roi_depth")

#: Cells that count: under the Gaussians of eligible label lines (``binary``), weighted by them (``soft``), or, as
#: released, with cell (0, 0) for every other line (``zero_rows``).
ResponseMask = Literal["zero_rows", "binary", "soft"]


class ResponseTerm(Term):
    """L_response: the sum of ``response_losses``, head maps of student against teacher around labelled objects.

    Couples the batch: means over the region and the slots of all images of this process.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(
        self, name: str, weight: float, mask: ResponseMask, heading_slots: Literal["all", "valid"], empty: Empty
    ) -> None:
        super().__init__(name, weight)
        self.mask: ResponseMask = mask
        self.heading_slots = heading_slots
        self.empty: Empty = empty

    def forward(self, context: Context) -> Tensor:
        student, targets = context.student.predictions, context.targets
        if "heatmap" not in student:
            raise UserError(
                f"term {self.name!r} compares detectors with heat maps; no published response loss fits this student: "
                "set the method's response_weight to 0"
            )
        teacher = {name: p.detach() for name, p in context.teacher.predictions.items()}
        height, width = student["heatmap"].shape[-2:]
        stride = context.batch.image.shape[-1] // width
        weight = response_region(targets, stride, (height, width), self.mask)
        slots = torch.ones_like(targets.mask_2d) if self.heading_slots == "all" else targets.mask_2d
        parts = response_losses(student, teacher, weight, targets, slots, self.empty)
        return torch.stack(list(parts.values())).sum().float()


def response_region(
    targets: ObjectTargets, stride: int, size: tuple[int, int], mask: ResponseMask
) -> Float[Tensor, "b h w"] | Bool[Tensor, "b h w"]:
    """Which cells of the prediction maps the response counts, or how much (``soft``)."""
    if mask == "soft":
        return gaussian_weight(targets.box2d, targets.eligible, stride, size)
    if mask == "binary":
        return gaussian_mask(targets.box2d, targets.eligible, stride, size)
    box2d = torch.where(targets.eligible[..., None], targets.box2d, 0)
    return gaussian_mask(box2d, targets.present, stride, size)


@full_precision
def dense_losses(
    student: dict[str, Tensor], teacher: dict[str, Tensor], weight: Tensor, empty: Empty = "zero"
) -> dict[str, Float[Tensor, ""]]:
    """|S - T| of the ``DENSE_HEADS`` that there are, mean over cells by ``weight`` (b, h, w) and over channels."""
    return {
        name: weighted_mean(l1(student[name][:, :channels], teacher[name][:, :channels]), weight[:, None], empty)
        for name, channels in DENSE_HEADS.items()
        if name in student
    }


@full_precision
def response_losses(
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    weight: Tensor,
    targets: ObjectTargets,
    slots: Bool[Tensor, "b k"],
    empty: Empty = "zero",
) -> dict[str, Float[Tensor, ""]]:
    """The parts of L_response, each a mean by itself, from raw predictions.

    ``dense_losses`` of the maps (b, c, h, w) by ``weight`` (b, h, w), depth as raw logit.  ``ROI_HEADS`` that there
    are: |S - T|, mean over the values of all regions, which stand in the slots of ``targets.mask_2d``.  ``heading``, of
    regions or read at ``targets.indices`` in ``slots``: KL(T || S) of the bins, mean over slots *and* bins, plus
    |S - T| of the labelled bin's residual, mean over slots.
    """
    if "roi_heading" in student:  # as released: where there is no region, maps are not compared either
        weight = weight * targets.mask_2d.any()
    parts = dense_losses(student, teacher, weight, empty)
    parts |= {
        name: weighted_mean(l1(student[name], teacher[name])[..., None].flatten(2).mean(2), targets.mask_2d, empty)
        for name in ROI_HEADS
        if name in student
    }
    if "roi_heading" in student:
        s, t, slots = student["roi_heading"], teacher["roi_heading"], targets.mask_2d
    else:
        s, t = (gather_cells(maps["heading"], targets.indices) for maps in (student, teacher))
    bins = s.shape[-1] // 2
    kl = weighted_mean(kl_divergence(s[..., :bins], t[..., :bins]), slots[..., None], empty)
    residual = l1(s[..., bins:], t[..., bins:]).gather(-1, targets.heading_bin[..., None])[..., 0]
    return parts | {"heading": kl + weighted_mean(residual, slots, empty)}
