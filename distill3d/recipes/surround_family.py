"""The methods that LabelDistill's paper compares itself with, on nuScenes at paper size as far as this library's
detectors are those of the papers, and side by side on synthetic drives; and those of KITTI that were published on
BEVFormer and BEVDet, too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distill3d.detectors import DetectorConfig, bevdepth, bevdet, bevformer, bevfusion, centerpoint
from distill3d.detectors.bevdepth import BEVDepthConfig
from distill3d.detectors.bevformer import BEVFormerConfig
from distill3d.detectors.bevfusion import BEVFusionConfig
from distill3d.detectors.centerpoint import CenterPointConfig
from distill3d.distill.methods import MethodConfig
from distill3d.distill.methods.bevdistill import BEVDistillConfig
from distill3d.distill.methods.distillbev import DistillBEVConfig
from distill3d.distill.methods.monostl import GROUND, MonoSTLConfig
from distill3d.distill.methods.monotakd import QUERIES, MonoTAKDConfig
from distill3d.distill.methods.simdistill import SimDistillConfig
from distill3d.distill.methods.tig_bev import TiGBEVConfig
from distill3d.distill.methods.unidistill import UniDistillConfig
from distill3d.distill.methods.uvtr_kd import UVTRKDConfig
from distill3d.distill.methods.vcd import VCDConfig
from distill3d.distill.methods.x3kd import X3KDConfig
from distill3d.layers.ground.simulated_lift import SimulatedBranchConfig
from distill3d.layers.heads.centre_head import TINY_TASKS, tiny_head
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.recipes.bev import MAP_SHARE
from distill3d.recipes.kitti import UNKNOWN_CHOICE
from distill3d.recipes.surround import (
    AVERAGED,
    BEVDEPTH,
    BEVDEPTH_DATA,
    CMKD_LABELLED,
    CMKD_SURROUND,
    HALF,
    IMAGES,
    IMITATED,
    NO_IMAGES,
    TEACHER,
    TINY_DATA,
    TINY_EVALUATION,
    TINY_IMAGES,
    TINY_NOTE,
    TINY_SCHEDULE,
    TRUNK,
    assistant_stages,
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
#: CMKD's for several cameras: one cycle to ten times 1e-4 and down, as CenterPoint's, for 24 epochs.
CMKD = replace(TEACHER, epochs=24)
#: SimDistill's: one cycle to five times 2e-4 and down; batches of 24, of two of which the gradients are joined.
SIMDISTILL = replace(TEACHER, batch_size=48, lr=1e-3, start_divisor=5.0)
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
    "inferred: on this library's BEVDepth with a simulated branch that reads no depth, taught by a BEVFusion on its "
    "cells, both with ResNet-50; schedule and weights are those of SimDistill's code, which begins with BEVFusion's "
    "weights where this begins with ImageNet's; the paper's abstract tells gains of 4.8 mAP and 4.1 NDS over "
    f"BEVFusion's camera branch, {UNKNOWN_CHOICE}"
)
UNPUBLISHED_ONE_BRANCH = (
    f"{INFERRED}, one branch and LiDAR alone, so that only SimDistill's terms on objects and answers are there; no "
    "number is published of this form"
)
PUBLISHED_UVTR = (
    f"{INFERRED}; published on UVTR, ResNet-101: 36.1 mAP / 44.1 NDS on val before, 37.2 / 45.0 after "
    f"(dvlab-research/UVTR readme), {UNKNOWN_CHOICE}"
)
PUBLISHED_X3KD = (
    f"{INFERRED}, from abstracts, without instance segmentation, for which nuScenes has no masks; the paper tells 35.9 "
    f"mAP / 47.2 NDS on val before, 39.0 / 50.5 after, with ResNet-50, {UNKNOWN_CHOICE}"
)
PUBLISHED_VCD = (
    "inferred: on this library's BEVDepth, whose twin with the LiDAR's depth teaches; published on BEVDet with eight "
    "past frames, ResNet-50: 38.9 mAP / 49.3 NDS on val before, 41.0 / 51.8 after, taught by a ConvNeXt-B "
    f"(OpenDriveLab/Birds-eye-view-Perception readme), {UNKNOWN_CHOICE}"
)

PUBLISHED_MONOTAKD_BEVFORMER = (
    "inferred: of MonoTAKD on BEVFormer nothing was released but numbers; the student is BEVFormer's tiny form on the "
    "cells of CenterPoint's second level, the assistant a BEVDepth that lifts by the LiDAR's depth, whose first stage "
    "lies on them, too, and no responses are compared; its authors report 39.2 mAP / 49.0 NDS on val with ResNet-50 "
    f"(hoiliu-0801/MonoTAKD readme), on a form of BEVFormer that they do not name, {UNKNOWN_CHOICE}"
)
PUBLISHED_MONOSTL_BEVDET = (
    "inferred: MonoSTL's code holds nothing for surround views and no number of it could be obtained; regions are the "
    "objects' footprints, the student is BEVDepth in BEVDet's form, for BEVDet's own view has no depth that anything "
    "supervises, and its twin with the LiDAR's depth teaches"
)
PUBLISHED_CMKD_BEVDET = (
    "CMKD's student for several cameras, ResNet-50: 30.7 mAP / 38.2 NDS on val before, 34.7 / 42.6 after (Cc-Hy/CMKD "
    f"readme), {UNKNOWN_CHOICE}; behind the adapted map, whose cells have one height here and ten there, it has "
    "CenterPoint's blocks, here BEVDet's own; batch size, which is told for one GPU alone, and augmentation are ours"
)

#: The cells of CenterPoint's second level, and of BEVDepth's first stage, for a BEVFormer that is to be compared.
SECOND_LEVEL = VoxelGrid(BEVFormerConfig.grid.extent, (1.6, 1.6, 8.0))
#: BEVDepth with the LiDAR's depth, whose first stage is as wide as BEVFormer and as CenterPoint's second level.
ASSISTANT = replace(BEVDEPTH, input="rgb+gt_depth", frames=1, bev_base=BEVFormerConfig.channels)
#: What such an assistant imitates, and what BEVFormer then learns from both.
STAGE, LEVEL = "bev_stage1", "bev_1"
IMITATED_LEVEL = replace(IMITATED, tap=STAGE, teacher_tap=LEVEL)
MONOTAKD_BEVFORMER = MonoTAKDConfig(tap="bev", assistant_map=STAGE, teacher_tap=LEVEL, **QUERIES)
#: CMKD's student: BEVDet's depth network, which nothing supervises, and a map as wide as CenterPoint's encoder gives.
ENCODED = "bev_low"
CMKD_STUDENT = bevdet.BEVDetConfig(trunk=TRUNK, view="bevdepth", depth_weight=0.0, adapted_channels=256)
#: SimDistill's terms for a student with one branch and a teacher of LiDAR alone: the student's map is its simulated
#: branch.
ONE_BRANCH = SimDistillConfig(
    simulated_tap="bev", teacher_lidar_tap="bev_low", imd_weight=0.0, mmd_f_weight=0.0
)  # fmt: skip
#: SimDistill's student: BEVDepth on one frame, whose second branch is fused with it to the width of BEVFusion's map.
TWO_BRANCHES = BEVDepthConfig(
    trunk=TRUNK, frozen_stem=True, simulated=SimulatedBranchConfig(fused_channels=BEVFusionConfig.fused_channels)
)
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


def monotakd_bevformer() -> Recipe:
    """MonoTAKD on BEVFormer, inferred: teacher, assistant with the LiDAR's depth, baseline and student, on nuScenes."""
    baseline = _bevformer(grid=SECOND_LEVEL)
    aligned = replace(
        baseline, detector=bevformer.released_tiny(grid=SECOND_LEVEL, spatial_alignment=True, fusion="ffm")
    )
    stages = (
        _teacher(),
        *assistant_stages(ASSISTANT, HALF, IMAGES, IMITATED_LEVEL),
        baseline,
        _taught(aligned, MONOTAKD_BEVFORMER, "teacher", "assistant"),
    )
    return Recipe("monotakd_bevformer", stages, BEVFORMER_DATA, note=PUBLISHED_MONOTAKD_BEVFORMER)


def _bevformer(**fields: Any) -> StageConfig:
    return StageConfig("baseline", "baseline", bevformer.released_tiny(**fields), BEVFORMER, **NOT_AUGMENTED)


def _on_bevformer(name: str, method: MethodConfig, note: str) -> Recipe:
    baseline = _bevformer()
    return Recipe(name, (_teacher(), baseline, _taught(baseline, method)), BEVFORMER_DATA, note=note)


def tig_bev() -> Recipe:
    """TiG-BEV on BEVDepth4D: CenterPoint on voxels, baseline and student, on nuScenes."""
    baseline = StageConfig("baseline", "baseline", _scaled(bevdet.bevdepth4d(trunk=TRUNK)), TIG_BEV, **IMAGES)
    taught = _taught(baseline, TiGBEVConfig(channel_weight=20.0))
    return Recipe("tig_bev", (_teacher(), baseline, taught), BEVDEPTH_DATA, note=PUBLISHED_TIG_BEV)


def monostl_bevdet() -> Recipe:
    """MonoSTL on BEVDepth4D in BEVDet's form, inferred: teacher with depth, baseline and student, on nuScenes."""
    baseline = StageConfig("baseline", "baseline", bevdet.bevdepth4d(trunk=TRUNK), BEVDET, **IMAGES)
    expert = replace(
        baseline, name="teacher", role="teacher",
        detector=bevdet.bevdepth4d(trunk=TRUNK, input="rgb+gt_depth", frames=1),
    )  # fmt: skip
    taught = _taught(baseline, MonoSTLConfig(fusion_channels=256, **GROUND))
    return Recipe("monostl_bevdet", (expert, baseline, taught), BEVDEPTH_DATA, note=PUBLISHED_MONOSTL_BEVDET)


def cmkd_bevdet() -> Recipe:
    """CMKD's form for several cameras on BEVDet, whose map is adapted to CenterPoint's, on nuScenes."""
    baseline = StageConfig("baseline", "baseline", CMKD_STUDENT, CMKD, **IMAGES)
    taught = _taught(baseline, replace(CMKD_SURROUND, teacher_tap=ENCODED))
    return Recipe("cmkd_bevdet", (_teacher(), baseline, taught), SurroundDatasetConfig(), note=PUBLISHED_CMKD_BEVDET)


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
    """SimDistill: BEVDepth with a simulated LiDAR branch, taught by BEVFusion by all terms, on nuScenes."""
    fusion = BEVFusionConfig(trunk=TRUNK, frozen_stem=True)
    teacher = StageConfig("teacher", "teacher", fusion, TEACHER, **IMAGES, class_balanced=True)
    baseline = StageConfig("baseline", "baseline", TWO_BRANCHES, SIMDISTILL, **IMAGES)
    stages = (teacher, baseline, _taught(baseline, SimDistillConfig()))
    return Recipe("simdistill", stages, SurroundDatasetConfig(), note=PUBLISHED_SIMDISTILL)


def simdistill_one_branch() -> Recipe:
    """SimDistill's terms for a student with one branch and a teacher of LiDAR alone, on BEVDepth, on nuScenes."""
    return _on_bevdepth("simdistill_one_branch", ONE_BRANCH, UNPUBLISHED_ONE_BRANCH)


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


def tiny_simdistill() -> Recipe:
    """Synthetic drives: BEVDepth with a simulated branch alone, and from there SimDistill by all terms."""
    fusion, small = bevfusion.tiny(), SimulatedBranchConfig(points=4, fused_channels=bevfusion.tiny().fused_channels)
    baseline = _tiny_alone(bevdepth.tiny(simulated=small))[1]
    teacher = replace(baseline, name="teacher", role="teacher", detector=fusion)
    return _tiny_from("tiny_simdistill", (teacher,), baseline, {"simdistill": ("teacher", SimDistillConfig())})


def tiny_x3kd() -> Recipe:
    """Synthetic drives: BEVDepth alone, and from there X3KD's terms, instance segmentation among them."""
    teacher, baseline = _tiny_alone(bevdepth.tiny(image_tap=True))
    method = X3KDConfig(segmentation_weight=1.0, classes=TINY_CLASSES)
    return _tiny_from("tiny_x3kd", (teacher,), baseline, {"x3kd": ("teacher", method)})


def tiny_bevdet() -> Recipe:
    """Synthetic drives: BEVDet's form of BEVDepth alone, and from there DistillBEV, TiG-BEV, CMKD and MonoSTL."""
    wide = centerpoint.tiny().pillars
    assert wide is not None
    # As wide as the map of CenterPoint's encoder, which CMKD compares.
    detector = bevdet.tiny(context_channels=wide.channels[-1])
    teacher, baseline = _tiny_alone(detector)
    expert = replace(baseline, name="expert", role="teacher", detector=replace(detector, input="rgb+gt_depth"))
    students = {name: TINY_METHODS[name] for name in ("distillbev", "tig_bev")} | {
        "cmkd": ("teacher", replace(CMKD_LABELLED, teacher_tap=ENCODED)),
        "monostl": ("expert", MonoSTLConfig(fusion_channels=64, **GROUND)),
    }
    return _tiny_from("tiny_bevdet", (teacher, expert), baseline, students)


def tiny_bevformer() -> Recipe:
    """Synthetic drives: BEVFormer alone, and from there BEVDistill and UVTR's transfer, at its queries' centres, and
    MonoTAKD, inferred."""
    detector = bevformer.tiny()
    x0, y0, z0, x1, y1, z1 = detector.grid.extent
    # On the cells of CenterPoint's second level, with as many channels, as MonoTAKD compares them.
    cell = 2 * tiny_head().cell
    detector = replace(detector, grid=VoxelGrid((x0, y0, z0, x1, y1, z1), (cell, cell, z1 - z0)))
    teacher, baseline = _tiny_alone(detector)
    assistant = bevdepth.tiny(input="rgb+gt_depth", bev_base=detector.channels)
    half = _continued(baseline).schedule
    before = (teacher, *assistant_stages(assistant, half, TINY_IMAGES, IMITATED_LEVEL))
    students = {
        "bevdistill": ("teacher", BEVDistillConfig(classes=TINY_CLASSES)), "uvtr_kd": ("teacher", UVTRKDConfig()),
    }  # fmt: skip
    recipe = _tiny_from("tiny_bevformer", before, baseline, students)
    monotakd = replace(
        _taught(_continued(baseline), replace(MONOTAKD_BEVFORMER, map_share=MAP_SHARE), "teacher", "assistant"),
        name="monotakd", init=None, inherit=("baseline",),
        detector=replace(detector, spatial_alignment=True, fusion="skip"),
    )  # fmt: skip
    return replace(recipe, stages=(*recipe.stages, monotakd))


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
    name: str, before: tuple[StageConfig, ...], baseline: StageConfig, methods: dict[str, tuple[str, Any]]
) -> Recipe:  # fmt: skip
    """The teachers, the baseline, what it comes to alone, and the methods, by their stages' names, with who teaches."""
    continued = _continued(baseline)
    students = tuple(_taught(continued, method, by, name=student) for student, (by, method) in methods.items())
    return Recipe(name, (*before, baseline, continued, *students), TINY_DATA, TINY_EVALUATION, note=TINY_NOTE)


RECIPES = (
    distillbev, tig_bev, unidistill, unidistill_fusion, unidistill_lidar, bevdistill, simdistill,
    simdistill_one_branch, uvtr_kd, x3kd, vcd,
    bevdet_alone, bevformer_alone, bevdistill_bevformer, uvtr_kd_bevformer, monotakd_bevformer, monostl_bevdet,
    cmkd_bevdet, tiny_simdistill, tiny_x3kd, tiny_surround_family, tiny_bevdet,
    tiny_bevformer,
)  # fmt: skip
