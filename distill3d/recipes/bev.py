"""Recipes of the bird's-eye-view family on KITTI: LiDAR teachers, CMKD, MonoTAKD, SGM3D, at the papers' size.

Published numbers are Car 3D AP|R40 at IoU 0.7 (easy / moderate / hard); none of them is ours.  They are of the best of
several checkpoints, chosen on the split that is reported: every note says of how many, as far as known.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distill3d.camera import DepthBins
from distill3d.data.augment.image import AugmentConfig
from distill3d.data.augment.lidar import LidarAugmentConfig
from distill3d.data.augment.paste import PasteConfig
from distill3d.detectors.caddn import CaDDNConfig, DepthTrunkConfig
from distill3d.detectors.pointpillars import PointPillarsConfig
from distill3d.detectors.pointpillars import tiny as pointpillars_tiny
from distill3d.detectors.second import SECONDConfig
from distill3d.detectors.second import tiny as second_tiny
from distill3d.distill.methods.cmkd import CMKDConfig
from distill3d.distill.methods.monotakd import MonoTAKDConfig
from distill3d.distill.methods.sgm3d import SGM3DConfig
from distill3d.layers.ground.bev_second import BevBackboneConfig
from distill3d.layers.heads.anchor_head import focal_head
from distill3d.layers.points.sparse_conv import SparseResNetConfig
from distill3d.layers.points.voxels import STUDENT_RANGE, TEACHER_RANGE, VoxelGrid
from distill3d.recipes.kitti import UNKNOWN_CHOICE
from distill3d.train.recipe import DatasetConfig, EvaluationConfig, Recipe, StageConfig, UnlabelledConfig
from distill3d.train.schedules import Schedule

#: OpenPCDet's one-cycle Adam on a LiDAR network.
LIDAR = Schedule(
    epochs=80, batch_size=8, lr=3e-3, shape="one_cycle", rise=0.4, start_divisor=10.0, end_divisor=1e4,
    optimiser="adamw", weight_decay=0.01, decay="all", betas=(0.9, 0.99), momentum=(0.95, 0.85), clip_norm=10.0,
)  # fmt: skip
#: CMKD's on a camera network: two GPUs with four images each; torch's one cycle.
CAMERA = replace(LIDAR, epochs=60, lr=2e-3, end_divisor=1e3, betas=(0.9, 0.999))
#: The second stage, in which the head learns as well.
RESPONSE = replace(CAMERA, epochs=20, lr=1e-4)
#: On depth alone: CMKD's paper first trains its image network so, for 40 epochs on KITTI's training split or for 10 on
#: the raw drives, as its author tells (Cc-Hy/CMKD's tracker, no. 7); at what rate is not known.
DEPTH = replace(CAMERA, epochs=40)
#: MonoTAKD's student.
RESIDUAL = replace(CAMERA, epochs=30, lr=2e-4)
#: As released, but for one image per GPU, which the released batch norm of pooled maps itself refuses.
RELEASED = replace(RESIDUAL, epochs=10, batch_size=2)

#: Images as they are, mirrored at most; the canvas holds KITTI's largest.
FLIP = AugmentConfig(crop=0.0, photometric=False)
UNSCALED = DatasetConfig(canvas=(1248, 384), placement="corner", divide="homogeneous", depth="completed")

SECOND_TEACHER, POINTPILLARS_TEACHER = SECONDConfig(), PointPillarsConfig(head=focal_head(cls_weight=1.0))
#: OpenPCDet's own three (tools/cfgs/kitti_models/second.yaml, pointpillar.yaml, CaDDN.yaml).  The latter two's levels
#: come out at half the resolution of the map that they begin with.
HALVING = BevBackboneConfig((3, 5, 5), (64, 128, 256), (2, 2, 2), (128, 128, 128), (1, 2, 4))
OPENPCDET_SECOND = SECONDConfig(
    voxels=VoxelGrid(TEACHER_RANGE, (0.05, 0.05, 0.1)), train_voxels=16000, test_voxels=40000,
    backbone=SparseResNetConfig(block="plain", outputs=128), head=focal_head(),
)  # fmt: skip
OPENPCDET_POINTPILLARS = PointPillarsConfig(
    pillars=VoxelGrid((0.0, -39.68, -3.0, 69.12, 39.68, 1.0), (0.16, 0.16, 4.0)),
    train_pillars=16000, test_pillars=40000, channels=64, stride=1, head=focal_head(backbone=HALVING),
)  # fmt: skip
OPENPCDET_CADDN = CaDDNConfig(
    trunk=DepthTrunkConfig("deeplabv3_resnet101", pretrained=True, stride=4), bins=DepthBins(2.0, 46.8, 80),
    voxels=VoxelGrid(STUDENT_RANGE, (0.16, 0.16, 0.16)), bev_channels=64, domain_adaptation=0,
    head=focal_head(backbone=replace(HALVING, layers=(10, 10, 10))), depth_weight=3.0, sampling="corners",
)  # fmt: skip
#: SGM3D's student is OpenPCDet's CaDDN, its teacher a PointPillars with the same 2D network and head on the same
#: ground.  Both networks' pictures and scans are mirrored at most.
SGM3D_STUDENT = replace(OPENPCDET_CADDN, head=replace(OPENPCDET_CADDN.head, offers_map=True))
SGM3D_TEACHER = PointPillarsConfig(
    train_pillars=16000, test_pillars=40000, channels=64, stride=1, head=SGM3D_STUDENT.head
)
MIRRORED = LidarAugmentConfig(rotation=0.0, scale=(1.0, 1.0), counts=())
#: With two images on each GPU, of an unknown number; this is what OpenPCDet's CaDDN has on its GPUs.
SGM3D_SCHEDULE = replace(LIDAR, batch_size=4, lr=1e-3)
#: The student as CMKD starts it, and what MonoTAKD adds.
STUDENT = CaDDNConfig(trunk=DepthTrunkConfig(pretrained=True))
TAUGHT = replace(STUDENT, detection_weight=0.0)  # CMKD's losses look at no label; without a teacher depth remains
ASSISTANT = replace(TAUGHT, input="rgb+gt_depth", depth_weight=0.0)
ALIGNED = replace(TAUGHT, spatial_alignment=True, fusion="ffm", depth_weight=0.0)
#: MonoTAKD's student where its head is trained already.
LABELLED_ALIGNED = replace(STUDENT, spatial_alignment=True, fusion="skip")
#: Beside labels.  How the map terms are compared is what did best on the validation split of this project's benchmark
#: (docs/bev-family.md), on synthetic streets; how much they may weigh was not searched for.
MAP_SHARE = 0.5
TAMED: dict[str, Any] = {"compared": "adapted", "map_share": MAP_SHARE}
LABELLED: dict[str, Any] = {"nonzero_weighting": True, **TAMED}
CMKD_LABELLED, MONOTAKD_LABELLED = CMKDConfig(**LABELLED), MonoTAKDConfig(**TAMED)
#: CMKD's weights with a PointPillars teacher.
PILLAR_WEIGHTS = CMKDConfig(feature_weight=4.0, cls_weight=1.0, loc_weight=2.0, dir_weight=0.2)

PUBLISHED_CMKD = (
    "CMKD with SECOND 24.02 / 15.80 / 13.22, with raw drives 33.36 / 21.61 / 17.97; with PointPillars 23.84 / 16.44 / "
    "13.58 and 32.25 / 21.47 / 18.21, on val (Cc-Hy/CMKD readme), presumably the best of the last 10 epochs' "
    "checkpoints on the reported split, which its code evaluates; its teacher is said to have seen val (its tracker, "
    "no. 18)"
)
#: The readme's weights are from code whose first stage on raw drives, the map's, stands for the one on depth.
PUBLISHED_CMKD_RAW = (
    f"{PUBLISHED_CMKD}; with raw drives these numbers are without the paper's stage on depth (its tracker, no. 39)"
)
PUBLISHED_MONOTAKD = (
    "MonoTAKD 27.91 / 19.43 / 16.51 on test, with raw drives 29.86 / 21.26 / 18.27 (hoiliu-0801/MonoTAKD readme); its "
    "numbers on val the authors call too high (its tracker, no. 4); " + UNKNOWN_CHOICE
)
PUBLISHED_ODM3D = (
    "ODM3D, with raw drives, 35.09 / 23.84 / 20.57 on val, 29.75 / 19.09 / 16.93 on test (stated in the paper, which "
    f"was not at hand to check), {UNKNOWN_CHOICE}; its code was not at hand either: weights and schedule are CMKD's, "
    "how often and which objects are pasted is ours"
)
PUBLISHED_SGM3D = (
    f"SGM3D 25.95 / 17.44 / 15.36 on val (zhouzheyuan/sgm3d readme), {UNKNOWN_CHOICE}; its teacher sees points of a "
    "stereo pair's depth, ours the LiDAR's; its depth loss counts pixels in labelled boxes 13 times, which ours does "
    "not"
)
#: Of recipes in which labels stay in the student's loss.
UNPUBLISHED_LABELLED = (
    "not published: CMKD and MonoTAKD look at no label on KITTI; the same student on labels alone 20.60 / 14.75 / "
    f"12.59 on val (Cc-Hy/CMKD tracker), {UNKNOWN_CHOICE}"
)
UNPUBLISHED_TEACHER = "no number is published for this teacher; its authors evaluate the last epochs' checkpoints"
#: Of OpenPCDet's own networks, by what its readme says of cars, pedestrians and cyclists.
PUBLISHED_OPENPCDET = (
    "{} (Car / Pedestrian / Cyclist) on val, moderate, over 11 points of recall (open-mmlab/OpenPCDet readme), "
    + UNKNOWN_CHOICE
)


def second() -> Recipe:
    """SECOND on KITTI's scans, the teacher of CMKD and MonoTAKD."""
    return Recipe("second", (_lidar(SECOND_TEACHER),), UNSCALED, note=UNPUBLISHED_TEACHER)


def pointpillars() -> Recipe:
    """PointPillars on KITTI's scans, CMKD's other teacher."""
    return Recipe("pointpillars", (_lidar(POINTPILLARS_TEACHER),), UNSCALED, note=UNPUBLISHED_TEACHER)


def caddn() -> Recipe:
    """The camera student alone, on labels and LiDAR depth, on KITTI."""
    return Recipe(
        "caddn", (_baseline(),), UNSCALED, note="CMKD's lighter form of CaDDN; no number is published for it alone"
    )


def second_openpcdet() -> Recipe:
    """SECOND on KITTI's scans as OpenPCDet trains it: without residual blocks, on all that lies ahead."""
    note = PUBLISHED_OPENPCDET.format("SECOND 78.62 / 52.98 / 67.15")
    return Recipe("second_openpcdet", (_lidar(OPENPCDET_SECOND),), UNSCALED, note=note)


def pointpillars_openpcdet() -> Recipe:
    """PointPillars on KITTI's scans as OpenPCDet trains it: the 2D network works on the pillars themselves."""
    note = PUBLISHED_OPENPCDET.format("PointPillars 77.28 / 52.29 / 62.68")
    return Recipe("pointpillars_openpcdet", (_lidar(OPENPCDET_POINTPILLARS),), UNSCALED, note=note)


def caddn_openpcdet() -> Recipe:
    """CaDDN on KITTI, of its authors' size: four times as many pixels and voxels are lifted as by CMKD's."""
    schedule = replace(LIDAR, batch_size=4, lr=1e-3)
    stage = StageConfig("baseline", "baseline", OPENPCDET_CADDN, schedule, FLIP)
    published = PUBLISHED_OPENPCDET.format("CaDDN 21.38 / 13.02 / 9.76")
    note = f"{published}; its depth loss counts pixels in labelled boxes 13 times, which ours does not"
    return Recipe("caddn_openpcdet", (stage,), UNSCALED, note=note)


def cmkd_second() -> Recipe:
    """CMKD with a SECOND teacher, on KITTI."""
    return Recipe("cmkd_second", _cmkd(SECOND_TEACHER, CMKDConfig()), UNSCALED, note=PUBLISHED_CMKD)


def cmkd_pointpillars() -> Recipe:
    """CMKD with a PointPillars teacher, on KITTI."""
    stages = _cmkd(POINTPILLARS_TEACHER, PILLAR_WEIGHTS, depth_weight=1.0, response_lr=2e-4)
    return Recipe("cmkd_pointpillars", stages, UNSCALED, note=PUBLISHED_CMKD)


def cmkd_second_raw() -> Recipe:
    """CMKD with a SECOND teacher and unlabelled raw drives; needs --dataset.unlabelled.root and .frames.

    As in the paper the image network first learns depth alone, here from the labelled frames' completed depth.
    """
    teacher, baseline, bev, cmkd = _cmkd_raw()
    depth = StageConfig("depth", "preparation", TAUGHT, DEPTH, FLIP)
    stages = (teacher, baseline, depth, replace(bev, init="depth"), cmkd)
    return Recipe("cmkd_second_raw", stages, _with_raw(), note=PUBLISHED_CMKD_RAW)


def odm3d() -> Recipe:
    """ODM3D on KITTI: CMKD where the scan has points, and objects of other frames pasted into picture, scan and depth;
    needs --dataset.unlabelled.root and .frames."""
    teacher, baseline, bev, cmkd = _cmkd_raw()
    bev, cmkd = (with_pasted(stage, PasteConfig()) for stage in (bev, cmkd))
    return Recipe("odm3d", (teacher, baseline, bev, replace(cmkd, name="odm3d")), _with_raw(), note=PUBLISHED_ODM3D)


def with_pasted(stage: StageConfig, paste: PasteConfig) -> StageConfig:
    """A stage of CMKD as ODM3D has it: on frames with pasted objects, and only cells with points count."""
    assert isinstance(stage.method, CMKDConfig)
    return replace(stage, augment=replace(FLIP, paste=paste), method=replace(stage.method, occupied_only=True))


def monotakd() -> Recipe:
    """MonoTAKD as meant: teacher, an assistant of its own, and a student of both, on KITTI."""
    return Recipe("monotakd", _monotakd(), UNSCALED, note=PUBLISHED_MONOTAKD)


def monotakd_raw() -> Recipe:
    """MonoTAKD whose student also sees unlabelled raw drives; needs --dataset.unlabelled.root and .frames."""
    *before, student = _monotakd()
    return Recipe("monotakd_raw", (*before, replace(student, unlabelled=True)), _with_raw(), note=PUBLISHED_MONOTAKD)


def monotakd_released() -> Recipe:
    """MonoTAKD as its code was released: the assistant shares the student's features and is never trained, and the
    student goes on from CMKD's of the raw drives; needs --dataset.unlabelled.root and .frames."""
    student = replace(TAUGHT, spatial_alignment=True, assistant="shared", depth_weight=0.0)
    method = MonoTAKDConfig.styled("released")
    last = StageConfig("student", "student", student, RELEASED, FLIP, ("teacher",), method,
                       inherit=("teacher", "cmkd"))  # fmt: skip
    return Recipe("monotakd_released", (*_cmkd_raw(), last), _with_raw(), note=PUBLISHED_MONOTAKD)


def cmkd_labelled() -> Recipe:
    """CMKD beside the student's labels, from the trained baseline, on KITTI; with the baseline continued as control."""
    student = replace(_continued(), name="student", role="student", teachers=("teacher",), method=CMKD_LABELLED)
    return Recipe("cmkd_labelled", (_lidar(SECOND_TEACHER), _baseline(), _continued(), student), UNSCALED,
                  note=UNPUBLISHED_LABELLED)  # fmt: skip


def monotakd_labelled() -> Recipe:
    """MonoTAKD beside the student's labels, from the trained baseline, on KITTI; its control as in cmkd_labelled."""
    teacher, baseline, _, assistant_bev, assistant, _ = _monotakd()
    student = replace(
        _continued(), name="student", role="student", detector=LABELLED_ALIGNED, teachers=("teacher", "assistant"),
        method=MONOTAKD_LABELLED, init=None, inherit=("baseline",),
    )  # fmt: skip
    stages = (teacher, baseline, assistant_bev, assistant, _continued(), student)
    return Recipe("monotakd_labelled", stages, UNSCALED, note=UNPUBLISHED_LABELLED)


def sgm3d() -> Recipe:
    """SGM3D on KITTI: CaDDN beside its labels, taught by a PointPillars on the LiDAR's points."""
    teacher = StageConfig("teacher", "teacher", SGM3D_TEACHER, SGM3D_SCHEDULE, None, lidar_augment=MIRRORED)
    baseline = StageConfig("baseline", "baseline", SGM3D_STUDENT, SGM3D_SCHEDULE, FLIP)
    student = replace(baseline, name="student", role="student", teachers=("teacher",), method=SGM3DConfig())
    return Recipe("sgm3d", (teacher, baseline, student), UNSCALED, note=PUBLISHED_SGM3D)


def lidar_overfit() -> Recipe:
    """SECOND and PointPillars (tiny) learn a handful of real scans by heart; needs --allow-overlap.

    If they then find those scans' objects, the whole real-data path is right.
    """
    # Long and soon slow: the LiDAR networks' batch norm forgets one part in a hundred per step, and must catch up.
    schedule = replace(LIDAR, epochs=800, batch_size=5, rise=0.2)
    stages = tuple(
        StageConfig(name, "teacher", detector, schedule, None)
        for name, detector in {"second": second_tiny(), "pointpillars": pointpillars_tiny()}.items()
    )
    return Recipe(
        "lidar_overfit", stages, replace(UNSCALED, eval_split="train", in_memory=True), EvaluationConfig(every=200),
        note="five real scans, trained and evaluated on the same: a check, no result",
    )  # fmt: skip


def _lidar(detector: SECONDConfig | PointPillarsConfig) -> StageConfig:
    pillars = isinstance(detector, PointPillarsConfig)
    counts = (("Car", 15 if pillars else 20), ("Pedestrian", 15), ("Cyclist", 15))
    augment = LidarAugmentConfig(counts=counts, less_existing=not pillars)
    return StageConfig("teacher", "teacher", detector, LIDAR, None, lidar_augment=augment)


def _cmkd(
    teacher: SECONDConfig | PointPillarsConfig, method: CMKDConfig, depth_weight: float = 0.5,
    response_lr: float = RESPONSE.lr,
) -> tuple[StageConfig, ...]:  # fmt: skip
    """Teacher; baseline; the student's map alone; then map and responses, the head beginning as the teacher's."""
    student = replace(TAUGHT, depth_weight=depth_weight)
    map_alone = replace(method, cls_weight=0.0, loc_weight=0.0, dir_weight=0.0)
    return (
        _lidar(teacher),
        _baseline(),
        StageConfig("bev", "preparation", student, CAMERA, FLIP, ("teacher",), map_alone),
        StageConfig("cmkd", "student", student, replace(RESPONSE, lr=response_lr), FLIP, ("teacher",), method,
                    inherit=("teacher", "bev")),
    )  # fmt: skip


def _cmkd_raw() -> tuple[StageConfig, ...]:
    """CMKD with a SECOND teacher whose two stages of the student, shorter ones, see raw drives too, and no depth."""
    teacher, baseline, bev, cmkd = _cmkd(SECOND_TEACHER, CMKDConfig(), depth_weight=0.0, response_lr=2e-4)
    bev = replace(bev, unlabelled=True, schedule=replace(bev.schedule, epochs=30))
    return teacher, baseline, bev, replace(cmkd, unlabelled=True, schedule=replace(cmkd.schedule, epochs=10))


def _baseline() -> StageConfig:
    """The student alone, on labels and LiDAR depth, for as long as CMKD's two stages together."""
    return StageConfig("baseline", "baseline", STUDENT, replace(CAMERA, epochs=CAMERA.epochs + RESPONSE.epochs), FLIP)


def _continued() -> StageConfig:
    """The baseline trained on: what labelled students, which begin as it does, are compared with."""
    return replace(_baseline(), name="continued", role="control", schedule=RESIDUAL, init="baseline")


def _monotakd() -> tuple[StageConfig, ...]:
    teacher, baseline, bev, _ = _cmkd(SECOND_TEACHER, CMKDConfig())
    method = CMKDConfig()
    return (
        teacher,
        baseline,
        bev,
        replace(bev, name="assistant_bev", detector=ASSISTANT),
        StageConfig("assistant", "assistant", ASSISTANT, RESPONSE, FLIP, ("teacher",), method,
                    inherit=("teacher", "assistant_bev")),
        StageConfig("student", "student", ALIGNED, RESIDUAL, FLIP, ("teacher", "assistant"), MonoTAKDConfig(),
                    inherit=("teacher", "bev")),
    )  # fmt: skip


def _with_raw() -> DatasetConfig:
    return replace(UNSCALED, unlabelled=UnlabelledConfig())


RECIPES = (
    second, pointpillars, caddn, second_openpcdet, pointpillars_openpcdet, caddn_openpcdet, cmkd_second,
    cmkd_pointpillars, cmkd_second_raw, monotakd, monotakd_raw, monotakd_released, cmkd_labelled, monotakd_labelled,
    odm3d, sgm3d, lidar_overfit,
)  # fmt: skip
