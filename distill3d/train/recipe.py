"""What a recipe is: a data set, stages, and how they are evaluated, all typed and writable as YAML."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from distill3d import detectors
from distill3d.boxes import NUSCENES_CLASSES
from distill3d.camera import Divide
from distill3d.data.augment.image import AugmentConfig, Placement
from distill3d.data.augment.lidar import LidarAugmentConfig
from distill3d.data.augment.surround import BevAugmentConfig, ImageAugmentConfig
from distill3d.data.kitti.scans import VELODYNE_COLUMNS
from distill3d.data.nuscenes.dataset import CAMERAS, SCAN_COLUMNS, EgoFrame, SweepConfig, refuse_no_rig
from distill3d.data.scans import ScanColumns
from distill3d.distill import methods
from distill3d.distill.methods import method_name, objects_rule, unlabelled_use
from distill3d.distill.methods.pseudo_labels import PseudoLabelsConfig
from distill3d.errors import UserError
from distill3d.settings import Between, FramesBack, HeightScale, Number, Seed, added, fingerprint, is_in_range
from distill3d.train.htl import HTLConfig
from distill3d.train.schedules import Schedule

#: Of a canvas, px: the coarsest maps of the image networks have a stride of 32.
CanvasSide = Annotated[int, Between(32, 16_384, multiple_of=32)]
#: ``preparation``: weights that a later stage starts from, of no use by themselves.
Role = Literal["teacher", "assistant", "label_encoder", "preparation", "baseline", "student", "control"]


@dataclass(frozen=True)
class UnlabelledConfig:
    """Frames without labels from which stages learn that ask for them (``StageConfig.unlabelled``): KITTI's raw drives,
    or with ``split`` frames of the data set itself."""

    root: Path | None = None  # given on the command line as --dataset.unlabelled.root
    frames: Path | None = None  # a list of frame ids, one per line (CMKD's are known as eigen clean)
    mapping: Path | None = None  # folder of train_mapping.txt and train_rand.txt: which raw frame an object frame is
    depth: Literal["lidar", "completed"] = "lidar"
    split: str | None = added(None)  # of the data set itself, in place of drives; its labels are not looked at


@dataclass(frozen=True)
class DatasetConfig:
    """The data of a recipe in KITTI's layout; every stage sees the same frames, with its detector's modality."""

    root: Path | None = None  # given on the command line as --data-root
    identity: str = "kitti"  # data sets of one identity share frame ids; teacher cards are compared by it
    train_split: str = "train"
    eval_split: str = "val"
    select_split: str | None = None  # for ``keep="best"``; never the split that is reported
    canvas: tuple[CanvasSide, CanvasSide] = (1280, 384)  # (width, height) px
    placement: Placement = "fit"  # of images on the canvas
    divide: Divide = "rect_z"
    depth: Literal["lidar", "completed", "png"] = "completed"
    scan_columns: ScanColumns = added(VELODYNE_COLUMNS)  # float32 of each point of the scans' files
    #: In the order in which labels number them; none: those of the folder's classes.txt, or KITTI's.
    classes: tuple[str, ...] = added(())
    label_names: tuple[str, ...] = added(())  # other names in label files, each as name=class; name=DontCare leaves out
    overlaps: tuple[str, ...] = added(())  # of own classes, strict and loose, each as Bus=0.7,0.5, which is the default
    #: Of frames that lack a scan: ``skip`` leaves them out of trainings that look at scans, and of every evaluation.
    without_scan: Literal["refuse", "skip"] = added("refuse")
    min_height_scale: HeightScale = 1.0  # of training difficulties and of evaluation, for reduced images
    in_memory: bool = False
    unlabelled: UnlabelledConfig | None = None


@dataclass(frozen=True)
class SurroundDatasetConfig:
    """The data of a recipe on nuScenes' layout; see data/nuscenes/dataset.py."""

    root: Path | None = None  # given on the command line as --data-root
    identity: str = "nuscenes"
    version: str = "v1.0-trainval"
    train_split: str = "train"
    eval_split: str = "val"
    select_split: str | None = None  # for ``keep="best"``; never the split that is reported
    classes: tuple[str, ...] = NUSCENES_CLASSES  # that are trained and evaluated; fewer are no official evaluation
    #: The rig: camera sensors of the tables, one or more, in the order in which networks are given their pictures.
    cameras: tuple[str, ...] = added(CAMERAS)
    canvas: tuple[CanvasSide, CanvasSide] = (704, 256)  # (width, height) px
    past: tuple[FramesBack, ...] = ()  # earlier key frames that cameras see, counted back
    missing_past: Literal["nearest", "current"] = "nearest"
    sweeps: SweepConfig = field(default_factory=SweepConfig)
    scan_columns: ScanColumns = added(SCAN_COLUMNS)  # float32 of each point of the scans' files
    ego_frame: EgoFrame = "mean_camera"
    in_memory: bool = False

    def __post_init__(self) -> None:
        if is_in_range(self):
            refuse_no_rig(self.cameras)


@dataclass(frozen=True)
class StageConfig:
    """One training: a detector, its schedule, and what teaches it."""

    known_by_name: ClassVar[bool] = True  # rather than by its number, where settings are spelled

    name: str
    role: Role
    detector: detectors.DetectorConfig
    schedule: Schedule = field(default_factory=Schedule)
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    teachers: tuple[str, ...] = ()  # names of earlier stages
    method: methods.MethodConfig | None = None
    tasks: HTLConfig | None = None  # weighs the detector's own terms by what has been learned
    init: str | None = None  # earlier stage whose weights the detector starts from
    #: Earlier stages from which it takes what agrees in name and shape, later over earlier ones; the card says what.
    inherit: tuple[str, ...] = ()
    inherit_parts: tuple[str, ...] = ()  # of the detector's modules, such as "neck"; by default all of them
    seed_offset: Seed = 0  # added to the recipe's seed, for a second baseline
    lidar_augment: LidarAugmentConfig | None = None  # in place of ``augment``, for detectors that see points alone
    unlabelled: bool = False  # also learns from the data set's unlabelled frames
    # Of surround views, in place of ``augment``:
    image_augment: ImageAugmentConfig | None = None
    bev_augment: BevAugmentConfig | None = None
    class_balanced: bool = False  # frames of rare classes are seen more often (CBGS)
    #: The folder of a finished stage, of another run or imported, that stands in place of this one's training.
    taken_from: Path | None = added(None)
    taken_sha256: str | None = added(None)  # of its weights' file, found when the recipe runs

    def __post_init__(self) -> None:
        if not is_in_range(self):
            return
        if bool(self.teachers) != (self.method is not None and not self.method.teacherless):
            raise UserError(
                f"stage {self.name!r}: a method needs teachers, unless it looks at none, and teachers a method"
            )
        if self.init is not None and self.inherit:
            raise UserError(f"stage {self.name!r}: give init or inherit, not both")
        if self.unlabelled and not self.teachers:
            raise UserError(f"stage {self.name!r}: only a teacher can say what unlabelled frames hold, and it has none")
        if self.method is not None:
            self._refuse_use(self.method)

    def _refuse_use(self, method: methods.MethodConfig) -> None:
        """Holds what a method makes of frames without labels against whether there are some."""
        use, rule = unlabelled_use(method), objects_rule(method)
        if self.unlabelled and use == "refused":
            raise UserError(
                f"stage {self.name!r}: {method_name(method)} compares with true labels, which unlabelled frames lack"
            )
        if not isinstance(rule, PseudoLabelsConfig):
            return
        if not self.unlabelled:
            raise UserError(f"stage {self.name!r}: pseudo_labels learns from unlabelled frames: set unlabelled")
        if rule.teacher not in (None, *self.teachers) or (rule.teacher is None and len(self.teachers) > 1):
            asked = "a single teacher" if rule.teacher is None else f"the teacher {rule.teacher!r}"
            raise UserError(
                f"stage {self.name!r}: pseudo_labels asks for {asked}, its teachers are {', '.join(self.teachers)}"
            )

    @property
    def starts_from(self) -> tuple[str, ...]:
        """The earlier stages whose weights it takes."""
        return (*((self.init,) if self.init is not None else ()), *self.inherit)

    @property
    def needs(self) -> tuple[str, ...]:
        """The earlier stages that this one stands on."""
        return (*self.teachers, *self.starts_from)


@dataclass(frozen=True)
class EvaluationConfig:
    """When and what is evaluated."""

    every: Number = 10  # epochs; the last epoch is always evaluated
    #: ``best``: by KITTI's Car 3D moderate (loose overlap), or nuScenes' NDS, on ``dataset.select_split``.
    keep: Literal["last", "best"] = "last"
    batch_size: Annotated[int, Between(1, 65_536)] = 8
    #: Also tell the best of these evaluations, which is what papers state; no weights are kept by it.
    best_of_reported: bool = added(False)


@dataclass(frozen=True)
class Recipe:
    """Everything that a run does, in order."""

    name: str
    stages: tuple[StageConfig, ...]
    dataset: DatasetConfig | SurroundDatasetConfig = field(default_factory=DatasetConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: Seed = 0
    precision: Literal["fp32", "bf16", "auto"] = "auto"  # auto: bf16 where the device computes it fast
    note: str = ""  # what the recipe reproduces, with the published number and its source

    def __post_init__(self) -> None:
        if not is_in_range(self):
            return
        names: list[str] = []
        for stage in self.stages:
            for other in stage.needs:
                if other not in names:
                    raise UserError(f"stage {stage.name!r} needs stage {other!r}, which does not come before it")
            if stage.name in names:
                raise UserError(f"two stages are named {stage.name!r}")
            names.append(stage.name)
            if stage.unlabelled and isinstance(self.dataset, SurroundDatasetConfig):
                raise UserError(
                    f"stage {stage.name!r}: unlabelled frames are those of KITTI's raw drives; label surround views "
                    "first, with distill3d autolabel"
                )
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
        if isinstance(dataset, DatasetConfig):
            unlabelled = dataset.unlabelled if stage.unlabelled else None
            dataset = replace(dataset, unlabelled=unlabelled and replace(unlabelled, root=None))
        earlier = [self.stage_fingerprint(self.stage(n)) for n in stage.needs]
        stage = replace(stage, taken_from=None)  # wherever it lies: what it holds has a sum of its own
        return fingerprint([stage, dataset, self.evaluation.keep, self.seed, earlier])
