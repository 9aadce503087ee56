"""LabelDistill and its parts on nuScenes as the papers trained them, MonoTAKD and MonoSTL there as far as that can be
inferred, and small presets on synthetic drives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distill3d.data.augment.surround import BevAugmentConfig, ImageAugmentConfig
from distill3d.data.nuscenes.dataset import SweepConfig
from distill3d.detectors import bevdepth, centerpoint, label_encoder
from distill3d.detectors.bevdepth import BEVDepthConfig
from distill3d.detectors.centerpoint import CenterPointConfig
from distill3d.detectors.label_encoder import LabelEncoderConfig, inverse_of
from distill3d.distill.methods.cmkd import CENTRE_RESPONSE, SURROUND_RESPONSE, CMKDConfig
from distill3d.distill.methods.labeldistill import LabelDistillConfig
from distill3d.distill.methods.monostl import GROUND, MonoSTLConfig
from distill3d.distill.methods.monotakd import MonoTAKDConfig
from distill3d.layers.heads.centre_head import TINY_TASKS, CentreHeadConfig
from distill3d.layers.image.resnet import RESNET101, ResNetConfig
from distill3d.recipes.bev import LABELLED, TAMED
from distill3d.recipes.kitti import UNKNOWN_CHOICE
from distill3d.train.recipe import EvaluationConfig, Recipe, StageConfig, SurroundDatasetConfig
from distill3d.train.schedules import Schedule

#: BEVDepth's and LabelDistill's optimiser: AdamW, the rate cut by ten towards the end, no warm-up; averaged weights.
AVERAGED = Schedule(
    epochs=24, batch_size=64, lr=2e-4, warmup_epochs=0, drops=(19, 23), optimiser="adamw", weight_decay=1e-7,
    decay="all", clip_norm=5.0, ema=0.999, ema_warmup=2000.0,
)  # fmt: skip
#: The LiDAR teacher from scratch: mmdetection3d's one cycle of 20 epochs, class-balanced.
TEACHER = Schedule(
    epochs=20, batch_size=32, lr=1e-3, shape="one_cycle", rise=0.4, start_divisor=10.0, end_divisor=1e4,
    optimiser="adamw", weight_decay=0.01, decay="all", momentum=(0.95, 0.85), clip_norm=35.0,
)  # fmt: skip
LABEL_ENCODER = replace(AVERAGED, epochs=12, batch_size=16, lr=1e-3, drops=(10, 11))
#: LabelDistill's student; the image branch learns at half the rate.
STUDENT = replace(AVERAGED, epochs=30, batch_size=16, lr=4e-4, weight_decay=0.01, slower="backbone")

#: LabelDistill sees the key frame and those 1 s, 2 s (and 3 s, 4 s) before it.
TWO_KEYS, FOUR_KEYS = (2, 4), (2, 4, 6, 8)
CONTEXT = 150  # channels of each frame
NO_IMAGES: dict[str, Any] = {"augment": None, "bev_augment": BevAugmentConfig()}
IMAGES = {**NO_IMAGES, "image_augment": ImageAugmentConfig()}
TRUNK = ResNetConfig(finest=4, pretrained=True)

PUBLISHED_BEVDEPTH = (
    "BEVDepth, one past key frame, 33.3 mAP / 44.1 NDS on val with averaged weights, as here, 33.0 / 43.6 without; "
    "class-balanced with aggregated depth 35.9 / 48.0 with, 34.8 / 48.1 without "
    f"(Megvii-BaseDetection/BEVDepth readme), {UNKNOWN_CHOICE}"
)
PUBLISHED_LABELDISTILL = (
    "LabelDistill, ResNet-50, four past key frames, 41.9 mAP / 52.8 NDS on val against 36.8 / 48.3 of its baseline; "
    "two of them 39.3 / 50.7; ResNet-101 at 512 x 1408 px 45.1 / 55.3 (sanmin0312/LabelDistill readme and paper); its "
    "teacher 58.4 / 65.2; its released label encoder cannot be evaluated (94.1 / 90.3 in the paper); "
    f"{UNKNOWN_CHOICE}: the 30 epochs' files are named after epoch 24"
)
PUBLISHED_MONOTAKD = (
    "inferred: MonoTAKD's code holds nothing for surround views, so stages, weights and the student's two maps follow "
    "its code for KITTI and CMKD's for centre heads, schedules BEVDepth's; its authors report 43.0 mAP / 53.7 NDS on "
    f"val with BEVDepth, ResNet-50 (hoiliu-0801/MonoTAKD readme), {UNKNOWN_CHOICE}"
)
PUBLISHED_CMKD = (
    "CMKD's code for several cameras, on BEVDet, at this library's BEVDepth: with ResNet-50 30.7 mAP / 38.2 NDS on val "
    f"before, 34.7 / 42.6 after (Cc-Hy/CMKD readme), {UNKNOWN_CHOICE}"
)
UNPUBLISHED_LABELLED = (
    "no number is published of this form: students begin as the trained baseline; CMKD's terms are those of its code "
    "for several cameras, MonoTAKD's are inferred from its code for KITTI"
)
PUBLISHED_MONOSTL = (
    "inferred: MonoSTL's code holds nothing for surround views and no number of it could be obtained; regions are the "
    "objects' footprints, the teacher is BEVDepth with the LiDAR's depth"
)

BEVDEPTH_DATA = SurroundDatasetConfig(past=(1,), missing_past="current")
#: Two frames: all numbers of a box weigh alike.
BEVDEPTH = BEVDepthConfig(trunk=TRUNK, frozen_stem=True, frames=2, head=CentreHeadConfig())
#: MonoTAKD's assistant: its map alone, then its responses too, together for as long as the baseline.
HALF = replace(AVERAGED, epochs=AVERAGED.epochs // 2, drops=(AVERAGED.epochs // 2 - 2,))
#: CMKD on surround views weighs its map by 50 (Cc-Hy/CMKD-MV); the assistant imitates the CenterPoint map that the
#: student will.
TEACHER_MAP = "bev_0"
IMITATED = CMKDConfig(feature_weight=50.0, teacher_tap=TEACHER_MAP, **CENTRE_RESPONSE)
#: CMKD as it was published for several cameras.
CMKD_SURROUND = replace(IMITATED, **SURROUND_RESPONSE)
#: Beside labels from the trained baseline, as on KITTI (recipes/bev.py).
CMKD_LABELLED = replace(CMKD_SURROUND, **LABELLED)
#: With the factor that MonoTAKD's released configurations ask for and its code does not apply: the student learns from
#: labels as well, and after an epoch on synthetic drives its two terms are 0.35 and 0.01 beside a heat loss of 19.
MONOTAKD = MonoTAKDConfig(teacher_tap=TEACHER_MAP, outer_weight=32.0, **CENTRE_RESPONSE)
MONOTAKD_LABELLED = replace(MONOTAKD, **TAMED, **SURROUND_RESPONSE)


def centerpoint_voxels() -> Recipe:
    """CenterPoint on voxels of 0.1 m, LabelDistill's teacher, on nuScenes."""
    published = (
        f"56.1 mAP / 64.6 NDS on val with sampled objects added (open-mmlab/mmdetection3d readme), {UNKNOWN_CHOICE}"
    )
    stages = (_teacher(CenterPointConfig()),)
    return Recipe("centerpoint_voxels", stages, SurroundDatasetConfig(), note=published)


def centerpoint_pillars() -> Recipe:
    """CenterPoint on pillars of 0.2 m, on nuScenes."""
    published = (
        f"48.7 mAP / 59.6 NDS on val with sampled objects added (open-mmlab/mmdetection3d readme), {UNKNOWN_CHOICE}"
    )
    stages = (_teacher(centerpoint.with_pillars()),)
    return Recipe("centerpoint_pillars", stages, SurroundDatasetConfig(), note=published)


def bevdepth_alone() -> Recipe:
    """BEVDepth with one past key frame and averaged weights, on nuScenes."""
    return Recipe("bevdepth", (_camera("baseline", "baseline", BEVDEPTH, AVERAGED),), BEVDEPTH_DATA,
                  note=PUBLISHED_BEVDEPTH)  # fmt: skip


def bevdepth_balanced() -> Recipe:
    """BEVDepth with aggregated depth on class-balanced frames, on nuScenes."""
    schedule = replace(AVERAGED, epochs=20, drops=(16, 19))
    stage = _camera("baseline", "baseline", replace(BEVDEPTH, depth_aggregation=True), schedule)
    return Recipe("bevdepth_balanced", (replace(stage, class_balanced=True),), BEVDEPTH_DATA, note=PUBLISHED_BEVDEPTH)


def labeldistill() -> Recipe:
    """LabelDistill with four past key frames: LiDAR teacher, label encoder, baseline and student, on nuScenes."""
    return _labeldistill("labeldistill", FOUR_KEYS, _student(FOUR_KEYS))


def labeldistill_2key() -> Recipe:
    """LabelDistill with two past key frames, trained for 24 epochs, on nuScenes."""
    return _labeldistill("labeldistill_2key", TWO_KEYS, _student(TWO_KEYS), epochs=24)


def labeldistill_per_frame() -> Recipe:
    """LabelDistill whose LiDAR term teaches the student at the finer map too: thirds of the key frame's channels."""
    method = LabelDistillConfig.styled("intended", frames=1 + len(FOUR_KEYS))
    return _labeldistill("labeldistill_per_frame", FOUR_KEYS, _student(FOUR_KEYS), method=method)


def labeldistill_r101() -> Recipe:
    """LabelDistill with a ResNet-101 on images of 1408 x 512 px, on nuScenes."""
    trunk = replace(TRUNK, layers=RESNET101)
    return _labeldistill("labeldistill_r101", FOUR_KEYS, replace(_student(FOUR_KEYS), trunk=trunk), canvas=(1408, 512))


def labeldistill_released() -> Recipe:
    """LabelDistill as its code was released: blue for red, teachers' batch norm in training, no prior in the head,
    averages at full length from the first step."""
    student = _student(FOUR_KEYS, BEVDepthConfig.styled("released", trunk=TRUNK, frozen_stem=True))
    encoder = LabelEncoderConfig.styled("released")
    recipe = _labeldistill("labeldistill_released", FOUR_KEYS, student, LabelDistillConfig.styled("released"), encoder)
    stages = tuple(replace(stage, schedule=replace(stage.schedule, ema_warmup=None)) for stage in recipe.stages)
    return replace(recipe, stages=stages)


def monotakd_bevdepth() -> Recipe:
    """MonoTAKD on BEVDepth with one past key frame, inferred: teacher, baseline, assistant and student, on nuScenes."""
    teacher = CenterPointConfig()
    stages = (
        _teacher(teacher),
        _camera("baseline", "baseline", BEVDEPTH, AVERAGED),
        *assistant_stages(assistant_of(BEVDEPTH, teacher), HALF, IMAGES),
        _monotakd("student", aligned(BEVDEPTH, teacher), AVERAGED, MONOTAKD, IMAGES),
    )
    return Recipe("monotakd_bevdepth", stages, BEVDEPTH_DATA, note=PUBLISHED_MONOTAKD)


def cmkd_bevdepth() -> Recipe:
    """CMKD's form for several cameras on BEVDepth with one past key frame, labels kept, on nuScenes."""
    teacher = CenterPointConfig()
    baseline = _camera("baseline", "baseline", collapsed(BEVDEPTH, teacher), AVERAGED)
    student = replace(baseline, name="student", role="student", teachers=("teacher",), method=CMKD_SURROUND)
    return Recipe("cmkd_bevdepth", (_teacher(teacher), baseline, student), BEVDEPTH_DATA, note=PUBLISHED_CMKD)


def labelled_bevdepth() -> Recipe:
    """CMKD and MonoTAKD from the trained BEVDepth, beside it trained on as long as they, on nuScenes."""
    teacher = CenterPointConfig()
    stages = (
        _teacher(teacher),
        _camera("baseline", "baseline", collapsed(BEVDEPTH, teacher), AVERAGED),
        *assistant_stages(assistant_of(BEVDEPTH, teacher), HALF, IMAGES),
    )
    return Recipe("labelled_bevdepth", stages + _labelled(stages[1], HALF), BEVDEPTH_DATA, note=UNPUBLISHED_LABELLED)


def monostl_bevdepth() -> Recipe:
    """MonoSTL on BEVDepth with one past key frame, inferred: teacher with depth, baseline and student, on nuScenes."""
    method = MonoSTLConfig(fusion_channels=256, **GROUND)
    stages = (
        _camera("teacher", "teacher", replace(BEVDEPTH, input="rgb+gt_depth", frames=1), AVERAGED),
        _camera("baseline", "baseline", BEVDEPTH, AVERAGED),
        replace(_camera("student", "student", BEVDEPTH, AVERAGED), teachers=("teacher",), method=method),
    )
    return Recipe("monostl_bevdepth", stages, BEVDEPTH_DATA, note=PUBLISHED_MONOSTL)


def collapsed(student: BEVDepthConfig, teacher: CenterPointConfig) -> BEVDepthConfig:
    """The student with a map that is as wide as ``TEACHER_MAP``."""
    return replace(student, bev_channels=teacher.backbone.channels[0])


def _labelled(baseline: StageConfig, schedule: Schedule) -> tuple[StageConfig, ...]:
    """What goes on from the trained baseline: itself; CMKD, with its map terms as published and as chosen; MonoTAKD."""
    continued = replace(baseline, name="continued", role="control", schedule=schedule, init="baseline")
    cmkd = replace(continued, role="student", teachers=("teacher",), method=CMKD_LABELLED)
    monotakd = replace(
        cmkd, name="monotakd_labelled", teachers=("teacher", "assistant"), method=MONOTAKD_LABELLED, init=None,
        inherit=("baseline",), detector=replace(baseline.detector, spatial_alignment=True, fusion="skip"),
    )  # fmt: skip
    return (
        continued,
        replace(cmkd, name="cmkd_published", method=CMKD_SURROUND),
        replace(cmkd, name="cmkd_responses", method=replace(CMKD_SURROUND, feature_weight=0.0)),
        replace(cmkd, name="cmkd_labelled"),
        monotakd,
    )


def assistant_of(student: BEVDepthConfig, teacher: CenterPointConfig) -> BEVDepthConfig:
    """The student's network for the key frame, given the LiDAR's depth; its map as wide as ``TEACHER_MAP``."""
    return replace(collapsed(student, teacher), input="rgb+gt_depth", frames=1)


def aligned(student: BEVDepthConfig, teacher: CenterPointConfig) -> BEVDepthConfig:
    """The student with MonoTAKD's two maps, as wide as ``TEACHER_MAP``."""
    return replace(collapsed(student, teacher), spatial_alignment=True, fusion="ffm")


def assistant_stages(
    detector: BEVDepthConfig, schedule: Schedule, augment: dict[str, Any], method: CMKDConfig = IMITATED
) -> tuple[StageConfig, StageConfig]:
    """The assistant learns labels and the LiDAR teacher's map, then its responses, too."""
    map_alone = replace(method, cls_weight=0.0, loc_weight=0.0)
    return (
        StageConfig("assistant_bev", "preparation", detector, schedule, **augment, teachers=("teacher",),
                    method=map_alone),
        StageConfig("assistant", "assistant", detector, schedule, **augment, teachers=("teacher",), method=method,
                    init="assistant_bev"),
    )  # fmt: skip


def _monotakd(
    name: str, detector: BEVDepthConfig, schedule: Schedule, method: MonoTAKDConfig, augment: dict[str, Any]
) -> StageConfig:
    return StageConfig(name, "student", detector, schedule, **augment, teachers=("teacher", "assistant"), method=method)


def _teacher(detector: CenterPointConfig) -> StageConfig:
    return StageConfig("teacher", "teacher", detector, TEACHER, **NO_IMAGES, class_balanced=True)


def _camera(name: str, role: Any, detector: BEVDepthConfig, schedule: Schedule) -> StageConfig:
    return StageConfig(name, role, detector, schedule, **IMAGES)


def _student(past: tuple[int, ...], base: BEVDepthConfig = BEVDEPTH) -> BEVDepthConfig:
    """LabelDistill's student: more channels and frames than BEVDepth."""
    return replace(base, frames=1 + len(past), context_channels=CONTEXT, bev_base=2 * CONTEXT,
                   head=replace(base.head, code_weights=(1.0,) * 10))  # fmt: skip


def _labeldistill(
    name: str, past: tuple[int, ...], student: BEVDepthConfig, method: LabelDistillConfig | None = None,
    encoder: LabelEncoderConfig | None = None, epochs: int = STUDENT.epochs, canvas: tuple[int, int] = (704, 256),
) -> Recipe:  # fmt: skip
    """Teacher, label encoder, the student alone, and the student taught by both."""
    teacher, schedule = CenterPointConfig(), replace(STUDENT, epochs=epochs)
    stages = (
        _teacher(teacher),
        StageConfig("label_encoder", "label_encoder", encoder or inverse_of(teacher), LABEL_ENCODER, **NO_IMAGES,
                    inherit=("teacher",)),
        _camera("baseline", "baseline", student, schedule),
        StageConfig("student", "student", student, schedule, **IMAGES, teachers=("teacher", "label_encoder"),
                    method=method or LabelDistillConfig()),
    )  # fmt: skip
    data = SurroundDatasetConfig(past=past, canvas=canvas, missing_past="nearest")
    return Recipe(name, stages, data, note=PUBLISHED_LABELDISTILL)


# -------------------------------------------------------------------------------------------------- on synthetic drives

#: Small cameras, the road users of synthetic drives, and scans of the key frame and its neighbours.
TINY_DATA = SurroundDatasetConfig(
    identity="synthetic-drives", version="v1.0-synth", classes=tuple(name for task in TINY_TASKS for name in task),
    canvas=(256, 96), sweeps=SweepConfig(past=2, future=0, scans=3, budget=None), in_memory=True,
)  # fmt: skip
TINY_SCHEDULE = Schedule(
    epochs=12, batch_size=4, lr=2e-3, shape="one_cycle", optimiser="adamw", weight_decay=1e-2, decay="all",
    clip_norm=10.0,
)  # fmt: skip
#: Mirrored and turned like the real ones, but pictures keep their size: the small cameras have no pixels to spare.
TINY_IMAGES = {**NO_IMAGES, "image_augment": ImageAugmentConfig((1.0, 1.1), rotation=0.0)}
TINY_EVALUATION = EvaluationConfig(every=4, batch_size=4)
TINY_NOTE = "synthetic drives; schedule and size are this project's own"


def tiny_labeldistill() -> Recipe:
    """Synthetic drives: LiDAR teacher, label encoder, baseline, and what each part of LabelDistill adds."""
    teacher, baseline = _tiny_alone()
    both = ("teacher", "label_encoder")
    alone = LabelDistillConfig(label_weight=0.0, partition="none")
    methods = {
        "lidar": (("teacher",), alone),
        "label": (both, replace(alone, label_weight=LabelDistillConfig().label_weight)),
        "labeldistill": (both, LabelDistillConfig(partition="per_frame", frames=1)),
    }
    stages = (
        teacher,
        StageConfig("label_encoder", "label_encoder", label_encoder.tiny(), TINY_SCHEDULE, **NO_IMAGES,
                    inherit=("teacher",)),
        baseline,
        *(replace(baseline, name=name, role="student", teachers=teachers, method=method)
          for name, (teachers, method) in methods.items()),
    )  # fmt: skip
    return Recipe("tiny_labeldistill", stages, TINY_DATA, TINY_EVALUATION, note=TINY_NOTE)


def tiny_surround() -> Recipe:
    """Synthetic drives: LiDAR teacher, baseline, assistant with depth, MonoTAKD, and MonoSTL from the assistant."""
    teacher, baseline = _tiny_alone()
    lidar, student = centerpoint.tiny(), bevdepth.tiny()
    half = replace(TINY_SCHEDULE, epochs=TINY_SCHEDULE.epochs // 2)
    stages = (
        teacher,
        baseline,
        *assistant_stages(assistant_of(student, lidar), half, TINY_IMAGES),
        _monotakd("monotakd", aligned(student, lidar), TINY_SCHEDULE, MONOTAKD, TINY_IMAGES),
        replace(baseline, name="monostl", role="student", teachers=("assistant",),
                method=MonoSTLConfig(fusion_channels=64, **GROUND)),
    )  # fmt: skip
    return Recipe("tiny_surround", stages, TINY_DATA, TINY_EVALUATION, note=f"{TINY_NOTE}; both methods are inferred")


def tiny_surround_labelled() -> Recipe:
    """Synthetic drives: CMKD and MonoTAKD from the trained baseline, beside it trained on as long as they."""
    lidar, student = centerpoint.tiny(), bevdepth.tiny()
    teacher, baseline = _tiny_alone()
    baseline = replace(baseline, detector=collapsed(student, lidar))
    half = replace(TINY_SCHEDULE, epochs=TINY_SCHEDULE.epochs // 2)
    stages = (teacher, baseline, *assistant_stages(assistant_of(student, lidar), half, TINY_IMAGES))
    return Recipe("tiny_surround_labelled", stages + _labelled(baseline, half), TINY_DATA, TINY_EVALUATION,
                  note=TINY_NOTE)  # fmt: skip


def _tiny_alone() -> tuple[StageConfig, StageConfig]:
    """The LiDAR teacher and the camera baseline, which the small presets share."""
    return (
        StageConfig("teacher", "teacher", centerpoint.tiny(), TINY_SCHEDULE, **NO_IMAGES),
        StageConfig("baseline", "baseline", bevdepth.tiny(), TINY_SCHEDULE, **TINY_IMAGES),
    )


RECIPES = (
    centerpoint_voxels, centerpoint_pillars, bevdepth_alone, bevdepth_balanced, labeldistill, labeldistill_2key,
    labeldistill_per_frame, labeldistill_r101, labeldistill_released, monotakd_bevdepth, monostl_bevdepth,
    tiny_labeldistill, tiny_surround, cmkd_bevdepth, labelled_bevdepth, tiny_surround_labelled,
)  # fmt: skip
