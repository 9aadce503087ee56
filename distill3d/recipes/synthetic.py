"""Small presets on synthetic streets: every base detector, its LiDAR teacher, and every method, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from distill3d.detectors import DetectorConfig, did_m3d, gupnet, monodetr, monodle
from distill3d.distill.methods.monodistill import MonoDistillConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.distill.methods.monostl import MonoSTLConfig
from distill3d.recipes.demo import AUGMENT, SCHEDULE, demo
from distill3d.recipes.kitti import BASES, CARS, for_base
from distill3d.train.recipe import Recipe, StageConfig

#: The small configuration of each base.  Hierarchical task learning is left out: it begins after five epochs.
TINY: dict[str, DetectorConfig] = {
    "monodle": monodle.tiny(),
    "gupnet": gupnet.tiny(classes=CARS),
    "did_m3d": did_m3d.tiny(classes=CARS),
    "monodetr": monodetr.tiny(),
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
