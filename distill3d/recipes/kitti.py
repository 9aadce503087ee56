"""Recipes on KITTI: what the papers did, at their size and schedule.

Published numbers are Car 3D AP|R40 at IoU 0.7 on KITTI val (easy / moderate / hard); none of them is ours.
"""

from __future__ import annotations

from dataclasses import replace

from distill3d.data.augment import AugmentConfig
from distill3d.detectors.monodle import MonoDLEConfig, tiny
from distill3d.distill.methods.monodistill import MonoDistillConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.layers.dla import DLAConfig
from distill3d.train.recipe import DatasetConfig, EvaluationConfig, Recipe, StageConfig
from distill3d.train.schedules import Schedule

#: MonoDLE at the paper's size, its trunk from ImageNet.
PAPER = MonoDLEConfig(trunk=DLAConfig(pretrained=True))
#: MonoDistill and MonoSKD crop without moving the window; their teachers see no colours.
UNSHIFTED = AugmentConfig(shift=0.0)
#: 12 images on two GPUs and 160 epochs (MonoDistill); 16 on four and 150 (MonoSKD).
MONODISTILL_SCHEDULE = Schedule(epochs=160, batch_size=12)
MONOSKD_SCHEDULE = Schedule(epochs=150, batch_size=16, lr=1e-3)
#: Half the papers' canvas, so that learning five frames by heart takes minutes on a CPU.
OVERFIT_CANVAS = (640, 192)


def monodle() -> Recipe:
    """MonoDLE alone."""
    return Recipe(
        "monodle",
        (StageConfig("baseline", "baseline", PAPER),),
        note="MonoDLE: 17.94 / 13.72 / 12.10 for the released model (xinzhuma/monodle readme)",
    )


def monodistill_monodle() -> Recipe:
    """MonoDistill: both networks first trained alone, then the student goes on with its teacher."""
    return _taught(
        "monodistill_monodle",
        MonoDistillConfig(),
        MONODISTILL_SCHEDULE,
        "MonoDistill: teacher 60.57 / 45.06 / 37.90, baseline 18.43 / 14.62 / 12.45, student 24.40 / 18.47 / 16.46 "
        "(monster-ghost/MonoDistill readme)",
    )


def monoskd_monodle() -> Recipe:
    """MonoSKD on MonoDLE."""
    return _taught(
        "monoskd_monodle",
        MonoSKDConfig(),
        MONOSKD_SCHEDULE,
        "MonoSKD was published on DID-M3D (28.91 / 20.21 / 16.99, Senwang98/MonoSKD readme); on MonoDLE there is no "
        "released run, its mapping to this detector is ours",
    )


def _taught(name: str, method: MonoDistillConfig | MonoSKDConfig, schedule: Schedule, note: str) -> Recipe:
    """Teacher and baseline trained alone, as MonoDLE is; then the student, from the baseline's weights."""
    alone = Schedule(batch_size=16)
    teacher = replace(PAPER, input="depth", depth_encoding=method.depth_input)
    return Recipe(
        name,
        (
            StageConfig("teacher", "teacher", teacher, alone, UNSHIFTED),
            StageConfig("baseline", "baseline", PAPER, alone, UNSHIFTED),
            StageConfig("student", "student", PAPER, schedule, UNSHIFTED, ("teacher",), method, init="baseline"),
        ),
        note=note,
    )


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
