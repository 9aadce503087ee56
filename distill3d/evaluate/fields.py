"""Which field of a student's boxes is better than its baseline's: depth, projected centre, heading, size, score?

The question is asked as the error analysis of MonoDLE asks it of the ground truth (Ma et al., "Delving into
Localization Errors for Monocular 3D Object Detection", CVPR 2021, arXiv:2103.16237): one field of every predicted box
is replaced, the rest stays, and AP is measured anew. Here the new values come from the student's box of the same thing
or, for the headroom, from the object itself.

A box is split into fields that a camera detector predicts separately, so that each can be replaced without the others:

* ``depth``: z of the geometric centre. The box moves along its own ray: its projected centre stays.
* ``projected_centre``: where the geometric centre lies in the image (px). The depth stays.
* ``heading``: rotation_y, and with it alpha as written beside it. rotation_y is a direction in the world and refers to
  no position, so it means the same at every depth; alpha, turned into a direction at another place than it was seen at,
  would not. As depth changes along the ray, the angle under which the box is seen stays what it was.
* ``size``: height, width, length about the same geometric centre.
* ``score``: the order of the boxes. Two detectors' scores have different scales, so the matched boxes keep the set of
  their scores, per class, and are given them in the order of the other's: AP knows no more of scores than their order.
* ``box_2d``: the image box, which decides what is too small to count.

Effects are not additive. A box counts once all its fields are good enough, so one wrong field hides the gain of
another; and the fields of one detector fit each other: what it puts too far it also puts too high in the image, so that
the box stays on the ground, and another depth under the old projected centre takes it off. Gains of single fields may
so sum to less or more than the gain of all, a better field may even do harm alone, and the order of replacing matters.
Hence ``LOCATION`` as a pair, the remainders of ``Swaps``, and the way back from the student to the baseline.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from distill3d.camera import Camera
from distill3d.data.kitti.calibration import read_calibration
from distill3d.evaluate.greedy import match_in_order
from distill3d.evaluate.iou import image_coverage, image_iou, iou_3d
from distill3d.evaluate.kitti import (
    CLASSES,
    DIFFICULTIES,
    DONT_CARE,
    MIN_HEIGHT,
    Annotations,
    Class,
    Metric,
    Overlaps,
    Style,
    evaluate,
    frame_pairs,
)
from distill3d.evaluate.matching import MISSED, match_in_image
from distill3d.evaluate.transfer import TransferSettings, find, labelled_objects
from distill3d.settings import Between, HeightScale, Share

Field = Literal["depth", "projected_centre", "heading", "size", "score", "box_2d"]
FIELDS: tuple[Field, ...] = get_args(Field)
#: Where the box stands in space.
LOCATION: tuple[Field, ...] = ("depth", "projected_centre")
#: What is replaced at a time: each field alone, the location as a whole, all.
REPLACED: tuple[tuple[Field, ...], ...] = (*((field,) for field in FIELDS), LOCATION, FIELDS)

F = TypeVar("F", bound=str)  # fields
C = TypeVar("C")  # what is measured

Column = tuple[Metric, Overlaps]
#: What is measured after each replacement: AP in 3D and in bird's-eye view, at both minimum overlaps.
COLUMNS: tuple[Column, ...] = (("3d", "strict"), ("3d", "loose"), ("bev", "strict"), ("bev", "loose"))
Precision = dict[Column, float]  # AP|R40 in percent

#: Errors of matched boxes, with their units. ``lateral`` and ``vertical`` are what the projected centre is off, in
#: metres at the object's true depth. ``heading`` is that of the box's axis, 0 to 90: half a turn changes no overlap,
#: and is counted as ``flipped`` instead.
UNITS = {
    "depth": "m", "relative_depth": "%", "projected_centre": "px", "lateral": "m", "vertical": "m",
    "heading": "degrees", "height": "m", "width": "m", "length": "m",
}  # fmt: skip


@dataclass(frozen=True)
class FieldSettings:
    """What is evaluated, and what counts as the same thing."""

    name: Class = "car"
    difficulty: Literal["easy", "moderate", "hard"] = "moderate"  # of AP; errors are of all that count at hard
    min_height_scale: HeightScale = 1.0  # this and the next as in ``evaluate.kitti.evaluate``
    style: Style = "c++"
    least_overlap: Share = 0.5  # IoU of image boxes, as in ``TransferSettings``
    #: Per frame: where detectors with other scales of scores, or other least ones, are compared in what they find.
    false_positives: Annotated[float, Between(0, 1e6)] = 0.1


@dataclass(frozen=True)
class Spread:
    """Absolute errors in one number each; NaN without objects."""

    median: float
    mean: float


@dataclass(frozen=True)
class FieldErrors:
    """How far the boxes of one detector are off, field by field."""

    objects: int  # that count at KITTI's hard difficulty
    found: int  # by a box of any score
    found_at_rate: int  # at the score where false boxes reach ``FieldSettings.false_positives`` per frame
    false_boxes: int  # of any score: with fewer than that rate allows, ``found_at_rate`` equals ``found``
    compared: int  # objects that the errors are of
    errors: dict[str, Spread]  # by the names in UNITS
    flipped: float  # share of the compared whose heading is off by more than 90 degrees; NaN without any


@dataclass(frozen=True)
class Swaps(Generic[F, C]):
    """AP of one detector's boxes as another's values replace theirs.

    For each column: total = gains of the single fields + interaction + unmatched.
    """

    start: dict[C, float]  # of the boxes as they are, percent
    replaced: dict[tuple[F, ...], dict[C, float]]  # with the other's values of these fields: each field alone, and all
    end: dict[C, float]  # of the other's own boxes
    boxes: int  # of all classes
    matched: int  # of those
    other_boxes: int

    @property
    def singles(self) -> list[F]:
        """The fields that were replaced alone."""
        return [fields[0] for fields in self.replaced if len(fields) == 1]

    @property
    def everything(self) -> tuple[F, ...]:
        """All fields."""
        return max(self.replaced, key=len)

    def gain(self, column: C, *fields: F) -> float:
        """What these fields, one of ``replaced``, change together, in points of AP."""
        return self.replaced[fields][column] - self.start[column]

    def total(self, column: C) -> float:
        """What separates the two detectors, in points of AP."""
        return self.end[column] - self.start[column]

    def interaction(self, column: C) -> float:
        """What all fields together change beyond the sum of their single gains; the first remainder."""
        return self.gain(column, *self.everything) - sum(self.gain(column, field) for field in self.singles)

    def unmatched(self, column: C) -> float:
        """What comes of boxes that only one of the two has, and of the scale of scores; the second remainder."""
        return self.end[column] - self.replaced[self.everything][column]


@dataclass(frozen=True)
class Exchange(Generic[F, C]):
    """The boxes of a baseline and a student with single fields exchanged."""

    forward: Swaps[F, C]  # the baseline's boxes take the student's values
    #: The student's boxes take the baseline's values: a negative gain is what the student loses by it.
    backward: Swaps[F, C]
    oracle: Swaps[F, C]  # the baseline's boxes take the objects' values: the headroom

    def both_ways(self, column: C, *fields: F) -> float:
        """Mean of what these fields, one of ``Swaps.replaced``, give the baseline and of what their loss costs the
        student.

        In points of AP. The one is measured among the baseline's other fields, the other among the student's: the mean
        favours neither, and leaves a smaller remainder.
        """
        return (self.forward.gain(column, *fields) - self.backward.gain(column, *fields)) / 2

    def remainder(self, column: C) -> float:
        """The student's whole gain less the single fields' ``both_ways``, in points of AP."""
        return self.forward.total(column) - sum(self.both_ways(column, field) for field in self.forward.singles)


@dataclass(frozen=True)
class Attribution(Exchange[Field, Column]):
    """Which fields account for the difference between a baseline and a student."""

    settings: FieldSettings
    frames: int
    errors: dict[str, FieldErrors]  # "baseline" and "student"; both of the objects that both found


def read_projections(calibration: Path, frames: Sequence[str]) -> Float[np.ndarray, "f 3 4"]:
    """Projection matrices (F, 3, 4) of camera 2, from ``<calibration>/<frame>.txt``.

    Raises:
        UserError: a file is absent or malformed.
    """
    matrices = [read_calibration(calibration / f"{frame}.txt").p2.numpy() for frame in frames]
    return np.stack(matrices) if matrices else np.zeros((0, 3, 4))


# ------------------------------------------------------------------------------------------------------------- geometry


def _cameras(projections: Float[np.ndarray, "f 3 4"], boxes: Annotations) -> Camera:
    """A camera for each box."""
    if len(projections) != len(boxes.frames):
        raise ValueError(f"expected {len(boxes.frames)} projections, one for each frame, not {len(projections)}")
    return Camera(torch.from_numpy(projections[boxes.frame].astype(np.float64)))


def _projected(cameras: Camera, centre: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
    return cameras.project(torch.from_numpy(centre)[:, None])[0][:, 0].numpy()


def _back_projected(
    cameras: Camera, uv: Float[np.ndarray, "n 2"], depth: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 3"]:
    return cameras.back_project(torch.from_numpy(uv)[:, None], torch.from_numpy(depth)[:, None])[:, 0].numpy()


def _centre(hwl: Float[np.ndarray, "n 3"], bottom: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Geometric centres: KITTI's y is the bottom, and points down."""
    return bottom - hwl[:, :1] * np.array([0.0, 0.5, 0.0])


def _in_front(boxes: Annotations) -> Bool[np.ndarray, " n"]:
    """Boxes at or behind the camera, or without a position, have no projected centre."""
    return boxes.xyz[:, 2] > 0


# --------------------------------------------------------------------------------------------------------------- errors


def field_errors(
    labels: Annotations, predictions: Annotations, projections: Float[np.ndarray, "f 3 4"],
    settings: FieldSettings, beside: Annotations | None = None,
) -> FieldErrors:  # fmt: skip
    """Absolute errors of the boxes matched to the objects of a class, field by field.

    Objects and matches are those of ``evaluate.transfer``: objects that count at KITTI's hard difficulty; boxes choose
    in order of score by the overlap of image boxes (``match_in_image``), so that no other field has a say in it. Boxes
    of any score take part; those at or behind the camera do not. projections: (F, 3, 4), one for each frame. beside:
    another detector's boxes; then errors are only of the objects that both found, as one that finds the hard ones as
    well would otherwise look worse.

    A false box, for ``found_at_rate``, is one of the class that belongs to no object of the class or of the class that
    looks alike, that is not too small to count and that no DontCare region covers.

    Raises:
        ValueError: other frames in one than in the other, or projections of another number of frames.
    """
    chosen = TransferSettings((settings.name,), least_overlap=settings.least_overlap,
                              min_height_scale=settings.min_height_scale)  # fmt: skip
    objects = labelled_objects(labels, chosen)
    found = find(labels, predictions, objects, settings.least_overlap)
    has_box = found.box[:, 5] > 0
    use = has_box
    if beside is not None:
        use = has_box & (find(labels, beside, objects, settings.least_overlap).box[:, 5] > 0)
    cameras = _cameras(projections, labels.rows(objects.row[use]))
    errors, flipped = _errors(found.box[use], objects.box[use], cameras)
    wrong = np.sort(predictions.score[_is_false(labels, predictions, settings)])[::-1]
    allowed = round(settings.false_positives * len(labels.frames))
    reached = found.score > wrong[allowed] if len(wrong) > allowed else has_box
    return FieldErrors(
        objects=len(objects),
        found=int(has_box.sum()),
        found_at_rate=int((has_box & reached).sum()),
        false_boxes=len(wrong),
        compared=int(use.sum()),
        errors={name: spread_of(values) for name, values in errors.items()},
        flipped=float(flipped.mean()) if use.any() else np.nan,
    )


def spread_of(values: Float[np.ndarray, " n"]) -> Spread:
    return Spread(float(np.median(values)), float(values.mean())) if len(values) else Spread(np.nan, np.nan)


def _errors(
    box: Float[np.ndarray, "n 7"], truth: Float[np.ndarray, "n 7"], cameras: Camera
) -> tuple[dict[str, Float[np.ndarray, " n"]], Bool[np.ndarray, " n"]]:
    """Absolute errors by the names in UNITS, and which headings are off by more than a quarter turn.

    Boxes as ``Annotations.box3d``, both in front of the camera.
    """
    centre, true_centre = _centre(box[:, :3], box[:, 3:6]), _centre(truth[:, :3], truth[:, 3:6])
    depth = np.abs(centre[:, 2] - true_centre[:, 2])
    uv = _projected(cameras, centre)
    aside = np.abs(_back_projected(cameras, uv, true_centre[:, 2]) - true_centre)
    turn = np.abs(np.degrees(np.remainder(box[:, 6] - truth[:, 6] + np.pi, 2 * np.pi) - np.pi))
    size = np.abs(box[:, :3] - truth[:, :3])
    columns = (
        depth, 100 * depth / true_centre[:, 2], np.linalg.norm(uv - _projected(cameras, true_centre), axis=1),
        aside[:, 0], aside[:, 1], np.minimum(turn, 180 - turn), *size.T,
    )  # fmt: skip
    return dict(zip(UNITS, columns, strict=True)), turn > 90


def _is_false(labels: Annotations, predictions: Annotations, settings: FieldSettings) -> Bool[np.ndarray, " n"]:
    match = match_in_image(labels, predictions, settings.least_overlap)
    height = np.abs(predictions.box_height)
    false = (np.char.lower(predictions.name) == settings.name) & (height >= MIN_HEIGHT[-1] * settings.min_height_scale)
    false[match[match != MISSED]] = False
    regions = labels.rows(np.char.lower(labels.name) == DONT_CARE)
    p, r = frame_pairs(predictions, regions)
    false[p[image_coverage(predictions.box2d[p], regions.box2d[r]) > settings.least_overlap]] = False
    return false


# ---------------------------------------------------------------------------------------------------------------- swaps


def match_boxes(one: Annotations, other: Annotations, least_overlap: float) -> Int[np.ndarray, " n"]:
    """The row in ``other`` of the box that shows the same thing as each of N boxes, or ``MISSED``.

    Within a frame and a class the pairs of greatest image overlap come first; each box is used at most once, and none
    with an intersection over union under ``least_overlap``, or at or behind the camera. Neither side chooses, so the
    match read backwards is that of the sets exchanged (but for equal overlaps: first in the file).

    Raises:
        ValueError: other frames in one than in the other.
    """
    if one.frames != other.frames:
        raise ValueError("both sets of boxes must hold the same frames in the same order")
    a, b = frame_pairs(one, other)
    overlap = image_iou(one.box2d[a], other.box2d[b])
    same = np.char.lower(one.name)[a] == np.char.lower(other.name)[b]
    candidate = np.flatnonzero(same & (overlap >= least_overlap) & _in_front(one)[a] & _in_front(other)[b])
    order = candidate[np.lexsort((-overlap[candidate], one.frame[a[candidate]]))]
    a, b = a[order], b[order]
    taken = match_in_order(one.frame[a], a, b, np.ones((len(a), 1), dtype=bool))[:, 0]
    return partners_of(a[taken], b[taken], len(one.frame))


def partners_of(rows: Int[np.ndarray, " m"], partners: Int[np.ndarray, " m"], count: int) -> Int[np.ndarray, " n"]:
    match = np.full(count, MISSED)
    match[rows] = partners
    return match


def inverted(match: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, " m"]:
    rows = np.flatnonzero(match != MISSED)
    return partners_of(match[rows], rows, count)


def swapped(
    boxes: Annotations, other: Annotations, match: Int[np.ndarray, " n"], fields: Collection[Field],
    projections: Float[np.ndarray, "f 3 4"],
) -> Annotations:  # fmt: skip
    """N boxes with the given fields taken from those that they are matched to; what each field is stands on top.

    match: (N,) row in ``other``, or ``MISSED``: such a box stays as it is. Matched boxes lie in front of the camera on
    both sides (``match_boxes`` sees to it). projections: (F, 3, 4), one for each frame. With all fields every matched
    box becomes the other's, but for the scale of its score; equal scores among the boxes' own make the order coarser.

    Raises:
        ValueError: projections of another number of frames.
    """
    rows = np.flatnonzero(match != MISSED)
    own, new = boxes.rows(rows), other.rows(match[rows])
    cameras = _cameras(projections, own)
    hwl = new.hwl if "size" in fields else own.hwl
    uv = _projected(cameras, _centre(own.hwl, own.xyz))
    moved_uv = _projected(cameras, _centre(new.hwl, new.xyz)) if "projected_centre" in fields else uv
    depth = own.xyz[:, 2]
    moved_depth = new.xyz[:, 2] if "depth" in fields else depth
    # As a difference, so that what is replaced by itself stays the same to the last bit.
    moved = _back_projected(cameras, moved_uv, moved_depth) - _back_projected(cameras, uv, depth)
    moved[:, 1] += (hwl[:, 0] - own.hwl[:, 0]) / 2  # the centre stays where the height changes
    changed = {"hwl": hwl, "xyz": own.xyz + moved}
    if "heading" in fields:
        changed |= {"ry": new.ry, "alpha": new.alpha}
    if "box_2d" in fields:
        changed["box2d"] = new.box2d
    if "score" in fields:
        changed["score"] = dealt_in_order(new.score, own.score, np.char.lower(own.name))
    return _with_rows(boxes, rows, changed)


def _with_rows(boxes: Annotations, rows: Int[np.ndarray, " m"], columns: dict[str, np.ndarray]) -> Annotations:
    """The boxes with other values in some rows."""
    changed = {name: getattr(boxes, name).copy() for name in columns}
    for name, values in columns.items():
        changed[name][rows] = values
    return replace(boxes, **changed)


def dealt_in_order(by: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"], name: np.ndarray) -> np.ndarray:
    """Each class's values, dealt out in the order of ``by``; where that is equal, all get the least of their places."""
    dealt = values.copy()
    for one in np.unique(name):
        members = name == one
        dealt[members] = np.sort(values[members])[np.searchsorted(np.sort(by[members]), by[members])]
    return dealt


def oracle(labels: Annotations, boxes: Annotations, least_overlap: float) -> Annotations:
    """What a perfect detector would say of the same N boxes, row by row, to be swapped in.

    A box that belongs to an object (``match_in_image``) gets the object's image box, size, place and angles, and for a
    score the 3D overlap that it had itself: the order in which perfect confidence ranks the boxes as they are. A box
    that belongs to none in front of the camera keeps its values and comes after all others, in its own order.

    Raises:
        ValueError: other frames in one than in the other.
    """
    box = match_in_image(labels, boxes, least_overlap)
    truth = np.flatnonzero((box != MISSED) & _in_front(labels))
    rows, objects = box[truth], labels.rows(truth)
    last = replace(boxes, score=boxes.score - boxes.score.max(initial=0.0) - 1)  # overlaps are at least 0
    return _with_rows(last, rows, {
        "box2d": objects.box2d, "hwl": objects.hwl, "xyz": objects.xyz, "ry": objects.ry, "alpha": objects.alpha,
        "score": iou_3d(boxes.box3d[rows], objects.box3d),
    })  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- attribution


def attribution(
    labels: Annotations, baseline: Annotations, student: Annotations, projections: Float[np.ndarray, "f 3 4"],
    settings: FieldSettings,
) -> Attribution:  # fmt: skip
    """AP with each field exchanged alone, with all of them, and of the whole sets: both ways, and against the objects.

    The gains are not additive, as one wrong field hides what another gained; what they leave is reported as
    ``Swaps.interaction``, ``Swaps.unmatched`` and ``Attribution.remainder``. Nor do they prove a cause: a better depth
    and a better score may come from one thing learnt. ``oracle`` shows the headroom of the baseline; the student's is
    that of the roles exchanged.

    projections: (F, 3, 4), one for each frame of ``labels``.

    Raises:
        ValueError: other frames in one than in the others, or projections of another number of frames.
        UserError: a setting that the evaluation refuses.
    """
    match = match_boxes(baseline, student, settings.least_overlap)
    perfect = oracle(labels, baseline, settings.least_overlap)
    itself = np.where(_in_front(baseline), np.arange(len(match)), MISSED)
    objects = labels.rows(np.isin(np.char.lower(labels.name), CLASSES))
    objects = replace(objects, score=np.ones(len(objects.frame)))
    ap = {"baseline": _precision(labels, baseline, settings), "student": _precision(labels, student, settings)}

    def swaps(
        boxes: Annotations, other: Annotations, match: Int[np.ndarray, " n"], start: Precision, end: Precision
    ) -> Swaps[Field, Column]:
        def measured(*fields: Field) -> Precision:
            return _precision(labels, swapped(boxes, other, match, fields, projections), settings)

        matched = int((match != MISSED).sum())
        replaced = {fields: measured(*fields) for fields in REPLACED}
        return Swaps(start, replaced, end, len(match), matched, len(other.frame))

    back = inverted(match, len(student.frame))
    return Attribution(
        settings=settings,
        frames=len(labels.frames),
        forward=swaps(baseline, student, match, ap["baseline"], ap["student"]),
        backward=swaps(student, baseline, back, ap["student"], ap["baseline"]),
        oracle=swaps(baseline, perfect, itself, ap["baseline"], _precision(labels, objects, settings)),
        errors={
            "baseline": field_errors(labels, baseline, projections, settings, beside=student),
            "student": field_errors(labels, student, projections, settings, beside=baseline),
        },
    )


def _precision(labels: Annotations, boxes: Annotations, settings: FieldSettings) -> Precision:
    result = evaluate(labels, boxes, min_height_scale=settings.min_height_scale, style=settings.style)
    level = DIFFICULTIES.index(settings.difficulty)
    return {(metric, overlap): result.ap(settings.name, metric, overlap)[level] for metric, overlap in COLUMNS}
