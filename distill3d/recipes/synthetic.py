"""Small presets on synthetic streets: every base detector, its LiDAR teacher, and every method, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from distill3d.data.augment.lidar import LidarAugmentConfig
from distill3d.data.augment.paste import PasteConfig
from distill3d.detectors import DetectorConfig, caddn, did_m3d, gupnet, monocon, monodetr, monodle, pointpillars, second
from distill3d.distill.methods.add import ADDStyleConfig
from distill3d.distill.methods.cmkd import CMKDConfig
from distill3d.distill.methods.monodistill import MonoDistillConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.distill.methods.monostl import MonoSTLConfig
from distill3d.distill.methods.monotakd import MonoTAKDConfig
from distill3d.distill.methods.sgm3d import SGM3DConfig
from distill3d.recipes.bev import CAMERA, CMKD_LABELLED, FLIP, LIDAR, MAP_SHARE, TAMED, with_pasted
from distill3d.recipes.demo import AUGMENT, SCHEDULE, demo
from distill3d.recipes.kitti import BASES, CARS, for_base
from distill3d.train.recipe import Recipe, StageConfig

#: The small configuration of each base.  Hierarchical task learning is left out: it begins after five epochs.
TINY: dict[str, DetectorConfig] = {
    "monodle": monodle.tiny(),
    "gupnet": gupnet.tiny(classes=CARS),
    "did_m3d": did_m3d.tiny(classes=CARS),
    "monodetr": monodetr.tiny(),
    "monocon": monocon.tiny(classes=CARS),
}
#: A transformer's peak learning rate in these short trainings.
TRANSFORMER_LR = 5e-4
#: Two-stage students answer in metres, and these begin untrained, where the papers' begin as trained baselines: the
#: response term then outweighs detection.  On DID-M3D with MonoSKD's other terms its weight 0, 0.1, 1 gave 39, 36, 29.
LATE_RESPONSE = ("gupnet", "did_m3d")
#: Fusion at a width that suits tiny trunks.
FUSION_CHANNELS = 64


def tiny(name: str) -> Callable[[], Recipe]:
    """The preset of a base detector: its teacher, its baseline, and a student of each method."""
    student = TINY[name]

    def build() -> Recipe:
        schedule = replace(SCHEDULE, lr=TRANSFORMER_LR) if name == "monodetr" else SCHEDULE
        teacher = replace(student, input="depth", depth_encoding="log")
        methods = {
            "monodistill": MonoDistillConfig(fusion_channels=FUSION_CHANNELS),
            "monoskd": MonoSKDConfig(),
            "monostl": MonoSTLConfig(fusion_channels=FUSION_CHANNELS),
        }
        if name in LATE_RESPONSE:
            methods = {method: replace(config, response_weight=0.0) for method, config in methods.items()}
        students = [
            StageConfig(method, "student", student, schedule, AUGMENT, ("teacher",), for_base(config, name))
            for method, config in methods.items()
        ]
        return replace(
            demo(),
            name=f"tiny_{name}",
            stages=(
                StageConfig("teacher", "teacher", teacher, schedule, AUGMENT),
                StageConfig("baseline", "baseline", student, schedule, AUGMENT),
                *students,
            ),
        )

    build.__doc__ = f"{BASES[name].title}, tiny, on synthetic streets: teacher, baseline and a student of each method."
    return build


def tiny_add_style() -> Recipe:
    """In the manner of ADD, tiny, on synthetic streets: MonoDLE alone, and taught by itself, told of depths."""
    recipe = tiny("monodle")()
    baseline = recipe.stage("baseline")
    told = replace(TINY["monodle"], input="rgb+object_depth")
    student = replace(recipe.stage("monoskd"), name="add_style", method=ADDStyleConfig())
    stages = (replace(recipe.stage("teacher"), detector=told), baseline, student)
    return replace(recipe, name="tiny_add_style", stages=stages)


#: Turned a little, for the streets' cars keep to their lanes; the classes that the small configurations know.
SCANS = LidarAugmentConfig(rotation=math.pi / 8, counts=(("Car", 15),))
#: Short forms of the papers' schedules: hundreds of steps, not tens of thousands.  So batch norm's statistics follow as
#: fast as PyTorch's own do; with SECOND's and CaDDN's 0.01 they would be those of weights long gone.
SHORT: dict[str, Any] = {"batch_size": 4, "norm_momentum": 0.1}
TINY_LIDAR = replace(LIDAR, epochs=20, **SHORT)
TINY_MAP, TINY_RESPONSE = replace(CAMERA, epochs=8, **SHORT), replace(CAMERA, epochs=6, lr=1e-3, **SHORT)
#: With the factor that MonoTAKD's released configurations ask for and its code does not apply: without it its two
#: terms are a thirtieth of the response's here.
MONOTAKD = MonoTAKDConfig(outer_weight=32.0)


def tiny_lidar() -> Recipe:
    """SECOND and PointPillars, tiny, on synthetic streets."""
    stages = tuple(
        StageConfig(name, "teacher", detector, TINY_LIDAR, None, lidar_augment=SCANS)
        for name, detector in {"second": second.tiny(), "pointpillars": pointpillars.tiny()}.items()
    )
    return replace(demo(), name="tiny_lidar", stages=stages)


def tiny_bev() -> Recipe:
    """SECOND teaches, tiny, on synthetic streets: the camera student alone, with CMKD, and with MonoTAKD."""
    student = caddn.tiny()
    taught = replace(student, detection_weight=0.0)
    assistant = replace(taught, input="rgb+gt_depth", depth_weight=0.0)
    whole = replace(TINY_MAP, epochs=TINY_MAP.epochs + TINY_RESPONSE.epochs)
    map_alone = CMKDConfig(cls_weight=0.0, loc_weight=0.0, dir_weight=0.0)
    lidar = ("teacher",)
    return replace(
        demo(),
        name="tiny_bev",
        stages=(
            StageConfig("teacher", "teacher", second.tiny(), TINY_LIDAR, None, lidar_augment=SCANS),
            StageConfig("baseline", "baseline", student, whole, FLIP),
            StageConfig("bev", "preparation", taught, TINY_MAP, FLIP, lidar, map_alone),
            StageConfig("cmkd", "student", taught, TINY_RESPONSE, FLIP, lidar, CMKDConfig(),
                        inherit=("teacher", "bev")),
            StageConfig("assistant_bev", "preparation", assistant, TINY_MAP, FLIP, lidar, map_alone),
            StageConfig("assistant", "assistant", assistant, TINY_RESPONSE, FLIP, lidar, CMKDConfig(),
                        inherit=("teacher", "assistant_bev")),
            StageConfig("monotakd", "student", replace(taught, spatial_alignment=True, fusion="ffm", depth_weight=0.0),
                        TINY_RESPONSE, FLIP, ("teacher", "assistant"), MONOTAKD,
                        inherit=("teacher", "bev")),
        ),
    )  # fmt: skip


#: Objects show few points in small pictures.
PASTE = PasteConfig(counts=(("Car", 3),), least_points=5)


def tiny_odm3d() -> Recipe:
    """ODM3D, tiny, on synthetic streets: CMKD where the scan has points, with pasted objects; beside labels too, where
    the baseline with pasted objects is what to compare with."""
    recipe, unlabelled = tiny_labelled(), tiny_bev()
    stages = tuple(recipe.stage(name) for name in ("teacher", "baseline", "continued", "cmkd_occupied"))
    *_, continued, taught = stages
    continued = replace(continued, name="continued_pasted", augment=replace(FLIP, paste=PASTE))
    bev, cmkd = (with_pasted(unlabelled.stage(name), PASTE) for name in ("bev", "cmkd"))
    more = (replace(with_pasted(taught, PASTE), name="odm3d_labelled"), bev, replace(cmkd, name="odm3d"))
    return replace(recipe, name="tiny_odm3d", stages=(*stages, continued, *more))


def tiny_sgm3d() -> Recipe:
    """PointPillars teaches, tiny, on synthetic streets: the camera student alone, and with SGM3D beside its labels."""
    teacher = pointpillars.tiny()
    teacher = replace(teacher, head=replace(teacher.head, offers_map=True))
    schedule = replace(TINY_MAP, epochs=TINY_MAP.epochs + TINY_RESPONSE.epochs)
    baseline = StageConfig("baseline", "baseline", caddn.tiny(head=teacher.head), schedule, FLIP)
    student = replace(baseline, name="sgm3d", role="student", teachers=("teacher",), method=SGM3DConfig())
    scans = StageConfig("teacher", "teacher", teacher, TINY_LIDAR, None, lidar_augment=SCANS)
    return replace(demo(), name="tiny_sgm3d", stages=(scans, baseline, student))


#: CMKD's terms on maps and what might make them help students that keep their labels: rows of the benchmark, to be
#: chosen from on its validation split.
MAP_WAYS: dict[str, CMKDConfig] = {
    "responses": CMKDConfig(feature_weight=0.0),
    "published": CMKDConfig(nonzero_weighting=True),
    "occupied": CMKDConfig(occupied_only=True),
    "held": CMKDConfig(nonzero_weighting=True, map_share=MAP_SHARE),
    "fading": CMKDConfig(nonzero_weighting=True, map_fades=True),
    "standardised": CMKDConfig(nonzero_weighting=True, compared="standardised", map_share=MAP_SHARE),
    "adapted": CMKD_LABELLED,
}
#: The way that ``cmkd_labelled`` takes: the best of these on the benchmark's validation split, mean of three seeds.
CHOSEN = "adapted"


def tiny_labelled() -> Recipe:
    """Students that keep their labels, tiny, on synthetic streets: CMKD and MonoTAKD, begun from the
    trained baseline."""
    recipe = tiny_bev()
    baseline = recipe.stage("baseline")
    continued = replace(baseline, name="continued", role="control", schedule=TINY_RESPONSE, init="baseline")
    taught = replace(continued, role="student", teachers=("teacher",), method=CMKDConfig())
    ways = [replace(taught, name=f"cmkd_{name}", method=method) for name, method in MAP_WAYS.items()]
    with_p = replace(caddn.tiny(), spatial_alignment=True, fusion="skip")
    both = replace(taught, detector=with_p, teachers=("teacher", "assistant"), init=None, inherit=("baseline",))
    kept = ("teacher", "baseline", "assistant_bev", "assistant")
    return replace(
        recipe,
        name="tiny_labelled",
        stages=(
            *(recipe.stage(name) for name in kept),
            continued,
            *ways,
            replace(both, name="monotakd_published", method=MONOTAKD),
            replace(both, name="monotakd_held", method=replace(MONOTAKD, map_share=MAP_SHARE)),
            replace(both, name="monotakd_adapted", method=replace(MONOTAKD, **TAMED)),
        ),
    )
