"""Where a recipe's stages get their frames from, and by which official metric they are judged: one source per data set.

The training loop knows nothing else of KITTI or nuScenes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from distill3d.data.kitti.dataset import FrameConfig, KittiConfig, KittiDataset
from distill3d.data.kitti.names import names_of
from distill3d.data.kitti.raw import KittiRawConfig, KittiRawDataset, RawMapping
from distill3d.data.nuscenes.class_balance import ClassBalanced
from distill3d.data.nuscenes.dataset import NuScenesConfig, NuScenesDataset
from distill3d.data.sample import Dataset, JointDataset
from distill3d.detectors import DETECTORS, detector_name
from distill3d.detectors.base import CAMERA_INPUTS, DEPTH_INPUTS, POINT_INPUTS, Detector
from distill3d.errors import UserError
from distill3d.evaluate.kitti import Result as KittiResult
from distill3d.evaluate.nuscenes import NuScenesResult
from distill3d.train.evaluation import evaluate_detector, evaluate_surround, selecting_score, summary, surround_summary
from distill3d.train.precision import Precision
from distill3d.train.recipe import DatasetConfig, Recipe, StageConfig, SurroundDatasetConfig
from distill3d.train.teachers import is_repeatable


@dataclass(frozen=True)
class Verdict:
    """What an evaluation leaves in the log."""

    metrics: dict[str, Any]  # by kind: {"ap": {...}} as the report reads it
    scalars: dict[str, float]  # the same for TensorBoard
    score: float  # by which ``keep="best"`` chooses
    result: KittiResult | NuScenesResult  # of the official metric


class Source(ABC):
    """The data of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def labelled(self, stage: StageConfig) -> Dataset:
        """The labelled frames that a stage learns from.

        Raises:
            UserError: a folder, a file or a list is not given or not there.
        """

    @abstractmethod
    def frames(self, stage: StageConfig) -> Dataset:
        """All frames that a stage learns from.

        Raises:
            UserError: a folder, a file or a list is not given or not there.
        """

    def training(self, stage: StageConfig) -> Dataset:
        """``frames``, with what they are augmented with made ready once, rather than in every worker.

        Raises:
            UserError: as ``frames``, or a file is malformed.
        """
        return self.frames(stage)

    @abstractmethod
    def evaluation(self, stage: StageConfig, split: str) -> Dataset:
        """The frames of a split as the stage's detector sees them at test time.

        Raises:
            UserError: a folder, a file or a list is not there.
        """

    @abstractmethod
    def judge(
        self, detector: Detector, data: Any, device: torch.device, precision: Precision, folder: Path | None,
        progress: bool = False,
    ) -> Verdict:  # fmt: skip
        """The official metric on frames from ``evaluation``; with ``folder``, predictions and numbers go there."""

    def scenes(self, data: Any) -> dict[str, str]:
        """The scene of each frame, where data sets have such."""
        return {}

    @abstractmethod
    def card(self, data: Any) -> dict[str, Any]:
        """What someone who is handed the weights needs to know of the images and sensors."""

    @property
    def height_scale(self) -> float:
        """By which the least heights of training difficulties are multiplied, see ``training_difficulty``."""
        return 1.0

    @property
    def mapping(self) -> RawMapping | None:
        """Which raw frames the frames are, where the recipe says so."""
        return None

    def repeatable(self, stage: StageConfig, modality: str) -> bool:
        """Whether a teacher with this input sees each frame in two forms at most, so that its answers can be kept."""
        return False


def source_of(recipe: Recipe) -> Source:
    """The source for the recipe's kind of data set."""
    return KittiSource(recipe) if isinstance(recipe.dataset, DatasetConfig) else NuScenesSource(recipe)


def inputs_of(recipe: Recipe, stage: StageConfig, train: bool) -> set[str]:
    """What the detectors of a stage look at; in training also its teachers, and what its own loss and its method
    need."""
    inputs: set[str] = {stage.detector.input}
    if train:
        inputs |= {recipe.stage(t).detector.input for t in stage.teachers}
        inputs |= DETECTORS[detector_name(stage.detector)].build.also_trained_on(stage.detector)
        inputs |= set() if stage.method is None else stage.method.looks_at
    return inputs


def root_of(recipe: Recipe) -> Path:
    """The data set's folder.

    Raises:
        UserError: it is not given.
    """
    if recipe.dataset.root is None:
        raise UserError(f"recipe {recipe.name!r} needs a data set: give its folder with --data-root")
    return recipe.dataset.root


# ---------------------------------------------------------------------------------------------------------------- KITTI


class KittiSource(Source):
    """KITTI's object data, and its raw drives without labels."""

    def labelled(self, stage: StageConfig) -> KittiDataset:
        return KittiDataset(kitti_config(self.recipe, stage, self.recipe.dataset.train_split, train=True))

    def training(self, stage: StageConfig) -> Dataset:
        data = self.frames(stage)
        labelled = data.parts[0] if isinstance(data, JointDataset) else data
        if stage.lidar_augment is not None and isinstance(labelled, KittiDataset):
            _ = labelled.object_database
        elif stage.augment is not None and stage.augment.paste is not None and isinstance(labelled, KittiDataset):
            _ = labelled.donors
        return data

    def frames(self, stage: StageConfig) -> Dataset:
        labelled = self.labelled(stage)
        if not stage.unlabelled:
            return labelled
        config = _kitti(self.recipe).unlabelled
        if config is not None and config.split is not None:
            of_split = replace(labelled.config, split=config.split, labels=False, lidar_augment=None)
            more = KittiDataset(of_split)
            if both := set(labelled.frame_ids) & set(more.frame_ids):
                raise UserError(
                    f"{len(both)} frames, such as {min(both)}, are in the split {config.split!r}, whose labels are not "
                    f"to be looked at, and in {labelled.config.split!r}: give splits without common frames"
                )
            return JointDataset((labelled, more))
        if config is None or config.root is None or config.frames is None:
            raise UserError(
                f"stage {stage.name!r} learns from unlabelled drives: give --dataset.unlabelled.root, their folder, "
                "and --dataset.unlabelled.frames, a list of frames; or --dataset.unlabelled.split, one of the data set"
            )
        alike: dict[str, Any] = {f.name: getattr(labelled.config, f.name) for f in fields(FrameConfig)}
        if labelled.config.depth != "none":
            alike["depth"] = config.depth
        raw = KittiRawConfig(root=config.root, frames=config.frames, **alike)
        return JointDataset((labelled, KittiRawDataset(raw)))

    def evaluation(self, stage: StageConfig, split: str) -> KittiDataset:
        return KittiDataset(kitti_config(self.recipe, stage, split, train=False))

    def judge(
        self, detector: Detector, data: KittiDataset, device: torch.device, precision: Precision, folder: Path | None,
        progress: bool = False,
    ) -> Verdict:  # fmt: skip
        size = self.recipe.evaluation.batch_size
        overlaps = _kitti(self.recipe).overlaps
        result = evaluate_detector(detector, data, size, device, precision, folder, progress, overlaps)
        found = summary(result)
        scalars = {f"ap/{name}_moderate": values[1] for name, values in found.items()}
        return Verdict({"ap": found}, scalars, selecting_score(result), result)

    def card(self, data: KittiDataset) -> dict[str, Any]:
        dataset, first = _kitti(self.recipe), data.get(0)
        focal = float(first.camera.projection[0, 0])
        return {
            "canvas": list(dataset.canvas), "focal": focal, "file_focal": focal / float(first.affine.scale),
            "placement": dataset.placement, "min_height_scale": dataset.min_height_scale,
            "lidar_to_camera": None if first.lidar_to_camera is None else first.lidar_to_camera.tolist(),
        }  # fmt: skip

    @property
    def height_scale(self) -> float:
        return _kitti(self.recipe).min_height_scale

    @property
    def mapping(self) -> RawMapping | None:
        unlabelled = _kitti(self.recipe).unlabelled
        return None if unlabelled is None or unlabelled.mapping is None else RawMapping.read(unlabelled.mapping)

    def repeatable(self, stage: StageConfig, modality: str) -> bool:
        return is_repeatable(stage.augment, modality)


def kitti_config(recipe: Recipe, stage: StageConfig, split: str, train: bool) -> KittiConfig:
    """How a stage reads a split: with depth images where its detector or a teacher looks at them.

    Raises:
        UserError: the recipe has no data root.
    """
    dataset = _kitti(recipe)
    # Numbers of stages that look at scans and of others are of the same frames.
    skip = "skip" if train else "always_skip"
    return KittiConfig(
        root=root_of(recipe), split=split, **frame_settings(dataset, inputs_of(recipe, stage, train)),
        min_height_scale=dataset.min_height_scale,
        without_scan=skip if dataset.without_scan == "skip" else "refuse",
        augment=stage.augment if train else None, lidar_augment=stage.lidar_augment if train else None,
        in_memory=dataset.in_memory,
    )  # fmt: skip


def frame_settings(dataset: DatasetConfig, inputs: set[str]) -> dict[str, Any]:
    """Settings of ``FrameConfig`` by which KITTI's frames come out for networks that look at ``inputs``."""
    points = bool(inputs & POINT_INPUTS)
    return {
        "canvas": dataset.canvas, "depth": dataset.depth if inputs & DEPTH_INPUTS else "none",
        "points": points, "field_of_view": points, "scan_columns": dataset.scan_columns,
        "divide": dataset.divide, "placement": dataset.placement,
        "names": names_of(Path(), dataset.classes, dataset.label_names),
    }  # fmt: skip


def _kitti(recipe: Recipe) -> DatasetConfig:
    assert isinstance(recipe.dataset, DatasetConfig)
    return recipe.dataset


# ------------------------------------------------------------------------------------------------------------- nuScenes


class NuScenesSource(Source):
    """Surround views in nuScenes' layout."""

    def labelled(self, stage: StageConfig) -> NuScenesDataset:
        return NuScenesDataset(nuscenes_config(self.recipe, stage, self.recipe.dataset.train_split, train=True))

    def frames(self, stage: StageConfig) -> Dataset:
        data = self.labelled(stage)
        return ClassBalanced(data, self.recipe.seed + stage.seed_offset) if stage.class_balanced else data

    def evaluation(self, stage: StageConfig, split: str) -> NuScenesDataset:
        return NuScenesDataset(nuscenes_config(self.recipe, stage, split, train=False))

    def judge(
        self, detector: Detector, data: NuScenesDataset, device: torch.device, precision: Precision,
        folder: Path | None, progress: bool = False,
    ) -> Verdict:  # fmt: skip
        size = self.recipe.evaluation.batch_size
        result = evaluate_surround(detector, data, size, device, precision, folder, progress)
        found = surround_summary(result)
        scalars = {name: value for name, value in found.items() if isinstance(value, float)}
        return Verdict({"nuscenes": found}, scalars, result.nds, result)

    def scenes(self, data: NuScenesDataset) -> dict[str, str]:
        return data.scene_names()

    def card(self, data: NuScenesDataset) -> dict[str, Any]:
        config = data.config
        return {"canvas": list(config.canvas), "classes": list(config.classes), "version": config.version,
                "cameras": list(config.cameras), "past": list(config.past),
                "ego_frame": config.ego_frame}  # fmt: skip


def nuscenes_config(recipe: Recipe, stage: StageConfig, split: str, train: bool) -> NuScenesConfig:
    """How a stage reads a split: pictures, scans and depth where its detector or a teacher looks at them.

    Raises:
        UserError: the recipe has no data root.
    """
    dataset = recipe.dataset
    assert isinstance(dataset, SurroundDatasetConfig)
    return NuScenesConfig(
        root=root_of(recipe), version=dataset.version, split=split,
        **surround_settings(dataset, inputs_of(recipe, stage, train)),
        image_augment=stage.image_augment if train else None, bev_augment=stage.bev_augment if train else None,
        in_memory=dataset.in_memory,
    )  # fmt: skip


def surround_settings(dataset: SurroundDatasetConfig, inputs: set[str]) -> dict[str, Any]:
    """Settings of ``NuScenesConfig`` by which moments come out for networks that look at ``inputs``."""
    return {
        "classes": dataset.classes, "cameras": dataset.cameras, "canvas": dataset.canvas, "past": dataset.past,
        "missing_past": dataset.missing_past, "sweeps": dataset.sweeps, "scan_columns": dataset.scan_columns,
        "ego_frame": dataset.ego_frame, "images": bool(inputs & CAMERA_INPUTS),
        "points": bool(inputs & POINT_INPUTS), "depth": bool(inputs & DEPTH_INPUTS),
        "instances": "instances" in inputs,
    }  # fmt: skip
