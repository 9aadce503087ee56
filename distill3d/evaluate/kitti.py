"""KITTI object evaluation: average precision at 40 recall points (AP|R40), equal to the official C++ program.

What the official program does, for one class, difficulty, metric and minimum overlap:

1. Each ground truth is *counted* (0), *ignored* (1: too hard for this difficulty, or a class that looks alike) or
   *out* (-1: another class). Each detection is *own* (0), *small* (1: lower than the least height, of ANY class) or
   *out* (-1).
2. Pass A, in file order: a ground truth takes the free detection of highest score among those that overlap it more than
   the minimum. Scores of own detections on counted ground truth are the true-positive scores; at most 41 of them,
   evenly spaced in recall, become thresholds.
3. Pass B, once per threshold, with the detections that reach it: a ground truth takes the free own detection of
   greatest overlap or, if there is none, the first small one. An own detection on a counted ground truth is a true
   positive. Any match with an ignored ground truth or a small detection counts for nothing. An own detection that
   nothing took is a false positive unless a DontCare region covers it.
4. Precision at the thresholds, made non-increasing; AP|R40 is its mean over recall points 1..40, point 0 excluded.

The frames are independent, and so are the thresholds. So all frames and all thresholds are matched at once: in turn k
the k-th ground truth of every frame chooses (`greedy.choose_in_turn`).

Source: KITTI object development kit, evaluate_object.cpp, with 41 recall points (offline copy in DingCodeLab/MonoSTL,
tools/kitti_eval).  The Python port descending from traveller59/second.pytorch differs in two rules: see `Style`.
"""

import difflib
import json as jsonlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict, get_args

import msgspec
import numpy as np
from jaxtyping import Bool, Float, Int

from distill3d.data.kitti.lines import (
    DONT_CARE,
    LABEL_FIELDS,
    NO_POSITION,
    line_faults,
    odd_visibility,
    sound_table,
)
from distill3d.data.kitti.names import KITTI_NAMES, LabelNames, names_of
from distill3d.data.splits import read_split
from distill3d.errors import UserError, one_line
from distill3d.evaluate import iou
from distill3d.evaluate.greedy import choose_in_turn
from distill3d.files import names_below, read_json, read_text, refuse_foreign, write_output_text
from distill3d.typed import checked

if TYPE_CHECKING:  # the command line must start fast, and the maths needs no terminal
    from rich.table import Table

Class = Literal["car", "pedestrian", "cyclist"]
Metric = Literal["bbox", "aos", "bev", "3d"]
Overlaps = Literal["strict", "loose"]
#: "c++" is the official program. "python" is the common port: a ground truth exactly as high as the least height is
#: ignored too, and DontCare regions excuse false positives in the image metrics only.
Style = Literal["c++", "python"]

CLASSES: tuple[Class, ...] = get_args(Class)
METRICS: tuple[Metric, ...] = get_args(Metric)
DIFFICULTIES = ("easy", "moderate", "hard")
#: Constants of the official program, by difficulty.
MIN_HEIGHT = (40, 25, 25)  # px
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.3, 0.5)
#: Minimum overlap by set, class and geometry. "loose" relaxes BEV and 3D only, as papers report it.
MIN_OVERLAP: dict[Overlaps, dict[str, dict[str, float]]] = {
    "strict": {
        "car": {"bbox": 0.7, "bev": 0.7, "3d": 0.7},
        "pedestrian": {"bbox": 0.5, "bev": 0.5, "3d": 0.5},
        "cyclist": {"bbox": 0.5, "bev": 0.5, "3d": 0.5},
    },
    "loose": {
        "car": {"bbox": 0.7, "bev": 0.5, "3d": 0.5},
        "pedestrian": {"bbox": 0.5, "bev": 0.25, "3d": 0.25},
        "cyclist": {"bbox": 0.5, "bev": 0.25, "3d": 0.25},
    },
}
#: Classes that look alike: neither demanded nor punished.
NEIGHBOUR: dict[str, str] = {"car": "van", "pedestrian": "person_sitting"}
KNOWN_NAMES = (*CLASSES, "van", "truck", "person_sitting", "tram", "misc", DONT_CARE)
#: Of other classes than KITTI's, "strict" and "loose", unless they are given.
OTHER_OVERLAPS = (0.7, 0.5)
RECALL_POINTS = 41
MOST_PAIRS = 400_000  # of objects in one frame; KITTI's most crowded frames have some hundreds
ENDING = ".txt"  # of label and result files
ABOUT = "about.json"  # beside predictions: with which settings they are to be evaluated
HEIGHT_SCALE, OVERLAPS = "min_height_scale", "overlaps"
NO_ALPHA = -10.0  # a detector without orientation writes this


@dataclass(frozen=True)
class Rules:
    """Which classes are evaluated, by their names in lower case, and what they must overlap: KITTI's by default."""

    classes: tuple[str, ...] = CLASSES
    min_overlap: Mapping[Overlaps, Mapping[str, Mapping[str, float]]] = field(default_factory=lambda: MIN_OVERLAP)
    neighbour: Mapping[str, str] = field(default_factory=lambda: NEIGHBOUR)
    known_names: tuple[str, ...] = KNOWN_NAMES
    names: LabelNames = KITTI_NAMES

    def of(self, words: np.ndarray) -> np.ndarray:
        """(N,) the classes, in lower case, that words of files stand for; unknown words stay as they are."""
        lower = np.char.lower(words)
        for word, kind in self.names.others:
            lower = np.where(lower == word.lower(), kind.lower(), lower)
        return lower

    @property
    def least_overlap(self) -> float:
        return min(least for table in self.min_overlap.values() for row in table.values() for least in row.values())


OFFICIAL = Rules()


def rules_of(names: LabelNames, overlaps: Iterable[str] = ()) -> Rules:
    """The rules for a data set's own classes; ``overlaps`` as ``Bus=0.7,0.5``: strict, and loose in BEV and 3D.

    Raises:
        UserError: an overlap is of no class, or none that boxes can have.
    """
    given = dict(_overlap(pair, names) for pair in overlaps)
    if names.classes == KITTI_NAMES.classes and not given:
        return replace(OFFICIAL, names=names)
    table: dict[Overlaps, dict[str, dict[str, float]]] = {"strict": {}, "loose": {}}
    for name in map(str.lower, names.classes):
        if name in CLASSES and name not in given:
            for overlap, rows in table.items():
                rows[name] = MIN_OVERLAP[overlap][name]
        else:
            strict, loose = given.get(name, OTHER_OVERLAPS)
            table["strict"][name] = {"bbox": strict, "bev": strict, "3d": strict}
            table["loose"][name] = {"bbox": strict, "bev": loose, "3d": loose}
    if names.classes == KITTI_NAMES.classes:
        return replace(OFFICIAL, min_overlap=table, names=names)
    classes = tuple(map(str.lower, names.classes))
    return Rules(classes, table, {}, tuple(dict.fromkeys((*classes, *map(str.lower, names.names), DONT_CARE))), names)


def _overlap(pair: str, names: LabelNames) -> tuple[str, tuple[float, float]]:
    name, _, values = pair.partition("=")
    try:
        strict, loose = map(float, values.split(","))
    except ValueError:
        strict = loose = math.nan
    if name.lower() not in map(str.lower, names.classes) or not 0 < loose <= strict < 1:
        raise UserError(
            f"overlap {pair!r}, expected a class of {', '.join(names.classes)} and two numbers between 0 and 1, the "
            "smaller one last, such as Car=0.7,0.5"
        )
    return name.lower(), (strict, loose)


# ------------------------------------------------------------------ annotations


@dataclass(frozen=True)
class Annotations:
    """Labels or results of many frames, one row per line, column by column.

    Rows keep the order of their file, which the matching depends on. Image boxes are in px, 3D boxes in KITTI's own
    convention: height, width, length (m), bottom centre in the camera frame (m), rotation_y (rad).

    Raises:
        ValueError: columns of different length, or a frame index outside `frames`.
        UserError: a number that is not finite.
    """

    frames: tuple[str, ...]  # frame names, also of frames without any row
    frame: Int[np.ndarray, " n"]  # index into `frames`
    name: np.ndarray  # (N,) strings
    truncation: Float[np.ndarray, " n"]
    occlusion: Float[np.ndarray, " n"]
    alpha: Float[np.ndarray, " n"]
    box2d: Float[np.ndarray, "n 4"]  # x1, y1, x2, y2
    hwl: Float[np.ndarray, "n 3"]
    xyz: Float[np.ndarray, "n 3"]  # bottom centre
    ry: Float[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]  # zeros for labels

    def __post_init__(self) -> None:
        widths = {"box2d": (4,), "hwl": (3,), "xyz": (3,)}
        for column in fields(self)[1:]:
            shape = (len(self.frame), *widths.get(column.name, ()))
            if getattr(self, column.name).shape != shape:
                raise ValueError(f"{column.name} must have shape {shape}, not {getattr(self, column.name).shape}")
        if len(self.frame) and not 0 <= self.frame.min() <= self.frame.max() < len(self.frames):
            raise ValueError(f"frame must index the {len(self.frames)} frames, not span up to {self.frame.max()}")
        for column in fields(self)[3:]:
            if not np.isfinite(getattr(self, column.name)).all():
                row = int(np.argwhere(~np.isfinite(getattr(self, column.name)))[0][0])
                raise UserError(f"frame {self.frames[self.frame[row]]}: {column.name} must be finite, in every object")

    @classmethod
    def from_lines(
        cls, texts: Mapping[str, str], *, scored: bool, folder: str | os.PathLike[str] = ""
    ) -> "Annotations":
        """Parse the text of one file per frame.

        texts: frame name -> content. scored: 16 fields (results) instead of 15 (labels). folder: named in messages.

        Raises:
            UserError: the first malformed line, with file and line number.
        """
        rows: list[list[str]] = []
        counts: list[int] = []
        underscores = 0
        for text in texts.values():
            before = len(rows)
            rows += filter(None, map(str.split, text.split("\n")))
            counts.append(len(rows) - before)
            underscores += text.count("_")
        numbers = sound_table(rows, underscores, scored)
        if numbers is None:
            if rows:
                raise _first_fault(texts, scored, folder)
            numbers = np.zeros((0, len(LABEL_FIELDS)))
        return cls(
            frames=tuple(texts),
            frame=np.repeat(np.arange(len(texts)), counts),
            name=np.array([row[0] for row in rows], dtype=np.str_),
            truncation=numbers[:, 0],
            occlusion=numbers[:, 1],
            alpha=numbers[:, 2],
            box2d=numbers[:, 3:7],
            hwl=numbers[:, 7:10],
            xyz=numbers[:, 10:13],
            ry=numbers[:, 13],
            score=numbers[:, 14] if scored else np.zeros(len(rows)),
        )

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike[str], *, scored: bool, frames: Sequence[str] | None = None
    ) -> "Annotations":
        """Read `<folder>/<frame>.txt` of the given frames, by default of all such files, in order.

        Raises:
            UserError: no such folder, no such file in it, or a malformed line.
        """
        names = sorted(names_below(Path(folder), ENDING)) if frames is None else frames
        texts = {name: read_text(os.path.join(folder, name + ENDING)) for name in names}
        return cls.from_lines(texts, scored=scored, folder=folder)

    @property
    def box3d(self) -> Float[np.ndarray, "n 7"]:
        """(N, 7) h, w, l, x, y, z, rotation_y, as `distill3d.evaluate.iou` takes them."""
        return np.concatenate([self.hwl, self.xyz, self.ry[:, None]], axis=1)

    @property
    def box_height(self) -> Float[np.ndarray, " n"]:
        """(N,) signed height of the image box in px."""
        return self.box2d[:, 3] - self.box2d[:, 1]

    def rows(self, index: np.ndarray) -> "Annotations":
        """The chosen rows (mask or indices), with all frames kept."""
        return replace(self, **{column.name: getattr(self, column.name)[index] for column in fields(self)[1:]})

    def equal_runs(self) -> tuple[Int[np.ndarray, " r"], Int[np.ndarray, " r"]]:
        """Runs of rows that are equal in everything: (R,) the first row of each, and how many rows it has."""
        begins = np.ones(len(self.frame), dtype=bool)
        if len(begins):
            begins[1:] = False
        for column in fields(self)[1:]:
            values = getattr(self, column.name)
            differs = values[1:] != values[:-1]
            begins[1:] |= differs if differs.ndim == 1 else differs.any(axis=1)
        first = np.flatnonzero(begins)
        return first, np.diff(np.append(first, len(begins)))

    def named(self, rules: Rules) -> "Annotations":
        """With the classes, in lower case, that the names stand for."""
        return replace(self, name=rules.of(self.name))

    def of_frames(self, frames: tuple[str, ...], what: str) -> "Annotations":
        """Only the given frames, in the given order; rows of a frame keep their order.

        Raises:
            UserError: a frame is not there.
        """
        if frames == self.frames and np.all(np.diff(self.frame) >= 0):
            return self
        missing = sorted(set(frames) - set(self.frames))
        if missing:
            raise UserError(f"{len(missing)} of {len(frames)} frames have no {what}, the first is {missing[0]}")
        position = {name: index for index, name in enumerate(frames)}
        new_frame = np.array([position.get(name, -1) for name in self.frames], dtype=np.int64)[self.frame]
        order = np.argsort(new_frame, kind="stable")
        kept = order[new_frame[order] >= 0]
        return replace(self.rows(kept), frames=frames, frame=new_frame[kept])


def _first_fault(texts: Mapping[str, str], scored: bool, folder: str | os.PathLike[str]) -> UserError:
    for frame, text in texts.items():
        for number, line in enumerate(text.split("\n"), start=1):
            for sentence in line_faults(words, scored, visibility=False) if (words := line.split()) else ():
                return UserError(f"{Path(folder, frame)}.txt:{number}: {sentence}")
    raise AssertionError("called for texts without a fault")


def result_frames(results: Path, labels: Path) -> list[str]:
    """Names of the frames that have a file in a folder of results, in order: those with a label file of that name, and
    all that are numbers.

    Raises:
        UserError: one of the folders is absent.
    """
    return sorted(_frames_among(set(names_below(results, ENDING)), set(names_below(labels, ENDING))))


def _frames_among(names: set[str], labelled: set[str]) -> set[str]:
    return {name for name in names if name in labelled or name.isdecimal()}


def frame_pairs(one: Annotations, other: Annotations) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """Rows of all pairs of the same frame, in order of the first, then of the second; both hold the same frames.

    Raises:
        UserError: as `refuse_crowds`.
    """
    refuse_crowds(one, other)
    return iou.pairs_within_groups(one.frame, other.frame, len(one.frames))


def refuse_crowds(one: Annotations, other: Annotations) -> None:
    """Keeps what would take hours and all memory from being begun; both hold the same frames.

    Raises:
        UserError: a frame has more than ``MOST_PAIRS`` pairs.
    """
    counts = [np.bincount(rows.frame, minlength=len(one.frames)) for rows in (one, other)]
    pairs = counts[0] * counts[1]
    if len(pairs) and pairs.max() > MOST_PAIRS:
        frame = int(pairs.argmax())
        raise UserError(
            f"frame {one.frames[frame]} has {counts[0][frame]} objects to compare with {counts[1][frame]} others,"
            f" expected at most {MOST_PAIRS} pairs"
        )


# ---------------------------------------------------------------------- results

Three = tuple[float, float, float]  # easy, moderate, hard
Counts = tuple[int, int, int]  # easy, moderate, hard


@dataclass(frozen=True)
class Nearest:
    """How the detections of a class lie to the nearest label of that class in their frame: medians over detections."""

    detections: int  # those in a frame with a label of the class
    image_iou: float
    bev_iou: float
    iou_3d: float
    centre_distance: float  # m, on the ground
    drop: float  # m, y of the detection minus y of the label: positive means the detection lies lower
    height: float  # m, of the label
    size_error: float  # m, |h| + |w| + |l| of the differences
    reversed_size_error: float  # m, the same with the detection's sizes read in reverse


@dataclass(frozen=True)
class ClassExplanation:
    """What became of the labels and detections of one class. Reasons overlap: a label can be small and occluded."""

    labels: int
    neighbours: int  # labels of the class that looks alike: ignored at every difficulty
    counted: Counts
    too_small: Counts
    occluded: Counts
    truncated: Counts
    detections: int
    small_detections: Counts  # ignored, as lower than the least height
    equal_scores: bool
    nearest: Nearest | None  # only where an AP is zero in spite of labels and detections
    neighbour: str = ""  # that class


@dataclass(frozen=True)
class Explanation:
    """Why the numbers are what they are."""

    frames: int
    labels_without_results: tuple[str, ...]  # label frames that were not evaluated
    results_outside_split: tuple[str, ...]  # result frames that were not evaluated
    other_files: tuple[str, ...]  # .txt files beside the results whose names are neither a label's nor a number
    unknown_names: dict[str, int]  # detections that no KITTI class name fits
    unknown_label_names: dict[str, int]  # labels likewise
    odd_labels: int  # labels of truncation or occlusion that KITTI does not know
    other_names: dict[str, int]  # detections of KITTI classes that are not evaluated
    classes: dict[str, ClassExplanation]
    notes: tuple[str, ...] = ()  # sentences, the most telling first

    def text(self) -> str:
        """All of it as plain lines."""
        lines = [f"{self.frames} frames evaluated."]
        for what, names in (
            ("Label files without a result file, not evaluated", self.labels_without_results),
            ("Result files outside the split, not evaluated", self.results_outside_split),
            ("Text files named neither by a frame nor by a number, not read", self.other_files),
        ):
            if names:
                lines.append(f"{what}: {len(names)} (first: {one_line(names[0])}).")
        for name, row in self.classes.items():
            lines.append(
                f"{name}: {row.labels} labels, counted {_slashed(row.counted)} (easy/moderate/hard); too small"
                f" {_slashed(row.too_small)}, occluded {_slashed(row.occluded)}, truncated {_slashed(row.truncated)};"
                + (f" {row.neighbours} {row.neighbour} ignored;" if row.neighbour else "")
                + f" {row.detections} detections, ignored as too small {_slashed(row.small_detections)}."
            )
        return "\n".join([*lines, *self.notes])


def _slashed(counts: Counts) -> str:
    return "/".join(map(str, counts))


@dataclass(frozen=True)
class Result:
    """Precision curves of every overlap set, class and metric, and an explanation."""

    curves: dict[Overlaps, dict[tuple[str, Metric], Float[np.ndarray, "3 41"]]]  # precision 0..1 by difficulty
    evaluated: dict[tuple[str, Metric], bool]  # False: the official program prints no such number, here it is zero
    explanation: Explanation
    min_height_scale: float
    style: Style
    rules: Rules = OFFICIAL

    def precision(self, name: str, metric: Metric, overlap: Overlaps = "strict") -> Float[np.ndarray, "3 41"]:
        """Precision (orientation similarity for "aos") at recall 0, 1/40, ..., 1 for easy, moderate, hard."""
        return self.curves[overlap][name, metric]

    def ap(self, name: str, metric: Metric, overlap: Overlaps = "strict") -> Three:
        """AP|R40 in percent: easy, moderate, hard."""
        easy, moderate, hard = 100 * self.precision(name, metric, overlap)[:, 1:].mean(axis=1)
        return float(easy), float(moderate), float(hard)

    def to_json(self) -> dict[str, Any]:
        """{"strict": R, "loose": R, "settings": ..., "explanation": ...}.

        R = {"<class>_<metric>": {"AP_R40": [easy, moderate, hard], "precision41": [[41], [41], [41]]}}.
        """
        tables = {
            overlap: {
                f"{name}_{metric}": {"AP_R40": list(self.ap(name, metric, overlap)), "precision41": curve.tolist()}
                for (name, metric), curve in curves.items()
            }
            for overlap, curves in self.curves.items()
        }
        settings = {
            "frames": self.explanation.frames,
            "min_height_scale": self.min_height_scale,
            "style": self.style,
            "min_overlap": self.rules.min_overlap,
            **({} if self.rules.names == KITTI_NAMES else {"classes": list(self.rules.names.classes)}),
            "not_evaluated": [f"{name}_{metric}" for (name, metric), done in self.evaluated.items() if not done],
        }
        return {**tables, "settings": settings, "explanation": asdict(self.explanation)}

    def table(self) -> "Table":
        """AP|R40 as a table for the terminal."""
        from rich.table import Table

        title = f"KITTI AP|R40 (%), {self.explanation.frames} frames, min_height_scale {self.min_height_scale:g}"
        if self.style != "c++":
            title += f", {self.style} rules"
        table = Table("class", "metric", title=title)
        for heading in ("overlap", *DIFFICULTIES):
            table.add_column(heading, justify="right")
        for name in self.rules.classes:
            # Strict and loose rows where the overlaps differ.
            rows: dict[tuple[Metric, float], Overlaps] = {
                (metric, self.rules.min_overlap[overlap][name][_geometry(metric)]): overlap
                for overlap in self.rules.min_overlap
                for metric in METRICS
            }
            for (metric, minimum), overlap in rows.items():
                values = self.ap(name, metric, overlap)
                cells = [f"{value:.2f}" if self.evaluated[name, metric] else "-" for value in values]
                table.add_row(name, metric, f"{minimum:.2f}", *cells)
            table.add_section()
        return table


# -------------------------------------------------------------------- algorithm


class _Pairs(NamedTuple):
    """Candidate pairs of one geometry, in order of frame, ground truth and detection (file order)."""

    gt: Int[np.ndarray, " p"]
    det: Int[np.ndarray, " p"]
    overlap: Float[np.ndarray, " p"]

    def where(self, index: np.ndarray) -> "_Pairs":
        return _Pairs(self.gt[index], self.det[index], self.overlap[index])


class _Curves(NamedTuple):
    precision: Float[np.ndarray, " 41"]
    similarity: Float[np.ndarray, " 41"]


def evaluate(
    labels: Annotations,
    predictions: Annotations,
    *,
    frames: Iterable[str] | None = None,
    min_height_scale: float = 1.0,
    style: Style = "c++",
    rules: Rules = OFFICIAL,
) -> Result:
    """Evaluate predictions in memory.

    frames: frames to evaluate, which must all be in both; by default those of `predictions`, as the official program
        does.
    min_height_scale: size of the images relative to KITTI's, for data made at a reduced size; it scales the least
        heights of 40 and 25 px. To keep the official rule to the letter at 1.0 (the height of a detection is cut to an
        integer and then compared) and meaningful where 40 * scale is no integer, heights are divided by the scale
        instead, then cut and compared: an object counts exactly if it would at full size.
    style: see `Style`.
    rules: see `rules_of`.

    Raises:
        UserError: a frame is missing on either side, or an option has no meaning.
    """
    if not (np.isfinite(min_height_scale) and min_height_scale > 0):
        raise UserError(f"min_height_scale must be a positive number, not {min_height_scale}")
    if style not in get_args(Style):
        raise UserError(f"style must be one of {', '.join(get_args(Style))}, not {style!r}")
    names = predictions.frames if frames is None else tuple(dict.fromkeys(frames))
    unused_labels = tuple(sorted(set(labels.frames) - set(names))) if frames is None else ()
    unused_results = tuple(sorted(set(predictions.frames) - set(names)))
    labels = labels.of_frames(names, "labels")
    det = predictions.of_frames(names, "result")

    label_kind, det_kind = rules.of(labels.name), rules.of(det.name)
    relevant = np.isin(label_kind, [*rules.classes, *rules.neighbour.values()])
    every_gt, every_gt_kind = labels.rows(relevant), label_kind[relevant]
    # Labels that stand there many times over, one after the other, choose as one with as many places.
    first, places = every_gt.equal_runs()
    gt, gt_kind = every_gt.rows(first), every_gt_kind[first]
    pairs = _overlaps(gt, det, rules.least_overlap)
    regions = labels.rows(label_kind == DONT_CARE)
    coverage = _dont_care_coverage(det, regions.rows(regions.equal_runs()[0]), style)
    levels = range(len(DIFFICULTIES))
    too_hard = [_too_hard(gt, level, min_height_scale, style) for level in levels]
    is_small = [_is_small(det, level, min_height_scale) for level in levels]
    has_orientation = not np.any(det.alpha == NO_ALPHA)

    curves: dict[Overlaps, dict[tuple[str, Metric], np.ndarray]] = {overlap: {} for overlap in rules.min_overlap}
    evaluated: dict[tuple[str, Metric], bool] = {}
    for name in rules.classes:
        own = det_kind == name
        own_gt, neighbour_gt = gt_kind == name, gt_kind == rules.neighbour.get(name)
        gt_states = [np.where(own_gt & ~hard, 0, np.where(own_gt | neighbour_gt, 1, -1)) for hard in too_hard]
        det_states = [np.where(small, 1, np.where(own, 0, -1)) for small in is_small]
        has_geometry = {
            "bbox": bool(np.any(det.box2d[own, 0] >= 0)),
            "bev": bool(np.any(det.xyz[own, 0] != NO_POSITION)),
            "3d": bool(np.any(det.xyz[own, 1] != NO_POSITION)),
        }
        for metric in METRICS:
            evaluated[name, metric] = has_geometry[_geometry(metric)] and (metric != "aos" or has_orientation)
        for geometry, candidates in pairs.items():
            known: dict[float, list[_Curves]] = {}  # strict and loose share what has the same minimum overlap
            for overlap, minima in rules.min_overlap.items():
                minimum = minima[name][geometry]
                if minimum not in known:
                    known[minimum] = [
                        _precision_curves(gt, places, det, candidates, minimum, gt_state, det_state, coverage[geometry])
                        for gt_state, det_state in zip(gt_states, det_states, strict=True)
                    ]
                for metric in METRICS:
                    if _geometry(metric) == geometry:
                        rows = [curve.similarity if metric == "aos" else curve.precision for curve in known[minimum]]
                        curves[overlap][name, metric] = np.array(rows) * evaluated[name, metric]

    result = Result(
        curves={overlap: {key: table[key] for key in evaluated} for overlap, table in curves.items()},
        evaluated=evaluated,
        explanation=Explanation(
            frames=len(names),
            labels_without_results=unused_labels,
            results_outside_split=unused_results,
            other_files=(),
            unknown_names=_name_counts(det, ~np.isin(det_kind, rules.known_names)),
            unknown_label_names=_name_counts(labels, ~np.isin(label_kind, rules.known_names)),
            odd_labels=int((odd_visibility(labels.truncation, labels.occlusion) & (label_kind != DONT_CARE)).sum()),
            other_names=_name_counts(det, np.isin(det_kind, rules.known_names[len(rules.classes) :])),
            classes={},
        ),
        min_height_scale=min_height_scale,
        style=style,
        rules=rules,
    )
    return _explained(result, every_gt, every_gt_kind, det, det_kind)


def _geometry(metric: Metric) -> Literal["bbox", "bev", "3d"]:
    """Orientation similarity is measured on the matches of the image boxes."""
    return "bbox" if metric == "aos" else metric


def _overlaps(gt: Annotations, det: Annotations, least: float) -> dict[str, _Pairs]:
    """Overlaps of all pairs that any class, difficulty or overlap set could match, by geometry."""
    gt_index, det_index = frame_pairs(gt, det)
    bev, space = iou.bev_and_3d_iou(det.box3d[det_index], gt.box3d[gt_index])
    image = iou.image_iou(det.box2d[det_index], gt.box2d[gt_index])
    return {
        geometry: _Pairs(gt_index, det_index, overlap).where(overlap > least)
        for geometry, overlap in (("bbox", image), ("bev", bev), ("3d", space))
    }


def _dont_care_coverage(det: Annotations, regions: Annotations, style: Style) -> dict[str, Float[np.ndarray, " d"]]:
    """The greatest share of each detection, (D,) by geometry, that one DontCare region covers.

    DontCare regions have a placeholder for a 3D box. The C++ program treats it as a box, which detections without a 3D
    box of their own can meet; the Python port leaves it out.
    """
    det_index, region_index = frame_pairs(det, regions)
    image = iou.image_coverage(det.box2d[det_index], regions.box2d[region_index])
    bev, space = iou.bev_and_3d_coverage(det.box3d[det_index], regions.box3d[region_index])
    coverage = {geometry: np.zeros(len(det.frame)) for geometry in ("bbox", "bev", "3d")}
    np.maximum.at(coverage["bbox"], det_index, image)
    if style == "c++":
        np.maximum.at(coverage["bev"], det_index, bev)
        np.maximum.at(coverage["3d"], det_index, space)
    return coverage


def _too_small(gt: Annotations, difficulty: int, min_height_scale: float, style: Style) -> Bool[np.ndarray, " g"]:
    height = gt.box_height / min_height_scale
    return height <= MIN_HEIGHT[difficulty] if style == "python" else height < MIN_HEIGHT[difficulty]


def _too_hard(gt: Annotations, difficulty: int, min_height_scale: float, style: Style) -> Bool[np.ndarray, " g"]:
    occluded, truncated = gt.occlusion > MAX_OCCLUSION[difficulty], gt.truncation > MAX_TRUNCATION[difficulty]
    return occluded | truncated | _too_small(gt, difficulty, min_height_scale, style)


def _is_small(det: Annotations, difficulty: int, min_height_scale: float) -> Bool[np.ndarray, " d"]:
    height = np.trunc(np.abs(det.box_height) / min_height_scale)  # the official program stores it in an int
    return height < MIN_HEIGHT[difficulty]


def _precision_curves(
    gt: Annotations,
    places: Int[np.ndarray, " g"],
    det: Annotations,
    pairs: _Pairs,
    min_overlap: float,
    gt_state: Int[np.ndarray, " g"],
    det_state: Int[np.ndarray, " d"],
    coverage: Float[np.ndarray, " d"],
) -> _Curves:
    """Precision and orientation similarity at 41 recall points, for one class, difficulty, geometry and overlap.

    places: (G,) how many labels each ground truth stands for.
    gt_state: (G,) 0 counted, 1 ignored, -1 out. det_state: (D,) 0 own, 1 small, -1 out. coverage: (D,) by DontCare.
    """
    pairs = pairs.where((pairs.overlap > min_overlap) & (gt_state[pairs.gt] >= 0) & (det_state[pairs.det] >= 0))
    score = det.score[pairs.det]
    small = det_state[pairs.det] == 1

    # Pass A: the surest candidate first. lexsort's last key weighs most, and ties keep the file order.
    by_score = np.lexsort((-score, pairs.gt))
    surest = pairs.where(by_score)
    always = np.ones((len(by_score), 1), dtype=bool)
    taken = choose_in_turn(gt.frame[surest.gt], surest.gt, surest.det, always, places)[:, 0]
    counts = (gt_state[surest.gt] == 0) & (det_state[surest.det] == 0)
    thresholds = recall_thresholds(det.score[surest.det[taken & counts]], int(places[gt_state == 0].sum()))

    # Pass B: own detections by overlap, then small ones in file order.
    by_overlap = np.lexsort((np.where(small, 0.0, -pairs.overlap), small, pairs.gt))
    best = pairs.where(by_overlap)
    # Each ground truth, in file order, gets its most preferred detection that is still free.
    reaches = score[by_overlap, None] >= thresholds  # (P, T)
    taken = choose_in_turn(gt.frame[best.gt], best.gt, best.det, reaches, places)
    counts = (gt_state[best.gt] == 0) & (det_state[best.det] == 0)
    true_positives = taken[counts].sum(axis=0)
    similarity = (1 + np.cos(gt.alpha[best.gt[counts]] - det.alpha[best.det[counts]])) / 2 @ taken[counts]

    punishable = (det_state == 0) & (coverage <= min_overlap)
    reaching = punishable.sum() - np.searchsorted(np.sort(det.score[punishable]), thresholds)
    false_positives = reaching - taken[punishable[best.det]].sum(axis=0)

    positives = np.maximum(true_positives + false_positives, 1)  # without positives the precision is 0, not 0 / 0
    return _Curves(_envelope(true_positives / positives), _envelope(similarity / positives))


def recall_thresholds(scores: Float[np.ndarray, " n"], ground_truths: int) -> Float[np.ndarray, " t"]:
    """Scores at which recall comes closest to 0, 1/40, 2/40, ..., at most 41 of them, descending.

    scores: (N,) of the true positives. ground_truths: number of counted labels.
    """
    scores = np.sort(scores)[::-1]
    rank = np.arange(1, len(scores) + 1)
    recall = rank / max(ground_truths, 1)
    next_recall = np.append(rank[1:] / max(ground_truths, 1), recall[-1:])
    chosen: list[int] = []
    target, first = 0.0, 0
    while first < len(scores) and len(chosen) < RECALL_POINTS:
        next_is_closer = next_recall[first:] - target < target - recall[first:]
        next_is_closer[-1] = False  # the last score is always used
        chosen.append(first + int(np.argmin(next_is_closer)))
        first = chosen[-1] + 1
        target += 1 / (RECALL_POINTS - 1)
    return scores[chosen]


def _envelope(values: Float[np.ndarray, " t"]) -> Float[np.ndarray, " 41"]:
    """Padded with zeros to 41 recall points, each the greatest value at this recall or beyond."""
    padded = np.zeros(RECALL_POINTS)
    padded[: len(values)] = values
    return np.maximum.accumulate(padded[::-1])[::-1]


# ------------------------------------------------------------------ explanation

# A median y that is off by half a height, within this share of the height, means boxes given by their centre.
_CENTRE_TOLERANCE = 0.2
# Detections this near on the ground mean the same objects as the labels, whatever the overlap.
_SAME_OBJECT_METRES = 2.0
# Median image overlap below which the 2D boxes cannot belong to 3D boxes that fit.
_IMAGE_MISFIT = 0.3
# Median error of h, w, l below which sizes are plausible; twice it and more when two of them are swapped.
_SIZE_TOLERANCE_METRES = 0.6


def _explained(result: Result, gt: Annotations, gt_kind: np.ndarray, det: Annotations, det_kind: np.ndarray) -> Result:
    """The result with the classes and notes of its explanation filled in."""
    notes: list[str] = []
    told = result.explanation
    whose = "KITTI" if result.rules.classes == CLASSES else "the data set's"
    for unknown, what in (
        (told.unknown_names, f"Not {whose} class names, and so not evaluated"),
        (told.unknown_label_names, f"Not {whose} class names in the labels, whose objects so do not count"),
    ):
        if unknown:
            words = ", ".join(
                f"{name!r} x {count} ({_suggestion(name, result.rules)})" for name, count in unknown.items()
            )
            notes.append(f"{what}: {words}.")
    if told.odd_labels:
        notes.append(
            f"{told.odd_labels} labels have a truncation other than 0..1 or an occlusion other than 0, 1, 2 or 3 (-1:"
            " unknown); they are compared as they stand."
        )
    without = int((det.alpha == NO_ALPHA).sum())
    if without:
        notes.append(f"No aos: {without} of {len(det.alpha)} detections have alpha {NO_ALPHA:g}, which means unknown.")
    classes: dict[str, ClassExplanation] = {}
    for name in result.rules.classes:
        labels, detections = gt.rows(gt_kind == name), det.rows(det_kind == name)
        zero: list[Metric] = [metric for metric in METRICS if max(result.ap(name, metric)) == 0]
        row = _explain_class(result, labels, detections, compare=bool(zero))
        neighbour = result.rules.neighbour.get(name, "")
        row = replace(row, neighbours=int((gt_kind == neighbour).sum()), neighbour=neighbour)
        classes[name] = row
        notes += _class_notes(name, row, zero, result)
    explanation = replace(result.explanation, classes=classes, notes=tuple(notes))
    return replace(result, explanation=explanation)


def _explain_class(result: Result, labels: Annotations, detections: Annotations, compare: bool) -> ClassExplanation:
    """Count the labels and detections of one class."""

    def by_difficulty(mask: Callable[[int], Bool[np.ndarray, " n"]]) -> Counts:
        easy, moderate, hard = (int(mask(level).sum()) for level in range(len(DIFFICULTIES)))
        return easy, moderate, hard

    scale = result.min_height_scale
    return ClassExplanation(
        labels=len(labels.frame),
        neighbours=0,
        counted=by_difficulty(lambda level: ~_too_hard(labels, level, scale, result.style)),
        too_small=by_difficulty(lambda level: _too_small(labels, level, scale, result.style)),
        occluded=by_difficulty(lambda level: labels.occlusion > MAX_OCCLUSION[level]),
        truncated=by_difficulty(lambda level: labels.truncation > MAX_TRUNCATION[level]),
        detections=len(detections.frame),
        small_detections=by_difficulty(lambda level: _is_small(detections, level, scale)),
        equal_scores=len(detections.frame) > 1 and bool(np.ptp(detections.score) == 0),
        nearest=_nearest(labels, detections) if compare else None,
    )


def _nearest(labels: Annotations, detections: Annotations) -> Nearest | None:
    """Compare each detection with the label nearest on the ground in its frame; None if no frame has both."""
    labels = labels.rows(labels.equal_runs()[0])
    d, g = frame_pairs(detections, labels)
    if len(d) == 0:
        return None
    offset = detections.xyz[d] - labels.xyz[g]
    distance = np.hypot(offset[:, 0], offset[:, 2])
    order = np.lexsort((distance, d))
    chosen = order[np.unique(d[order], return_index=True)[1]]
    d, g = d[chosen], g[chosen]
    bev, space = iou.bev_and_3d_iou(detections.box3d[d], labels.box3d[g])
    size_error = np.abs(detections.hwl[d] - labels.hwl[g]).sum(axis=1)
    reversed_size_error = np.abs(detections.hwl[d][:, ::-1] - labels.hwl[g]).sum(axis=1)
    return Nearest(
        detections=len(d),
        image_iou=float(np.median(iou.image_iou(detections.box2d[d], labels.box2d[g]))),
        bev_iou=float(np.median(bev)),
        iou_3d=float(np.median(space)),
        centre_distance=float(np.median(distance[chosen])),
        drop=float(np.median(offset[chosen, 1])),
        height=float(np.median(labels.hwl[g, 0])),
        size_error=float(np.median(size_error)),
        reversed_size_error=float(np.median(reversed_size_error)),
    )


def _class_notes(name: str, row: ClassExplanation, zero: list[Metric], result: Result) -> list[str]:
    """Sentences on one class, the reason for zeros first. zero: metrics whose AP is zero at every difficulty."""
    notes: list[str] = []
    absent = [metric for metric in zero if not result.evaluated[name, metric] and metric != "aos"]
    if absent and row.detections:
        notes.append(
            f"{name}: {', '.join(absent)} not evaluated, as no detection has such a box (x1 is negative, or the"
            f" position is the placeholder {NO_POSITION:g})."
        )
    metrics = ", ".join(metric for metric in zero if result.evaluated[name, metric])
    if zero and row.detections == 0:
        no_label = "no label is of this class and " if row.labels == 0 else ""
        notes.append(f"{name}: no AP (-), as {no_label}no detection has this name; the official program prints none.")
    elif zero and row.labels == 0:
        notes.append(f"{name}: AP is zero as no label is of this class.")
    elif zero and max(row.counted) == 0:
        notes.append(f"{name}: AP is zero as none of {row.labels} labels counts at any difficulty.")
    elif zero and min(row.small_detections) == row.detections:
        low = min(MIN_HEIGHT) * result.min_height_scale
        notes.append(f"{name}: AP is zero as all {row.detections} detections are lower than {low:g} px in the image.")
    elif metrics and row.nearest is None:
        notes.append(f"{name}: {metrics} zero, as no frame has both a label and a detection: do the frames agree?")
    elif metrics and row.nearest is not None:
        near = row.nearest
        notes.append(
            f"{name}: {metrics} zero. The median detection lies {near.centre_distance:.2f} m from the nearest label on"
            f" the ground; median IoU {near.image_iou:.2f} (image), {near.bev_iou:.2f} (BEV), {near.iou_3d:.2f} (3D)."
        )
        notes += _guesses(near)
    if row.detections and any(0 < count < RECALL_POINTS for count in row.counted):
        points = [min(max(count - 1, 0), RECALL_POINTS - 1) for count in row.counted]
        caps = "/".join(f"{100 * point / (RECALL_POINTS - 1):g}" for point in points)
        notes.append(
            f"{name}: with {_slashed(row.counted)} labels that count AP cannot exceed {caps} % (easy/moderate/hard), as"
            " each label gives at most one recall point and the first point is left out."
        )
    without_label = [level for level, count in zip(DIFFICULTIES, row.counted, strict=True) if count == 0]
    if without_label and max(row.counted) > 0:
        notes.append(f"{name}: AP is zero where no label counts: {', '.join(without_label)}.")
    if row.equal_scores:
        notes.append(
            f"{name}: all {row.detections} scores are equal, so precision is the same at every recall that is reached."
        )
    return notes


def _guesses(near: Nearest) -> list[str]:
    """What commonly makes boxes miss that lie at the right place."""
    guesses: list[str] = []
    if near.centre_distance < _SAME_OBJECT_METRES and near.height > 0:
        if abs(near.drop / near.height + 0.5) < _CENTRE_TOLERANCE:
            guesses.append("  They lie half a height too high: y must be the bottom of the box, not its centre.")
        if near.reversed_size_error < _SIZE_TOLERANCE_METRES < near.size_error:
            guesses.append("  The sizes fit in reverse order: a result line holds height, width, length.")
        if near.image_iou < _IMAGE_MISFIT:
            guesses.append("  The 3D boxes are in place, the image boxes are not: were they scaled to full size?")
    return guesses


def _name_counts(rows: Annotations, chosen: Bool[np.ndarray, " n"]) -> dict[str, int]:
    names, counts = np.unique(rows.name[chosen], return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}


def _suggestion(name: str, rules: Rules) -> str:
    nearest = difflib.get_close_matches(name.lower(), rules.known_names, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(rules.classes)}"


# ---------------------------------------------------------------------- folders


def evaluate_folders(
    labels: str | os.PathLike[str],
    predictions: str | os.PathLike[str],
    split: str | os.PathLike[str] | None = None,
    *,
    min_height_scale: float = 1.0,
    style: Style = "c++",
    rules: Rules = OFFICIAL,
) -> Result:
    """Evaluate a folder of result files against a folder of label files.

    labels: holds <frame>.txt with 15 fields a line. predictions: holds <frame>.txt with 16 fields a line, itself or in
    its subfolder data/; empty files are frames without detections. split: a file that lists frames, one a line; then
    every listed frame must have both files, and only those are evaluated. Without it the result files that are there
    are evaluated, as the official program does, and the explanation says how many label files had no result file.
    Other options as in `evaluate`.

    Raises:
        UserError: a missing folder or file, or a malformed line.
    """
    label_folder = Path(labels)
    labelled = set(names_below(label_folder, ENDING))
    wanted = None if split is None else read_split(Path(split))
    result_folder, names, with_result = _results(Path(predictions), labelled, wanted)
    frames = tuple(sorted(with_result) if wanted is None else wanted)
    for available, folder, what in ((names, result_folder, "result"), (labelled, label_folder, "label")):
        missing = sorted(set(frames) - available)
        if missing:
            hint = ": without a split only frames that have one count" if what == "result" else ""
            raise UserError(
                f"{len(missing)} of {len(frames)} frames have no {what} file in {folder}, the first is "
                f"{missing[0]}.txt{hint}"
            )
    result = evaluate(
        Annotations.from_folder(label_folder, scored=False, frames=frames),
        Annotations.from_folder(result_folder, scored=True, frames=frames),
        min_height_scale=min_height_scale,
        style=style,
        rules=rules,
    )
    explanation = replace(
        result.explanation,
        labels_without_results=tuple(sorted(labelled - with_result)) if split is None else (),
        results_outside_split=tuple(sorted(with_result - set(frames))),
        other_files=tuple(sorted(names - with_result)),
    )
    return replace(result, explanation=explanation)


def _results(folder: Path, labelled: set[str], wanted: Sequence[str] | None) -> tuple[Path, set[str], set[str]]:
    """Where the result files lie: in the folder itself, or in its subfolder data/ as in the official layout; the names
    of all text files there, and those of frames.

    Raises:
        UserError: there is none in either, or none of those that are ``wanted``.
    """
    for place in (folder, folder / "data"):
        names = set(names_below(place, ENDING)) if place == folder or os.path.isdir(place) else set()
        frames = _frames_among(names, labelled.union(wanted or ()))
        if not frames.isdisjoint(frames if wanted is None else wanted):
            return place, names, frames
    example = f"{wanted[0] if wanted else '000000'}{ENDING}"
    raise UserError(f"{folder} holds no result files such as {example}, neither itself nor in data/")


def run_eval_kitti(
    labels: Path, predictions: Path, split: Path | None, json: Path | None, min_height_scale: float | None,
    style: Style, classes: tuple[str, ...] = (), label_names: tuple[str, ...] = (), overlaps: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Evaluate folders, print table and explanation, write the JSON if asked.

    What is not given is as the training that wrote the predictions had it, if one did, or as the labels' data set says:
    ``min_height_scale``, else 1, and the classes.

    Raises:
        UserError: as `evaluate_folders`.
    """
    from rich.console import Console

    if json is not None:
        refuse_foreign(json)
    written_with = _about(predictions)
    known = names_of(labels.resolve().parent.parent, classes, label_names)
    if min_height_scale is None:
        min_height_scale = written_with.get(HEIGHT_SCALE, 1.0)
    rules = rules_of(known, overlaps or written_with.get(OVERLAPS, ()))
    result = evaluate_folders(labels, predictions, split, min_height_scale=min_height_scale, style=style, rules=rules)
    console = Console()
    if min_height_scale == written_with.get(HEIGHT_SCALE) != 1:
        said = f"min_height_scale {min_height_scale:g}, as {predictions / ABOUT} says: images of a reduced size."
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    console.print(result.table())
    console.print(result.explanation.text(), markup=False, highlight=False)
    if json is not None:
        write_output_text(json, jsonlib.dumps(result.to_json(), indent=1) + "\n")


class About(TypedDict, total=False):
    """What stands there."""

    min_height_scale: Annotated[float, msgspec.Meta(gt=0)]
    overlaps: list[str]


def about_predictions(min_height_scale: float, overlaps: Iterable[str]) -> str:
    """What stands beside predictions, in ``ABOUT``, for whoever evaluates them."""
    return jsonlib.dumps({HEIGHT_SCALE: min_height_scale, OVERLAPS: list(overlaps)}) + "\n"


def _about(predictions: Path) -> About:
    """What ``about_predictions`` wrote into a folder; nothing where it did not."""
    path = predictions / ABOUT
    if not path.is_file():
        return {}
    return checked(read_json(path), About, path)
