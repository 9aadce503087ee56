"""Where a distilled student gained on its baseline and where it lost: positive and negative transfer, object by object.

That a teacher can also harm is what MonoSTL ("negative transfer", arXiv:2603.07464, abstract) sets out from. Its paper
counts no objects; the definitions here are this project's own:

* *positive* / *negative* transfer: both detectors found the object, and the student's depth error |z - z_true| is
  smaller / larger than the baseline's by more than ``margin`` times the object's depth; else the object is *neutral*.
  The margin is relative because a camera reads depth from apparent size, where one relative mistake is equally hard at
  every distance; a margin in metres would call nearly every far object a transfer and hardly any near one.
* *gained* / *lost*: only the student / only the baseline found it. *missed*: neither did.

What is called noise is judged by resampling whole frames with replacement (Efron, "Bootstrap methods", Annals of
Statistics 1979): the objects of one frame share its light, its road and the camera's tilt, so they are no independent
witnesses. It tells how far other frames would move a number, not how far another training would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Protocol, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from distill3d.evaluate.iou import iou_3d
from distill3d.evaluate.kitti import Annotations
from distill3d.evaluate.matching import MISSED, match_in_image, objects_of_interest
from distill3d.settings import Between, Count, HeightScale, Number, Share

OUTCOMES = ("positive", "neutral", "negative", "gained", "lost", "missed")
POSITIVE, NEUTRAL, NEGATIVE, GAINED, LOST, NEITHER = range(len(OUTCOMES))

#: m on the ground; the last bin is open.
DISTANCE_EDGES = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0)
OCCLUSIONS = ("visible", "partly hidden", "largely hidden")  # KITTI's levels 0, 1, 2; level 3 does not count
#: The teacher's depth error in multiples of the margin, upper ends of bins.
TEACHER_ERROR_EDGES = (0.5, 1.0, 2.0)
UNCERTAINTY_BINS = 4  # with equally many objects each
#: Margins, relative to depth, at which the result is told again.
OTHER_MARGINS = (0.0, 0.01, 0.02, 0.05, 0.1)
RANKS = ("", "second ", "third ", "fourth ")
TAIL = 0.025  # of the resampled values that the interval leaves out at each end: it holds 95 %


@dataclass(frozen=True)
class JudgeSettings:
    """What counts as transfer and as enough."""

    classes: tuple[str, ...] = ("car",)  # lower case; objects of all of them are judged together
    margin: Annotated[float, Between(0, 100)] = (
        0.02  # of the object's depth, above 0; about half of the median error of a good camera detector
    )
    least_objects: Count = (
        20  # bins with fewer, or in fewer frames, get no estimate: intervals would not be trustworthy
    )
    least_frames: Count = 10
    resamples: Number = 2000
    seed: Annotated[int, Between(0, 2**62)] = 0


@dataclass(frozen=True)
class TransferSettings(JudgeSettings):
    """The same of one camera's boxes, and what counts as found."""

    least_overlap: Share = 0.5  # IoU of image boxes; what KITTI asks of pedestrians and cyclists
    min_height_scale: HeightScale = 1.0  # as in ``evaluate.kitti.evaluate``


class JudgedObjects(Protocol):
    """G labelled objects that count, of whatever data set."""

    @property
    def frames(self) -> tuple[str, ...]: ...

    @property
    def frame(self) -> Int[np.ndarray, " g"]:
        """Index into ``frames``."""
        ...

    @property
    def name(self) -> np.ndarray:
        """(G,) strings."""
        ...

    @property
    def distance(self) -> Float[np.ndarray, " g"]:
        """m on the ground."""
        ...

    @property
    def depth(self) -> Float[np.ndarray, " g"]:
        """m, what a camera has to guess."""
        ...

    def __len__(self) -> int: ...

    def own_groupings(self) -> list[Grouping]:
        """Ways to sort them by what their labels say beside class and distance."""
        ...


ObjectsT = TypeVar("ObjectsT", bound=JudgedObjects)


@dataclass(frozen=True)
class LabelledObjects:
    """The G objects that count, in file order."""

    frames: tuple[str, ...]
    row: Int[np.ndarray, " g"]  # in the labels
    frame: Int[np.ndarray, " g"]  # index into ``frames``
    line: Int[np.ndarray, " g"]  # of the frame's label file, from 0; blank lines do not count
    name: np.ndarray  # (G,) strings
    distance: Float[np.ndarray, " g"]  # m on the ground
    occlusion: Int[np.ndarray, " g"]
    truncation: Float[np.ndarray, " g"]
    box2d: Float[np.ndarray, "g 4"]  # px of the image file
    box: Float[np.ndarray, "g 7"]  # as ``Annotations.box3d``

    def __len__(self) -> int:
        return len(self.row)

    @property
    def depth(self) -> Float[np.ndarray, " g"]:
        """z of the centre, m."""
        return self.box[:, 5]

    def own_groupings(self) -> list[Grouping]:
        """By how much of them is hidden."""
        known = np.isin(self.occlusion, range(len(OCCLUSIONS)))
        return [Grouping("occlusion", "occlusion", OCCLUSIONS, np.where(known, self.occlusion, -1))]


@dataclass(frozen=True)
class Found:
    """What one detector says of G objects; NaN where it missed them."""

    score: Float[np.ndarray, " g"]
    box: Float[np.ndarray, "g 7"]  # as ``Annotations.box3d``
    depth_error: Float[np.ndarray, " g"]  # |z - z_true|, m
    centre_error: Float[np.ndarray, " g"]  # between the geometric centres, m
    iou_3d: Float[np.ndarray, " g"]

    @property
    def found(self) -> Bool[np.ndarray, " g"]:
        return np.isfinite(self.depth_error)


@dataclass(frozen=True)
class Estimate:
    """A number with what resampling the frames does to it."""

    value: float
    error: float  # standard error
    low: float  # ends of the 95 % interval
    high: float

    @property
    def beyond_noise(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Bin:
    """The objects of one bin."""

    label: str
    objects: int
    frames: int  # that hold them
    both: int  # objects that baseline and student both found
    both_frames: int
    counts: dict[str, int]  # by OUTCOMES
    depth: Estimate | None  # (positive - negative) / both; None where there are too few
    finding: Estimate | None  # (gained - lost) / objects; None where there are too few
    common: int  # objects that all detectors found
    depth_error: dict[str, float]  # mean over the common ones, by part, m; NaN without any
    centre_error: dict[str, float]  # likewise
    iou_3d: dict[str, float]  # mean over all, a missed one counting 0; NaN without objects
    found: dict[str, int]  # by part


@dataclass(frozen=True)
class Grouping:
    """A way to sort objects into bins."""

    key: str
    title: str
    labels: tuple[str, ...]
    index: Int[np.ndarray, " g"]  # of the bin; -1 where the object belongs to none


@dataclass(frozen=True)
class Contrast:
    """Net depth transfer of two kinds of objects, and how much they differ."""

    key: str
    first: str
    second: str
    values: tuple[Estimate, Estimate]
    counts: tuple[int, int]  # objects that both detectors found
    difference: Estimate  # first - second


@dataclass(frozen=True)
class MarginRow:
    """The outcome at another margin."""

    margin: float
    positive: int
    negative: int
    depth: Estimate | None


@dataclass(frozen=True)
class Analysis(Generic[ObjectsT]):
    """One student against its baseline. G objects throughout."""

    settings: JudgeSettings
    objects: ObjectsT
    parts: dict[str, Found]  # "baseline", "student" and, where there is one, "teacher"
    log_scale: Float[np.ndarray, " g"]  # the teacher's, of depth; NaN where it has none
    outcome: Int[np.ndarray, " g"]  # index into OUTCOMES
    total: Bin
    groups: tuple[tuple[Grouping, tuple[Bin, ...]], ...]
    contrasts: tuple[Contrast, ...]
    margins: tuple[MarginRow, ...]

    @property
    def gain(self) -> Float[np.ndarray, " g"]:
        """The baseline's depth error less the student's, relative to depth; NaN where one of them missed the object."""
        return (self.parts["baseline"].depth_error - self.parts["student"].depth_error) / self.objects.depth


# ----------------------------------------------------------------------------------------------------------- per object


def labelled_objects(labels: Annotations, settings: TransferSettings) -> LabelledObjects:
    """The objects of the chosen classes that count at KITTI's hard difficulty, in front of the camera."""
    chosen = np.zeros(len(labels.frame), dtype=bool)
    for name in settings.classes:
        chosen |= objects_of_interest(labels, name, settings.min_height_scale)
    row = np.flatnonzero(chosen & (labels.xyz[:, 2] > 0))
    rows = labels.rows(row)
    first_row = np.searchsorted(labels.frame, np.arange(len(labels.frames)))
    return LabelledObjects(
        labels.frames, row, rows.frame, row - first_row[rows.frame], rows.name,
        np.hypot(rows.xyz[:, 0], rows.xyz[:, 2]), rows.occlusion.astype(np.int64), rows.truncation, rows.box2d,
        rows.box3d,
    )  # fmt: skip


def find(labels: Annotations, detections: Annotations, objects: LabelledObjects, least_overlap: float) -> Found:
    """What a detector says of each object, matched in the image (``match_in_image``).

    All labelled objects take part in the matching, also those that do not count, so that the detection of one that does
    not count is not held against its neighbour.

    Raises:
        ValueError: other frames in one than in the other.
    """
    match = match_in_image(labels, detections, least_overlap)[objects.row]
    found = match != MISSED
    box, score = np.full((len(objects), 7), np.nan), np.full(len(objects), np.nan)
    box[found], score[found] = detections.box3d[match[found]], detections.score[match[found]]
    overlap = np.full(len(objects), np.nan)
    overlap[found] = iou_3d(box[found], objects.box[found])
    away = _centre(box) - _centre(objects.box)
    return Found(score, box, np.abs(away[:, 2]), np.linalg.norm(away, axis=1), overlap)


def _centre(box: Float[np.ndarray, "g 7"]) -> Float[np.ndarray, "g 3"]:
    """Geometric centres: KITTI's y is the bottom, and points down."""
    return box[:, 3:6] - box[:, :1] * np.array([0.0, 0.5, 0.0])


def judge(
    depth: Float[np.ndarray, " g"], baseline: Float[np.ndarray, " g"], student: Float[np.ndarray, " g"], margin: float
) -> Int[np.ndarray, " g"]:
    """The outcome of each object (index into OUTCOMES) from both depth errors in m, NaN where it was missed."""
    with_baseline, with_student = np.isfinite(baseline), np.isfinite(student)
    worse = student - baseline
    conditions = [
        ~with_baseline & ~with_student, ~with_baseline, ~with_student, worse < -margin * depth, worse > margin * depth
    ]  # fmt: skip
    return np.select(conditions, [NEITHER, GAINED, LOST, POSITIVE, NEGATIVE], default=NEUTRAL)


# ----------------------------------------------------------------------------------------------------------------- bins


def groupings(
    objects: JudgedObjects, baseline: Found, teacher: Found | None, log_scale: Float[np.ndarray, " g"],
    settings: JudgeSettings,
) -> list[Grouping]:  # fmt: skip
    """The bins that an object falls into; those that need a teacher only where there is one."""
    edges = [f"{edge:g}" for edge in (0.0, *DISTANCE_EDGES)]
    ranges = [f"{low}–{high}" for low, high in zip(edges[:-1], edges[1:], strict=True)]
    chosen = [
        Grouping("distance", "distance (m)", (*ranges, f"over {edges[-1]}"),
                 np.searchsorted(DISTANCE_EDGES, objects.distance, side="right")),
        *objects.own_groupings(),
    ]  # fmt: skip
    if len(settings.classes) > 1:
        name = np.char.lower(objects.name)
        index = np.array([settings.classes.index(n) for n in name.tolist()], dtype=np.int64)
        chosen.append(Grouping("class", "class", settings.classes, index))
    if np.isfinite(log_scale).any():
        chosen.append(_by_uncertainty(log_scale))
    if teacher is not None:
        chosen += _by_teacher(objects.depth, baseline, teacher, settings.margin)
    return chosen


def _by_uncertainty(log_scale: Float[np.ndarray, " g"]) -> Grouping:
    """Quarters of the objects by the scale that the teacher gives its own depth."""
    known = np.isfinite(log_scale)
    edges = np.quantile(log_scale[known], np.arange(1, UNCERTAINTY_BINS) / UNCERTAINTY_BINS)
    index = np.where(known, np.searchsorted(edges, log_scale, side="right"), -1)
    scale = [f"{edge:.2g}" for edge in np.exp(edges)]
    between = [f"{low}–{high}" for low, high in zip(scale[:-1], scale[1:], strict=True)]
    labels = (f"under {scale[0]}", *between, f"over {scale[-1]}")
    return Grouping("teacher_uncertainty", "teacher's uncertainty (scale of its depth, m)", labels, index)


def _by_teacher(
    depth: Float[np.ndarray, " g"], baseline: Found, teacher: Found, margin: float
) -> tuple[Grouping, Grouping]:
    relative = teacher.depth_error / (margin * depth)
    percent = [f"{100 * margin * edge:g}" for edge in TEACHER_ERROR_EDGES]
    between = [f"{low}–{high}" for low, high in zip(percent[:-1], percent[1:], strict=True)]
    labels = (f"up to {percent[0]}", *between, f"over {percent[-1]}", "missed")
    own = np.where(teacher.found, np.searchsorted(TEACHER_ERROR_EDGES, relative, side="left"), len(labels) - 1)
    versus = judge(depth, baseline.depth_error, teacher.depth_error, margin)
    names = ("teacher better", "level", "teacher worse", "teacher only", "baseline only", "neither found")
    return (
        Grouping("teacher_error", "teacher's own depth error (% of depth)", labels, own),
        Grouping("teacher_versus_baseline", "teacher against baseline", names, versus),
    )


def _above_median_within(
    values: Float[np.ndarray, " g"], stratum: Int[np.ndarray, " g"], use: Bool[np.ndarray, " g"]
) -> Bool[np.ndarray, " g"]:
    """Whether a value lies above the median of its stratum, medians being taken over the objects in use."""
    above = np.zeros(len(values), dtype=bool)
    for one in np.unique(stratum[use]):
        members = use & (stratum == one)
        above |= members & (values > np.median(values[members]))
    return above


# ------------------------------------------------------------------------------------------------------------- analysis


class _Frames:
    """Resampled frames: how often each frame that holds objects is drawn, (R, F)."""

    def __init__(self, frame: Int[np.ndarray, " g"], settings: JudgeSettings) -> None:
        held, self._place = np.unique(frame, return_inverse=True)
        self._count = len(held)
        generator = np.random.default_rng(settings.seed)
        share = np.full(self._count, 1 / max(self._count, 1))
        draws = generator.multinomial(self._count, share, settings.resamples) if self._count else np.zeros((1, 0))
        self._weights = draws.astype(np.float64)

    def holding(self, chosen: Bool[np.ndarray, " g"]) -> int:
        """Number of frames with a chosen object."""
        return len(np.unique(self._place[chosen]))

    def ratios(self, part: Float[np.ndarray, " g"], whole: Bool[np.ndarray, " g"]) -> Float[np.ndarray, " r"]:
        """sum of ``part`` / number of ``whole`` in each resample; NaN where that is empty."""
        top, bottom = (
            self._weights @ np.bincount(self._place, weights=values, minlength=self._count)
            for values in (part, whole.astype(np.float64))
        )
        return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def _estimate(value: float, resampled: Float[np.ndarray, " r"]) -> Estimate:
    low, high = np.nanquantile(resampled, (TAIL, 1 - TAIL))
    return Estimate(value, float(np.nanstd(resampled, ddof=1)), float(low), float(high))


def analyse(
    objects: ObjectsT, baseline: Found, student: Found, teacher: Found | None,
    log_scale: Float[np.ndarray, " g"] | None, settings: JudgeSettings,
) -> Analysis[ObjectsT]:  # fmt: skip
    """Everything that is told of one student: outcomes, bins, contrasts and other margins.

    ``log_scale`` is the teacher's log scale of each object's depth, NaN where it has none.
    """
    scale = np.full(len(objects), np.nan) if log_scale is None else log_scale
    parts = {"baseline": baseline, "student": student} | ({} if teacher is None else {"teacher": teacher})
    depth = objects.depth
    outcome = judge(depth, baseline.depth_error, student.depth_error, settings.margin)
    frames = _Frames(objects.frame, settings)

    def summary(label: str, chosen: Bool[np.ndarray, " g"]) -> Bin:
        return _summary(label, chosen, outcome, parts, frames, settings)

    groups = tuple(
        (one, tuple(summary(label, one.index == n) for n, label in enumerate(one.labels)))
        for one in groupings(objects, baseline, teacher, scale, settings)
    )
    margins = []
    for margin in sorted({*OTHER_MARGINS, settings.margin}):
        other = judge(depth, baseline.depth_error, student.depth_error, margin)
        counts = np.bincount(other, minlength=len(OUTCOMES))
        net = _net_depth(other, np.ones(len(objects), dtype=bool), frames, settings)
        margins.append(MarginRow(margin, int(counts[POSITIVE]), int(counts[NEGATIVE]), net))
    contrasts = _contrasts(objects, teacher, scale, outcome, groups[0][0], frames, settings)
    everything = summary("all", np.ones(len(objects), dtype=bool))
    return Analysis(settings, objects, parts, scale, outcome, everything, groups, tuple(contrasts), tuple(margins))


def _enough(chosen: Bool[np.ndarray, " g"], frames: _Frames, settings: JudgeSettings) -> bool:
    return int(chosen.sum()) >= settings.least_objects and frames.holding(chosen) >= settings.least_frames


def _balance(outcome: Int[np.ndarray, " g"], better: int, worse: int) -> Float[np.ndarray, " g"]:
    return (outcome == better).astype(np.float64) - (outcome == worse)


def _net(
    balance: Float[np.ndarray, " g"], among: Bool[np.ndarray, " g"], frames: _Frames, settings: JudgeSettings
) -> Estimate | None:
    if not _enough(among, frames, settings):
        return None
    balance = balance * among
    return _estimate(float(balance.sum() / among.sum()), frames.ratios(balance, among))


def _both(outcome: Int[np.ndarray, " g"]) -> Bool[np.ndarray, " g"]:
    return np.isin(outcome, (POSITIVE, NEUTRAL, NEGATIVE))


def _net_depth(
    outcome: Int[np.ndarray, " g"], chosen: Bool[np.ndarray, " g"], frames: _Frames, settings: JudgeSettings
) -> Estimate | None:
    return _net(_balance(outcome, POSITIVE, NEGATIVE), chosen & _both(outcome), frames, settings)


def _summary(
    label: str, chosen: Bool[np.ndarray, " g"], outcome: Int[np.ndarray, " g"], parts: dict[str, Found],
    frames: _Frames, settings: JudgeSettings,
) -> Bin:  # fmt: skip
    counts = np.bincount(outcome[chosen], minlength=len(OUTCOMES)).tolist()
    both = chosen & _both(outcome)
    common = chosen & np.all([part.found for part in parts.values()], axis=0)

    def mean(values: Float[np.ndarray, " g"], over: Bool[np.ndarray, " g"]) -> float:
        return float(values[over].mean()) if over.any() else np.nan

    return Bin(
        label=label,
        objects=int(chosen.sum()),
        frames=frames.holding(chosen),
        both=int(both.sum()),
        both_frames=frames.holding(both),
        counts=dict(zip(OUTCOMES, counts, strict=True)),
        depth=_net_depth(outcome, chosen, frames, settings),
        finding=_net(_balance(outcome, GAINED, LOST), chosen, frames, settings),
        common=int(common.sum()),
        depth_error={name: mean(part.depth_error, common) for name, part in parts.items()},
        centre_error={name: mean(part.centre_error, common) for name, part in parts.items()},
        iou_3d={name: mean(np.nan_to_num(part.iou_3d), chosen) for name, part in parts.items()},
        found={name: int((part.found & chosen).sum()) for name, part in parts.items()},
    )


def _contrasts(
    objects: JudgedObjects, teacher: Found | None, log_scale: Float[np.ndarray, " g"],
    outcome: Int[np.ndarray, " g"], distance: Grouping, frames: _Frames, settings: JudgeSettings,
) -> list[Contrast]:  # fmt: skip
    """Is there more harm where the teacher is wrong, or unsure?

    Neither question looks at the baseline's own error. To sort objects by whether the teacher beats the baseline does:
    where the baseline happened to be bad, any other detector is likely to be better, taught or not.
    """
    both = _both(outcome)
    balance = _balance(outcome, POSITIVE, NEGATIVE)
    pairs: list[tuple[str, str, str, np.ndarray, np.ndarray]] = []
    if teacher is not None:
        right = teacher.depth_error <= settings.margin * objects.depth  # False where it missed the object
        pairs.append(("teacher_right", "the teacher is right", "the teacher is wrong or misses", both & right,
                      both & ~right))  # fmt: skip
    known = both & np.isfinite(log_scale)
    if known.any():
        unsure = _above_median_within(log_scale, distance.index, known)
        pairs.append(("teacher_sure", "the teacher is sure", "the teacher is unsure", known & ~unsure, unsure))
    contrasts = []
    for key, first, second, *chosen in pairs:
        if not all(_enough(one, frames, settings) for one in chosen):
            continue
        values = [float(balance[one].mean()) for one in chosen]
        resampled = [frames.ratios(balance * one, one) for one in chosen]
        a, b = (_estimate(value, many) for value, many in zip(values, resampled, strict=True))
        difference = _estimate(values[0] - values[1], resampled[0] - resampled[1])
        counts = (int(chosen[0].sum()), int(chosen[1].sum()))
        contrasts.append(Contrast(key, first, second, (a, b), counts, difference))
    return contrasts


def net_difference(one: Analysis[Any], other: Analysis[Any]) -> Estimate | None:
    """Net depth transfer of one detector less that of another, both against the same baseline; None for too few.

    The same frames are drawn for both. With ``other`` a twin of the baseline from another seed, the difference is free
    of the luck that the baseline itself had.
    """
    settings, frames = one.settings, _Frames(one.objects.frame, one.settings)
    pairs = [(_balance(a.outcome, POSITIVE, NEGATIVE), _both(a.outcome)) for a in (one, other)]
    if not all(_enough(both, frames, settings) for _, both in pairs):
        return None
    values = [float(balance[both].mean()) for balance, both in pairs]
    resampled = [frames.ratios(balance, both) for balance, both in pairs]
    return _estimate(values[0] - values[1], resampled[0] - resampled[1])


def largest(analysis: Analysis[Any], outcome: int, count: int) -> list[int]:
    """At most ``count`` objects of an outcome (POSITIVE or NEGATIVE), largest relative change first, one per frame."""
    change = np.abs(np.nan_to_num(analysis.gain))
    order = np.lexsort((np.arange(len(change)), -change))
    chosen: dict[int, int] = {}
    for index in order[analysis.outcome[order] == outcome].tolist():
        chosen.setdefault(int(analysis.objects.frame[index]), index)
    return list(chosen.values())[:count]


def telling_objects(analysis: Analysis[Any], count: int) -> list[tuple[int, str, int | None]]:
    """At most ``count`` frames (an index), why each is shown, and which object is meant by that: those of the largest
    gain and the largest harm in turn, then those of most objects, where no single one is meant."""
    objects = analysis.objects
    gains, harms = (largest(analysis, outcome, count) for outcome in (POSITIVE, NEGATIVE))
    counts = np.bincount(objects.frame, minlength=len(objects.frames))
    in_turn: list[tuple[int, str, int | None]] = [
        (int(objects.frame[index]), f"{RANKS[n]}largest {kind}", index)
        for n in range(min(count, len(RANKS)))
        for kind, indices in (("gain", gains), ("harm", harms))
        for index in indices[n : n + 1]
    ]
    fullest: list[tuple[int, str, int | None]] = [
        (index, f"{counts[index]} objects", None) for index in np.argsort(-counts, kind="stable").tolist()
    ]
    chosen: dict[int, tuple[int, str, int | None]] = {}
    for one in (*in_turn, *fullest):
        if len(chosen) < count:
            chosen.setdefault(one[0], one)
    return list(chosen.values())
