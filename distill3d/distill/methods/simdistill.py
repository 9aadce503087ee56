"""SimDistill: a camera student with a camera and a simulated LiDAR branch imitates a teacher that fuses the real ones.

Zhao et al., "SimDistill: Simulated Multi-modal Distillation for BEV 3D Object Detection", AAAI 2024, arXiv:2303.16818;
released code ViTAE-Transformer/SimDistill, mmdet3d/models/fusion_models/bevfusion.py and heads/bbox/centerpoint.py.  C,
L and F are the maps of the camera branch, the LiDAR branch and after their fusion, of student (S) and teacher (T); e a
convolution for training only; H the labels' heat maps, p heat logits and r box codes of a centre head:

    L = L_det + 1 L_IMD + 100 L_CMD + 1 L_MMD-F + 0.25 L_class + 0.25 L_box
    L_IMD   = mean (C_S - C_T)^2                   L_CMD = mean m^2 (e(L_S) - L_T)^2
    L_MMD-F = mean (F_S - F_T)^2                   m = max_k H_k, as released sum_k H_k, which may exceed 1
    L_class = sum_b,k,y,x |sigmoid(x) - y|^2 BCE(sigmoid(x), y) / #{y > 0.1} of an image and class
              x = p_S, y = sigmoid(p_T); as released x = sigmoid(p_S), y = sigmoid(sigmoid(p_T)), so that every cell is
              positive, and each task's maps are viewed so that the number is that of cells over the task's classes
    L_box   = sum_tasks sum_objects sum smooth_l1(w (r_S - r_T)) / objects; as released over all the head's slots,
              those without an object reading cell 0, divided by their number, and of the yaw's sine the sine of the
              difference

The student's branches belong to the detector: its taps ``camera_tap``, ``simulated_tap`` and ``fused_tap``, as a
BEVDepth with ``simulated`` has them (layers/ground/simulated_lift.py); the teacher is a BEVFusion.  The simulated
branch is compensated (layers/ground/geometry_compensation.py), at test time too.  As released, both branches call one
view transform on one feature and so begin alike, and that transform reads a depth image made from the LiDAR's points,
AT TEST TIME TOO: no such student is a camera's, and only ``SimulatedBranchConfig.styled("released")`` builds it.  The
released teacher's fuser is trained by L_MMD-F on the side; teachers here are frozen.

A term of weight 0 is left out, so that a student with one branch may learn by L_CMD, L_class and L_box alone, from a
teacher with LiDAR alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.distill.adapters import in_dtype_of
from distill3d.distill.centre_responses import centre_predictions, labelled_centres
from distill3d.distill.context import Context, comparable, same_grid
from distill3d.distill.methods.cmkd import class_loss
from distill3d.distill.precision import full_precision
from distill3d.distill.relations import resized
from distill3d.distill.style import StyledConfig, option
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.heads.anchors import quality_focal, sine_difference, smooth_l1
from distill3d.layers.heads.centre_head import CentreHeadConfig, CentreTargets, box_normaliser, codes_at
from distill3d.settings import Share, Weight
from distill3d.transfers import constant

ObjectMask = Literal["sum", "max"]
#: How often the class term takes the sigmoid of a logit.
Sigmoids = Literal["once", "twice"]
Slots = Literal["all", "objects"]
#: What is compared of the yaw's sine: the sine of the difference of two sines, or the difference.
SineCode = Literal["sine", "plain"]


@dataclass(frozen=True)
class SimDistillConfig(StyledConfig):
    """Weights of the released configurations, and one option for each point where code and intention differ."""

    teacher: str | None = None  # its stage; None: the only one
    #: Of the student.
    camera_tap: str = "bev_camera"
    simulated_tap: str = "bev_simulated"
    fused_tap: str = "bev"
    #: Of the teacher.
    teacher_camera_tap: str = "bev_camera"
    teacher_lidar_tap: str = "bev_lidar"
    teacher_fused_tap: str = "bev"
    #: Maps in front of the heads, whose grids are to be one.
    head_tap: str = "bev_neck"
    teacher_head_tap: str = "bev_neck"
    imd_weight: Weight = 1.0
    cmd_weight: Weight = 100.0
    mmd_f_weight: Weight = 1.0
    class_weight: Weight = 0.25
    box_weight: Weight = 0.25
    positive: Share = 0.1  # probability of the teacher's above which a cell counts in L_class's divisor
    object_mask: ObjectMask = option(released="sum", intended="max", default="max")
    sigmoids: Sigmoids = option(released="twice", intended="once", default="once")
    slots: Slots = option(released="all", intended="objects", default="objects")
    sine_code: SineCode = option(released="sine", intended="plain", default="plain")


def terms(config: SimDistillConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """IMD, CMD, MMD-F and the two of MMD-P, as far as their weights are not 0.

    Raises:
        UserError: a tap is missing that one of them looks at.
    """
    asked = (
        (config.imd_weight, config.camera_tap, config.teacher_camera_tap, "imd_weight"),
        (config.cmd_weight, config.simulated_tap, config.teacher_lidar_tap, "cmd_weight"),
        (config.mmd_f_weight, config.fused_tap, config.teacher_fused_tap, "mmd_f_weight"),
    )
    for weight, tap, teacher_tap, setting in asked:
        for who, name, channels in (("student", tap, student_channels), ("teacher", teacher_tap, teacher_channels)):
            if weight != 0 and name not in channels:
                raise UserError(
                    f"simdistill: the {who} has no tap {name!r}; it offers {', '.join(channels)}: name another or set "
                    f"{setting} to 0"
                )
    parts: list[Term] = []
    if config.imd_weight != 0:
        parts.append(MapTerm("imd", config.imd_weight, config.camera_tap, config.teacher_camera_tap, config.teacher))
    if config.cmd_weight != 0:
        widths = student_channels[config.simulated_tap], teacher_channels[config.teacher_lidar_tap]
        parts.append(CMDTerm(config, *widths))
    if config.mmd_f_weight != 0:
        parts.append(MapTerm("mmd_f", config.mmd_f_weight, config.fused_tap, config.teacher_fused_tap, config.teacher))
    return [*parts, *(term for term in (ClassTerm(config), BoxTerm(config)) if term.weight != 0)]


# ------------------------------------------------------------------------------------------------------------- the maps


class MapTerm(Term):
    """L_IMD or L_MMD-F: (S - T)^2 of two taps, mean over samples, channels and cells."""

    def __init__(self, name: str, weight: float, tap: str, teacher_tap: str, teacher: str | None) -> None:
        super().__init__(name, weight)
        self.taps, self.teacher = (tap, teacher_tap), teacher

    def forward(self, context: Context) -> Tensor:
        student, teacher = comparable(self.taps[0], context.student, context.named(self.teacher), self.taps[1])
        return map_loss(student.tensor, teacher.tensor.detach()).float()


class CMDTerm(Term):
    """L_CMD, see ``masked_map_loss``; the mask is brought to the map's cells bilinearly.  A mean over samples; the
    batch norm of e couples them."""

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: SimDistillConfig, channels: int, teacher_channels: int) -> None:
        super().__init__("cmd", config.cmd_weight)
        self.config = config
        self.adapter = lidar_adapter(channels, teacher_channels)

    def forward(self, context: Context) -> Tensor:
        config = self.config
        student, teacher = same_grid(
            config.simulated_tap, context.student, context.named(config.teacher), config.teacher_lidar_tap
        )
        mask = object_mask(labelled_centres(context, "simdistill").heatmap, config.object_mask)
        said = self.adapter(in_dtype_of(student.tensor, self.adapter))
        mask = resized(mask, (said.shape[-2], said.shape[-1]))
        return masked_map_loss(said, teacher.tensor.detach(), mask).float()


def lidar_adapter(channels: int, teacher_channels: int) -> nn.Sequential:
    """e: conv3 without bias, batch norm, ReLU."""
    conv = nn.Conv2d(channels, teacher_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(teacher_channels), nn.ReLU(inplace=True))


def object_mask(heatmap: Float[Tensor, "b k y x"], form: ObjectMask) -> Float[Tensor, "b 1 y x"]:
    """m of the labels' heat maps."""
    return heatmap.sum(1, keepdim=True) if form == "sum" else heatmap.amax(1, keepdim=True)


@full_precision
def map_loss(student: Float[Tensor, "b c y x"], teacher: Float[Tensor, "b c y x"]) -> Float[Tensor, ""]:
    """mean (S - T)^2."""
    return F.mse_loss(student, teacher)


@full_precision
def masked_map_loss(
    student: Float[Tensor, "b c y x"], teacher: Float[Tensor, "b c y x"], mask: Float[Tensor, "b 1 y x"]
) -> Float[Tensor, ""]:
    """mean (m S - m T)^2 over all cells, those without an object too; 0 without objects."""
    return F.mse_loss(student * mask, teacher * mask)


# ---------------------------------------------------------------------------------------------------------- predictions


class ClassTerm(Term):
    """L_class, see ``response_class_loss``.  Couples the batch: a sum over images, so that averaged over N processes it
    is one Nth of what a single one sees."""

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: SimDistillConfig) -> None:
        super().__init__("response_class", config.class_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        student, teacher, head = sides(context, self.config)
        return response_class_loss(student["heatmap"], teacher["heatmap"], head, self.config).float()


class BoxTerm(Term):
    """L_box, see ``response_box_loss``.  Couples the batch: sums over its slots, divided by its number of objects (the
    mean over processes), or with ``all`` by the slots of one image."""

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: SimDistillConfig) -> None:
        super().__init__("response_box", config.box_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        student, teacher, head = sides(context, self.config)
        targets = labelled_centres(context, "simdistill")
        return response_box_loss(student["box"], teacher["box"], targets, head, self.config).float()


def sides(context: Context, config: SimDistillConfig) -> tuple[dict[str, Tensor], dict[str, Tensor], CentreHeadConfig]:
    """``centre_predictions`` of student and teacher."""
    instead = "set class_weight and box_weight to 0"
    return centre_predictions(context, config.teacher, config.head_tap, config.teacher_head_tap, instead)


@full_precision
def response_class_loss(
    student: Float[Tensor, "b k y x"], teacher: Float[Tensor, "b k y x"], head: CentreHeadConfig,
    config: SimDistillConfig,
) -> Float[Tensor, ""]:  # fmt: skip
    """L_class of raw heat maps: a sum over images and classes, each divided by its own number of cells that the teacher
    is sure of, at least 1; with two sigmoids by the cells over the classes of the task."""
    if config.sigmoids == "once":
        return class_loss(student.flatten(2).mT, teacher.flatten(2).mT, config.positive)
    sums = quality_focal(student.sigmoid(), teacher.sigmoid().sigmoid()).sum((0, 2, 3))
    classes = constant([len(head.tasks[task]) for task in head.task_of_class], sums)
    return (sums * classes).sum() / (student.shape[-2] * student.shape[-1])


@full_precision
def response_box_loss(
    student: Float[Tensor, "b t c y x"], teacher: Float[Tensor, "b t c y x"], targets: CentreTargets,
    head: CentreHeadConfig, config: SimDistillConfig,
) -> Float[Tensor, ""]:  # fmt: skip
    """L_box of raw box codes at the cells of the targets' slots, by the head's own code weights; 0 without objects
    where ``objects`` count."""
    weights = constant(head.code_weights, student)
    said, taught = (codes_at(box, targets.index) * weights for box in (student, teacher))
    error = smooth_l1(sine_difference(said, taught) if config.sine_code == "sine" else said - taught).sum(-1)
    if config.slots == "all":
        return error.sum() / targets.index.shape[-1]
    return (torch.where(targets.mask, error, 0).sum((0, 2)) / box_normaliser(targets.mask)).sum()
