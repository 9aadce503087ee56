"""Data sets with classes of their own: detectors of a recipe are made to find them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from distill3d.boxes import KITTI_CLASSES
from distill3d.data.kitti.inventory import Inventory
from distill3d.data.kitti.names import KITTI_NAMES, LabelNames, names_of
from distill3d.data.splits import read_split
from distill3d.errors import UserError
from distill3d.layers.heads.anchor_head import AnchorHeadConfig
from distill3d.layers.heads.anchors import AnchorClass
from distill3d.train.recipe import DatasetConfig, Recipe, StageConfig

#: Mean length (m) from which a class's anchors are matched as KITTI's cars are, and below as its pedestrians
#: (Cc-Hy/CMKD tools/cfgs/kitti_models/CMKD/CMKD-scd/second_teacher.yaml): least IoU of foreground, most of background.
LONG, OF_LONG, OF_SHORT = 2.5, (0.6, 0.45), (0.5, 0.35)
#: Metres are told, and written in settings, to the centimetre.
DECIMALS = 2


def with_classes(recipe: Recipe) -> Recipe:
    """The recipe with the classes of its data set, and with detectors that find them; on KITTI's it stays as it is.

    A detector whose settings name some of the data set's own classes keeps to these; others find all of them.  Sizes
    and anchors are the means of what the training split's labels say.

    Raises:
        UserError: the classes do not fit together, or a class has no object in the training split.
    """
    dataset = recipe.dataset
    if not isinstance(dataset, DatasetConfig) or dataset.root is None:
        return recipe
    known = names_of(dataset.root, dataset.classes, dataset.label_names)
    if known == KITTI_NAMES:
        return recipe
    others = tuple(f"{name}={kind}" for name, kind in known.others)
    recipe = replace(recipe, dataset=replace(dataset, classes=known.classes, label_names=others))
    if known.classes == KITTI_NAMES.classes:
        return recipe

    @cache
    def sizes() -> dict[str, ClassSize]:
        return class_sizes(dataset, known)

    return replace(recipe, stages=tuple(_fitted(stage, known, sizes) for stage in recipe.stages))


def _fitted(stage: StageConfig, known: LabelNames, sizes: Callable[[], dict[str, ClassSize]]) -> StageConfig:
    detector: Any = stage.detector
    head = getattr(detector, "head", None)
    if stage.taken_from is not None:
        return stage
    if isinstance(head, AnchorHeadConfig):
        if head.vocabulary == known.classes:
            return stage
        own = tuple(kind for kind in head.classes if kind.name in known.classes and kind.name not in KITTI_CLASSES)
        anchors = own or tuple(size.anchor for size in sizes().values())
        return replace(stage, detector=replace(detector, head=replace(head, vocabulary=known.classes, classes=anchors)))
    if getattr(detector, "vocabulary", known.classes) == known.classes:
        return stage
    own = tuple(name for name in detector.classes if name not in KITTI_NAMES.classes)
    changed: dict[str, Any] = {"vocabulary": known.classes, "classes": own or known.classes}
    if hasattr(detector, "class_sizes"):
        changed["class_sizes"] = tuple(size.hwl for size in sizes().values())
    return replace(stage, detector=replace(detector, **changed))


class ClassSize:
    """What labels say of one class: means over its objects (m)."""

    def __init__(self, name: str, objects: Inventory) -> None:
        length, width, height = (round(float(value), DECIMALS) for value in objects.size.mean(0))
        self.name, self.count, self.hwl = name, len(objects), (height, width, length)
        bottom = objects.lidar_centre[:, 2] - objects.size[:, 2] / 2
        self.bottom = round(float(np.median(bottom)), DECIMALS) if np.isfinite(bottom).any() else None

    @property
    def anchor(self) -> AnchorClass:
        """The anchors of a detector of points.

        Raises:
            UserError: no calibration says where the LiDAR is.
        """
        height, width, length = self.hwl
        if self.bottom is None:
            raise UserError(f"anchors of {self.name} stand in the LiDAR's frame, of which the calibration says nothing")
        matched, unmatched = OF_LONG if length > LONG else OF_SHORT
        return AnchorClass(self.name, (length, width, height), self.bottom, matched, unmatched)

    def __str__(self) -> str:
        height, width, length = self.hwl
        ground = "" if self.bottom is None else f", bottom {self.bottom:g} m from the LiDAR"
        return f"{self.name}: {self.count} objects, length {length:g}, width {width:g}, height {height:g} m{ground}"


def class_sizes(dataset: DatasetConfig, known: LabelNames) -> dict[str, ClassSize]:
    """The sizes of each class in the training split.

    Raises:
        UserError: a file is absent or malformed, or a class has no object.
    """
    assert dataset.root is not None
    frames = read_split(dataset.root / "ImageSets" / f"{dataset.train_split}.txt")
    return sizes_of(Inventory.of(dataset.root / "training", frames, known), known, dataset.train_split)


def sizes_of(objects: Inventory, known: LabelNames, where: str) -> dict[str, ClassSize]:
    """The sizes of each class.

    Raises:
        UserError: one has no object.
    """
    found = {}
    for number, name in enumerate(known.classes):
        chosen = objects.label == number
        if not chosen.any():
            raise UserError(f"no object of split {where!r} is a {name}: leave it out of the classes, or label some")
        found[name] = ClassSize(name, objects.rows(chosen))
    return found
