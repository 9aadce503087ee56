"""UniDistill: a detector of one modality imitates that of another on the ground, at nine points of each labelled box.

UniDistill, CVPR 2023, arXiv:2303.15083; released code megvii-research/CVPR2023-UniDistill, unidistill/exps/
multisensor_fusion/nuscenes/BEVFusion/BEVFusion_nuscenes_centerhead_*_exp_distill_*.py (FeatureDistillLoss,
BEVDistillLoss, ResponseDistillLoss, calculate_box_mask_gaussian).  S and T are student and teacher, s and t what their
maps say at nine points of a box (corners, centre, middles of the edges), g Gaussians at the boxes' centres, n the boxes
of the batch, p probabilities of heat maps, r the box numbers of all tasks.

    L = w_f L_feature + w_r L_relation + w_p (L_class + L_box)               w: see ``PAIRS``
    L_feature  = sum_boxes mean |s_low - t_low| / (n + 1e-4)                over points and channels; before the encoder
    L_relation = sum_boxes mean |G(s_high) - G(t_high)| / (n + 1e-4)        behind it; G the cosines of 9 x 9 points
    L_class = sum_cells g |max_k p_S - max_k p_T| / (sum g + 1e-4)          L_box = the same of mean |r_S - r_T|

As released, x and y are exchanged where maps are read, a sample without boxes counts as one with a box of no extent at
the vehicle, rows that pad the boxes of a batch paint the cell there, and the teacher's logits alone are halved.

Student and teacher are one detector there, so that their maps agree in width and nothing adapts them.  Where they do
not, as BEVDepth's and CenterPoint's, L_feature asks for ``adapter``; relations and responses have no widths in common
to lose.  Our heads predict no overlap, the eleventh number of r in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from distill3d.detectors.base import BevGeometry
from distill3d.distill.adapters import in_dtype_of
from distill3d.distill.box_points import (
    NINE_POINTS,
    EmptySample,
    Footprints,
    Reading,
    box_points,
    gram,
    labelled_footprints,
    positions,
)
from distill3d.distill.centre_responses import centre_predictions
from distill3d.distill.context import Context, refuse_absent_taps, same_grid
from distill3d.distill.map_reading import read_at
from distill3d.distill.masks import ground_geometry
from distill3d.distill.precision import full_precision
from distill3d.distill.style import StyledConfig, option
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.distributed import across_processes
from distill3d.layers.image.heatmap import cells_inside, clamped_sigmoid, draw_gaussians, gaussian_radius
from distill3d.settings import Between, Weight

#: What is added to every divisor, and to the lengths of features before cosines are taken.
EPS = 1e-4
#: What logits are divided by where they are softened.
TEMPERATURE = 2.0
#: IoU with its box that one keeps whose centre is moved by the Gaussian's radius.
RADIUS_OVERLAP = 0.7

Pair = Literal["camera_from_lidar", "camera_from_fusion", "lidar_from_camera", "lidar_from_fusion"]
Margin = Annotated[float, Between(0, 0.5, below=True)]
Temperature = Literal["teacher", "both", "none"]


@dataclass(frozen=True)
class PairSettings:
    """What the released code sets for one student and teacher."""

    feature: Weight
    relation: Weight
    response: Weight
    margin: Margin  # how far from 0 and 1 the teacher's probabilities are kept


#: Student from teacher.
PAIRS: dict[Pair, PairSettings] = {
    "camera_from_lidar": PairSettings(100.0, 40.0, 10.0, 1e-4),
    "camera_from_fusion": PairSettings(10.0, 5.0, 10.0, 1e-3),
    "lidar_from_camera": PairSettings(10.0, 5.0, 1.0, 1e-4),
    "lidar_from_fusion": PairSettings(10.0, 1.0, 10.0, 1e-4),
}


@dataclass(frozen=True)
class UniDistillConfig(StyledConfig):
    """Taps, weights, and one option for each point where released code and intention differ.

    A term of weight 0 is left out.
    """

    teacher: str | None = None  # its stage; None: the only one
    #: Which of ``PAIRS`` gives the weights and the margin that are None below.
    pair: Pair = "camera_from_lidar"
    feature_weight: Weight | None = None
    relation_weight: Weight | None = None
    response_weight: Weight | None = None
    teacher_margin: Margin | None = None
    #: Before and behind the network on the ground.
    low_tap: str = "bev"
    teacher_low_tap: str = "bev_low"
    high_tap: str = "bev_neck"
    teacher_high_tap: str = "bev_neck"
    #: ``pointwise``: a 1x1 convolution from the student's width at ``low_tap`` to the teacher's, for training only; not
    #: published.
    adapter: Literal["none", "pointwise"] = "none"
    #: Where in a map the points of a box are looked up.
    reading: Literal["exchanged", "centred"] = option(released="exchanged", intended="centred", default="centred")
    #: ``phantom``: a sample without boxes counts as one with a box of no extent at the vehicle.
    empty_sample: EmptySample = option(released="phantom", intended="skipped", default="skipped")
    #: ``painted``: rows that pad the boxes of a sample count in the response's mask, at the vehicle.
    padding: Literal["painted", "left_out"] = option(released="painted", intended="left_out", default="left_out")
    #: Whose logits are halved before probabilities are compared.
    temperature: Temperature = option(released="teacher", intended="none", default="none")

    @property
    def settings(self) -> PairSettings:
        """Those of the pair, as far as they are not set."""
        of_pair = PAIRS[self.pair]
        return PairSettings(
            of_pair.feature if self.feature_weight is None else self.feature_weight,
            of_pair.relation if self.relation_weight is None else self.relation_weight,
            of_pair.response if self.response_weight is None else self.response_weight,
            of_pair.margin if self.teacher_margin is None else self.teacher_margin,
        )


def terms(config: UniDistillConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """The feature term, with its adapter if it has one, the relation term and the response term.

    Raises:
        UserError: a tap is missing, or maps are to be compared channel by channel that differ in width.
    """
    settings, found = config.settings, list[Term]()
    if settings.feature != 0:
        found.append(FeatureTerm(config, student_channels, teacher_channels))
    if settings.relation != 0:
        found.append(RelationTerm(config, student_channels, teacher_channels))
    if settings.response != 0:
        found.append(ResponseTerm(config))
    return found


# -------------------------------------------------------------------------------------------------- features, relations


class PointTerm(Term):
    """What a student's map and a teacher's say at the nine points of each labelled box.

    Couples the batch: sums over its boxes divided by their number; under data parallelism by the mean number of all
    processes, so that their mean gradient is that of one process with the whole batch (but for ``EPS``).
    """

    couples_batch: ClassVar[bool] = True

    def __init__(
        self, name: str, weight: float, taps: tuple[str, str], config: UniDistillConfig,
        student_channels: dict[str, int], teacher_channels: dict[str, int],
    ) -> None:  # fmt: skip
        super().__init__(name, weight)
        self.config, self.taps = config, taps
        refuse_absent_taps("unidistill", taps[:1], taps[1:], student_channels, teacher_channels)

    def at_points(self, context: Context, adapter: nn.Module | None = None) -> tuple[Tensor, Tensor, Footprints]:
        """(B, M, 9, C) of both sides, the teacher's detached, and the boxes."""
        config, source = self.config, context.named(self.config.teacher)
        student, teacher = same_grid(self.taps[0], context.student, source, self.taps[1])
        geometry = ground_geometry(student)
        boxes = labelled_footprints(context, geometry, "unidistill", config.empty_sample)
        adapted = student.tensor if adapter is None else adapter(in_dtype_of(student.tensor, adapter))
        read = at_nine_points([adapted, teacher.tensor.detach()], boxes, geometry, config.reading)
        return read[0], read[1], boxes


class FeatureTerm(PointTerm):
    """L_feature, see ``feature_loss``, of the maps before the network on the ground."""

    def __init__(
        self, config: UniDistillConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]
    ) -> None:
        taps = config.low_tap, config.teacher_low_tap
        super().__init__("feature", config.settings.feature, taps, config, student_channels, teacher_channels)
        width, wanted = student_channels[taps[0]], teacher_channels[taps[1]]
        self.adapter = nn.Conv2d(width, wanted, 1) if config.adapter == "pointwise" else None
        if self.adapter is None and width != wanted:
            raise UserError(
                f"unidistill compares channels: {taps[0]!r} of the student has {width}, {taps[1]!r} of the teacher "
                f"{wanted}; give both the same, or set adapter to 'pointwise', or feature_weight to 0"
            )

    def forward(self, context: Context) -> Tensor:
        student, teacher, boxes = self.at_points(context, self.adapter)
        if student.shape[-1] != teacher.shape[-1]:
            raise UserError(
                f"unidistill: the teacher's map has {teacher.shape[-1]} channels, expected {student.shape[-1]}"
            )
        return feature_loss(student, teacher, boxes.counted).float()


class RelationTerm(PointTerm):
    """L_relation, see ``relation_loss``, of the maps behind the network on the ground."""

    def __init__(
        self, config: UniDistillConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]
    ) -> None:
        taps = config.high_tap, config.teacher_high_tap
        super().__init__("relation", config.settings.relation, taps, config, student_channels, teacher_channels)

    def forward(self, context: Context) -> Tensor:
        student, teacher, boxes = self.at_points(context)
        return relation_loss(student, teacher, boxes.counted).float()


@full_precision
def at_nine_points(
    maps: list[Float[Tensor, "b _ y x"]], boxes: Footprints, geometry: BevGeometry, reading: Reading = "centred"
) -> list[Float[Tensor, "b m 9 _"]]:
    """Maps of the ground, each read at ``NINE_POINTS`` of each box, 0 outside."""
    at = positions(box_points(boxes, NINE_POINTS), geometry, reading)
    return [read_at(tensor, at) for tensor in maps]


@full_precision
def feature_loss(
    student: Float[Tensor, "b m 9 c"], teacher: Float[Tensor, "b m 9 c"], counted: Bool[Tensor, "b m"]
) -> Float[Tensor, ""]:
    """|s - t|, mean over points and channels, summed over ``counted`` boxes, divided by their number plus ``EPS``."""
    return _per_box((student - teacher).abs().mean((2, 3)), counted)


@full_precision
def relation_loss(
    student: Float[Tensor, "b m 9 _"], teacher: Float[Tensor, "b m 9 _"], counted: Bool[Tensor, "b m"]
) -> Float[Tensor, ""]:
    """|G_S - G_T|, mean over the pairs of points, summed over ``counted`` boxes, divided by their number plus ``EPS``.

    G are cosines of the features, whose lengths are enlarged by ``EPS``; widths may differ.
    """
    difference = gram(student, added=EPS) - gram(teacher, added=EPS)
    return _per_box(difference.abs().mean((2, 3)), counted)


def _per_box(values: Float[Tensor, "b m"], counted: Bool[Tensor, "b m"]) -> Float[Tensor, ""]:
    return torch.where(counted, values, 0).sum() / (across_processes(counted.sum().to(values)) + EPS)


# ------------------------------------------------------------------------------------------------------------ responses


class ResponseTerm(Term):
    """L_class + L_box, see ``response_losses``, under a mask that is drawn on the cells of the student's head.

    Couples the batch: sums over its cells divided by the sum of its masks; under data parallelism by the mean over
    processes.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: UniDistillConfig) -> None:
        super().__init__("response", config.settings.response)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        config = self.config
        student, teacher, head = centre_predictions(
            context, config.teacher, config.high_tap, config.teacher_high_tap, "set response_weight to 0"
        )
        geometry = BevGeometry(head.extent, head.cell, "ego")
        boxes = labelled_footprints(context, geometry, "unidistill", config.empty_sample)
        painted = torch.ones_like(boxes.counted) if config.padding == "painted" else boxes.counted
        losses = response_losses(
            clamped_sigmoid(softened(student["heatmap"], config.temperature == "both")), student["box"],
            teacher_probability(teacher["heatmap"], config), teacher["box"],
            gaussian_mask(boxes, painted, geometry, head.cells),
        )  # fmt: skip
        return torch.stack(list(losses.values())).sum().float()


def softened(logits: Float[Tensor, "b k y x"], soft: bool) -> Float[Tensor, "b k y x"]:
    """Logits, divided by ``TEMPERATURE`` where they are to be ``soft``."""
    return logits / TEMPERATURE if soft else logits


def teacher_probability(logits: Float[Tensor, "b k y x"], config: UniDistillConfig) -> Float[Tensor, "b k y x"]:
    """p_T, kept from 0 and 1 by the pair's margin."""
    margin = config.settings.margin
    return softened(logits, config.temperature != "none").sigmoid().clamp(margin, 1 - margin)


@torch.no_grad()
def gaussian_mask(
    boxes: Footprints, painted: Bool[Tensor, "b m"], geometry: BevGeometry, cells: tuple[int, int]
) -> Float[Tensor, "b y x"]:
    """g, one map for all classes of a sample: a Gaussian of height 1 at the centre of each ``painted`` box, the largest
    where they meet.

    Its radius comes from the box's length and width, not turned; places are truncated toward 0 to their ``cells`` (Y,
    X), those off the map are left out.
    """
    cell = (positions(boxes.centre, geometry) + 0.5).trunc().long()
    length, width = (boxes.size / geometry.cell).unbind(-1)
    radius = gaussian_radius(length, width, RADIUS_OVERLAP).long().clamp(min=0)
    maps = torch.zeros(len(cell), *cells, device=cell.device)
    sample = torch.arange(len(cell), device=cell.device)[:, None].expand_as(radius)
    drawn = painted & cells_inside(cell, *cells)
    return draw_gaussians(maps, *(value.flatten(0, 1) for value in (sample, cell, radius, drawn)))


@full_precision
def response_losses(
    probability: Float[Tensor, "b k y x"], box: Float[Tensor, "b t c y x"],
    teacher_probability: Float[Tensor, "b k y x"], teacher_box: Float[Tensor, "b t c y x"],
    mask: Float[Tensor, "b y x"],
) -> dict[str, Float[Tensor, ""]]:  # fmt: skip
    """``class``: difference of the highest probabilities of all classes.  ``box``: mean difference of the numbers of
    all tasks, whatever a task's objects.  Both times ``mask``, summed over cells, divided by its sum plus ``EPS``."""
    divisor = across_processes(mask.sum()) + EPS
    heat = (probability.max(1).values - teacher_probability.max(1).values).abs()
    numbers = (box - teacher_box).abs().mean((1, 2))
    return {"class": (mask * heat).sum() / divisor, "box": (mask * numbers).sum() / divisor}
