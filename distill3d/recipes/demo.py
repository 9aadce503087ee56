"""The demo: on synthetic streets, a LiDAR teacher, a camera baseline and its distilled twins, on a laptop's CPU."""

from __future__ import annotations

from distill3d.data.augment.image import AugmentConfig
from distill3d.detectors.monodle import tiny
from distill3d.distill.methods.monodistill import MonoDistillConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.synth.settings import KITTI_WIDTH
from distill3d.synth.writer import StreetConfig
from distill3d.train.recipe import DatasetConfig, EvaluationConfig, Recipe, StageConfig
from distill3d.train.schedules import Schedule

#: Frames that the demo synthesises.
TRAIN_FRAMES, EVAL_FRAMES = 300, 150
#: Image size (px); minimum box heights are scaled by its ratio to KITTI's width.
CANVAS = (320, 96)
#: Nearer, busier and flatter streets than the generator's default: what a net can learn from in minutes.
STREETS = StreetConfig(
    width=CANVAS[0], height=CANVAS[1], distance=(4.0, 36.0), cars=(7, 13),
    grade_sigma=0.006, grade_limit=0.015, pitch_sigma=0.4, roll_sigma=0.3,
)  # fmt: skip


SCHEDULE = Schedule(
    epochs=12, batch_size=4, lr=2e-3, shape="one_cycle", optimiser="adamw", weight_decay=1e-4, clip_norm=10.0
)
AUGMENT = AugmentConfig(crop=0.0, style="intended")
#: MonoDistill's fusion at a width that suits the tiny trunk.
MONODISTILL = MonoDistillConfig(fusion_channels=64)


def demo() -> Recipe:
    """Synthetic streets: a LiDAR teacher, an RGB baseline, and its twins taught by MonoSKD and MonoDistill."""
    return Recipe(
        "demo",
        (
            StageConfig("teacher", "teacher", tiny(input="depth", depth_encoding="log"), SCHEDULE, AUGMENT),
            StageConfig("baseline", "baseline", tiny(), SCHEDULE, AUGMENT),
            StageConfig("monoskd", "student", tiny(), SCHEDULE, AUGMENT, ("teacher",), MonoSKDConfig()),
            StageConfig("monodistill", "student", tiny(), SCHEDULE, AUGMENT, ("teacher",), MONODISTILL),
        ),
        DatasetConfig(
            identity="synthetic-streets",
            canvas=CANVAS,
            depth="completed",
            in_memory=True,
            min_height_scale=CANVAS[0] / KITTI_WIDTH,
        ),
        EvaluationConfig(every=4),
        note="synthetic streets; schedule and size are this project's own",
    )
