"""The methods that LabelDistill's paper compares itself with, on nuScenes at paper size as far as this library's
detectors are those of the papers, and side by side on synthetic drives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distill3d.detectors import DetectorConfig, bevdepth, bevdet, bevformer, bevfusion, centerpoint
from distill3d.detectors.bevfusion import BEVFusionConfig
from distill3d.detectors.centerpoint import CenterPointConfig
from distill3d.distill.methods import MethodConfig
from distill3d.distill.methods.bevdistill import BEVDistillConfig
from distill3d.distill.methods.distillbev import DistillBEVConfig
from distill3d.distill.methods.simdistill import SimDistillConfig
from distill3d.distill.methods.tig_bev import TiGBEVConfig
from distill3d.distill.methods.unidistill import UniDistillConfig
from distill3d.distill.methods.uvtr_kd import UVTRKDConfig
from distill3d.distill.methods.vcd import VCDConfig
from distill3d.distill.methods.x3kd import X3KDConfig
from distill3d.layers.heads.centre_head import TINY_TASKS
from distill3d.recipes.kitti import UNKNOWN_CHOICE
from distill3d.recipes.surround import (
    AVERAGED,
    BEVDEPTH,
    BEVDEPTH_DATA,
    IMAGES,
    NO_IMAGES,
    TEACHER,
    TINY_DATA,
    TINY_EVALUATION,
    TINY_IMAGES,
    TINY_NOTE,
    TINY_SCHEDULE,
    TRUNK,
)
from distill3d.train.recipe import Recipe, StageConfig, SurroundDatasetConfig
from distill3d.train.schedules import Schedule

#: AdamW for 24 epochs on batches of 64, the rate cut by ten twice: BEVDet's code base.  Its rise over the first 500
#: steps is about an epoch here.
BEVDET = Schedule(
    epochs=24, batch_size=64, lr=2e-4, warmup_epochs=1, drops=(15, 21), optimiser="adamw", weight_decay=0.01,
    decay="all", clip_norm=5.0,
)  # fmt: skip
#: TiG-BEV's: without class-balanced frames, cuts after epochs 19 and 23.
TIG_BEV = replace(BEVDET, drops=(18, 22), weight_decay=1e-7)
#: BEVFormer's: AdamW on batches of 8, a cosine down to next to nothing, trunk at a tenth of the rate.
BEVFORMER = Schedule(
    epochs=24, batch_size=8, lr=2e-4, shape="one_cycle", rise=0.01, start_divisor=3.0, end_divisor=333.0,
    optimiser="adamw", weight_decay=0.01, decay="all", clip_norm=35.0, slower="backbone", slower_share=0.1,
)  # fmt: skip
#: 800 x 450 px, padded below to 480; colours alone are augmented in the release, here nothing is.
BEVFORMER_DATA = SurroundDatasetConfig(canvas=(800, 480), past=(1, 2), missing_past="current")
NOT_AUGMENTED: dict[str, Any] = {"augment": None}
#: Of students on another base than their paper's.
INFERRED = "inferred: on this library's BEVDepth with BEVDepth's schedule and a CenterPoint teacher"

PUBLISHED_DISTILLBEV = (
    "DistillBEV, BEVDepth4D in BEVDet's form, ResNet-50: 36.4 mAP / 48.4 NDS on val before, 39.0 / 50.6 taught by "
    f"CenterPoint (qcraftai/distill-bev readme), {UNKNOWN_CHOICE}"
)
PUBLISHED_BEVDET = f"BEVDet, ResNet-50: 29.9 mAP / 37.7 NDS on val (HuangJunJie2017/BEVDet readme), {UNKNOWN_CHOICE}"
PUBLISHED_BEVFORMER = (
    f"BEVFormer tiny: 25.2 mAP / 35.4 NDS on val (fundamentalvision/BEVFormer readme), {UNKNOWN_CHOICE}"
)
PUBLISHED_TIG_BEV = (
    "TiG-BEV on BEVDepth4D in BEVDet's form, ResNet-50, without class-balanced frames: 36.6 mAP / 46.1 NDS on val "
    f"(ADLab3Ds/TiG-BEV readme), {UNKNOWN_CHOICE}"
)
PUBLISHED_UNIDISTILL = (
    f"{INFERRED}, whose first maps differ in width, so that a 1x1 convolution adapts them; the paper's abstract tells "
    "gains of 2.0 to 3.2 points in mAP and NDS on its own detector, "
    f"{UNKNOWN_CHOICE}"
)
PUBLISHED_UNIDISTILL_FUSION = (
    "inferred: on this library's BEVDepth with BEVDepth's schedule, taught by a BEVFusion on its cells without the "
    "published gate on the channels, whose first map is wider, so that a pointwise convolution adapts the student's; "
    "no number is known to us"
)
PUBLISHED_UNIDISTILL_LIDAR = (
    "inferred: a CenterPoint taught by this library's BEVDepth, whose first maps differ in width, so that a pointwise "
    "convolution adapts the student's; no number is known to us"
)
PUBLISHED_BEVDISTILL = (
    f"{INFERRED}; published on BEVFormer, ResNet-50: 35.2 mAP / 42.3 NDS on val before, 38.6 / 45.7 after "
    f"(zehuichen123/BEVDistill readme), {UNKNOWN_CHOICE}"
)
PUBLISHED_SIMDISTILL = (
    f"{INFERRED}, one branch and LiDAR alone, so that only its terms on objects and answers are there; the paper's "
    "abstract tells gains of 4.8 mAP and 4.1 NDS over BEVFusion's camera branch, "
    f"{UNKNOWN_CHOICE}"
)
PUBLISHED_UVTR = (
    f"{INFERRED}; published on UVTR, ResNet-101: 36.1 mAP / 44.1 NDS on val before, 37.2 / 45.0 after "
    f"(dvlab-research/UVTR readme), {UNKNOWN_CHOICE}"
)
PUBLISHED_X3KD = (
    f"{INFERRED}, from abstracts, without instance segmentation; the paper tells 35.9 mAP / 47.2 NDS on val before, "
    f"39.0 / 50.5 after, with ResNet-50, {UNKNOWN_CHOICE}"
)
PUBLISHED_VCD = (
    "inferred: on this library's BEVDepth, whose twin with the LiDAR's depth teaches; published on BEVDet with eight "
    "past frames, ResNet-50: 38.9 mAP / 49.3 NDS on val before, 41.0 / 51.8 after, taught by a ConvNeXt-B "
    f"(OpenDriveLab/Birds-eye-view-Perception readme), {UNKNOWN_CHOICE}"
)

#: SimDistill's terms for a student with one branch and a teacher of LiDAR alone: the student's map is its simulated
#: branch.
ONE_BRANCH = SimDistillConfig(
    simulated_tap="bev", teacher_lidar_tap="bev_low", imd_weight=0.0, mmd_f_weight=0.0
)  # fmt: skip
#: UniDistill's terms for a camera's student of both sensors, and for a LiDAR's of cameras.
FROM_FUSION = UniDistillConfig(pair="camera_from_fusion", adapter="pointwise", teacher_low_tap="bev")
FROM_CAMERA = UniDistillConfig(
    pair="lidar_from_camera", adapter="pointwise", low_tap="bev_low", teacher_low_tap="bev"
)  # fmt: skip


def distillbev() -> Recipe:
    """DistillBEV on BEVDepth4D: CenterPoint on pillars, baseline and student, whose head begins as the teacher's."""
    student = _scaled(bevdet.bevdepth4d(trunk=TRUNK, bev_neck_norm=True))
    teacher = _teacher(centerpoint.with_pillars())
    baseline = StageConfig("baseline", "baseline", student, BEVDET, **IMAGES, class_balanced=True)
    taught = replace(_taught(baseline, DistillBEVConfig()), inherit=("teacher",), inherit_parts=("head",))
    return Recipe("distillbev", (teacher, baseline, taught), BEVDEPTH_DATA, note=PUBLISHED_DISTILLBEV)


def bevdet_alone() -> Recipe:
    """BEVDet with one frame and no depth supervision, on nuScenes."""
    baseline = StageConfig("baseline", "baseline", _scaled(bevdet.BEVDetConfig(trunk=TRUNK)), BEVDET, **IMAGES,
                           class_balanced=True)  # fmt: skip
    return Recipe("bevdet", (baseline,), SurroundDatasetConfig(), note=PUBLISHED_BEVDET)


def bevformer_alone() -> Recipe:
    """BEVFormer's tiny form: 50 x 50 cells, two past key frames, on nuScenes."""
    return Recipe("bevformer", (_bevformer(),), BEVFORMER_DATA, note=PUBLISHED_BEVFORMER)


def bevdistill_bevformer() -> Recipe:
    """BEVDistill on BEVFormer's tiny form, with a CenterPoint for its teacher of queries, on nuScenes."""
    method = BEVDistillConfig(teacher_tap="bev_neck")
    return _on_bevformer("bevdistill_bevformer", method, PUBLISHED_BEVDISTILL)


def uvtr_kd_bevformer() -> Recipe:
    """UVTR's transfer at the centres that BEVFormer's queries predict, on nuScenes."""
    return _on_bevformer("uvtr_kd_bevformer", UVTRKDConfig(), PUBLISHED_UVTR)


def _bevformer() -> StageConfig:
    return StageConfig("baseline", "baseline", bevformer.released_tiny(), BEVFORMER, **NOT_AUGMENTED)


def _on_bevformer(name: str, method: MethodConfig, note: str) -> Recipe:
    baseline = _bevformer()
    return Recipe(name, (_teacher(), baseline, _taught(baseline, method)), BEVFORMER_DATA, note=note)


def tig_bev() -> Recipe:
    """TiG-BEV on BEVDepth4D: CenterPoint on voxels, baseline and student, on nuScenes."""
    baseline = StageConfig("baseline", "baseline", _scaled(bevdet.bevdepth4d(trunk=TRUNK)), TIG_BEV, **IMAGES)
    taught = _taught(baseline, TiGBEVConfig(channel_weight=20.0))
    return Recipe("tig_bev", (_teacher(), baseline, taught), BEVDEPTH_DATA, note=PUBLISHED_TIG_BEV)


def unidistill() -> Recipe:
    """UniDistill's camera student of a LiDAR teacher, on BEVDepth, on nuScenes."""
    return _on_bevdepth("unidistill", UniDistillConfig(adapter="pointwise"), PUBLISHED_UNIDISTILL)


def unidistill_fusion() -> Recipe:
    """UniDistill's camera student of a teacher that sees both, BEVFusion, on BEVDepth, on nuScenes."""
    detector = BEVFusionConfig(trunk=TRUNK, frozen_stem=True)
    teacher = StageConfig("teacher", "teacher", detector, TEACHER, **IMAGES, class_balanced=True)
    return _on_bevdepth("unidistill_fusion", FROM_FUSION, PUBLISHED_UNIDISTILL_FUSION, teacher)


def unidistill_lidar() -> Recipe:
    """UniDistill's LiDAR student of a camera teacher: CenterPoint, taught by BEVDepth, on nuScenes."""
    camera = StageConfig("camera", "teacher", BEVDEPTH, AVERAGED, **IMAGES)
    baseline = replace(_teacher(), name="baseline", role="baseline")
    student = _taught(baseline, FROM_CAMERA, camera.name)
    return Recipe("unidistill_lidar", (camera, baseline, student), BEVDEPTH_DATA, note=PUBLISHED_UNIDISTILL_LIDAR)


def bevdistill() -> Recipe:
    """BEVDistill's terms on BEVDepth, whose peaks are asked for its places, on nuScenes."""
    return _on_bevdepth("bevdistill", BEVDistillConfig(), PUBLISHED_BEVDISTILL)


def simdistill() -> Recipe:
    """SimDistill's terms for a student with one branch, on BEVDepth, on nuScenes."""
    return _on_bevdepth("simdistill", ONE_BRANCH, PUBLISHED_SIMDISTILL)


def uvtr_kd() -> Recipe:
    """UVTR's transfer at the student's best peaks, on BEVDepth, on nuScenes."""
    return _on_bevdepth("uvtr_kd", UVTRKDConfig(), PUBLISHED_UVTR)


def x3kd() -> Recipe:
    """In the manner of X3KD: map, adversary and responses, on BEVDepth, on nuScenes."""
    return _on_bevdepth("x3kd", X3KDConfig(), PUBLISHED_X3KD)


def vcd() -> Recipe:
    """VCD on BEVDepth: its twin with the LiDAR's depth teaches, where objects are and came from, on nuScenes."""
    expert = StageConfig("teacher", "teacher", replace(BEVDEPTH, input="rgb+gt_depth", frames=1), AVERAGED, **IMAGES)
    baseline = StageConfig("baseline", "baseline", BEVDEPTH, AVERAGED, **IMAGES)
    return Recipe("vcd", (expert, baseline, _taught(baseline, VCDConfig())), BEVDEPTH_DATA, note=PUBLISHED_VCD)


def _scaled(detector: bevdet.BEVDetConfig) -> bevdet.BEVDetConfig:
    """With BEVDet's own suppression of boxes, scale-NMS."""
    return replace(detector, head=replace(detector.head, nms="scaled"))


def _on_bevdepth(name: str, method: MethodConfig, note: str, teacher: StageConfig | None = None) -> Recipe:
    """A teacher, CenterPoint where none is given; BEVDepth with one past key frame alone, and taught."""
    baseline = StageConfig("baseline", "baseline", BEVDEPTH, AVERAGED, **IMAGES)
    return Recipe(name, (teacher or _teacher(), baseline, _taught(baseline, method)), BEVDEPTH_DATA, note=note)


def _teacher(detector: CenterPointConfig | None = None) -> StageConfig:
    return StageConfig("teacher", "teacher", detector or CenterPointConfig(), TEACHER, **NO_IMAGES,
                       class_balanced=True)  # fmt: skip


def _taught(baseline: StageConfig, method: MethodConfig, *teachers: str, name: str = "student") -> StageConfig:
    return replace(baseline, name=name, role="student", teachers=teachers or ("teacher",), method=method)


# -------------------------------------------------------------------------------------------------- on synthetic drives

#: The classes of synthetic drives.
TINY_CLASSES = tuple(name for task in TINY_TASKS for name in task)
#: Methods on the small BEVDepth, by their stages' names, and who teaches.
TINY_METHODS: dict[str, tuple[str, Any]] = {
    "distillbev": ("teacher", DistillBEVConfig()),
    "unidistill": ("teacher", UniDistillConfig(adapter="pointwise")),
    "unidistill_fusion": ("fusion", FROM_FUSION),
    "tig_bev": ("teacher", TiGBEVConfig()),
    "bevdistill": ("teacher", BEVDistillConfig(classes=TINY_CLASSES)),
    "simdistill": ("teacher", ONE_BRANCH),
    "uvtr_kd": ("teacher", UVTRKDConfig()),
    "x3kd": ("teacher", X3KDConfig()),
    "vcd": ("expert", VCDConfig()),
}


def tiny_surround_family() -> Recipe:
    """Synthetic drives: eight methods, one by two teachers, from the trained baseline, beside it trained on as long."""
    teacher, baseline = _tiny_alone(bevdepth.tiny())
    expert = replace(baseline, name="expert", role="teacher", detector=bevdepth.tiny(input="rgb+gt_depth"))
    fusion = replace(expert, name="fusion", detector=bevfusion.tiny())
    continued = _continued(baseline)
    students = tuple(_taught(continued, method, by, name=name) for name, (by, method) in TINY_METHODS.items())
    return Recipe("tiny_surround_family", (teacher, expert, fusion, baseline, continued, *students), TINY_DATA,
                  TINY_EVALUATION, note=TINY_NOTE)  # fmt: skip


def tiny_bevdet() -> Recipe:
    """Synthetic drives: BEVDet's form of BEVDepth alone, and from there DistillBEV and TiG-BEV."""
    teacher, baseline = _tiny_alone(bevdet.tiny())
    students = {name: TINY_METHODS[name][1] for name in ("distillbev", "tig_bev")}
    return _tiny_from("tiny_bevdet", teacher, baseline, students)


def tiny_bevformer() -> Recipe:
    """Synthetic drives: BEVFormer alone, and from there BEVDistill and UVTR's transfer, at its queries' centres."""
    teacher, baseline = _tiny_alone(bevformer.tiny())
    students = {
        "bevdistill": BEVDistillConfig(classes=TINY_CLASSES), "uvtr_kd": UVTRKDConfig(),
    }  # fmt: skip
    return _tiny_from("tiny_bevformer", teacher, baseline, students)


def _tiny_alone(detector: DetectorConfig) -> tuple[StageConfig, StageConfig]:
    return (
        StageConfig("teacher", "teacher", centerpoint.tiny(), TINY_SCHEDULE, **NO_IMAGES),
        StageConfig("baseline", "baseline", detector, TINY_SCHEDULE, **TINY_IMAGES),
    )


def _continued(baseline: StageConfig) -> StageConfig:
    """The trained baseline trained on for half as long."""
    half = replace(TINY_SCHEDULE, epochs=TINY_SCHEDULE.epochs // 2)
    return replace(baseline, name="continued", role="control", schedule=half, init="baseline")


def _tiny_from(
    name: str, teacher: StageConfig, baseline: StageConfig, methods: dict[str, MethodConfig]
) -> Recipe:  # fmt: skip
    continued = _continued(baseline)
    students = tuple(_taught(continued, method, name=student) for student, method in methods.items())
    return Recipe(name, (teacher, baseline, continued, *students), TINY_DATA, TINY_EVALUATION, note=TINY_NOTE)


RECIPES = (
    distillbev, tig_bev, unidistill, unidistill_fusion, unidistill_lidar, bevdistill, simdistill, uvtr_kd, x3kd, vcd,
    bevdet_alone, bevformer_alone, bevdistill_bevformer, uvtr_kd_bevformer, tiny_surround_family, tiny_bevdet,
    tiny_bevformer,
)  # fmt: skip
