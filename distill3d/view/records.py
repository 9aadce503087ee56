"""What run folders hold, as types: files are held against them once, where they are read, and trusted from there on.

Every key is optional, for runs of any age are read, and other keys may stand beside these; but what is there is of the
type that stands here.  Numbers are finite: ``Number`` leaves out what no loss or metric comes near, so that sums,
differences and axes of them stay finite too.
"""

from __future__ import annotations

from typing import Annotated, Literal, Required, TypedDict

from msgspec import Meta

from distill3d.camera import Divide
from distill3d.data.augment.image import Placement
from distill3d.data.nuscenes.dataset import EgoFrame

Number = Annotated[float, Meta(ge=-1e30, le=1e30)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
#: Means of shares may be rounded to a little less than nothing or more than all.
Share = Annotated[float, Meta(ge=-1e-6, le=1 + 1e-6)]
Percent = Annotated[float, Meta(ge=-1e-4, le=100 + 1e-4)]
Pixels = Annotated[int, Meta(ge=1, le=100_000)]
HeightScale = Annotated[float, Meta(gt=0, le=1000)]
#: Stages are folders of these names.
StageName = Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[^/\\\x00-\x1f\x7f]{1,200}$")]
Names = list[StageName]
Curve = Annotated[list[Share], Meta(min_length=2)]
ThreeNumbers = Annotated[list[Percent], Meta(min_length=3, max_length=3)]
ThreeCurves = Annotated[list[Curve], Meta(min_length=3, max_length=3)]


# ------------------------------------------------------------------------------------------------------------- settings


class Schedule(TypedDict, total=False):
    epochs: Count


class DetectorSettings(TypedDict, total=False):
    input: str


class StageSettings(TypedDict, total=False):
    """A stage as recipe.yaml lists it, and as config.yaml holds it."""

    name: StageName
    role: str
    detector: DetectorSettings
    schedule: Schedule
    teachers: Names | None
    init: StageName | None
    inherit: Names | None


class Sweeps(TypedDict, total=False):
    scans: Count | None


class DatasetSettings(TypedDict, total=False):
    root: str | None
    identity: str
    train_split: str
    eval_split: str | None
    canvas: tuple[Pixels, Pixels] | None  # width, height; a list as YAML has it
    min_height_scale: HeightScale
    placement: Placement
    divide: Divide
    depth: Literal["lidar", "completed", "png"]
    version: str | None
    classes: list[str] | None
    label_names: list[str] | None
    overlaps: list[str] | None
    without_scan: Literal["refuse", "skip"]
    past: list[Count]
    sweeps: Sweeps
    ego_frame: EgoFrame
    in_memory: bool


class RecipeSettings(TypedDict, total=False):
    name: str
    seed: int
    dataset: DatasetSettings
    stages: list[StageSettings]


# -------------------------------------------------------------------------------------------------------------- metrics


class NuScenesProgress(TypedDict, total=False):
    mAP: Number | None
    NDS: Number | None
    errors: dict[str, Number | None] | None
    ap: dict[str, Number | None] | None


class MetricsLine(TypedDict, total=False):
    """A line of metrics.jsonl; those of other kinds than "train" and "eval" are left out."""

    kind: Required[str]
    step: Required[Count]
    epoch: Required[Count]
    loss: Number | None
    lr: Number | None
    terms: dict[str, Number | None] | None
    ap: dict[str, ThreeNumbers] | None
    nuscenes: NuScenesProgress | None


# ----------------------------------------------------------------------------------------------------------- evaluation


class KittiCurves(TypedDict, total=False):
    AP_R40: ThreeNumbers  # easy, moderate, hard
    precision41: ThreeCurves


class EvaluationSettings(TypedDict, total=False):
    frames: Count | None
    samples: Count | None
    min_height_scale: HeightScale | None
    not_evaluated: list[str]
    classes: list[str] | None
    cameras: list[str] | None  # that were looked at
    official: bool | None
    tp_distance: Number | None


class BestOfReported(TypedDict, total=False):
    """The best of a training's evaluations on the reported split."""

    of: Required[Count]
    epoch: Required[Count]
    split: str
    chosen_by: str
    ap: dict[str, ThreeNumbers]
    nuscenes: NuScenesProgress


class Evaluation(TypedDict, total=False):
    """evaluation.json: of KITTI's metric ``strict`` and ``loose``, of nuScenes' the rest."""

    settings: EvaluationSettings
    strict: dict[str, KittiCurves]
    loose: dict[str, KittiCurves]
    mean_ap: Share
    nd_score: Share
    tp_errors: dict[str, Number | None] | None
    label_aps: dict[str, dict[str, Share]] | None  # of each class by the distance (m) of a match
    precision101: dict[str, dict[str, Curve]] | None
    notes: list[str] | None
    best_of_reported: BestOfReported | None
