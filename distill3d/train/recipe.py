"""What a recipe is: a data set, stages, and how they are evaluated, all typed and writable as YAML."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from distill3d.data.augment import AugmentConfig
from distill3d.data.kitti import KittiConfig
from distill3d.detectors import DETECTORS, DetectorConfig, detector_name
from distill3d.distill.methods import MethodConfig
from distill3d.errors import UserError
from distill3d.settings import fingerprint
from distill3d.train.htl import HTLConfig
from distill3d.train.schedules import Schedule

Role = Literal["teacher", "assistant", "label_encoder", "baseline", "student", "control"]


@dataclass(frozen=True)
class DatasetConfig:
    """The data of a recipe; every stage sees the same frames, each with the modality of its detector."""

    root: Path | None = None  # given on the command line as --data-root
    identity: str = "kitti"  # data sets of one identity share frame ids; teacher cards are compared by it
    train_split: str = "train"
    eval_split: str = "val"
    select_split: str | None = None  # for ``keep="best"``; never the split that is reported
    canvas: tuple[int, int] = (1280, 384)  # (width, height) px
    depth: Literal["lidar", "completed", "png"] = "completed"
    min_height_scale: float = 1.0  # of training difficulties and of evaluation, for reduced images
    in_memory: bool = False


@dataclass(frozen=True)
class StageConfig:
    """One training: a detector, its schedule, and what teaches it."""

    name: str
    role: Role
    detector: DetectorConfig
    schedule: Schedule = field(default_factory=Schedule)
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    teachers: tuple[str, ...] = ()  # names of earlier stages
    method: MethodConfig | None = None
    tasks: HTLConfig | None = None  # weighs the detector's own terms by what has been learned
    init: str | None = None  # earlier stage whose weights the detector starts from
    seed_offset: int = 0  # added to the recipe's seed, for a second baseline

    def __post_init__(self) -> None:
        if bool(self.teachers) != (self.method is not None):
            raise UserError(f"stage {self.name!r}: a method needs teachers, and teachers a method")


@dataclass(frozen=True)
class EvaluationConfig:
    """When and what is evaluated."""

    every: int = 10  # epochs; the last epoch is always evaluated
    keep: Literal["last", "best"] = "last"  # best: by Car 3D moderate (loose overlap) on ``dataset.select_split``
    batch_size: int = 8


@dataclass(frozen=True)
class Recipe:
    """Everything that a run does, in order."""

    name: str
    stages: tuple[StageConfig, ...]
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    precision: Literal["fp32", "bf16", "auto"] = "auto"  # auto: bf16 where the device computes it fast
    note: str = ""  # what the recipe reproduces, with the published number and its source

    def __post_init__(self) -> None:
        names: list[str] = []
        for stage in self.stages:
            for other in (*stage.teachers, *([stage.init] if stage.init else [])):
                if other not in names:
                    raise UserError(f"stage {stage.name!r} needs stage {other!r}, which does not come before it")
            if stage.name in names:
                raise UserError(f"two stages are named {stage.name!r}")
            names.append(stage.name)
        if self.evaluation.keep == "best" and self.dataset.select_split in (None, self.dataset.eval_split):
            raise UserError(
                "evaluation.keep is 'best', which needs a dataset.select_split other than the reported "
                f"{self.dataset.eval_split!r}"
            )

    def stage(self, name: str) -> StageConfig:
        """The stage of this name.

        Raises:
            UserError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"recipe {self.name!r} has no stage {name!r}, it has {', '.join(s.name for s in self.stages)}")

    def stage_fingerprint(self, stage: StageConfig) -> str:
        """Changes exactly if a setting that the stage's weights depend on does, those of earlier stages included."""
        dataset = replace(self.dataset, root=None, in_memory=False)
        earlier = [self.stage_fingerprint(self.stage(n)) for n in (*stage.teachers, *filter(None, [stage.init]))]
        return fingerprint([stage, dataset, self.evaluation.keep, self.seed, earlier])


def kitti_config(recipe: Recipe, stage: StageConfig, split: str, train: bool) -> KittiConfig:
    """How a stage reads a split: with depth images where its detector or a teacher looks at them.

    Raises:
        UserError: the recipe has no data root.
    """
    if recipe.dataset.root is None:
        raise UserError(f"recipe {recipe.name!r} needs a data set: give its folder with --data-root")
    inputs: set[str] = {stage.detector.input}
    if train:
        inputs |= {recipe.stage(t).detector.input for t in stage.teachers}
        inputs |= DETECTORS[detector_name(stage.detector)].build.also_trained_on
    return KittiConfig(
        root=recipe.dataset.root, split=split, canvas=recipe.dataset.canvas,
        depth=recipe.dataset.depth if "depth" in inputs else "none",
        min_height_scale=recipe.dataset.min_height_scale,
        augment=stage.augment if train else None, in_memory=recipe.dataset.in_memory,
    )  # fmt: skip
