"""DistillBEV: a camera student imitates a LiDAR teacher's ground maps, objects and what is mistaken for them apart.

DistillBEV, ICCV 2023, arXiv:2309.15109; released code qcraftai/distill-bev, mmdet3d/models/detectors/
bevdet_distill.py (fgd_distill_loss, foreground_scale_mask, add_fp_as_fg), bevformer_distill.py, and
scripts/teacher_to_bevdepth4d/centerpoint2bevdepth.sh, whose options are those that were trained and override the
configuration files.  S_l are the student's maps through an adaptor, T_l the teacher's, at levels l of equal cells; B is
the number of moments, N a map's cells, C its channels; all sums run over moments, cells and channels, undivided.

    L = L_det + L_depth + .006 L_fg + .04 L_bg + .0025 L_spatial [+ L_channel] + .06 L_fp
    L_fg      = sum_l 1/B sum (S_l - T_l)^2 fg m_fg A_l
    L_bg      = sum_l 1/B sum (S_l - T_l)^2 bg m_bg A_l         bg = 1 - fg, at the last level also 0 where fp is 1
    L_fp      = 1/B sum (S - T)^2 fp m_fp A K                   of the last level
    L_spatial = sum_l 1/B sum_cells |mean_c T_l - conv3x3(mean_c S_l)|
    L_channel = sum_l 1/B sum_c |mean_cells T_l - mean_cells S_l|
    A_l = (a(T_l) + a(S_l)) / 2,  a(F) = N softmax_cells(mean_c |F| / .5)
    K   = C softmax_c(mean_cells |T| / .5)                      no gradient flows through A, K
    fg = 1 in cells of labelled footprints, there m_fg = sqrt(cell^2 / (length width));  m_bg = 1/#bg of the moment
    fp = 1 where max_k sigmoid(heat of T) > .1 and max_k Y < .1 and fg = 0;  m_fp = 1/#fp of the moment; Y the labels'

As released, m_fg and m_bg are both the larger of the two, and the footprint is asked about a cell's lower corner.  The
BEVFormer student's variant (``BEVFORMER``) asks about cells' centres and has one level; its false positives are cells
inside surer boxes of the teacher, as released with their axes swapped.

The head that a student inherits from its teacher is the recipe's affair (``inherit``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from distill3d.boxes import BoxSlots
from distill3d.detectors.base import FeatureMap, Outputs
from distill3d.distill.adapters import AdaptedOnce, MapAdaptation, MapAdaptor, in_dtype_of
from distill3d.distill.centre_responses import CENTRE_MAPS, labelled_centres
from distill3d.distill.context import Context, refuse_absent_taps
from distill3d.distill.ground_regions import (
    CellPoint,
    FalsePositiveRule,
    FalsePositiveScale,
    GroundRegions,
    at_size,
    false_positive_scale,
    false_positives,
    footprint_cells,
    footprint_regions,
    labelled_objects,
)
from distill3d.distill.map_attention import channel_attention, spatial_attention
from distill3d.distill.masks import ground_geometry
from distill3d.distill.precision import full_precision
from distill3d.distill.style import StyledConfig, option
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.heads.centre_head import CentreHeadConfig, centre_slots
from distill3d.layers.image.heatmap import clamped_sigmoid
from distill3d.settings import Between, Count, Share, Weight

#: Of which rule false positives are; ``teacher_boxes``: cells inside surer boxes of the teacher and outside of labels'.
FalsePositives = FalsePositiveRule | Literal["none", "teacher_boxes"]
#: The regions' scales by themselves, or as released the larger of both in both regions.
RegionScale = Literal["larger", "own"]
Temperature = Annotated[float, Between(0, 1e3, above=True)]

#: The settings of a BEVFormer student: one level, and the weights of its scripts.
BEVFORMER: dict[str, Any] = {
    "taps": ("bev_neck",), "teacher_taps": ("bev_neck",), "adaptors": ("1x1conv",), "teacher_pooling": ("none",),
    "foreground_weight": 5e-3, "background_weight": 4e-3, "spatial_weight": 5e-4, "false_positive_weight": 0.0,
    "cell_point": "centre", "attention": "teacher", "false_positives": "none",
}  # fmt: skip


@dataclass(frozen=True)
class DistillBEVConfig(StyledConfig):
    """Weights and options of the script for a convolutional student with a CenterPoint teacher, and one option for each
    point where code and intention differ.

    A term of weight 0 is left out.  The four tuples hold one entry for each level.
    """

    teacher: str | None = None  # its stage; None: the only one
    foreground_weight: Weight = 6e-3
    background_weight: Weight = 4e-2
    spatial_weight: Weight = 2.5e-3
    channel_weight: Weight = 0.0
    false_positive_weight: Weight = 6e-2
    #: The student's second and third stages have a quarter of the cells of the teacher's first and second.
    taps: tuple[str, ...] = ("bev_stage2", "bev_stage3", "bev_neck")
    teacher_taps: tuple[str, ...] = ("bev_stage1", "bev_stage2", "bev_neck")
    adaptors: tuple[MapAdaptation, ...] = ("upsample_3layer", "upsample_3layer", "1x1conv")
    teacher_pooling: tuple[Literal["none", "average", "max"], ...] = ("none", "none", "none")  # over 2 x 2 cells
    # regions
    cell_point: CellPoint = option(released="corner", intended="centre", default="centre")
    scale: RegionScale = option(released="larger", intended="own", default="larger")
    #: Cells by which footprints are widened, and what is gained counts as foreground, see ``footprint_regions``.
    margin: Count = 0
    margin_share: Share = 0.5
    # attention
    attention: Literal["teacher", "both"] = "both"
    student_attention: Weight = 1.0  # of A, relative to the teacher's
    channel_attention: bool = False  # whether K counts in L_fg and L_bg, too
    spatial_temperature: Temperature = 0.5
    channel_temperature: Temperature = 0.5
    # false positives, at the last level
    false_positives: FalsePositives = "teacher"
    threshold: Share = 0.1  # above it somebody sees an object
    label_threshold: Share | None = None  # from it on a label is near; None: ``threshold``
    false_positive_scale: FalsePositiveScale = "average"
    false_positive_channels: bool = option(released=True, intended=False, default=True)  # whether K counts in L_fp
    #: How ``teacher_boxes`` index the map.
    box_axes: Literal["xy", "yx"] = option(released="xy", intended="yx", default="yx")


def terms(config: DistillBEVConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """The terms whose weights are not 0; they share one adaptor for each level.

    Raises:
        UserError: a tap is missing, the levels' settings differ in number, or L_fp has no rule.
    """
    levels = Levels(config, student_channels, teacher_channels)
    found: list[Term] = [RegionTerm("foreground", config.foreground_weight, levels),
                         RegionTerm("background", config.background_weight, levels),
                         SpatialTerm(config.spatial_weight, levels),
                         ChannelTerm(config.channel_weight, levels)]  # fmt: skip
    if config.false_positives != "none":
        found.append(RegionTerm("false_positive", config.false_positive_weight, levels))
    elif config.false_positive_weight != 0:
        raise UserError("distillbev: false_positives is 'none', so false_positive_weight must be 0")
    return [term for term in found if term.weight != 0]


# --------------------------------------------------------------------------------------------------------------- levels


@dataclass(frozen=True)
class Level:
    """Two maps that are compared, in full precision, and what each cell and channel counts."""

    student: Float[Tensor, "b c y x"]  # adapted
    teacher: Float[Tensor, "b c y x"]
    error: Float[Tensor, "b 1 y x"]  # sum_c (S - T)^2 [K]
    attention: Float[Tensor, "b 1 y x"]  # A
    weight: dict[str, Float[Tensor, "b 1 y x"]]  # fg m_fg, bg m_bg and, where there is one, fp m_fp
    false_positive_error: Float[Tensor, "b 1 y x"] | None = None


class Levels(AdaptedOnce[Level]):
    """The student's maps adapted and set beside the teacher's, in the order of ``config.taps``."""

    def __init__(
        self, config: DistillBEVConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]
    ) -> None:
        super().__init__()
        counts = {name: len(getattr(config, name)) for name in ("taps", "teacher_taps", "adaptors", "teacher_pooling")}
        if len(set(counts.values())) > 1 or not config.taps:
            listed = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise UserError(f"distillbev: each level needs an entry in every list of levels, these are {listed}")
        refuse_absent_taps("distillbev", config.taps, config.teacher_taps, student_channels, teacher_channels)
        self.config = config
        ways = zip(config.adaptors, config.taps, config.teacher_taps, strict=True)
        self.adaptors = nn.ModuleList(MapAdaptor(k, student_channels[s], teacher_channels[t]) for k, s, t in ways)

    def adapt(self, context: Context) -> list[Level]:
        """The levels of a step.

        Raises:
            UserError: taps are missing or do not fit the adaptors, there are no labels, or no predictions to look for
                false positives in.
        """
        config, source = self.config, context.named(self.config.teacher)
        objects = labelled_objects(context, "distillbev")
        levels = []
        for i, adaptor in enumerate(self.adaptors):
            student, teacher = _on_one_ground(context.student, source, config.taps[i], config.teacher_taps[i])
            teacher = pooled(FeatureMap(teacher.tensor.detach(), teacher.geometry), config.teacher_pooling[i])
            size = (teacher.tensor.shape[-2], teacher.tensor.shape[-1])
            regions = footprint_regions(
                objects, ground_geometry(teacher), size, config.cell_point, config.margin, config.margin_share
            )
            of_last = i == len(self.adaptors) - 1
            mistaken = mistaken_cells(context, config, teacher, regions.background) if of_last else None
            weight = region_weights(regions, mistaken, config)
            levels.append(compared(adaptor(student.tensor, size), teacher.tensor, weight, config))
        return levels


def mistaken_cells(
    context: Context, config: DistillBEVConfig, teacher: FeatureMap, background: Bool[Tensor, "b 1 y x"]
) -> Bool[Tensor, "b 1 y x"] | None:
    """Where in the background, on the cells of the ``teacher``'s map, an object is seen; None: nobody is asked.

    Raises:
        UserError: one of them predicts no heat maps, or boxes are asked for and the teacher has no centre head.
    """
    rule, source = config.false_positives, context.named(config.teacher)
    if rule == "none":
        return None
    for who, outputs in (("student", context.student), ("teacher", source)):
        if "heatmap" not in outputs.predictions:
            raise UserError(
                f"distillbev looks for false positives in heat maps, the {who} predicts "
                f"{', '.join(outputs.predictions) or 'nothing'}: set false_positives to 'none' and "
                "false_positive_weight to 0"
            )
    if rule == "teacher_boxes":
        boxes = _teacher_boxes(context, config)
        sure = boxes.kept & (boxes.score > config.threshold)
        cells = footprint_cells(
            boxes.centre, boxes.size, boxes.yaw, sure, ground_geometry(teacher),
            (background.shape[-2], background.shape[-1]), config.cell_point,
        )  # fmt: skip
        return in_axes(cells.any(1, keepdim=True) & background, config.box_axes)
    found = false_positives(
        rule, labelled_centres(context, "distillbev").heatmap, clamped_sigmoid(source.predictions["heatmap"]),
        clamped_sigmoid(context.student.predictions["heatmap"]), config.threshold,
        config.threshold if config.label_threshold is None else config.label_threshold,
    )  # fmt: skip
    return at_size(found, (background.shape[-2], background.shape[-1])) & background


def _teacher_boxes(context: Context, config: DistillBEVConfig) -> BoxSlots:
    """The teacher's boxes in the augmented frame, where labels and maps are, too."""
    source = context.named(config.teacher)
    settings = getattr(context.teacher_detectors.get(config.teacher or next(iter(context.teachers))), "config", None)
    head = getattr(settings, "head", None)
    if not isinstance(head, CentreHeadConfig):
        raise UserError("distillbev: false positives by 'teacher_boxes' need a teacher with a centre head")
    maps = {name: source.predictions[name].detach() for name in CENTRE_MAPS}
    there = torch.eye(4, dtype=torch.float64, device=maps["box"].device).expand(len(maps["box"]), 4, 4)
    return centre_slots(maps, there, getattr(settings, "classes", head.classes), head)


def _on_one_ground(student: Outputs, teacher: Outputs, tap: str, other: str) -> tuple[FeatureMap, FeatureMap]:
    """Both maps, whose cells may differ in size but not the ground that they cover."""
    refuse_absent_taps("distillbev", (tap,), (other,), student.features, teacher.features)
    s, t = student.features[tap], teacher.features[other]
    grounds = [ground_geometry(feature) for feature in (s, t)]
    if grounds[0].extent != grounds[1].extent:
        raise UserError(
            f"distillbev: tap {tap!r} of the student covers {grounds[0].extent} m and tap {other!r} of the teacher "
            f"{grounds[1].extent} m: give both the same range"
        )
    return s, t


def pooled(feature: FeatureMap, how: Literal["none", "average", "max"]) -> FeatureMap:
    """The map with 2 x 2 cells made one."""
    if how == "none":
        return feature
    pool = F.avg_pool2d if how == "average" else F.max_pool2d
    geometry = ground_geometry(feature)
    return FeatureMap(pool(feature.tensor, 2), replace(geometry, cell=round(2 * geometry.cell, 6)))


def in_axes(cells: Bool[Tensor, "b 1 y x"], axes: Literal["xy", "yx"]) -> Bool[Tensor, "b 1 _ _"]:
    """The cells, as released (``xy``) with rows for columns.

    Raises:
        UserError: axes are to be swapped of a map that is not square.
    """
    if axes == "xy" and cells.shape[-2] != cells.shape[-1]:
        raise UserError("distillbev: box_axes 'xy' needs a square map; set it to 'yx'")
    return cells.mT if axes == "xy" else cells


# --------------------------------------------------------------------------------------------------------------- losses


def region_weights(
    regions: GroundRegions, mistaken: Bool[Tensor, "b 1 y x"] | None, config: DistillBEVConfig
) -> dict[str, Float[Tensor, "b 1 y x"]]:
    """fg m_fg, bg m_bg and, with ``mistaken`` cells, fp m_fp."""
    background = regions.background
    if mistaken is not None:
        background, regions = background & ~mistaken, regions.without(mistaken)
    foreground_scale, background_scale = regions.foreground_scale, regions.background_scale
    if config.scale == "larger":
        foreground_scale = background_scale = torch.maximum(foreground_scale, background_scale)
    weights = {"foreground": regions.foreground * foreground_scale, "background": background * background_scale}
    if mistaken is not None:
        weights["false_positive"] = false_positive_scale(mistaken, config.false_positive_scale)
    return weights


@full_precision
def compared(
    student: Float[Tensor, "b c y x"],
    teacher: Float[Tensor, "b c y x"],
    weight: dict[str, Float[Tensor, "b 1 y x"]],
    config: DistillBEVConfig,
) -> Level:
    """The level of an adapted map and a teacher's."""
    attention = spatial_attention(teacher, config.spatial_temperature)
    if config.attention == "both":
        own = spatial_attention(student, config.spatial_temperature)
        attention = (attention + config.student_attention * own) / (1 + config.student_attention)
    squared = (student - teacher).square()
    channels = channel_attention(teacher, config.channel_temperature)

    def error(by_channels: bool) -> Float[Tensor, "b 1 y x"]:
        return (squared * channels if by_channels else squared).sum(1, keepdim=True)

    everywhere, mistaken = error(config.channel_attention), None
    if "false_positive" in weight:
        alike = config.false_positive_channels == config.channel_attention
        mistaken = everywhere if alike else error(config.false_positive_channels)
    return Level(student, teacher, everywhere, attention, weight, mistaken)


def region_loss(level: Level, region: str) -> Float[Tensor, ""]:
    """1/B sum (S - T)^2 r A [K] over moments, cells and channels, r the ``weight`` of the region; 0 without one."""
    error = level.false_positive_error if region == "false_positive" else level.error
    if error is None:
        return level.error.new_zeros(())
    return (error * level.weight[region] * level.attention).sum() / len(error)


@full_precision
def spatial_loss(
    student: Float[Tensor, "b c y x"], teacher: Float[Tensor, "b c y x"], conv: nn.Module
) -> Float[Tensor, ""]:
    """1/B sum |mean_c T - conv(mean_c S)| over moments and cells."""
    seen = conv(in_dtype_of(student.mean(1, keepdim=True), conv))
    return (teacher.mean(1, keepdim=True) - seen).abs().sum() / len(student)


@full_precision
def channel_loss(student: Float[Tensor, "b c y x"], teacher: Float[Tensor, "b c y x"]) -> Float[Tensor, ""]:
    """1/B sum |mean_cells T - mean_cells S| over moments and channels."""
    return (teacher.mean((2, 3)) - student.mean((2, 3))).abs().sum() / len(student)


class RegionTerm(Term):
    """L_fg, L_bg or L_fp: a mean over moments, see ``region_loss``; batch norms of adaptors see the whole batch."""

    def __init__(
        self, region: Literal["foreground", "background", "false_positive"], weight: float, levels: Levels
    ) -> None:
        super().__init__(region, weight)
        self.region = region
        self.levels = levels

    def forward(self, context: Context) -> Tensor:
        return torch.stack([region_loss(level, self.region) for level in self.levels(context)]).sum().float()


class SpatialTerm(Term):
    """L_spatial: a mean over moments, see ``spatial_loss``; a convolution for each level."""

    def __init__(self, weight: float, levels: Levels) -> None:
        super().__init__("spatial", weight)
        self.levels = levels
        self.convs = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in levels.adaptors)

    def forward(self, context: Context) -> Tensor:
        pairs = zip(self.levels(context), self.convs, strict=True)
        return torch.stack([spatial_loss(level.student, level.teacher, conv) for level, conv in pairs]).sum().float()


class ChannelTerm(Term):
    """L_channel: a mean over moments, see ``channel_loss``."""

    def __init__(self, weight: float, levels: Levels) -> None:
        super().__init__("channel", weight)
        self.levels = levels

    def forward(self, context: Context) -> Tensor:
        return torch.stack([channel_loss(v.student, v.teacher) for v in self.levels(context)]).sum().float()
