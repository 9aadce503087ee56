"""Which frames are worth looking at, and their pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from distill3d.boxes import Boxes3D
from distill3d.data.kitti.dataset import KittiConfig, KittiDataset, frame_file
from distill3d.data.kitti.labels import read_labels
from distill3d.data.sample import Sample
from distill3d.errors import UserError
from distill3d.evaluate.kitti import Annotations, Rules, result_frames
from distill3d.view.distance import LEAST_SCORE, Matches, frame_errors, match_nearest
from distill3d.view.draw import frame_panels
from distill3d.view.page import Photo, photo
from distill3d.view.palette import LOOKS, TRUE, Look
from distill3d.view.pieces import Shown
from distill3d.view.runs import Stage, refuse_surround

BIRD_COLOURS = 96  # a bird's-eye view holds few colours: a palette picture is a third of the size
#: Frames are told ahead or behind from this mean difference (m) on.
TELLING_DIFFERENCE = 0.1
#: The parts of the figures, in the order in which they are drawn.
PARTS = ("teacher", "baseline", "student")


@dataclass(frozen=True)
class Choice:
    """A frame of the gallery, and why it is there."""

    index: int  # among the frames that were compared
    reason: str


def choose_frames(objects: Int[np.ndarray, " f"], lead: Float[np.ndarray, " f"] | None, count: int) -> list[Choice]:
    """At most ``count`` frames: half of them those with the most objects, half where student and baseline differ most.

    ``objects`` counts the objects of each frame; ``lead`` is the baseline's mean error less the student's (m; NaN
    without objects), None where there is nothing to compare. As many frames are shown where the student is behind as
    where it is ahead, so far as there are any. Equal frames are taken in order: the choice depends on nothing else.
    """
    chosen: dict[int, str] = {}

    def take(order: np.ndarray, wanted: int, reason: str) -> None:
        for index in order.tolist():
            if wanted <= 0 or len(chosen) >= count:
                return
            if index not in chosen:
                chosen[index] = reason
                wanted -= 1

    if lead is not None:
        quarter = count // 4
        ahead = np.flatnonzero(np.nan_to_num(lead) >= TELLING_DIFFERENCE)
        behind = np.flatnonzero(np.nan_to_num(lead) <= -TELLING_DIFFERENCE)
        take(ahead[np.argsort(-lead[ahead], kind="stable")], quarter, "student most ahead of the baseline")
        take(behind[np.argsort(lead[behind], kind="stable")], quarter, "student most behind the baseline")
    take(np.argsort(-objects, kind="stable"), count, "most objects")
    order = ["most objects", "student most ahead of the baseline", "student most behind the baseline"]
    return sorted((Choice(i, reason) for i, reason in chosen.items()), key=lambda c: (order.index(c.reason), c.index))


def label_folder(stage: Stage) -> Path:
    """Where the labels lie that a stage was evaluated on.

    Raises:
        UserError: the recipe names no data set, or the folder is not there.
    """
    root = stage.dataset.get("root")
    if root is None:
        raise UserError(f"the recipe of run {stage.run} names no data set (key dataset.root)")
    folder = Path(root) / "training" / "label_2"
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is not a folder: expected the labels of the data set of run {stage.run}")
    return folder


def compare(stage: Stage) -> tuple[Annotations, Matches]:
    """The labels of the frames that a stage predicted, and its nearest detections of the leading class.

    Raises:
        UserError: no predictions or no labels, or a malformed line in one of them.
    """
    frames = result_frames(stage.predictions, label_folder(stage))
    if not frames:
        raise UserError(f"{stage.predictions} holds no result files such as 000000.txt")
    rules = stage.rules
    detections = Annotations.from_folder(stage.predictions, scored=True, frames=frames).named(rules)
    labels = Annotations.from_folder(label_folder(stage), scored=False, frames=frames).named(rules)
    return labels, match_nearest(labels, detections, stage.leading, stage.min_height_scale)


def cast(entries: Sequence[Shown], measure: Callable[[Stage], float | None]) -> dict[str, Shown]:
    """The stages of the figures by their parts: the student that has most of a measure, the baseline that it is
    compared with and a teacher, of its own run where there is one; of runs without any of these, the first stage.

    All of them are finished, have predictions, and lie on one data set.
    """
    ready = [one for one in entries if one.stage.finished and one.stage.has_predictions]
    students = [one for one in ready if one.stage.role == "student"]

    def rank(one: Shown) -> float:
        value = measure(one.stage)
        return -np.inf if value is None else value

    best = max(students, key=rank, default=None)
    if best is not None:
        home = best.stage.folder.parent
        ready = [best, *sorted(ready, key=lambda one: one.stage.folder.parent != home)]
    ready = [one for one in ready if one.stage.dataset == ready[0].stage.dataset]
    first = {one.stage.role: one for one in reversed(ready)}
    return {part: first[part] for part in PARTS if part in first} or {one.stage.role: one for one in ready[:1]}


def colours(parts: dict[str, Shown]) -> dict[str, str]:
    """Of the parts and of the true boxes: those of the stages' curves."""
    return {TRUE: LOOKS[TRUE].colour, **{part: one.look.colour for part, one in parts.items()}}


@dataclass(frozen=True)
class Gallery:
    """Frames as a page shows them, or the sentence that says why there are none."""

    parts: dict[str, Shown]
    classes: Sequence[str]
    figures: Sequence[Any] = ()
    sentence: str = ""

    @property
    def colours(self) -> dict[str, str]:
        """Of the parts and of the true boxes."""
        return colours(self.parts)

    @property
    def looks(self) -> dict[str, Look]:
        """Of the legend: solid lines, for that is what boxes have."""
        return {self.parts[part].kind if part in self.parts else part: Look(c) for part, c in self.colours.items()}

    @property
    def whose(self) -> str:
        """Which stage plays each part."""
        return "; ".join(f"{part}: {one.stage.run}/{one.stage.name}" for part, one in self.parts.items())


def made_gallery(parts: dict[str, Shown], classes: Sequence[str], count: int, made: Callable[[], Iterable]) -> Gallery:
    """A gallery of ``count`` figures, where they can be ``made``."""
    sentence, figures = "No finished stage has predictions to draw.", []
    if count < 1:
        sentence = "No gallery was asked for."
    elif parts:
        try:
            figures = list(made())
        except (UserError, OSError) as error:
            sentence = f"The gallery is left out: {str(error).rstrip('.')}."
    return Gallery(parts, classes, figures, sentence)


def drawn_classes(parts: dict[str, Shown]) -> list[str]:
    """The evaluated classes that one of the parts was trained on: others cannot be found. Where no card lists any,
    those that were found."""
    stages = [one.stage for one in parts.values()]
    trained = {name for stage in stages for name in stage.trained_classes}
    return [
        name for name in (stages[0].rules.classes if stages else ())
        if (name in trained if trained else any(stage.ap(name, "3d", "strict") for stage in stages))
    ]  # fmt: skip


def open_dataset(stage: Stage) -> KittiDataset:
    """The evaluation split that a stage was evaluated on, with LiDAR points.

    Raises:
        UserError: the recipe does not say where it is, or it cannot be read.
    """
    refuse_surround([stage], "a figure of one camera")
    label_folder(stage)
    dataset = stage.dataset
    root, split, canvas = stage.named_in_recipe("root", "eval_split", "canvas")
    return KittiDataset(
        KittiConfig(
            root=Path(root), split=split, canvas=tuple(canvas),
            points=True, scan_columns=dataset.get("scan_columns", KittiConfig.scan_columns),
            placement=dataset.get("placement", KittiConfig.placement),
            divide=dataset.get("divide", KittiConfig.divide), min_height_scale=stage.min_height_scale,
            names=stage.names, without_scan="always_skip" if dataset.get("without_scan") == "skip" else "refuse",
        )
    )  # fmt: skip


def read_frame(dataset: KittiDataset, frame: str) -> Sample:
    """A frame of ``open_dataset`` as it is drawn: with its scan, where it has one.

    Raises:
        UserError: the split has no such frame, or a file cannot be read.
    """
    if frame not in dataset.frame_ids:
        raise UserError(f"frame {frame} is not in the split {dataset.config.split!r}")
    if not frame_file(dataset.folder, "velodyne", frame).is_file():
        dataset = KittiDataset(replace(dataset.config, points=False))
    return dataset.get(dataset.frame_ids.index(frame))


def true_boxes(sample: Sample, rules: Rules, classes: Sequence[str]) -> Boxes3D:
    """The annotated objects of the given classes (lower case)."""
    if sample.objects is None:
        return Boxes3D.empty("camera")
    names = [name.lower() for name in rules.names.names]
    wanted = torch.tensor([names.index(name) for name in classes], dtype=torch.int64)
    return sample.objects.boxes[torch.isin(sample.objects.boxes.label, wanted)]


def detected(parts: dict[str, Stage], frame: str, least_score: float = LEAST_SCORE) -> dict[str, Boxes3D]:
    """The boxes of each part in one frame, without those less sure than ``least_score``.

    Raises:
        UserError: a file is missing or malformed.
    """
    sets = {}
    for part, stage in parts.items():
        boxes = read_labels(stage.predictions / f"{frame}.txt", known=stage.names).boxes
        sets[part] = boxes if boxes.score is None else boxes[boxes.score >= least_score]
    return sets


def rivals(parts: Collection[str]) -> tuple[str, str] | None:
    """The parts whose errors tell which frames are worth looking at: baseline and student, where both are there."""
    return ("baseline", "student") if {"baseline", "student"} <= set(parts) else None


def telling(
    stages: dict[str, Stage], compared: tuple[str, str] | None, dataset: KittiDataset, count: int
) -> dict[str, Choice]:
    """The chosen frames of the evaluation split, by their names: those that every stage has predictions of.

    ``compared`` names a baseline and a student among the stages, for ``choose_frames``.

    Raises:
        UserError: there is none, or labels or predictions cannot be read.
    """
    first, there = next(iter(stages)), set(dataset.frame_ids)
    matched = {name: compare(stages[name]) for name in {first, *(compared or ())}}
    frames = [f for f in matched[first][0].frames if f in there and is_predicted(stages, f)]
    if not frames:
        run = stages[first].run
        raise UserError(f"no frame of {run} has predictions of every part and lies in its evaluation split")
    objects, lead = _per_frame(*matched[first], frames)[0], None
    if compared is not None:
        baseline, student = (_per_frame(*matched[name], frames)[1] for name in compared)
        lead = baseline - student
    return {frames[choice.index]: choice for choice in choose_frames(objects, lead, count)}


def scenes(
    parts: dict[str, Stage], classes: Sequence[str], count: int
) -> Iterator[tuple[Choice, Sample, dict[str, Boxes3D]]]:
    """The chosen frames of the evaluation split, each with the true boxes of the given classes and those of every part.

    Raises:
        UserError: data or predictions cannot be read.
    """
    first = next(iter(parts.values()))
    dataset = open_dataset(first)
    for frame, choice in telling(parts, rivals(parts), dataset, count).items():
        sample = read_frame(dataset, frame)
        yield choice, sample, {TRUE: true_boxes(sample, first.rules, classes), **detected(parts, frame)}


def is_predicted(stages: dict[str, Stage], frame: str) -> bool:
    """Whether every stage has a result file of a frame."""
    return all((stage.predictions / f"{frame}.txt").is_file() for stage in stages.values())


def _per_frame(labels: Annotations, matches: Matches, frames: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Number of objects, and mean error (m), in each of the given frames."""
    position = {frame: index for index, frame in enumerate(labels.frames)}
    chosen = np.array([position[frame] for frame in frames])
    count = len(labels.frames)
    return np.bincount(matches.frame, minlength=count)[chosen], frame_errors(matches.frame, matches.offset, count)[
        chosen
    ]


@dataclass(frozen=True)
class FrameFigure:
    """A frame as a page shows it; image and bird's-eye view stack on a phone."""

    title: str
    reason: str
    counts: str
    photos: Sequence[Photo]
    bird: Photo
    columns: str  # of the style sheet's grid


def pictured_frame(choice: Choice, sample: Sample, sets: dict[str, Boxes3D], colours: dict[str, str]) -> FrameFigure:
    """The pictures of one frame."""
    panels, bird = frame_panels(sample, sets, colours)
    title = f"Frame {sample.frame_id}"
    above = f"{title} from above" if sample.points is None else f"{title} from above with LiDAR points"
    # Columns of these shares make the stacked panels and the square view equally high.
    stacked = sum(panel.height / panel.width for panel in panels)
    return FrameFigure(
        title, choice.reason, ", ".join(f"{len(boxes)} {name}" for name, boxes in sets.items()),
        [photo(panel, f"{title}: camera image with boxes, {n} of {len(panels)}") for n, panel in enumerate(panels, 1)],
        photo(bird.quantize(BIRD_COLOURS), above),
        f"{1 / stacked:.3f}fr {bird.width / bird.height:.3f}fr",
    )  # fmt: skip
