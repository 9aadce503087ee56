"""The labels and result files of a run, read once, and what they tell of each student: for ``distill3d diagnose``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float

from distill3d.answers import depth_log_scales, ground_maps, own_maps
from distill3d.data.kitti.dataset import KittiDataset
from distill3d.errors import UserError
from distill3d.evaluate.kitti import Annotations, result_frames
from distill3d.evaluate.nuscenes import GroundTruth, ground_truth
from distill3d.evaluate.nuscenes_boxes import CLASSES, DetectionBoxes
from distill3d.evaluate.nuscenes_submission import read_submission
from distill3d.evaluate.surround_fields import attribution_around, errors_by_class
from distill3d.evaluate.surround_transfer import (
    SurroundFound,
    SurroundLabelled,
    SurroundTransferSettings,
    counted_objects,
    find_around,
)
from distill3d.evaluate.transfer import (
    Analysis,
    Found,
    JudgeSettings,
    LabelledObjects,
    TransferSettings,
    analyse,
    find,
    labelled_objects,
    telling_objects,
)
from distill3d.view.bev_maps import BevMaps
from distill3d.view.diagnosis import Section
from distill3d.view.gallery import label_folder, open_dataset, read_frame
from distill3d.view.runs import RESULT_FILES, Stage, everything_behind
from distill3d.view.surround_diagnosis import MomentMaps, Seen, SurroundSection, in_ego
from distill3d.view.surround_gallery import open_dataset as open_drives

#: Frames of which maps of the ground are shown.
MAPPED_FRAMES = 4
#: Roles of detectors that see no more than the baseline, for comparison with the taught ones.
UNTAUGHT_ROLES = ("baseline", "control")

FoundT = TypeVar("FoundT", bound=Found)
SettingsT = TypeVar("SettingsT", bound=JudgeSettings)
LogScales = tuple[Float[np.ndarray, " g"] | None, str]


# ------------------------------------------------------------------------------------------------------ whom to compare


def is_ready(stage: Stage) -> bool:
    """Whether a stage has been evaluated and its result files are there."""
    return stage.finished and stage.has_predictions


def _teacher(student: Stage, stages: Sequence[Stage]) -> tuple[Stage | None, list[str]]:
    """The first teacher of a student, or the run's first teacher where nothing names one; and what is to be said."""
    names, said = student.teachers, []
    if len(names) > 1:
        said = [f"{student.name} was taught by {' and '.join(names)}: what is told of a teacher is told of {names[0]}."]
    found = [s for s in stages if (s.name == names[0] if names else s.role == "teacher")]
    if not found:
        return None, [f"{student.name} has no teacher in this run: nothing is told about one."]
    return found[0], said


def _behind(stage: Stage, stages: Sequence[Stage]) -> set[str]:
    """Names of the stages of a run whose answers or weights went into a stage, directly or through others."""
    behind = {one.name: {*one.teachers, *one.starts_from} for one in stages}
    return everything_behind({*stage.teachers, *stage.starts_from}, lambda name: behind.get(name, ()))


def _untaught(student: Stage, baseline: Stage, teacher: Stage | None, stages: Sequence[Stage]) -> Stage | None:
    """Another detector with the baseline's input that the student's teacher had no part in; best one without any."""
    known = [
        stage
        for stage in stages
        if stage not in (student, baseline, teacher)
        and stage.role in UNTAUGHT_ROLES
        and is_ready(stage)
        and _input(stage) == _input(baseline)
        and (teacher is None or teacher.name not in _behind(stage, stages))
    ]
    return min(known, key=lambda stage: len(stage.teachers), default=None)


def _input(stage: Stage) -> str | None:
    return stage.card.get("input") or stage.config.get("detector", {}).get("input")


# ------------------------------------------------------------------------------------------------------------- the work


class Work(ABC, Generic[FoundT, SettingsT]):
    """Labels and result files of one run; what a data set's layout brings along is its subclass's."""

    settings: SettingsT
    objects: Any  # ``JudgedObjects``

    def __init__(self, baseline: Stage) -> None:
        self.baseline = baseline
        self._found: dict[Path, FoundT] = {}
        self._scales: dict[str, LogScales] = {}

    @abstractmethod
    def _find(self, stage: Stage) -> FoundT:
        """As ``found``, of one data set."""

    @abstractmethod
    def _ask(self, teacher: Stage, device: torch.device) -> Float[np.ndarray, " g"]:
        """The teacher's log scale of the depth of each object, NaN where it has none.

        Raises:
            UserError: its weights or the data cannot be read.
            NotImplementedError: the detector does not say how sure it is.
        """

    def found(self, stage: Stage) -> FoundT:
        """What a stage says of each object.

        Raises:
            UserError: its result files are of other frames than the baseline's, or malformed.
        """
        if stage.folder not in self._found:
            roots = [one.dataset.get("root") for one in (stage, self.baseline)]
            if roots[0] != roots[1]:
                raise UserError(
                    f"{stage.folder} was evaluated on {roots[0]}, {self.baseline.folder} on {roots[1]}: if they are one"
                    " data set, give its folder with --data-root"
                )
            self._found[stage.folder] = self._find(stage)
        return self._found[stage.folder]

    def section(self, student: Stage, stages: Sequence[Stage], device: torch.device) -> Section:
        """The analysis of one student.

        Raises:
            UserError: as ``found``.
        """
        teacher, lacks = _teacher(student, stages)
        of_teacher, scale = None, None
        if teacher is not None:
            if is_ready(teacher):
                of_teacher = self.found(teacher)
            else:
                lacks.append(f"{teacher.name} has no result files: nothing is told about its errors.")
            scale, problem = self.log_scale(teacher, device)
            lacks += [problem] if problem else []
        baseline = self.found(self.baseline)
        other = _untaught(student, self.baseline, teacher, stages)
        untaught = None
        if other is not None:
            analysis = analyse(self.objects, baseline, self.found(other), of_teacher, scale, self.settings)
            untaught = (other, analysis)
        analysis = analyse(self.objects, baseline, self.found(student), of_teacher, scale, self.settings)
        maps = None
        try:
            maps, left_out = self._ground_maps(student, stages, analysis, device)
            lacks += left_out
        except (UserError, OSError) as error:
            lacks.append(f"There are no maps of the ground of {student.name}: {error}.")
        return Section(student, analysis, teacher, untaught, maps, tuple(lacks))

    def _ground_maps(
        self, student: Stage, stages: Sequence[Stage], analysis: Analysis[Any], device: torch.device
    ) -> tuple[BevMaps | None, list[str]]:
        """As ``answers.ground_maps``, of the frames that tell most."""
        return ground_maps(student, stages, mapped_frames(analysis), self.settings.classes, device)

    def log_scale(self, teacher: Stage, device: torch.device) -> LogScales:
        """The teacher's log scale of the depth of each object, NaN where it has none; or None and the reason."""
        if teacher.name not in self._scales:
            try:
                self._scales[teacher.name] = (self._ask(teacher, device), "")
            except (UserError, NotImplementedError) as error:
                self._scales[teacher.name] = (None, f"Nothing is told about the teacher's uncertainty: {error}.")
        return self._scales[teacher.name]


class KittiWork(Work[Found, TransferSettings]):
    """Of a data set in KITTI's layout."""

    objects: LabelledObjects

    def __init__(self, baseline: Stage, student: Stage, margin: float) -> None:
        super().__init__(baseline)
        frames = result_frames(baseline.predictions, label_folder(baseline))
        rules = baseline.rules
        detections = Annotations.from_folder(baseline.predictions, scored=True, frames=frames).named(rules)
        self.labels = Annotations.from_folder(label_folder(baseline), scored=False, frames=frames).named(rules)
        self.settings = TransferSettings(
            classes=_classes(student, detections), margin=margin, min_height_scale=baseline.min_height_scale
        )
        self.objects = labelled_objects(self.labels, self.settings)
        self.no_data = ""

    def _find(self, stage: Stage) -> Found:
        frames = result_frames(stage.predictions, label_folder(self.baseline))
        detections = Annotations.from_folder(stage.predictions, scored=True, frames=frames).named(stage.rules)
        if detections.frames != self.labels.frames:
            raise UserError(
                f"{stage.predictions} holds results of {len(detections.frames)} frames, and not of the same as the"
                f" {len(self.labels.frames)} of {self.baseline.predictions}: evaluate both on one split"
            )
        return find(self.labels, detections, self.objects, self.settings.least_overlap)

    def pictures(self) -> KittiDataset | None:
        """The split with images and points; None, with the reason in ``no_data``, where it cannot be read."""
        try:
            dataset = open_dataset(self.baseline)
            read_frame(dataset, dataset.frame_ids[0])
        except (UserError, OSError) as error:
            self.no_data = f"There are no pictures: {error}."
            return None
        return dataset

    def _ask(self, teacher: Stage, device: torch.device) -> Float[np.ndarray, " g"]:
        by_frame = depth_log_scales(teacher, self.objects.frames, device)
        frames = [self.objects.frames[frame] for frame in self.objects.frame]
        missing = next((frame for frame in frames if frame not in by_frame), None)
        if missing is not None:
            raise UserError(f"frame {missing} is not in the split {teacher.dataset.get('eval_split')!r}")
        values = [by_frame[frame] for frame in frames]
        return np.array(
            [
                slots[line] if line < len(slots) else np.nan
                for slots, line in zip(values, self.objects.line, strict=True)
            ]
        )


def _classes(student: Stage, detections: Annotations) -> tuple[str, ...]:
    """The evaluated classes that the student was trained on, or else those in the baseline's result files."""
    names = student.trained_classes or set(detections.name.tolist())
    return tuple(name for name in student.rules.classes if name in names) or (student.leading,)


class SurroundWork(Work[SurroundFound, SurroundTransferSettings]):
    """Of a data set of surround views.

    Raises:
        UserError: the data set or the baseline's predictions cannot be read.
    """

    objects: SurroundLabelled

    def __init__(self, baseline: Stage, student: Stage, margin: float) -> None:
        super().__init__(baseline)
        self.dataset = open_drives(baseline)
        self.tokens = list(self.dataset.frame_ids)
        self.truth: GroundTruth = ground_truth(self.dataset.tables, self.tokens)
        trained = student.trained_classes & set(self.dataset.classes) or set(self.dataset.classes)
        self.settings = SurroundTransferSettings(
            classes=tuple(name for name in CLASSES if name in trained), margin=margin
        )
        self.objects = counted_objects(self.truth, self.settings.classes)
        self._detections: dict[Path, DetectionBoxes] = {}

    def detections(self, stage: Stage) -> DetectionBoxes:
        """All boxes of a stage.

        Raises:
            UserError: it has results of other samples than the split's, or the file is malformed.
        """
        if stage.folder not in self._detections:
            boxes = read_submission(stage.predictions / RESULT_FILES["nuscenes"], self.tokens)
            self._detections[stage.folder] = boxes.seen_from(self.truth.ego_position)
        return self._detections[stage.folder]

    def _find(self, stage: Stage) -> SurroundFound:
        return find_around(self.truth, self.detections(stage), self.objects, self.settings.reach)

    def section(self, student: Stage, stages: Sequence[Stage], device: torch.device) -> SurroundSection:
        one = super().section(student, stages, device)
        parts = {"baseline": self.baseline, "student": student}
        if one.teacher is not None and "teacher" in one.analysis.parts:
            parts["teacher"] = one.teacher
        classes = self.settings.classes
        errors = errors_by_class(self.objects, {part: self.found(stage) for part, stage in parts.items()}, classes)
        exchange = attribution_around(self.truth, self.detections(self.baseline), self.detections(student), classes)
        seen, lacks = self._seen(one, device)
        known = {field.name: getattr(one, field.name) for field in fields(Section)}
        return SurroundSection(**{**known, "lacks": (*one.lacks, *lacks)}, parts=parts, errors=errors,
                               exchange=exchange, seen=seen)  # fmt: skip

    def _seen(self, one: Section, device: torch.device) -> tuple[tuple[MomentMaps, ...], list[str]]:
        """What baseline, student and teacher see of the ground in the samples that tell most, and a sentence for each
        that does not say."""
        moments, lacks = mapped_frames(one.analysis), []
        whose = {"baseline": self.baseline, "student": one.student}
        if one.teacher is not None:
            whose["teacher"] = one.teacher
        of_part: dict[str, dict[str, Any]] = {}
        for part, stage in whose.items():
            try:
                maps = own_maps(stage, list(moments), device)
                of_part |= {part: maps} if maps else {}
                problem = "" if maps else "it has no weights, or does not look at the ground"
            except (UserError, OSError) as error:
                problem = str(error).rstrip(".")
            lacks += [f"{stage.name} shows no maps of the ground: {problem}."] if problem else []
        if not of_part:
            return (), lacks
        shown = []
        for token, reason in moments.items():
            panels = [
                Seen(part, whose[part].name, name, ground)
                for part, maps in of_part.items()
                for name, ground in maps[token].items()
            ]
            shown.append(MomentMaps(token, reason, tuple(panels), self._outlines(token)))
        return tuple(shown), lacks

    def _outlines(self, token: str) -> Float[np.ndarray, "n 4 2"]:
        """The corners on the ground of a sample's objects that count, in the vehicle's frame."""
        boxes = self.objects.boxes[self.objects.frame == self.tokens.index(token)]
        return in_ego(boxes, self.dataset, token).corners()[:, :4, :2].numpy()

    def _ask(self, teacher: Stage, device: torch.device) -> Float[np.ndarray, " g"]:
        by_sample = depth_log_scales(teacher, self.tokens, device)
        values = np.full(len(self.truth.boxes), np.nan)
        boxes, config = self.truth.boxes, self.dataset.config
        # A sample's objects come in the order of its annotations, less those that the data set leaves out.
        known = np.isin(np.array(boxes.classes)[boxes.label], self.dataset.classes) & (
            boxes.num_pts >= config.min_points
        )
        for index, token in enumerate(self.tokens):
            if token not in by_sample:
                raise UserError(f"sample {token} is not in the split {teacher.dataset.get('eval_split')!r}")
            rows = np.flatnonzero(known & (boxes.sample == index))
            values[rows] = by_sample[token][: len(rows)]
        return values[self.objects.row]


# ----------------------------------------------------------------------------------------------------- what tells most


def mapped_frames(analysis: Analysis[Any]) -> dict[str, str]:
    """Frames of which maps are shown, and why, see ``telling_objects``."""
    chosen = telling_objects(analysis, MAPPED_FRAMES)
    return {analysis.objects.frames[frame]: reason for frame, reason, _ in chosen}
