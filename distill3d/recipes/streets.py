"""The student that the package ships, and its LiDAR teacher: on varied synthetic streets at half of KITTI's width."""

from __future__ import annotations

from dataclasses import replace

from distill3d.boxes import KITTI_CLASSES
from distill3d.data.augment.image import AugmentConfig, DistortionConfig
from distill3d.detectors.monodle import tiny
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.recipes.demo import KITTI_WIDTH, SCHEDULE
from distill3d.recipes.head_start import head_start
from distill3d.synth.writer import StreetConfig
from distill3d.train.recipe import DatasetConfig, EvaluationConfig, Recipe, StageConfig

#: Cars, pedestrians, cyclists.
CLASSES = KITTI_CLASSES[:3]
CANVAS = (640, 192)  # px
FRAMES = {"train": 3000, "val": 300}
#: Wider ranges than the generator's own: of light, air, noise, crowds, slopes, and of how the camera is mounted.
VARIED = StreetConfig(
    width=CANVAS[0], height=CANVAS[1], distance=(4.0, 60.0), cars=(3, 14), vans=(0, 2), pedestrians=(0, 5),
    cyclists=(0, 3), camera_height_sigma=0.15, pitch_sigma=1.2, roll_sigma=0.8, random_yaw_share=0.15,
    overcast_share=0.35, sun_elevation=(8.0, 65.0), haze=(0.0002, 0.004), exposure=(0.06, 0.22), noise=(0.5, 7.0),
)  # fmt: skip
#: Pictures of other cameras: zoomed, shifted, and with other colours.
AUGMENT = AugmentConfig(crop=0.25, zoom_deviation=0.2, zoom_range=(0.7, 1.3), style="intended",
                        distortion=DistortionConfig())  # fmt: skip
TEACHER = replace(SCHEDULE, epochs=6)
STUDENT = replace(SCHEDULE, epochs=10)


def streets() -> Recipe:
    """The shipped student: synthetic streets at 640 x 192, a LiDAR teacher, and a student with a head start."""
    teacher = tiny(input="depth", depth_encoding="log", classes=CLASSES)
    taught = StageConfig("monoskd", "student", tiny(classes=CLASSES), STUDENT, AUGMENT, ("teacher",), MonoSKDConfig())
    return Recipe(
        "streets",
        (
            StageConfig("teacher", "teacher", teacher, TEACHER, replace(AUGMENT, distortion=None)),
            replace(head_start(taught), name="student"),
        ),
        DatasetConfig(
            identity="shipped-streets", canvas=CANVAS, depth="completed", min_height_scale=CANVAS[0] / KITTI_WIDTH,
        ),
        EvaluationConfig(every=2),
        note="varied synthetic streets; schedule and size are this project's own",
    )  # fmt: skip
