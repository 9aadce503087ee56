"""MonoSTL: transfer only where the student is unsure of its depth, and relate objects by how sure the teacher is.

Selective transfer for monocular 3D detection, arXiv:2603.07464; released code DingCodeLab/MonoSTL (commit 2f761c9),
lib/losses/{feature,head}_distill_loss.py and lib/models/centernet3d_distill.py.  Fusion, adapters and response are
MonoDistill's.  With s the log scale that a detector gives its depth at an object, and c = exp(-s):

    L = L_detection + 10 L_DASFD + 1 L_DASRD + 1 L_response           from the first iteration, without a schedule

DASFD (features): inside an object's box the squared error counts by 1 - c of the student, c cut to 0..1.  An object
whose depth the student trusts (s <= 0) is left alone.
DASRD (relations): G = R Rᵀ of all objects' RoI features, divided by U_ij = u_i² + u_j² with u = 1 / c of the teacher.
No gradient flows through s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import roi_align

from distill3d.detectors.base import FeatureMap
from distill3d.detectors.monodle import DepthEncoding
from distill3d.distill.adapters import AdaptedTaps
from distill3d.distill.context import Context
from distill3d.distill.distances import Empty
from distill3d.distill.masks import SelectiveTargets, SliceRule, image_stride, paint_boxes
from distill3d.distill.precision import full_precision
from distill3d.distill.responses import ResponseMask, ResponseTerm
from distill3d.distill.style import StyledConfig, option
from distill3d.distill.term import Term

#: Weight of a box whose object lies in cell 0, which the released code takes for an empty slot.
SENTINEL_WEIGHT = 0.01
#: Cells along each side of an object's RoI features.
ROI_CELLS = 7

Selection = Literal["student", "teacher", "none"]
RelationUncertainty = Literal["teacher_both", "own_side", "none"]
RelationNorm = Literal["mean_over_k2", "mean", "cosine"]


@dataclass(frozen=True)
class MonoSTLConfig(StyledConfig):
    """Weights and taps of the released code, and one option for each point where it and the intention differ.

    A term of weight 0 is left out.
    """

    feature_weight: float = 10.0
    relation_weight: float = 1.0
    response_weight: float = 1.0
    taps: tuple[str, ...] = ("backbone_8", "backbone_16", "backbone_32")  # compared, from fine to coarse
    fusion_taps: tuple[str, ...] = ("backbone_8", "backbone_16", "backbone_32")  # fused before the adapters
    fusion_channels: int = 512

    fd_weight: Selection = "student"  # whose uncertainty selects features; ``teacher``: by c, ``none``: all alike
    fd_divisor: float = 10.0  # of L_DASFD; it cancels the weight
    #: ``own_side`` divides each side by its own U and adds log U, which no longer cancels.
    rd_uncertainty: RelationUncertainty = "teacher_both"
    #: ``mean_over_k2`` divides the mean over K x K pairs by K² once more; only it has a tuned weight.
    rd_norm: RelationNorm = option(released="mean_over_k2", intended="mean", default="mean_over_k2")
    #: Relations among the objects of all images of this process, or of each image.
    rd_scope: Literal["batch", "image"] = "batch"
    box_slice: SliceRule = option(released="python", intended="clamp", default="clamp")
    #: ``sentinel``: cell 0 means an empty slot, also where an object's centre lies there.
    valid_rows: Literal["sentinel", "mask"] = option(released="sentinel", intended="mask", default="mask")
    #: Which of several boxes over a cell gives its weight: the last label line, or the nearest object.
    overlap: Literal["last", "nearest"] = option(released="last", intended="nearest", default="nearest")
    response_mask: ResponseMask = option(released="zero_rows", intended="binary", default="binary")
    heading_slots: Literal["all", "valid"] = option(released="all", intended="valid", default="valid")
    empty_region: Empty = option(released="nan", intended="zero", default="zero")
    #: Teacher's batch norm; for the train loop.
    teacher_bn: Literal["eval", "train"] = option(released="eval", intended="eval", default="eval")
    #: How the teacher sees depth, for the recipe; must be what the teacher was trained with.
    depth_input: DepthEncoding = option(released="monodistill", intended="clean", default="clean")


def terms(config: MonoSTLConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """DASFD and DASRD, which share fusion and adapters, and the response term of MonoDistill.

    ``*_channels`` are the detectors' ``tap_channels``.

    Raises:
        ValueError: student and teacher differ in the channels of a tap, or ``fusion_taps`` lacks one.
    """
    adapted = AdaptedTaps(config.taps, student_channels, teacher_channels, config.fusion_taps, config.fusion_channels)
    all_terms = [
        SelectiveFeatureTerm(config, adapted),
        SelectiveRelationTerm(config, adapted),
        ResponseTerm(
            "response", config.response_weight, config.response_mask, config.heading_slots, config.empty_region
        ),
    ]
    return [term for term in all_terms if term.weight != 0]


class SelectiveFeatureTerm(Term):
    """L_DASFD, see ``selective_feature_loss``.  Couples the batch: each level is divided by its number of cells in
    boxes over all images of this process."""

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: MonoSTLConfig, adapted: AdaptedTaps) -> None:
        super().__init__("dasfd", config.feature_weight)
        self.adapted, self.config = adapted, config

    def forward(self, context: Context) -> Tensor:
        pairs, config = self.adapted(context), self.config
        painted = paint_weights(context, [s for s, _ in pairs], config)
        return selective_feature_loss([(s.tensor, t.tensor) for s, t in pairs], painted, config.fd_divisor).float()


class SelectiveRelationTerm(Term):
    """L_DASRD, see ``selective_relation_loss``.  Couples the batch: all objects of this process are related (scope
    ``batch``), so the loss depends on how many images a process holds."""

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: MonoSTLConfig, adapted: AdaptedTaps) -> None:
        super().__init__("dasrd", config.relation_weight)
        self.adapted, self.config = adapted, config

    def forward(self, context: Context) -> Tensor:
        pairs, targets, config = self.adapted(context), context.targets, self.config
        rows = targets.on_map & (targets.centre_cell != 0) if config.valid_rows == "sentinel" else targets.on_map
        image, slot = rows.nonzero(as_tuple=True)
        scales = [scale[image, slot] for scale in context.depth_log_scales]
        maps = [(s.tensor, t.tensor, image_stride(s)) for s, t in pairs]
        box2d = targets.box2d[image, slot]
        return selective_relation_loss(maps, box2d, image, scales[0], scales[1], config).float()


def paint_weights(
    context: Context, maps: list[FeatureMap], config: MonoSTLConfig
) -> list[tuple[Float[Tensor, "b _ _"], Bool[Tensor, "b _ _"]]]:
    """For each map how much of each cell to take over (``transfer_weight`` of the object there), and where objects are;
    both 0 outside the boxes."""
    targets: SelectiveTargets = context.targets
    value = transfer_weight(*context.depth_log_scales, config.fd_weight)
    if config.valid_rows == "sentinel":
        value = torch.where(targets.centre_cell == 0, SENTINEL_WEIGHT, value)
    order = targets.distance.argsort(dim=1, descending=True) if config.overlap == "nearest" else None
    sizes = [(m.tensor.shape[-2], m.tensor.shape[-1]) for m in maps]
    return [
        paint_boxes(value, targets.box2d, targets.on_map, image_stride(m), size, config.box_slice, order)
        for m, size in zip(maps, sizes, strict=True)
    ]


def transfer_weight(
    student: Float[Tensor, "b k"], teacher: Float[Tensor, "b k"], select: Selection
) -> Float[Tensor, "b k"]:
    """How much of an object's features to take over, 0..1, from the log scales s of its depth: 1 - min(1, exp(-s)) of
    the student, or min(1, exp(-s)) of the teacher, or 1.  No gradient."""
    if select == "none":
        return torch.ones_like(student)
    if select == "student":
        return 1 - torch.exp(-student.detach()).clamp(max=1)
    return torch.exp(-teacher.detach()).clamp(max=1)


@full_precision
def selective_feature_loss(
    pairs: list[tuple[Float[Tensor, "b _ _ _"], Float[Tensor, "b _ _ _"]]],
    painted: list[tuple[Float[Tensor, "b _ _"], Bool[Tensor, "b _ _"]]],
    divisor: float,
) -> Float[Tensor, ""]:
    """sum over levels of  sum_p w(p) n(p) mean_c (S - T)^2 / 2  /  sum_p m(p) n(p)  /  ``divisor``.

    Cells p run over all images; w, m: weight and mask as ``paint_boxes`` gives them; n: the teacher is not 0 in every
    channel.  The divisor counts cells, not weights, so a batch that the student is sure of teaches little.  Teacher
    entries that are NaN count as equal to the student.  0 where no cell is left.  (compute_backbone_weight_l1_loss.)
    """
    levels = []
    for (student, teacher), (weight, mask) in zip(pairs, painted, strict=True):
        error = (torch.where(teacher.isnan(), 0, student - teacher) ** 2 / 2).mean(1)
        cells = mask & (teacher != 0).any(1)
        levels.append((error * weight * cells).sum() / cells.sum().clamp(min=1))
    return torch.stack(levels).sum() / divisor


@full_precision
def selective_relation_loss(
    maps: list[tuple[Float[Tensor, "b _ _ _"], Float[Tensor, "b _ _ _"], int]],
    box2d: Float[Tensor, "n 4"],
    image: Int[Tensor, " n"],
    student_log_scale: Float[Tensor, " n"],
    teacher_log_scale: Float[Tensor, " n"],
    config: MonoSTLConfig,
) -> Float[Tensor, ""]:
    """sum over levels of mean_ij |A_S - A_T| / 2 over the pairs of K objects, by ``rd_norm`` divided by K² again.

    A = G / U + log U with G = R Rᵀ, R (K, 49 C) the RoI features of the objects' boxes (canvas px) in one network's
    map, U_ij = u_i² + u_j² and u = exp(s).  With the teacher's U on both sides log U cancels.  Without uncertainty the
    factor 1/2 falls away, too, as in the released ablation.  maps: (student, teacher, stride).  0 for no object.
    (compute_backbone_roi_uncertainty_affinity_loss, compute_backbone_roi_affinity_loss.)
    """
    related = torch.ones(len(image), len(image), dtype=torch.bool, device=image.device)
    if config.rd_scope == "image":
        related = image[:, None] == image
    # Scales of an untrained network overflow the square; beyond e^30 a pair counts for nothing anyway.
    spread = [torch.exp(2 * s.detach().clamp(max=30)) for s in (student_log_scale, teacher_log_scale)]
    of_student, of_teacher = (u[:, None] + u for u in spread)
    if config.rd_uncertainty == "teacher_both":
        of_student = of_teacher
    levels = []
    for student, teacher, stride in maps:
        grams = [_roi_gram(features, box2d / stride, image, config.rd_norm) for features in (student, teacher)]
        if config.rd_uncertainty == "none":
            difference = (grams[0] - grams[1]).abs()
        else:
            difference = ((grams[0] / of_student - grams[1] / of_teacher) + (of_student / of_teacher).log()).abs() / 2
        levels.append((difference * related).sum() / related.sum().clamp(min=1))
    total = torch.stack(levels).sum()
    return total / max(len(image), 1) ** 2 if config.rd_norm == "mean_over_k2" else total


def _roi_gram(
    maps: Float[Tensor, "b c h w"], boxes: Float[Tensor, "n 4"], image: Int[Tensor, " n"], norm: RelationNorm
) -> Float[Tensor, "n n"]:
    """Inner products of the objects' RoI features; boxes in cells."""
    rows = torch.cat((image[:, None].to(maps), boxes.to(maps)), dim=1)
    features = roi_align(maps, rows, ROI_CELLS, aligned=True).flatten(1)
    if norm == "cosine":
        features = F.normalize(features, dim=1)
    return features @ features.T
