"""The student that the package ships, its LiDAR teacher and its baseline, on varied synthetic streets; and from it to
one's own data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distill3d.data.augment.image import AugmentConfig, DistortionConfig
from distill3d.detectors.monodle import HEAT_CLASSES, tiny
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.recipes.demo import CANVAS, SCHEDULE
from distill3d.recipes.head_start import head_start
from distill3d.synth.settings import KITTI_WIDTH
from distill3d.synth.writer import StreetConfig
from distill3d.train.recipe import DatasetConfig, EvaluationConfig, Recipe, StageConfig

#: Of the shipped student, px: half of KITTI's pictures.
HALF = (640, 192)
#: Frames of its streets.
FRAMES = {"train": 3000, "val": 300}
#: Wider ranges than the generator's own: of light, air, noise, crowds, and of how the camera is mounted.
VARIED = StreetConfig(
    width=HALF[0], height=HALF[1], distance=(4.0, 60.0), cars=(3, 14), vans=(0, 2), pedestrians=(0, 5),
    cyclists=(0, 3), camera_height_sigma=0.15, pitch_sigma=1.2, roll_sigma=0.8, random_yaw_share=0.15,
    overcast_share=0.35, sun_elevation=(8.0, 65.0), haze=(0.0002, 0.004), exposure=(0.06, 0.22), noise=(0.5, 7.0),
)  # fmt: skip
#: The same streets at the size at which seeds are compared.
VARIED_TINY, TINY_FRAMES = replace(VARIED, width=CANVAS[0], height=CANVAS[1]), {"train": 600, "val": 150}
#: Pictures of other cameras: zoomed, shifted, and with other colours.
AUGMENT = AugmentConfig(crop=0.25, zoom_deviation=0.2, zoom_range=(0.7, 1.3), style="intended",
                        distortion=DistortionConfig())  # fmt: skip
#: Epochs of the teacher and of its student; and of all stages at the size at which seeds are compared.
TEACHER_EPOCHS, STUDENT_EPOCHS, TINY_EPOCHS = 6, 10, 8


def streets() -> Recipe:
    """The shipped student: varied streets at 640 x 192, a LiDAR teacher, the same student alone and with a head
    start."""
    teacher = tiny(input="depth", depth_encoding="log", classes=HEAT_CLASSES)
    schedule = replace(SCHEDULE, epochs=STUDENT_EPOCHS)
    baseline = StageConfig("baseline", "baseline", tiny(classes=HEAT_CLASSES), schedule, AUGMENT)
    taught = replace(baseline, role="student", teachers=("teacher",), method=MonoSKDConfig())
    return Recipe(
        "streets",
        (
            StageConfig("teacher", "teacher", teacher, replace(SCHEDULE, epochs=TEACHER_EPOCHS),
                        replace(AUGMENT, distortion=None)),
            baseline,
            replace(head_start(taught), name="student"),
        ),
        DatasetConfig(
            identity="shipped-streets", canvas=HALF, depth="completed", min_height_scale=HALF[0] / KITTI_WIDTH,
        ),
        EvaluationConfig(every=2),
        note="varied synthetic streets; schedule and size are this project's own",
    )  # fmt: skip


def tiny_streets() -> Recipe:
    """The shipped student's recipe at 320 x 96 and with equal epochs: what its teacher is worth, also on real
    pictures."""
    recipe = streets()
    schedule = replace(SCHEDULE, epochs=TINY_EPOCHS)
    return replace(
        recipe,
        name="tiny_streets",
        stages=tuple(replace(stage, schedule=schedule) for stage in recipe.stages),
        dataset=replace(recipe.dataset, canvas=CANVAS, min_height_scale=CANVAS[0] / KITTI_WIDTH, in_memory=True),
        evaluation=EvaluationConfig(every=TINY_EPOCHS),
    )


def tuned_streets() -> Recipe:
    """Your own data: the shipped student trained on, beside the same network from nothing."""
    student = tiny(classes=HEAT_CLASSES)
    schedule = replace(SCHEDULE, epochs=STUDENT_EPOCHS)
    return Recipe(
        "tuned_streets",
        (
            StageConfig("streets", "preparation", student, schedule, AUGMENT, taken_from=Path("streets")),
            StageConfig("baseline", "baseline", student, schedule, AUGMENT),
            # Heads are inherited, too, where classes agree.
            StageConfig("tuned", "student", student, schedule, AUGMENT, inherit=("streets",)),
        ),
        DatasetConfig(canvas=HALF),
        EvaluationConfig(every=2),
        note="schedule and size are this project's own",
    )
