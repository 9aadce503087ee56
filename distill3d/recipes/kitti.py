"""Recipes on KITTI: what the papers did, at their size and schedule, for every base detector and method.

Published numbers are Car 3D AP|R40 at IoU 0.7 on KITTI val (easy / moderate / hard); none of them is ours.  They are of
the best of several checkpoints, chosen on the split that is reported: every note says of how many, as far as known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from distill3d.data.augment.image import AugmentConfig, DistortionConfig
from distill3d.detectors import DetectorConfig
from distill3d.detectors.did_m3d import DIDM3DConfig
from distill3d.detectors.gupnet import GUPNetConfig
from distill3d.detectors.monocon import MonoConConfig
from distill3d.detectors.monodetr import MonoDETRConfig
from distill3d.detectors.monodle import MonoDLEConfig, tiny
from distill3d.distill.methods.add import ADDStyleConfig
from distill3d.distill.methods.mixed import MixedConfig
from distill3d.distill.methods.monodistill import MonoDistillConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.distill.methods.monostl import MonoSTLConfig
from distill3d.layers.image.dla import DLAConfig
from distill3d.layers.image.resnet import ResNetConfig
from distill3d.train.htl import HTLConfig
from distill3d.train.recipe import DatasetConfig, EvaluationConfig, Recipe, StageConfig
from distill3d.train.schedules import Schedule

#: For notes whose source does not tell how its checkpoint was chosen.
UNKNOWN_CHOICE = "best of an unknown number of checkpoints on the reported split"

DLA34 = DLAConfig(pretrained=True)
#: MonoDETR's own: small crops, and SSD's distortion in place of a jitter, cut off at the ends of 8 bits.
MONODETR_AUGMENT = AugmentConfig(
    zoom_deviation=0.05, zoom_range=(0.95, 1.05), shift=0.05, photometric=False, style="intended",
    distortion=DistortionConfig(),
)  # fmt: skip
MONODETR_SCHEDULE = Schedule(
    epochs=195, lr=2e-4, warmup_epochs=0, drops=(125, 165), optimiser="adamw", weight_decay=1e-4, drop_last=False
)
#: MonoCon's: pictures as large as they are, moved by up to 32 px, with SSD's distortion (mmdet3d's configuration).
MONOCON_AUGMENT = AugmentConfig(photometric=False, style="intended", distortion=DistortionConfig(), move=32)
MONOCON_SCHEDULE = Schedule(
    epochs=200, batch_size=8, lr=2.25e-3, shape="one_cycle", rise=0.4, start_divisor=10.0, end_divisor=1e4,
    optimiser="adamw", betas=(0.95, 0.99), momentum=(0.95, 0.85), weight_decay=1e-5, clip_norm=35.0, drop_last=False,
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A detector as its paper trained it, with the published result and its source."""

    title: str
    detector: DetectorConfig
    schedule: Schedule
    published: str
    tasks: HTLConfig | None = None
    augment: AugmentConfig = AugmentConfig(photometric=False)
    keeps_its_own: bool = False  # schedule and augmentation, with a teacher too: those of the methods do not fit
    dataset: DatasetConfig = DatasetConfig()


BASES: dict[str, Base] = {
    "monodle": Base(
        "MonoDLE", MonoDLEConfig(trunk=DLA34), Schedule(),
        f"MonoDLE: 17.94 / 13.72 / 12.10 for the released model (xinzhuma/monodle readme), {UNKNOWN_CHOICE}",
    ),
    "gupnet": Base(
        "GUPNet", GUPNetConfig(trunk=DLA34), Schedule(batch_size=32, drop_last=False),
        "GUPNet: 22.76 / 16.46 / 13.72 (paper), 23.19 / 16.23 / 13.57 for the released model (SuperMHP/GUPNet readme), "
        f"{UNKNOWN_CHOICE}",
        tasks=HTLConfig(),
    ),
    "did_m3d": Base(
        "DID-M3D", DIDM3DConfig(trunk=DLA34), Schedule(epochs=150, lr=1e-3),
        "DID-M3D: 22.98 / 16.12 / 14.03 (paper), 25.38 / 17.07 / 14.06 for the released model "
        "(SPengLiang/DID-M3D readme), best of 7 checkpoints on the reported split (epochs 90, 100, ..., 150)",
        tasks=HTLConfig(),
    ),
    "monodetr": Base(
        "MonoDETR",
        MonoDETRConfig(trunk=ResNetConfig(pretrained=True, frozen=True)),
        MONODETR_SCHEDULE,
        "MonoDETR: 28.84 / 20.61 / 16.38 (paper), logs between 27.58 / 20.14 / 16.98 and 28.79 / 20.83 / 17.47 "
        "(ZrrSkywalker/MonoDETR readme), best of all 195 epochs' checkpoints on the reported split",
        augment=MONODETR_AUGMENT,
        keeps_its_own=True,
    ),
    "monocon": Base(
        "MonoCon", MonoConConfig(trunk=DLA34), MONOCON_SCHEDULE,
        "MonoCon: 26.33 / 19.03 / 16.00 for the paper's checkpoint, mean of five trainings of the released code "
        "25.74 / 18.92 / 16.00 with moderate between 18.74 and 19.08 (Xianpeng919/MonoCon readme), of five of a port "
        "24.57 / 17.92 / 15.24 with deviations 1.16 / 0.85 / 0.51 (2gunsu/monocon-pytorch readme), "
        f"{UNKNOWN_CHOICE}; biases learn twice as fast there, here as fast as all else",
        augment=MONOCON_AUGMENT,
        keeps_its_own=True,
        dataset=DatasetConfig(canvas=(1248, 384), placement="corner", divide="homogeneous"),
    ),
}  # fmt: skip

#: MonoSKD trains cars alone.
CARS = ("Car",)


@dataclass(frozen=True)
class Taught:
    """A method as its paper trained it."""

    title: str
    config: MonoDistillConfig | MonoSKDConfig | MonoSTLConfig
    schedule: Schedule  # of the student
    #: What it changes of the base's schedule where teacher and baseline are trained alone.
    alone: dict[str, Any] = field(default_factory=dict)
    #: What it changes of the base's augmentation, for teacher, baseline and student alike: their crops must agree.
    augment: dict[str, Any] = field(default_factory=dict)


#: MonoDistill and MonoSTL show colours that jitter, and crop without moving the window; MonoSKD moves it.
JITTER: dict[str, Any] = {"photometric": True}
UNSHIFTED = {**JITTER, "shift": 0.0}
METHODS: dict[str, Taught] = {
    "monodistill": Taught(
        "MonoDistill", MonoDistillConfig(), Schedule(epochs=160, batch_size=12), augment=UNSHIFTED  # on two GPUs
    ),
    "monoskd": Taught(
        "MonoSKD", MonoSKDConfig(), Schedule(epochs=150, batch_size=16, lr=1e-3),  # on four
        alone={"epochs": 160}, augment=JITTER,
    ),
    "monostl": Taught(
        "MonoSTL", MonoSTLConfig(), Schedule(epochs=200, batch_size=12, drops=(120, 160)),
        alone={"batch_size": 24, "epochs": 140}, augment=UNSHIFTED,
    ),
}  # fmt: skip
#: MonoDistill was also trained in MonoSKD's code, in all but its terms as MonoSKD was.
IN_MONOSKDS_CODE = replace(METHODS["monoskd"], title="MonoDistill", config=MonoDistillConfig())
#: Pairs that were trained otherwise than their method on its own base.
TRAINED_OTHERWISE: dict[tuple[str, str], Taught] = {("monodistill", "did_m3d"): IN_MONOSKDS_CODE}

PUBLISHED: dict[tuple[str, str], str] = {
    ("monodistill", "monodle"): "MonoDistill: teacher 60.57 / 45.06 / 37.90, baseline 18.43 / 14.62 / 12.45, student "
    "24.40 / 18.47 / 16.46 (monster-ghost/MonoDistill readme), best of up to 16 checkpoints on the reported split (one "
    "every 10 epochs, all of which its author advises to test)",
    ("monodistill", "did_m3d"): "MonoDistill on DID-M3D: 27.49 / 18.99 / 16.67 (log of Senwang98/MonoSKD, epoch 140), "
    "best of 7 checkpoints on the reported split (epochs 90, 100, ..., 150)",
    ("monoskd", "did_m3d"): "MonoSKD on DID-M3D: 28.91 / 20.21 / 16.99, epoch 140, best of 7 checkpoints on the "
    "reported split (epochs 90, 100, ..., 150); baseline moderate 17.77, teacher moderate 43.81 (Senwang98/MonoSKD "
    "readme, log and configs)",
    ("monostl", "monodle"): "MonoSTL states a gain over MonoDistill on the same base (abstract of arXiv:2603.07464); "
    "its numbers could not be read, and are presumably the best of about 36 checkpoints on the reported split (every "
    "epoch from 165 on was saved and tested)",
}
UNPUBLISHED = "no number for this pair is known to us; the method's mapping to this detector is ours"


def for_base(
    config: MonoDistillConfig | MonoSKDConfig | MonoSTLConfig, base: str
) -> MonoDistillConfig | MonoSKDConfig | MonoSTLConfig:
    """A method's settings on a base detector: MonoDETR has no neck at stride 4 and no dense heads to compare."""
    if base != "monodetr":
        return config
    if isinstance(config, MonoSKDConfig):
        return replace(config, response_weight=0.0, taps=("neck_8", "neck_16", "backbone_32"))
    return replace(config, response_weight=0.0)


def alone(name: str) -> Callable[[], Recipe]:
    """The recipe of a base detector without a teacher."""
    base = BASES[name]

    def build() -> Recipe:
        stage = StageConfig("baseline", "baseline", base.detector, base.schedule, base.augment, tasks=base.tasks)
        return Recipe(name, (stage,), base.dataset, note=base.published)

    build.__doc__ = f"{base.title} alone, on KITTI."
    return build


def taught(method_name: str, base_name: str) -> Callable[[], Recipe]:
    """The recipe of a method on a base detector: both networks first trained alone, then the student, from the
    baseline's weights, goes on with its teacher."""
    method = TRAINED_OTHERWISE.get((method_name, base_name), METHODS[method_name])
    base = BASES[base_name]

    def build() -> Recipe:
        published = PUBLISHED.get((method_name, base_name), f"{method.title} on {base.title}: {UNPUBLISHED}")
        return in_three_stages(
            f"{method_name}_{base_name}", base, replace(method, config=for_base(method.config, base_name)),
            f"{published}; {base.published}",
        )  # fmt: skip

    build.__doc__ = f"{method.title} on {base.title}, on KITTI."
    return build


def selective_monoskd() -> Recipe:
    """A mixture, unpublished: MonoSKD's correlation where MonoSTL's weights let it through, and MonoSTL's relations."""
    mixture = MixedConfig(
        (MonoSKDConfig(affinity_weight=0.0), MonoSTLConfig(feature_weight=0.0, response_weight=0.0)),
        select=MonoSTLConfig(),
    )
    note = f"an example of mixed terms; {UNPUBLISHED}"
    return in_three_stages("selective_monoskd", BASES["monodle"], METHODS["monoskd"], note, mixture)


def add_style_monodle() -> Recipe:
    """In the manner of ADD, on KITTI: MonoDLE taught by itself, told how far each labelled object is; no LiDAR."""
    note = (
        f"ADD states about 25.61 / 16.81 / 13.79 on test (not checked against its paper), {UNKNOWN_CHOICE}; this is "
        "built from its abstract, on another base"
    )
    base = BASES["monodle"]
    recipe = in_three_stages("add_style_monodle", base, METHODS["monodistill"], f"{note}; {base.published}")
    teacher, baseline, student = recipe.stages
    teacher = replace(teacher, detector=replace(baseline.detector, input="rgb+object_depth"))
    return replace(recipe, stages=(teacher, baseline, replace(student, method=ADDStyleConfig())))


def in_three_stages(name: str, base: Base, way: Taught, note: str, terms: MixedConfig | None = None) -> Recipe:
    """A method on a base detector as its paper trains it: teacher, baseline, and the student going on from that.

    ``terms`` teach in place of the method's own.
    """
    method = terms or way.config
    student = replace(base.detector, classes=CARS)
    teacher = replace(student, input="depth", depth_encoding=method.depth_input)
    tasks, before, schedule, augment = base.tasks, base.schedule, base.schedule, base.augment
    if not base.keeps_its_own:
        before, schedule, augment = replace(before, **way.alone), way.schedule, replace(augment, **way.augment)
    return Recipe(
        name,
        (
            StageConfig("teacher", "teacher", teacher, before, augment, tasks=tasks),
            StageConfig("baseline", "baseline", student, before, augment, tasks=tasks),
            StageConfig("student", "student", student, schedule, augment, ("teacher",), method,
                        # as MonoSKD released it: no pass over the data before the first epoch
                        tasks=tasks and replace(tasks, first_pass=False), init="baseline"),
        ),
        base.dataset,
        note=note,
    )  # fmt: skip


#: Half the papers' canvas, so that learning five frames by heart takes minutes on a CPU.
OVERFIT_CANVAS = (640, 192)


def monodle_overfit() -> Recipe:
    """MonoDLE (tiny) learns a handful of real frames by heart, from depth and from RGB; needs --allow-overlap.

    If it then finds those frames' objects, the whole real-data path is right.
    """
    schedule = Schedule(
        epochs=500, batch_size=5, lr=2e-3, shape="one_cycle", optimiser="adamw", clip_norm=10.0, weight_decay=1e-4
    )
    common = {"schedule": schedule, "augment": None}
    return Recipe(
        "monodle_overfit",
        (
            StageConfig("depth", "teacher", tiny(input="depth", depth_encoding="log"), **common),
            StageConfig("rgb", "baseline", tiny(), **common),
        ),
        DatasetConfig(eval_split="train", canvas=OVERFIT_CANVAS, depth="lidar", in_memory=True),
        EvaluationConfig(every=50),
        note="five real frames, trained and evaluated on the same: a check, no result",
    )
