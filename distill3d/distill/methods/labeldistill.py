"""LabelDistill: a camera student imitates a LiDAR teacher and, free of noise, what a network makes of the labels.

LabelDistill, ECCV 2024; released code sanmin0312/LabelDistill, labeldistill/models/labeldistill.py,
labeldistill/exps/nuscenes/labeldistill/LabelDistill_r50_128x128_e24_4key.py (get_feature_distill_loss),
labeldistill/layers/backbones/adaptor.py and labeldistill/layers/heads/kd_head.py (response_loss).  S_l, T_l and G_l are
the maps of student, LiDAR teacher and label encoder at two strides l; a and b are adaptors, for training only; Y are
the heat maps of the labels, p heat maps and r box numbers that a head predicts.

    L = L_det + L_depth + 0.3 L_lidar + 0.3 L_label + 1.0 L_response
    L_lidar = sum_l sum_cells M_l |T_l - a_l(S_l[LIDAR])|^2 / max(1, sum_cells M_l)       M_0 = sum_k Y_k
    L_label = the same of G_l and b_l(S_l[LABEL]), with 1 where M_l > 0
    L_response = sum_tasks focal(p_S, p_T Y) / max(1, peaks) + 0.25 sum_objects w |r_S - r_T| / objects

As released, the student's channels are cut into thirds LABEL | LIDAR | FREE where all its frames lie one behind the
other.  Past frames are seen without gradient, so with two or more of them LIDAR at the finer stride trains nothing but
its adaptor, and the focal loss, whose target never reaches 1, only ever pushes down.  The paper's text means thirds of
what the student learns (``per_frame``) and a target that is imitated (``qfl``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.distill.adapters import in_dtype_of
from distill3d.distill.centre_responses import centre_predictions, labelled_centres
from distill3d.distill.context import Context, refuse_absent_taps, same_grid
from distill3d.distill.precision import full_precision
from distill3d.distill.style import StyledConfig, option
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.heads.anchors import quality_focal
from distill3d.layers.heads.centre_head import (
    CentreHeadConfig,
    CentreTargets,
    box_loss,
    box_normaliser,
    codes_at,
    heat_loss,
    heat_normaliser,
)
from distill3d.layers.image.heatmap import clamped_sigmoid
from distill3d.settings import Between, Share, Weight, added

#: Whom the student's channels imitate; ``free`` ones are left to the student.
Part = Literal["label", "lidar", "free"]
Partition = Literal["concatenated", "per_frame", "none"]
ResponseForm = Literal["released", "qfl"]


@dataclass(frozen=True)
class LabelDistillConfig(StyledConfig):
    """Weights and taps of the released configs, and one option for each point where code and intention differ.

    A term of weight 0 is left out.
    """

    teacher: str = "teacher"  # the LiDAR teacher's stage
    label_encoder: str = "label_encoder"  # its stage
    lidar_weight: Weight = 0.3
    label_weight: Weight = 0.3
    response_weight: Weight = 1.0
    #: Of the student and of both teachers, from fine to coarse; the first holds the student's frames one behind the
    #: other, the key frame first.
    taps: tuple[str, ...] = ("bev", "bev_stage1")
    teacher_taps: tuple[str, ...] = ("bev_0", "bev_1")
    #: What is cut into thirds: all channels of a tap; of the first tap the key frame's channels only, which asks for
    #: ``frames``; nothing, so that both adaptors see all channels.
    partition: Partition = option(released="concatenated", intended="per_frame", default="concatenated")
    frames: Annotated[int, Between(1, 100)] | None = None  # in the first tap, the key frame included
    #: ``qfl``: the quality focal loss, which imitates its soft target; ``released``: see above.
    response: ResponseForm = option(released="released", intended="qfl", default="released")
    warm_up: Share = added(0.0)  # of the stage's steps, over which the terms rise to their weights; not published
    #: Batch norm of teacher and label encoder; for the train loop.
    teacher_bn: Literal["eval", "train"] = option(released="train", intended="eval", default="eval")

    @property
    def follows_progress(self) -> bool:
        return self.warm_up > 0


def terms(config: LabelDistillConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """The two feature terms, with an adaptor each, and the response term, as far as their weights are not 0.

    Raises:
        UserError: a tap is missing, or the partition lacks or contradicts the number of frames.
    """
    parts: list[Term] = []
    if config.lidar_weight != 0:
        parts.append(FeatureTerm("lidar", config, student_channels, teacher_channels))
    if config.label_weight != 0:
        parts.append(FeatureTerm("label", config, student_channels, teacher_channels))
    if config.response_weight != 0:
        parts.append(ResponseTerm(config))
    return parts


# ------------------------------------------------------------------------------------------------------------- features


class DistillAdaptor(nn.Module):
    """From student's channels to a teacher's, level by level: conv3 with replicated borders, BN, ReLU, basic block.

    State-dict names are those of the released ``DistillAdaptor``.
    """

    def __init__(self, channels_in: tuple[int, ...], channels: tuple[int, ...]) -> None:
        super().__init__()
        from timm.models.resnet import BasicBlock

        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c_in, c, 3, padding=1, padding_mode="replicate"), nn.BatchNorm2d(c), nn.ReLU(inplace=True),
                BasicBlock(c, c),
            )
            for c_in, c in zip(channels_in, channels, strict=True)
        )  # fmt: skip

    def forward(self, levels: list[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b _ _ _"]]:
        return [block(in_dtype_of(x, self)) for block, x in zip(self.blocks, levels, strict=True)]


class FeatureTerm(Term):
    """L_lidar (soft mask) or L_label (binary mask), see ``feature_loss``.

    Couples the batch: a sum over its cells divided by its sum of masks; under data parallelism each process divides by
    its own.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(
        self,
        part: Literal["label", "lidar"],
        config: LabelDistillConfig,
        student_channels: dict[str, int],
        teacher_channels: dict[str, int],
    ) -> None:
        super().__init__(part, config.lidar_weight if part == "lidar" else config.label_weight)
        self.stage = config.teacher if part == "lidar" else config.label_encoder
        self.binary = part == "label"
        self.warm_up = config.warm_up
        who = ("student", self.stage)
        refuse_absent_taps("labeldistill", config.taps, config.teacher_taps, student_channels, teacher_channels, who)
        self.taps = dict(zip(config.taps, config.teacher_taps, strict=True))
        self.seen = [seen_channels(part, student_channels[tap], config, level) for level, tap in enumerate(config.taps)]
        self.channels = tuple(teacher_channels[tap] for tap in config.teacher_taps)
        self.adaptor = DistillAdaptor(tuple(s.stop - s.start for s in self.seen), self.channels)

    def forward(self, context: Context) -> Tensor:
        source = context.named(self.stage)
        pairs = [same_grid(tap, context.student, source, other, self.stage) for tap, other in self.taps.items()]
        taught = [t.tensor.detach() for _, t in pairs]
        if (found := tuple(t.shape[1] for t in taught)) != self.channels:
            raise UserError(f"labeldistill: the maps of {self.stage} have {found} channels, expected {self.channels}")
        adapted = self.adaptor([s.tensor[:, seen] for (s, _), seen in zip(pairs, self.seen, strict=True)])
        masks = object_masks(
            labelled_centres(context, "labeldistill").heatmap, [t.shape[-2:] for t in taught], self.binary
        )
        return context.risen(self.warm_up) * feature_loss(adapted, taught, masks).float()


def channel_parts(channels: int) -> dict[Part, slice]:
    """LABEL | LIDAR | FREE: thirds, what remains of the division goes to FREE."""
    third = channels // 3
    return {"label": slice(0, third), "lidar": slice(third, 2 * third), "free": slice(2 * third, channels)}


def seen_channels(part: Part, channels: int, config: LabelDistillConfig, level: int) -> slice:
    """Which of a tap's ``channels`` are a part's at a level (0: the finest, where the frames are).

    Raises:
        UserError: the partition goes by frames, and their number is not given or does not divide the channels.
    """
    if config.partition == "none":
        return slice(0, channels)
    if config.partition == "per_frame" and level == 0:
        if config.frames is None or channels % config.frames:
            raise UserError(
                "labeldistill: partition 'per_frame' needs `frames`, the student's frames with the key frame, to share "
                f"the {channels} channels of {config.taps[0]!r} equally; it is {config.frames}"
            )
        channels //= config.frames
    return channel_parts(channels)[part]


@torch.no_grad()
def object_masks(
    heatmap: Float[Tensor, "b k y x"], sizes: list[torch.Size], binary: bool
) -> list[Float[Tensor, "b 1 _ _"]]:
    """M_l: the labels' heat maps, summed over classes, so that the mask may exceed 1, and brought to each size by
    bilinear interpolation from corner to corner; with ``binary`` 1 wherever it is not 0 then."""
    finest = heatmap.sum(1, keepdim=True)
    masks = [
        finest if size == finest.shape[-2:] else F.interpolate(finest, size, mode="bilinear", align_corners=True)
        for size in sizes
    ]
    return [(mask > 0).to(mask) for mask in masks] if binary else masks


@full_precision
def feature_loss(
    student: list[Float[Tensor, "b _ _ _"]],
    teacher: list[Float[Tensor, "b _ _ _"]],
    masks: list[Float[Tensor, "b 1 _ _"]],
) -> Float[Tensor, ""]:
    """sum_l sum_b,y,x M_l sum_c (T_l - S_l)^2 / max(1, sum_b,y,x M_l), of (B, C, Y, X) maps; 0 without objects."""
    levels = [
        (mask * (t - s).square().sum(1, keepdim=True)).sum() / mask.sum().clamp(min=1)
        for s, t, mask in zip(student, teacher, masks, strict=True)
    ]
    return torch.stack(levels).sum()


# ------------------------------------------------------------------------------------------------------------ responses


class ResponseTerm(Term):
    """L_response, the sum of ``response_losses``.

    Couples the batch: sums divided by the numbers of peaks and objects of all samples; under data parallelism by their
    means over processes.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: LabelDistillConfig) -> None:
        super().__init__("response", config.response_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        config = self.config
        student, taught, head = centre_predictions(
            context, config.teacher, config.taps[0], config.teacher_taps[0], "set response_weight to 0"
        )
        losses = response_losses(student, taught, labelled_centres(context, "labeldistill"), head, config.response)
        return context.risen(config.warm_up) * torch.stack(list(losses.values())).sum().float()


@full_precision
def response_losses(
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    targets: CentreTargets,
    head: CentreHeadConfig,
    form: ResponseForm = "released",
) -> dict[str, Float[Tensor, ""]]:
    """``heat`` and ``box`` from raw predictions ``heatmap`` (B, K, Y, X) and ``box`` (B, T, 10, Y, X).

    ``heat``: the loss of S against p_T Y, summed over cells, divided by each task's peaks in Y, summed over tasks; the
    penalty-reduced focal loss as ``released``, the quality focal loss with ``qfl``.
    ``box``: the head's own box loss with the teacher's codes at the objects' cells as targets; where the labels do not
    know a velocity, none is imitated.
    """
    target = clamped_sigmoid(teacher["heatmap"]) * targets.heatmap
    peaks = heat_normaliser(targets.heatmap, head)
    if form == "released":
        heat = heat_loss(student["heatmap"].sigmoid(), target, peaks)
    else:
        heat = (quality_focal(student["heatmap"], target).sum((0, 2, 3)) / peaks).sum()
    said, taught = (codes_at(p["box"], targets.index) for p in (student, teacher))
    known = torch.where(targets.box.isnan(), torch.nan, taught)
    return {"heat": heat, "box": box_loss(said, known, targets.mask, box_normaliser(targets.mask), head)}
