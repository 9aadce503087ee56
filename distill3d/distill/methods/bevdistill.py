"""BEVDistill: a camera student of queries imitates a LiDAR teacher's map where objects are, its boxes, and its places.

Chen et al., "BEVDistill: Cross-Modal BEV Distillation for Multi-View 3D Object Detection", ICLR 2023,
arXiv:2211.09386; released code zehuichen123/BEVDistill, projects/mmdet3d_plugin/distillation/distillers/
bev_distiller.py, bevformer/dense_heads/bevformer_distill_head.py, models/cl_heads/moco_cl_head.py.  S and T are maps of
student and teacher, a(S) what the first convolution of an auxiliary heat-map head makes of S, H the Gaussians of all
boxes; b_lq and c_lq are box code and class logits of query q in decoder layer l, (b*_k, p*_k) code and class
probabilities of the teacher's k-th box, q_k = max p*_k its quality, and k(q) the box that is matched to a query:

    L = L_det + 1 L_heat + 0.01 L_dense + L_instance + 0.2 L_contrastive
    L_heat     = penalty-reduced focal loss of the auxiliary head's heat maps / max(1, peaks)
    L_dense    = sum_b,y,x H sum_c (a(S) - T)^2 / sum_b,y,x H
    L_instance = sum_l w_class L_class(l) + 0.25 sum_q w |b_lq - b*_k(q)| u_k(q) / sum_q q_k(q)       u = q^2 or q
        cost   = sum_c BCE(c_lq, p*_k) + 0.25 |b_lq - b*_k| of all numbers but the velocity; one matching a layer
        L_class as released: BCE of ALL queries / matched ones, where the targets of those unmatched are 10, with
                w_class = 0; intended: sum of KL(p*_k(q) || c_lq) / matched queries, w_class = 1
    L_contrastive = - mean_i log softmax_j (g(T_i) . f(S_j) / 0.07) at j = i

i and j run over the centres that all queries of all layers predict, without gradient; f and g are projections to unit
vectors.  As released, the same query of another layer counts against itself, and T looks for S alone; intended, such
pairs are left out and S looks for T too.  The head's bias is released with the sign lost, so that every cell begins as
an object of every class.  The paper's quality, score^g IoU^(1-g), is in no released code and not here.

The released teacher has queries too.  Ours is a CenterPoint: its ``top_k`` best peaks are its boxes, with the
probabilities of all classes in the peak's cell for soft scores (distill/centre_points.py), and T is a tap of it instead
of what an auxiliary head of its own makes of one.  So may a student with a centre head be asked for its peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill3d.boxes import NUSCENES_CLASSES
from distill3d.detectors.base import BevGeometry, FeatureMap
from distill3d.distill.adapters import AdaptedOnce, in_dtype_of
from distill3d.distill.centre_points import class_order, detections, places_on
from distill3d.distill.context import Context, refuse_absent_taps, tapped
from distill3d.distill.distances import Empty, weighted_mean
from distill3d.distill.map_reading import cells_of, read_at
from distill3d.distill.masks import ground_geometry
from distill3d.distill.precision import full_precision
from distill3d.distill.relations import resized
from distill3d.distill.style import StyledConfig, option
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.distributed import across_processes
from distill3d.layers.heads.centre_head import (
    BOX_BRANCHES,
    CODE,
    HEAT_BIAS,
    CentreHeadConfig,
    centre_targets,
    heat_loss,
    heat_normaliser,
)
from distill3d.layers.heads.matching import UNMATCHED, assign
from distill3d.settings import Between, Channels, Count, Number, Weight
from distill3d.transfers import constant

#: Numbers of a box code that the matching looks at: all but the velocity.
MATCHED_CODE = CODE - BOX_BRANCHES["vel"]
#: The target that released code gives each class of a query without a box.
RELEASED_UNMATCHED = 10.0
#: Least sum of qualities, or number of boxes, that box errors are divided by.
LEAST_QUALITY = 1e-6
#: The fewest rows of which batch norm knows a variance.
LEAST_ROWS = 2

#: Where maps are compared: under the Gaussians of objects, everywhere alike, or at the predicted centres.
Weighting = Literal["gaussian", "uniform", "points"]
ClassForm = Literal["all_queries", "matched"]
#: What a box's error counts: q^2, q (both over the sum of q), or 1 (over their number).
Quality = Literal["squared", "once", "none"]
Directions = Literal["one", "both"]
SameQuery = Literal["negative", "left_out"]


@dataclass(frozen=True)
class BEVDistillConfig(StyledConfig):
    """Weights of the released configurations, and one option for each point where code and intention differ.

    A term of weight 0 is left out.
    """

    teacher: str | None = None  # its stage; None: the only one
    tap: str = "bev_neck"
    teacher_tap: str = "bev_neck"
    classes: tuple[str, ...] = NUSCENES_CLASSES  # of the auxiliary heat maps
    # the maps
    heat_weight: Weight = 1.0
    dense_weight: Weight = 0.01
    weighting: Weighting = "gaussian"
    no_object: Empty = option(released="nan", intended="zero", default="zero")  # L_dense of a batch without objects
    heat_bias: Annotated[float, Between(-20, 20)] = option(
        released=-HEAT_BIAS, intended=HEAT_BIAS, default=HEAT_BIAS
    )  # of the auxiliary head's last convolution
    heat_channels: Channels = 64
    radius_overlap: Annotated[float, Between(0, 1, above=True)] = 0.1
    min_radius: Count = 1  # cells
    # the boxes
    instance_weight: Weight = 1.0  # of both
    top_k: Number = 50
    class_weight: Weight = option(released=0.0, intended=1.0, default=1.0)
    class_form: ClassForm = option(released="all_queries", intended="matched", default="matched")
    box_weight: Weight = 0.25
    quality: Quality = option(released="squared", intended="once", default="once")
    cost_class: Weight = 1.0
    cost_box: Weight = 0.25
    #: In the order of ``Detections.code``.
    code_weights: tuple[Weight, ...] = (*(1.0,) * MATCHED_CODE, 0.2, 0.2)
    # the places
    contrastive_weight: Weight = 0.2
    temperature: Annotated[float, Between(1e-4, 1e3)] = 0.07
    embedding: Channels = 512
    directions: Directions = option(released="one", intended="both", default="both")
    same_query: SameQuery = option(released="negative", intended="left_out", default="left_out")
    peaks: Number = 200  # of a student with a centre head


def terms(config: BEVDistillConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """The four terms, as far as their weights are not 0; the first two share the auxiliary head.

    Raises:
        UserError: a tap is missing that a term looks at, or a weight of a box's numbers.
    """
    if len(config.code_weights) != CODE:
        raise UserError(f"bevdistill: a box has {CODE} values, got {len(config.code_weights)} code weights")
    parts: list[Term] = []
    if config.heat_weight or config.dense_weight or config.contrastive_weight:
        refuse_absent_taps("bevdistill", (config.tap,), (config.teacher_tap,), student_channels, teacher_channels)
        widths = student_channels[config.tap], teacher_channels[config.teacher_tap]
        head = AuxiliaryHead(*widths, config.heat_channels, len(config.classes), config.heat_bias)
        shared = SharedMap(config.tap, head.shared)
        parts += [HeatTerm(config, head, shared), DenseTerm(config, shared), ContrastiveTerm(config, *widths)]
    parts.insert(2, InstanceTerm(config))
    return [term for term in parts if term.weight != 0]


# ------------------------------------------------------------------------------------------------------------- the maps


class AuxiliaryHead(nn.Module):
    """Heat maps of box centres from the student's map; its first convolution, ``shared``, is what L_dense compares."""

    def __init__(self, channels_in: int, shared: int, channels: int, classes: int, bias: float) -> None:
        super().__init__()
        self.shared = _conv_norm(channels_in, shared)
        last = nn.Conv2d(channels, classes, 3, padding=1)
        assert last.bias is not None
        nn.init.constant_(last.bias, bias)
        self.heatmap = nn.Sequential(_conv_norm(shared, channels), _conv_norm(channels, channels), last)

    def forward(self, maps: Float[Tensor, "b c y x"]) -> Float[Tensor, "b k y x"]:
        """Logits."""
        return self.heatmap(self.shared(maps))


class SharedMap(AdaptedOnce[Tensor]):
    """The student's map ``tap`` behind the auxiliary head's first convolution, which two terms look at."""

    def __init__(self, tap: str, layers: nn.Module) -> None:
        super().__init__()
        self.tap, self.layers = tap, layers

    def adapt(self, context: Context) -> list[Tensor]:
        student = tapped(self.tap, context.student, "student")
        return [self.layers(in_dtype_of(student.tensor, self.layers))]


def _conv_norm(channels_in: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class HeatTerm(Term):
    """L_heat.  Couples the batch: a sum over its cells divided by its number of peaks, the mean over processes."""

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: BEVDistillConfig, head: AuxiliaryHead, shared: SharedMap) -> None:
        super().__init__("auxiliary_heat", config.heat_weight)
        self.config = config
        self.head = head
        self.shared = shared

    def forward(self, context: Context) -> Tensor:
        student = tapped(self.config.tap, context.student, "student")
        head, target = labelled_heatmap(context, student, self.config)
        (said,) = self.shared(context)
        return auxiliary_loss(self.head.heatmap(said), target, head).float()


class DenseTerm(Term):
    """L_dense.  Couples the batch: a sum over its cells divided by its sum of weights; under data parallelism each
    process divides by its own."""

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: BEVDistillConfig, shared: SharedMap) -> None:
        super().__init__("dense", config.dense_weight)
        self.config = config
        self.shared = shared

    def forward(self, context: Context) -> Tensor:
        config = self.config
        student = tapped(config.tap, context.student, "student")
        teacher = tapped(config.teacher_tap, context.named(config.teacher), "teacher")
        geometry = ground_geometry(student)
        if geometry.extent != ground_geometry(teacher).extent:
            raise UserError(
                f"bevdistill compares maps of one part of the ground: {config.tap!r} covers {geometry.extent} m in the "
                f"student and {config.teacher_tap!r} {ground_geometry(teacher).extent} m in the teacher"
            )
        (said,) = self.shared(context)
        taught = resized(teacher.tensor.detach(), (said.shape[-2], said.shape[-1]))
        if config.weighting == "points":
            found = detections(context.student, context.student_detector, config.peaks, "student")
            place = places_on(found.code[..., :2].detach(), geometry)
            return point_loss(said, taught, place.flatten(1, 2)).float()
        weight = None
        if config.weighting == "gaussian":
            weight = foreground(labelled_heatmap(context, student, config)[1])
        return dense_loss(said, taught, weight, config.no_object).float()


def labelled_heatmap(
    context: Context, student: FeatureMap, config: BEVDistillConfig
) -> tuple[CentreHeadConfig, Float[Tensor, "b k y x"]]:
    """The auxiliary head as a centre head of one task on the student's map, and its heat maps of the batch's objects.

    Raises:
        UserError: the batch has no annotations, or the data set lacks a class of the heat maps.
    """
    if context.batch.objects is None:
        raise UserError("bevdistill looks at labelled objects: it needs annotations")
    geometry, detector = ground_geometry(student), context.student_detector
    assert detector is not None
    names = detector.config.classes
    if missing := [name for name in config.classes if name not in names]:
        raise UserError(
            f"bevdistill: the data set has no class {missing[0]!r}, set classes to some of {', '.join(names)}"
        )
    head = auxiliary_settings(config, geometry)
    return head, centre_targets(head, context.batch.objects, names).heatmap


def auxiliary_settings(config: BEVDistillConfig, geometry: BevGeometry) -> CentreHeadConfig:
    """One task of all classes on this map; boxes are never decoded."""
    return CentreHeadConfig(
        tasks=(config.classes,), extent=geometry.extent, cell=geometry.cell, radius_overlap=config.radius_overlap,
        min_radius=config.min_radius, nms="size_aware",
    )  # fmt: skip


@full_precision
def auxiliary_loss(
    logits: Float[Tensor, "b k y x"], target: Float[Tensor, "b k y x"], head: CentreHeadConfig
) -> Float[Tensor, ""]:
    """The penalty-reduced focal loss, summed over cells and classes, divided by the number of peaks, at least 1."""
    return heat_loss(logits.sigmoid(), target, heat_normaliser(target, head))


def foreground(heatmap: Float[Tensor, "b k y x"]) -> Float[Tensor, "b 1 y x"]:
    """H: the Gaussians of all boxes, whatever their class; the largest where they overlap."""
    return heatmap.amax(1, keepdim=True)


@full_precision
def dense_loss(
    student: Float[Tensor, "b c y x"],
    teacher: Float[Tensor, "b c y x"],
    weight: Float[Tensor, "b 1 y x"] | None,
    empty: Empty = "zero",
) -> Float[Tensor, ""]:
    """sum_b,y,x H sum_c (S - T)^2 / sum_b,y,x H, not divided by channels; H = 1 where ``weight`` is None."""
    error = (student - teacher).square().sum(1, keepdim=True)
    return weighted_mean(error, student.new_ones(()) if weight is None else weight, empty)


@full_precision
def point_loss(
    student: Float[Tensor, "b c y x"], teacher: Float[Tensor, "b c y x"], place: Float[Tensor, "b n 2"]
) -> Float[Tensor, ""]:
    """(S - T)^2 at places (0..1 over the map), mean over samples, places and channels."""
    said, taught = (read_at(maps, cells_of(place, maps)) for maps in (student, teacher))
    return F.mse_loss(said, taught)


# ------------------------------------------------------------------------------------------------------------ the boxes


class InstanceTerm(Term):
    """L_instance, the sum of ``instance_losses`` with their weights.

    Couples the batch: sums over its matched boxes divided by their number or qualities, the means over processes.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: BEVDistillConfig) -> None:
        super().__init__("instance", config.instance_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        config = self.config
        said = detections(context.student, context.student_detector, config.peaks, "student")
        detector = context.detector_named(config.teacher)
        taught = detections(context.named(config.teacher), detector, config.top_k, "teacher")
        order = class_order(said.classes, taught.classes, "teacher")
        logits = taught.logits[:, -1].detach()[..., constant(order, taught.logits, torch.int64)]
        scores, code = best_boxes(logits, taught.code[:, -1].detach(), config.top_k)
        losses = instance_losses(said.logits, said.code, scores, code, config)
        return (config.class_weight * losses["class"] + config.box_weight * losses["box"]).sum().float()


@full_precision
def best_boxes(
    logits: Float[Tensor, "b n k"], code: Float[Tensor, "b n 10"], count: int
) -> tuple[Float[Tensor, "b m k"], Float[Tensor, "b m 10"]]:
    """Class probabilities and codes of the ``count`` boxes whose best class is most probable, best first; of their sine
    and cosine the direction alone is kept."""
    scores = logits.sigmoid()
    best = scores.amax(-1).topk(min(count, scores.shape[1]), dim=1).indices[..., None]
    scores, code = (v.gather(1, best.expand(-1, -1, v.shape[-1])) for v in (scores, code))
    before, turn, velocity = code.split((6, BOX_BRANCHES["rot"], BOX_BRANCHES["vel"]), dim=-1)
    return scores, torch.cat((before, F.normalize(turn, dim=-1), velocity), dim=-1)


@torch.no_grad()
@full_precision
def matching_costs(
    logits: Float[Tensor, "b l q k"], code: Float[Tensor, "b l q 10"],
    scores: Float[Tensor, "b m k"], boxes: Float[Tensor, "b m 10"], config: BEVDistillConfig,
) -> tuple[Float[Tensor, "b l q m"], Float[Tensor, "b l q m"]]:  # fmt: skip
    """What each query costs for each of the teacher's boxes: the cross-entropy with its scores, summed over classes,
    and the L1 distance (m, logarithms and directions alike) of all numbers but the velocity."""
    entropy = F.softplus(logits).sum(-1, keepdim=True) - logits @ scores[:, None].mT
    distance = torch.cdist(code[..., :MATCHED_CODE], boxes[:, None, :, :MATCHED_CODE], p=1)
    return config.cost_class * entropy, config.cost_box * distance


def matched_queries(
    logits: Float[Tensor, "b l q k"], code: Float[Tensor, "b l q 10"],
    scores: Float[Tensor, "b m k"], boxes: Float[Tensor, "b m 10"], config: BEVDistillConfig,
) -> Int[Tensor, "b l m"]:  # fmt: skip
    """The query of each of the teacher's boxes in each layer, ``UNMATCHED`` where there are more boxes than queries."""
    cost = torch.stack(matching_costs(logits, code, scores, boxes, config)).sum(0)
    everything = torch.ones(cost.shape[0] * cost.shape[1], cost.shape[-1], dtype=torch.bool, device=cost.device)
    return assign(cost.flatten(0, 1), everything).unflatten(0, cost.shape[:2])


@full_precision
def instance_losses(
    logits: Float[Tensor, "b l q k"], code: Float[Tensor, "b l q 10"],
    scores: Float[Tensor, "b m k"], boxes: Float[Tensor, "b m 10"], config: BEVDistillConfig,
) -> dict[str, Float[Tensor, "l"]]:  # fmt: skip
    """``class`` and ``box`` of each layer, without their weights; sums over samples, divided as written above."""
    query = matched_queries(logits, code, scores, boxes, config)
    found, query = query != UNMATCHED, query.clamp(min=0)
    said_logits, said_code = (
        v.gather(2, query[..., None].expand(-1, -1, -1, v.shape[-1])) for v in (logits, code)
    )  # (b, l, m, .)
    count = across_processes(found.sum((0, 2)).to(logits)).clamp(min=LEAST_QUALITY)
    target = scores[:, None].expand_as(said_logits)
    if config.class_form == "matched":
        entropy = F.binary_cross_entropy(target, target, reduction="none")
        apart = F.binary_cross_entropy_with_logits(said_logits, target, reduction="none") - entropy
        of_class = torch.where(found, apart.sum(-1), 0).sum((0, 2)) / count
    else:
        of_query = _at_queries(target, query, found, logits)
        of_class = F.binary_cross_entropy_with_logits(logits, of_query, reduction="none").sum((0, 2, 3)) / count
    error = ((said_code - boxes[:, None]).abs() * constant(config.code_weights, code)).sum(-1)
    quality = scores.amax(-1)[:, None] * found
    worth = {"squared": quality.square(), "once": quality, "none": found.to(quality)}[config.quality]
    divisor = worth if config.quality == "none" else quality
    share = across_processes(divisor.sum((0, 2))).clamp(min=LEAST_QUALITY)
    return {"class": of_class, "box": torch.where(found, error * worth, 0).sum((0, 2)) / share}


def _at_queries(
    target: Float[Tensor, "b l m k"], query: Int[Tensor, "b l m"], found: Bool[Tensor, "b l m"],
    logits: Float[Tensor, "b l q k"],
) -> Float[Tensor, "b l q k"]:  # fmt: skip
    """The released targets of all queries: the scores of their box, ``RELEASED_UNMATCHED`` for those without."""
    queries = logits.shape[2]
    rows = logits.new_full((*logits.shape[:2], queries + 1, logits.shape[3]), RELEASED_UNMATCHED)
    at = torch.where(found, query, queries)[..., None].expand_as(target)  # boxes without a query go to a row of none
    return rows.scatter(2, at, target)[:, :, :queries]


# ----------------------------------------------------------------------------------------------------------- the places


class Projector(nn.Module):
    """Features (n, C) to unit vectors (n, m): a linear layer, then linear, batch norm, ReLU and linear."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.project = nn.Linear(channels, embedding)
        self.inner = nn.Linear(embedding, embedding)
        #: Of rows; as a norm of pictures of one pixel it is shared between processes where others are.
        self.norm = nn.BatchNorm2d(embedding)
        self.outer = nn.Linear(embedding, embedding)

    def forward(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "n m"]:
        inner = self.norm(self.inner(self.project(x))[..., None, None])[..., 0, 0]
        return F.normalize(self.outer(inner.relu()), dim=-1)


class ContrastiveTerm(Term):
    """L_contrastive, see ``contrastive_loss``; 0 with fewer than two places.

    Couples the batch: every place counts against all others, those of other samples too; under data parallelism each
    process has its own.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: BEVDistillConfig, channels: int, teacher_channels: int) -> None:
        super().__init__("contrastive", config.contrastive_weight)
        self.config = config
        self.student = Projector(channels, config.embedding)
        self.teacher = Projector(teacher_channels, config.embedding)

    def forward(self, context: Context) -> Tensor:
        config = self.config
        student = tapped(config.tap, context.student, "student")
        teacher = tapped(config.teacher_tap, context.named(config.teacher), "teacher")
        found = detections(context.student, context.student_detector, config.peaks, "student")
        rows, layers = [], found.code.shape[1]
        for m, project in ((student, self.student), (teacher, self.teacher)):
            place = places_on(found.code[..., :2].detach(), ground_geometry(m)).flatten(1, 2)
            maps = m.tensor if m is student else m.tensor.detach()
            read = read_at(maps, cells_of(place, maps)).flatten(0, 1)
            if len(read) < LEAST_ROWS:
                return read.sum().float() * 0
            rows.append(project(read))
        return contrastive_loss(rows[0], rows[1], layers, len(student.tensor), config).float()


@full_precision
def contrastive_loss(
    student: Float[Tensor, "n m"], teacher: Float[Tensor, "n m"], layers: int, samples: int, config: BEVDistillConfig
) -> Float[Tensor, ""]:
    """The cross-entropy of finding each place again, mean over places; with ``both`` directions their mean.

    Rows are unit vectors, those of a sample one after the other, its layers one after the other within.
    """
    logits = teacher @ student.mT / config.temperature
    if config.same_query == "left_out":
        queries = len(logits) // (samples * layers)
        row = torch.arange(len(logits), device=logits.device)
        name = row // (layers * queries) * queries + row % queries  # of sample and query, whatever the layer
        same = (name[:, None] == name) & (row[:, None] != row)
        logits = logits.masked_fill(same, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    found = F.cross_entropy(logits, target)
    return found if config.directions == "one" else (found + F.cross_entropy(logits.mT, target)) / 2
