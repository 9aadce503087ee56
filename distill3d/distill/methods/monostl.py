"""MonoSTL: transfer only where the student is unsure of its depth, and relate objects by how sure the teacher is.

Selective transfer for monocular 3D detection, arXiv:2603.07464; released code DingCodeLab/MonoSTL (commit 2f761c9),
lib/losses/{feature,head}_distill_loss.py and lib/models/centernet3d_distill.py.  Fusion, adapters and response are
MonoDistill's.  With s the log scale that a detector gives its depth at an object, and c = exp(-s):

    L = L_detection + 10 L_DASFD + 1 L_DASRD + 1 L_response           from the first iteration, without a schedule

DASFD (features): inside an object's box the squared error counts by 1 - c of the student, c cut to 0..1.  An object
whose depth the student trusts (s <= 0) is left alone.
DASRD (relations): G = R Rᵀ of all objects' RoI features, divided by U_ij = u_i² + u_j² with u = 1 / c of the teacher.
No gradient flows through s.

On surround views, where the paper claims a result of which nothing could be obtained, all is inferred: student and
teacher are BEVDepth, or BEVDet in BEVDepth's view, for in its own it has no depth that anything supervises; the teacher
has the LiDAR's depth as input ("a teacher of similar architecture"), taps are its maps of the ground, and an object's
region is the axis-aligned rectangle about its footprint there, in whole cells for DASFD.  Objects whose centre no
camera shows are left out.  Such a teacher predicts no depth: it has no s and is asked for none (``GROUND``); its u
would be alike for all objects, and U a constant.  Relations are compared as cosines within a moment, because no weight
was tuned for their released normalisation, which depends on how many objects there are.  Centre heads have no response
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.data.surround import SurroundBatch
from distill3d.detectors.base import FeatureMap
from distill3d.detectors.monodle import DepthEncoding
from distill3d.distill.adapters import AdaptedTaps
from distill3d.distill.context import Context
from distill3d.distill.distances import Empty
from distill3d.distill.masks import (
    SeenTargets,
    SelectiveTargets,
    SliceRule,
    footprint_boxes,
    ground_geometry,
    image_stride,
    paint_boxes,
    whole_cells,
)
from distill3d.distill.precision import full_precision
from distill3d.distill.responses import ResponseMask, ResponseTerm
from distill3d.distill.style import ObjectsConfig, option
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.settings import Channels, Divisor, Weight
from distill3d.transfers import places

#: Weight of a box whose object lies in cell 0, which the released code takes for an empty slot.
SENTINEL_WEIGHT = 0.01
#: Cells along each side of an object's RoI features.
ROI_CELLS = 7

Selection = Literal["student", "teacher", "none"]
RelationUncertainty = Literal["teacher_both", "own_side", "none"]
RelationNorm = Literal["mean_over_k2", "mean", "cosine"]


@dataclass(frozen=True)
class MonoSTLConfig(ObjectsConfig):
    """Weights and taps of the released code, and one option for each point where it and the intention differ.

    A term of weight 0 is left out.
    """

    feature_weight: Weight = 10.0
    relation_weight: Weight = 1.0
    response_weight: Weight = 1.0
    taps: tuple[str, ...] = ("backbone_8", "backbone_16", "backbone_32")  # compared, from fine to coarse
    fusion_taps: tuple[str, ...] = ("backbone_8", "backbone_16", "backbone_32")  # fused before the adapters
    fusion_channels: Channels = 512

    fd_weight: Selection = "student"  # whose uncertainty selects features; ``teacher``: by c, ``none``: all alike
    fd_divisor: Divisor = 10.0  # of L_DASFD; it cancels the weight
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


#: The settings on surround views, see above; finer maps first.
GROUND: dict[str, Any] = {
    "taps": ("bev_neck", "bev_stage1"), "fusion_taps": ("bev_neck", "bev_stage1"), "response_weight": 0.0,
    "fd_weight": "student", "rd_uncertainty": "none", "rd_norm": "cosine", "rd_scope": "image",
}  # fmt: skip


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
        pairs, config = self.adapted(context), self.config
        found = regions(context, [s for s, _ in pairs], config)
        ((image, slot),) = places(found.known & ~found.sentinel)
        student, teacher = (scale[image, slot] for scale in log_scales(context, config.rd_uncertainty, found))
        maps = [(s.tensor, t.tensor, cell) for (s, t), cell in zip(pairs, found.cells, strict=True)]
        return selective_relation_loss(maps, found.box[image, slot], image, student, teacher, config).float()


@dataclass(frozen=True)
class Regions:
    """Where the labelled objects lie on a student's maps, by slot of its targets."""

    box: Float[Tensor, "b k 4"]  # left, top, right, bottom: canvas px, or m from the ground's lower corner
    cells: tuple[float, ...]  # in that unit, of each map
    known: Bool[Tensor, "b k"]  # objects whose depth the student speaks of
    distance: Float[Tensor, "b k"]  # m
    sentinel: Bool[Tensor, "b k"]  # known, but as released taken for an empty slot; nowhere with ``valid_rows`` mask
    on_ground: bool


def regions(context: Context, maps: list[FeatureMap], config: MonoSTLConfig) -> Regions:
    """The objects of a batch on the maps of one detector.

    Raises:
        UserError: on surround views, there are no annotations, or options ask for what is not there.
        ValueError: the maps do not lie where the batch's objects do, or on grounds of several extents.
    """
    if isinstance(context.batch, SurroundBatch):
        return _ground_regions(context.batch, context.targets, maps, config)
    targets: SelectiveTargets = context.targets
    sentinel = (targets.centre_cell == 0) & (config.valid_rows == "sentinel")
    cells = tuple(image_stride(m) for m in maps)
    return Regions(targets.box2d, cells, targets.on_map, targets.distance, sentinel, on_ground=False)


def _ground_regions(batch: SurroundBatch, targets: Any, maps: list[FeatureMap], config: MonoSTLConfig) -> Regions:
    objects = batch.objects
    if config.response_weight != 0:
        raise UserError("monostl: its response compares image heads; on surround views set response_weight to 0")
    if config.valid_rows == "sentinel" or config.box_slice == "python":
        raise UserError(
            "monostl: released quirks of images have no meaning on the ground: set valid_rows to 'mask' and box_slice "
            "to 'clamp'"
        )
    if objects is None or not isinstance(targets, SeenTargets) or targets.seen_at is None:
        raise UserError(
            "monostl looks at labelled objects that cameras show: it needs annotations, and BEVDepth or BEVDet"
        )
    geometries = [ground_geometry(m) for m in maps]
    extents = {g.extent for g in geometries}
    if len(extents) != 1:
        raise ValueError(f"maps of the ground must have one extent, these have {sorted(extents)}")
    known = objects.present & (targets.seen_at >= 0)
    box, distance = footprint_boxes(objects, extents.pop()), objects.centre[..., :2].norm(dim=-1)
    cells = tuple(g.cell for g in geometries)
    return Regions(box, cells, known, distance, torch.zeros_like(known), on_ground=True)


def log_scales(
    context: Context, who: Selection | RelationUncertainty, found: Regions
) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
    """The log scales of depth of student and teacher; of one that ``who`` has no use for zeros, for it is not asked.

    Raises:
        UserError: one that is asked predicts no uncertainty of depth.
    """
    unasked = torch.zeros_like(found.distance)
    try:
        return (
            context.student_log_scale if who in ("student", "own_side") else unasked,
            context.teacher_log_scale if who in ("teacher", "teacher_both", "own_side") else unasked,
        )
    except NotImplementedError as error:
        raise UserError(
            f"monostl: {error}: let fd_weight and rd_uncertainty ask only who says, or nobody ('none')"
        ) from error


def paint_weights(
    context: Context, maps: list[FeatureMap], config: MonoSTLConfig
) -> list[tuple[Float[Tensor, "b _ _"], Bool[Tensor, "b _ _"]]]:
    """For each map how much of each cell to take over (``transfer_weight`` of the object there), and where objects are;
    both 0 outside the boxes."""
    found = regions(context, maps, config)
    value = transfer_weight(*log_scales(context, config.fd_weight, found), config.fd_weight)
    value = torch.where(found.sentinel, SENTINEL_WEIGHT, value)
    order = found.distance.argsort(dim=1, descending=True) if config.overlap == "nearest" else None
    painted = []
    for m, cell in zip(maps, found.cells, strict=True):
        size = (m.tensor.shape[-2], m.tensor.shape[-1])
        edges = whole_cells(found.box, cell) if found.on_ground else found.box / cell
        painted.append(paint_boxes(value, edges, found.known, 1, size, config.box_slice, order))
    return painted


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
    maps: list[tuple[Float[Tensor, "b _ _ _"], Float[Tensor, "b _ _ _"], float]],
    box2d: Float[Tensor, "n 4"],
    image: Int[Tensor, " n"],
    student_log_scale: Float[Tensor, " n"],
    teacher_log_scale: Float[Tensor, " n"],
    config: MonoSTLConfig,
) -> Float[Tensor, ""]:
    """sum over levels of mean_ij |A_S - A_T| / 2 over the pairs of K objects, by ``rd_norm`` divided by K² again.

    A = G / U + log U with G = R Rᵀ, R (K, 49 C) the RoI features of the objects' boxes in one network's map,
    U_ij = u_i² + u_j² and u = exp(s).  With the teacher's U on both sides log U cancels.  Without uncertainty the
    factor 1/2 falls away, too, as in the released ablation.  maps: (student, teacher, a cell in the unit of ``box2d``,
    which is canvas px or m).  0 for no object.  (compute_backbone_roi_uncertainty_affinity_loss,
    compute_backbone_roi_affinity_loss.)
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
    for student, teacher, cell in maps:
        grams = [_roi_gram(features, box2d / cell, image, config.rd_norm) for features in (student, teacher)]
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
    from torchvision.ops import roi_align

    rows = torch.cat((image[:, None].to(maps), boxes.to(maps)), dim=1)
    features = roi_align(maps, rows, ROI_CELLS, aligned=True).flatten(1)
    if norm == "cosine":
        features = F.normalize(features, dim=1)
    return features @ features.T
