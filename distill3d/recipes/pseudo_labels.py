"""A LiDAR detector labels frames for a camera detector, see distill/methods/pseudo_labels.py."""

from __future__ import annotations

from dataclasses import replace

from distill3d.data.augment.image import AugmentConfig
from distill3d.data.augment.lidar import LidarAugmentConfig
from distill3d.detectors import monodle, second
from distill3d.detectors.second import SECONDConfig
from distill3d.distill.methods.pseudo_labels import PseudoLabelsConfig
from distill3d.layers.points.voxels import TEACHER_RANGE, VoxelGrid
from distill3d.recipes.bev import LIDAR
from distill3d.recipes.demo import AUGMENT, SCHEDULE, demo
from distill3d.recipes.kitti import BASES
from distill3d.recipes.synthetic import SCANS, TINY_LIDAR
from distill3d.train.recipe import DatasetConfig, Recipe, StageConfig, UnlabelledConfig

#: OpenPCDet's SECOND on all that KITTI labels: what the teacher does not look at, the student learns to overlook.
WIDE = SECONDConfig(voxels=VoxelGrid(TEACHER_RANGE, (0.05, 0.05, 0.1)))
#: The splits of the synthetic streets: few frames with labels, and more without.
FEW, MORE = "few", "more"
#: Of the frames of both, that many times as many as have labels: in so many times fewer epochs there are as many steps.
SHARE = 3

NOTE = (
    "LPCG (Peng et al., ECCV 2022, arXiv:2104.09035) labels KITTI's raw drives so for other detectors; teacher, "
    "threshold and schedule are this project's own here, and no number of them is known"
)


def pseudo_labels_monodle() -> Recipe:
    """SECOND labels raw drives for MonoDLE, on KITTI; needs --dataset.unlabelled.root and .frames."""
    base = BASES["monodle"]
    student = replace(base.detector, classes=("Car",))
    # A dozen times as many frames as the training split has: as many steps in fewer epochs.
    shorter = replace(base.schedule, epochs=20, warmup_epochs=1, drops=(13, 17))
    return Recipe(
        "pseudo_labels_monodle",
        (
            StageConfig("teacher", "teacher", WIDE, LIDAR, None, lidar_augment=LidarAugmentConfig()),
            StageConfig("baseline", "baseline", student, base.schedule, AugmentConfig(shift=0.0)),
            StageConfig("student", "student", student, shorter, AugmentConfig(shift=0.0), ("teacher",),
                        PseudoLabelsConfig(), unlabelled=True),
        ),
        DatasetConfig(unlabelled=UnlabelledConfig()),
        note=f"{NOTE}; {base.published}",
    )  # fmt: skip


def tiny_pseudo_labels() -> Recipe:
    """SECOND labels frames for MonoDLE, tiny, on synthetic streets of which few are labelled."""
    recipe, student = demo(), monodle.tiny()
    longer = replace(SCHEDULE, epochs=SHARE * SCHEDULE.epochs)
    lidar = replace(TINY_LIDAR, epochs=2 * TINY_LIDAR.epochs)
    pseudo = StageConfig("hard", "student", student, SCHEDULE, AUGMENT, ("teacher",), PseudoLabelsConfig(),
                         unlabelled=True)  # fmt: skip
    return replace(
        recipe,
        name="tiny_pseudo_labels",
        stages=(
            StageConfig("teacher", "teacher", second.tiny(), lidar, None, lidar_augment=SCANS),
            StageConfig("baseline", "baseline", student, longer, AUGMENT),
            pseudo,
            replace(pseudo, name="soft", method=PseudoLabelsConfig(form="soft", least_score=0.1)),
        ),
        dataset=replace(recipe.dataset, train_split=FEW, unlabelled=UnlabelledConfig(split=MORE)),
    )
