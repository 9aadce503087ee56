"""nuScenes object detection: mean average precision, five errors of the true positives, and the detection score NDS.

What the official program does with the configuration detection_cvpr_2019:

1. Filter both sides: the box's centre lies nearer than its class's range to the vehicle (on the ground, at the moment
   of the LiDAR scan); annotations without a LiDAR or radar point are dropped; so are bicycles and motorcycles whose
   centre lies in an annotated bicycle rack.
2. For each class and each of four distances, over all samples: predictions choose in order of score (of equal ones the
   later first). Each takes the nearest annotation of its class in its sample that is still free; it is a true positive
   exactly if that one's centre is nearer than the distance on the ground, otherwise a false positive.
3. Precision at 101 recalls by linear interpolation, without an envelope. AP is the mean, over recalls beyond 0.1, of
   what precision exceeds 0.1, divided by 0.9. The mean over distances and classes is mAP.
4. Errors of the true positives at 2 m, as running means along the descending scores, carried over to the 101 recalls
   and averaged beyond recall 0.1 up to the greatest recall reached; 1 where that is not reached.
5. NDS = (5 mAP + sum of max(0, 1 - mean error)) / 10.

Samples and classes are independent while they match, and so are the distances: all are matched at once.

Source: nutonomy/nuscenes-devkit python-sdk/nuscenes/eval/detection/{evaluate,algo,data_classes}.py and
eval/common/{loaders,utils}.py.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from distill3d.errors import UserError
from distill3d.evaluate.greedy import choose_in_turn
from distill3d.evaluate.iou import pairs_within_groups
from distill3d.evaluate.nuscenes_boxes import (
    ATTRIBUTES,
    CLASS_RANGE,
    CLASSES,
    MAX_BOXES,
    NO_ATTRIBUTE,
    DetectionBoxes,
    norm_of_rows,
    yaw_of,
)
from distill3d.evaluate.nuscenes_submission import read_submission
from distill3d.files import refuse_foreign, write_output_text
from distill3d.settings import Length, Number, Share, Side, Weight, is_in_range

if TYPE_CHECKING:  # the command line must start fast, and the maths needs neither tables nor a terminal
    from rich.table import Table

    from distill3d.data.nuscenes.tables import Tables

#: Errors of true positives: translation (m), scale (1 - IoU), orientation (rad), velocity (m/s), attribute (share).
TP_ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
#: A cone looks the same from all sides, a barrier from two; neither moves nor has an attribute.
UNDEFINED_ERRORS = {"traffic_cone": ("orient_err", "vel_err", "attr_err"), "barrier": ("vel_err", "attr_err")}
HALF_TURN_CLASSES = ("barrier",)
RACKED_CLASSES = ("bicycle", "motorcycle")
RACK_CATEGORY = "static_object.bicycle_rack"
RECALL_POINTS = 101

_PAIRS_AT_ONCE = 1 << 20  # bounds memory: some 60 MB of candidate pairs


@dataclass(frozen=True)
class DetectionConfig:
    """Constants of the metric; by default the official detection_cvpr_2019.

    Raises:
        UserError: the errors' distance is none of the distances.
    """

    class_range: dict[str, Length] = field(default_factory=CLASS_RANGE.copy)  # m
    distances: tuple[Side, ...] = (0.5, 1.0, 2.0, 4.0)  # m, between centres on the ground
    tp_distance: Side = 2.0  # m, the distance at which true positives' errors are measured
    min_recall: Share = 0.1
    min_precision: Share = 0.1
    max_boxes: Number = MAX_BOXES  # predictions in a sample
    map_weight: Weight = 5  # of mAP in NDS; each of the five errors weighs 1

    def __post_init__(self) -> None:
        if is_in_range(self) and self.tp_distance not in self.distances:
            raise UserError(f"tp_distance must be one of {self.distances}, not {self.tp_distance}")

    @property
    def first_point(self) -> int:
        """The first recall point that counts."""
        return round((RECALL_POINTS - 1) * self.min_recall) + 1


OFFICIAL = DetectionConfig()


# ------------------------------------------------------------------------------------------------------------- boxes


@dataclass(frozen=True)
class BicycleRacks:
    """R annotated bicycle racks of the same samples as the boxes."""

    sample: Int[np.ndarray, " r"]  # as ``DetectionBoxes.sample``
    pose: Float[np.ndarray, "r 4 4"]  # rack to global frame; the origin is the rack's centre
    wlh: Float[np.ndarray, "r 3"]  # m, (width, length, height)

    def __getitem__(self, index: np.ndarray) -> BicycleRacks:
        """The chosen racks (mask or indices)."""
        return BicycleRacks(self.sample[index], self.pose[index], self.wlh[index])


@dataclass(frozen=True)
class GroundTruth:
    """What the metric needs of the annotated samples."""

    boxes: DetectionBoxes
    racks: BicycleRacks
    ego_position: Float[np.ndarray, "s 3"]  # m, the vehicle at each sample's LiDAR scan, global frame


def ground_truth(tables: Tables, tokens: Sequence[str]) -> GroundTruth:
    """The annotations of the named samples that belong to the ten classes, in the samples' given order.

    Raises:
        UserError: an unknown sample, one without a LiDAR scan, tables without annotations or with an unknown attribute,
            or an object with more than one.
    """
    from distill3d.data.nuscenes.dataset import CLASS_OF_CATEGORY, LIDAR
    from distill3d.data.nuscenes.tables import pose_matrices

    if not tables.annotated:
        raise UserError(f"{tables.folder} has no annotations, so there is nothing to evaluate against")
    samples = [tables.sample_row(token) for token in tokens]
    ego_position = np.empty((len(samples), 3))
    for i, sample in enumerate(samples):
        scan = tables.key_data(sample).get(LIDAR)
        if scan is None:
            raise UserError(f"{tables.folder}: sample {tokens[i]} has no {LIDAR}, at whose scan distances are measured")
        ego_position[i] = tables.ego_poses.translation[tables.sample_data.ego_pose[scan]]

    spans = [tables.annotations_of(sample) for sample in samples]
    rows = np.concatenate([np.arange(span.start, span.stop) for span in spans] or [np.empty(0, dtype=np.int64)])
    index = np.repeat(np.arange(len(spans)), [span.stop - span.start for span in spans])
    table = tables.annotations
    category = table.category[rows]

    label_of = [CLASSES.index(CLASS_OF_CATEGORY[c]) if c in CLASS_OF_CATEGORY else -1 for c in tables.categories]
    label = np.array(label_of, dtype=np.int64)[category]
    known = label >= 0
    kept = rows[known]
    several = kept[table.attribute_count[kept] > 1]
    if len(several):
        token = bytes(table.token[several[0]]).decode()
        raise UserError(f"{tables.folder}: annotation {token} has several attributes, expected at most one")
    unknown = [name for name in tables.attributes if name not in ATTRIBUTES]
    if unknown:
        raise UserError(f"{tables.folder} has the attribute {unknown[0]!r}, known are {', '.join(ATTRIBUTES)}")
    # The last entry stands for none: tables count attributes from 0 and write none as -1.
    attribute_of = np.array([ATTRIBUTES.index(name) for name in tables.attributes] + [NO_ATTRIBUTE])
    boxes = DetectionBoxes(
        samples=tuple(tokens),
        classes=CLASSES,
        sample=index[known],
        label=label[known],
        translation=table.translation[kept],
        wlh=table.wlh[kept],
        yaw=yaw_of(table.rotation[kept]),
        velocity=tables.velocities()[kept, :2],
        score=np.full(len(kept), -1.0),
        attribute=attribute_of[table.attribute[kept]],
        num_pts=table.num_lidar_pts[kept] + table.num_radar_pts[kept],
        ego_distance=np.empty(len(kept)),
    ).seen_from(ego_position)
    is_rack = np.array([name == RACK_CATEGORY for name in tables.categories])[category]
    racks = rows[is_rack]
    poses = pose_matrices(table.translation[racks], table.rotation[racks])
    return GroundTruth(boxes, BicycleRacks(index[is_rack], poses, table.wlh[racks]), ego_position)


# ----------------------------------------------------------------------------------------------------------- filters


@dataclass(frozen=True)
class Counts:
    """How many boxes were left after each filter."""

    given: int
    in_range: int
    with_points: int  # of annotations; predictions have no number of points and all stay
    outside_racks: int


def in_racks(boxes: DetectionBoxes, racks: BicycleRacks) -> Bool[np.ndarray, " n"]:
    """Which boxes' centres lie in a rack of their sample, its faces included."""
    boxes_order = np.argsort(boxes.sample, kind="stable")
    racks = racks[np.argsort(racks.sample, kind="stable")]
    b, r = pairs_within_groups(boxes.sample[boxes_order], racks.sample, len(boxes.samples))
    b = boxes_order[b]
    offset = boxes.translation[b] - racks.pose[r, :3, 3]
    local = np.einsum("pik,pi->pk", racks.pose[r, :3, :3], offset)  # column k of a pose is the rack's k-th axis
    inside = (np.abs(local) <= racks.wlh[r][:, [1, 0, 2]] / 2).all(axis=1)  # the length lies along x
    result = np.zeros(len(boxes), dtype=bool)
    result[b[inside]] = True
    return result


def filtered(
    boxes: DetectionBoxes, racks: BicycleRacks | None, config: DetectionConfig = OFFICIAL
) -> tuple[DetectionBoxes, Counts]:
    """The boxes that count: of a class that has a range, nearer than that range, with points, outside bicycle racks."""
    ranges = np.array([config.class_range.get(name, 0.0) for name in boxes.classes])
    near = boxes[boxes.ego_distance < ranges[boxes.label]]
    seen = near[near.num_pts != 0]
    free = seen
    if racks is not None:
        racked_labels = [label for label, name in enumerate(boxes.classes) if name in RACKED_CLASSES]
        cycles = np.flatnonzero(np.isin(seen.label, racked_labels))
        stays = np.ones(len(seen), dtype=bool)
        stays[cycles] = ~in_racks(seen[cycles], racks)
        free = seen[stays]
    return free, Counts(len(boxes), len(near), len(seen), len(free))


# ------------------------------------------------------------------------------------------------------------ result


@dataclass(frozen=True)
class NuScenesResult:
    """Average precisions and errors of K classes at T distances."""

    classes: tuple[str, ...]
    config: DetectionConfig
    samples: int
    precision: Float[np.ndarray, "k t 101"]  # at recall 0, 0.01, ..., 1
    ap: Float[np.ndarray, "k t"]
    errors: Float[np.ndarray, "k 5"]  # in the order of TP_ERRORS; NaN where a class has none
    ground_truth: Counts
    predictions: Counts
    kept: dict[str, tuple[int, int]]  # class -> annotations and predictions that count
    bike_racks: bool  # whether boxes in bicycle racks were dropped
    notes: tuple[str, ...]  # what a reader of the numbers must know

    @property
    def official(self) -> bool:
        """Whether classes, constants and filters are those of the official metric."""
        return set(self.classes) == set(CLASSES) and self.config == OFFICIAL and self.bike_racks

    @property
    def mean_ap(self) -> float:
        """mAP, 0..1."""
        return float(self.ap.mean(axis=1).mean())

    @property
    def mean_errors(self) -> dict[str, float]:
        """Mean over the classes that have the error; NaN where none of the chosen classes has."""
        means: dict[str, float] = {}
        for name, column in zip(TP_ERRORS, self.errors.T, strict=True):
            defined = column[~np.isnan(column)]
            means[name] = float(defined.mean()) if len(defined) else float("nan")
        return means

    @property
    def scores(self) -> dict[str, float]:
        """1 - mean error, at least 0; an error that no chosen class has scores 0, as in the official program."""
        return {name: max(0.0, 1 - error) for name, error in self.mean_errors.items()}

    @property
    def nds(self) -> float:
        """nuScenes detection score, 0..1."""
        weight = self.config.map_weight
        return (weight * self.mean_ap + sum(self.scores.values())) / (weight + len(TP_ERRORS))

    def to_json(self) -> dict[str, Any]:
        """The numbers under the official program's names (metrics_summary.json), null for NaN, and how they arose."""

        def plain(value: float) -> float | None:
            return None if np.isnan(value) else float(value)

        distances = [str(float(distance)) for distance in self.config.distances]
        rows = list(zip(self.classes, self.ap, self.errors, self.precision, strict=True))
        return {
            "mean_ap": self.mean_ap,
            "nd_score": self.nds,
            "tp_errors": {name: plain(error) for name, error in self.mean_errors.items()},
            "tp_scores": self.scores,
            "mean_dist_aps": {name: float(ap.mean()) for name, ap, _, _ in rows},
            "label_aps": {name: dict(zip(distances, ap.tolist(), strict=True)) for name, ap, _, _ in rows},
            "label_tp_errors": {
                name: dict(zip(TP_ERRORS, map(plain, errors), strict=True)) for name, _, errors, _ in rows
            },
            "precision101": {
                name: dict(zip(distances, curves.tolist(), strict=True)) for name, _, _, curves in rows
            },
            "counts": {"ground_truth": asdict(self.ground_truth), "predictions": asdict(self.predictions)},
            "kept_per_class": {name: list(pair) for name, pair in self.kept.items()},
            "settings": {
                **asdict(self.config),
                "samples": self.samples,
                "classes": list(self.classes),
                "bike_racks": self.bike_racks,
                "official": self.official,
            },
            "notes": list(self.notes),
        }  # fmt: skip

    def table(self) -> Table:
        """All but the curves as a table for the terminal."""
        from rich.table import Table

        title = f"nuScenes detection, {self.samples} samples: mAP {self.mean_ap:.4f}, NDS {self.nds:.4f}"
        table = Table("class", title=title if self.official else f"{title} (not official)")
        distances = [f"AP {distance:g} m" for distance in self.config.distances]
        for heading in (*distances, "AP", "ATE m", "ASE", "AOE rad", "AVE m/s", "AAE"):
            table.add_column(heading, justify="right")

        def cells(ap: np.ndarray, errors: Sequence[float]) -> list[str]:
            return [f"{v:.4f}" for v in (*ap, ap.mean())] + ["-" if np.isnan(v) else f"{v:.4f}" for v in errors]

        for name, ap, errors in zip(self.classes, self.ap, self.errors, strict=True):
            table.add_row(name, *cells(ap, errors.tolist()))
        table.add_section()
        table.add_row("mean", *cells(self.ap.mean(axis=0), list(self.mean_errors.values())))
        return table


# --------------------------------------------------------------------------------------------------------- algorithm


def evaluate(
    truth: DetectionBoxes,
    predictions: DetectionBoxes,
    *,
    racks: BicycleRacks | None = None,
    classes: Sequence[str] | None = None,
    config: DetectionConfig = OFFICIAL,
) -> NuScenesResult:
    """Evaluate predictions in memory.

    Args:
        truth: annotations.
        predictions: of the same samples, numbered alike.
        racks: the samples' bicycle racks; None leaves boxes in racks in, and the result says so.
        classes: those to evaluate, by default all that have a range; other than the official ten, the result says so.
        config: constants.

    Raises:
        UserError: a class without a range, none, or one named twice.
        ValueError: other samples or classes on one side than on the other, or boxes without a distance to the vehicle.
    """
    names = tuple(config.class_range) if classes is None else tuple(classes)
    unknown = [name for name in names if name not in config.class_range]
    if unknown:
        raise UserError(f"{unknown[0]!r} is no class of the evaluation, known are {', '.join(config.class_range)}")
    if not names or len(set(names)) < len(names):
        raise UserError(f"the classes to evaluate must be one or more different ones, not {', '.join(names) or 'none'}")
    if truth.samples != predictions.samples or truth.classes != predictions.classes:
        raise ValueError("annotations and predictions must number the same samples and classes")
    if np.isnan(truth.ego_distance).any() or np.isnan(predictions.ego_distance).any():
        raise ValueError("every box needs its distance from the vehicle, see DetectionBoxes.seen_from")

    labels = [truth.classes.index(name) if name in truth.classes else -1 for name in names]
    gt, gt_counts = filtered(truth[np.isin(truth.label, labels)], racks, config)
    det, det_counts = filtered(predictions[np.isin(predictions.label, labels)], racks, config)
    hits = match_at_distances(gt, det, config)
    partner = hits[:, config.distances.index(config.tp_distance)]

    precision = np.zeros((len(names), len(config.distances), RECALL_POINTS))
    errors = np.empty((len(names), len(TP_ERRORS)))
    notes = _setting_notes(names, racks, config, len(predictions))
    kept: dict[str, tuple[int, int]] = {}
    for k, (name, label) in enumerate(zip(names, labels, strict=True)):
        rows = np.flatnonzero(det.label == label)
        rows = rows[_by_descending_score(det.score[rows])]
        annotations = int((gt.label == label).sum())
        kept[name] = annotations, len(rows)
        for t in range(len(config.distances)):
            precision[k, t] = _precision(hits[rows, t] >= 0, annotations)
        matched = rows[partner[rows] >= 0]
        confidence = _confidence(partner[rows] >= 0, det.score[rows], annotations)
        measured = _pair_errors(name, gt[partner[matched]], det[matched])
        errors[k] = [_class_error(measured[error], det.score[matched], confidence, config) for error in TP_ERRORS]
        errors[k, [TP_ERRORS.index(error) for error in UNDEFINED_ERRORS.get(name, ())]] = np.nan
        notes += _class_notes(name, annotations, measured)
    beyond = precision[:, :, config.first_point :] - config.min_precision
    return NuScenesResult(
        classes=names,
        config=config,
        samples=len(truth.samples),
        precision=precision,
        ap=np.maximum(beyond, 0).mean(axis=-1) / (1 - config.min_precision),
        errors=errors,
        ground_truth=gt_counts,
        predictions=det_counts,
        kept=kept,
        bike_racks=racks is not None,
        notes=tuple(notes),
    )


def _by_descending_score(score: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Rows by descending score; of equal ones the later first, as the official program sorts them."""
    return np.argsort(score, kind="stable")[::-1]


def match_at_distances(
    gt: DetectionBoxes, det: DetectionBoxes, config: DetectionConfig = OFFICIAL
) -> Int[np.ndarray, "d t"]:
    """The annotation's row that each of D predictions is matched to at each of T distances, -1 for none."""
    matched = np.full((len(det), len(config.distances)), -1)
    gt_group = gt.sample * len(gt.classes) + gt.label
    det_group = det.sample * len(det.classes) + det.label
    gt_order = np.argsort(gt_group, kind="stable")
    det_order = _by_descending_score(det.score)
    det_order = det_order[np.argsort(det_group[det_order], kind="stable")]
    pairs = list(
        near_pairs(
            gt.translation[gt_order, :2], gt_group[gt_order], det.translation[det_order, :2], det_group[det_order],
            reach=max(config.distances), groups=len(gt.samples) * len(gt.classes),
        )
    )  # fmt: skip
    if not pairs:
        return matched
    d, g, distance = (np.concatenate(column) for column in zip(*pairs, strict=True))
    taken = choose_in_turn(det_group[det_order[d]], d, g, distance[:, None] < np.array(config.distances))
    for t in range(len(config.distances)):
        matched[det_order[d[taken[:, t]]], t] = gt_order[g[taken[:, t]]]
    return matched


def near_pairs(
    gt_xy: Float[np.ndarray, "g 2"], gt_group: Int[np.ndarray, " g"],
    det_xy: Float[np.ndarray, "d 2"], det_group: Int[np.ndarray, " d"], reach: float, groups: int,
) -> Iterator[tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"], Float[np.ndarray, " p"]]]:  # fmt: skip
    """Prediction, annotation and distance of all pairs of a group nearer than ``reach`` (m).

    Both sides are sorted by group. Pairs come in order of the prediction, then of distance, then of the annotation.
    """
    pairs_before = np.cumsum(np.bincount(gt_group, minlength=groups)[det_group])
    total = int(pairs_before[-1]) if len(pairs_before) else 0
    cuts = np.unique(np.searchsorted(pairs_before, np.arange(0, total, _PAIRS_AT_ONCE)[1:]))
    for start, stop in zip([0, *cuts], [*cuts, len(det_group)], strict=True):
        d, g = pairs_within_groups(det_group[start:stop], gt_group, groups)
        d += start
        distance = norm_of_rows(det_xy[d] - gt_xy[g])
        near = distance < reach
        d, g, distance = d[near], g[near], distance[near]
        order = np.lexsort((distance, d))
        yield d[order], g[order], distance[order]


def _precision(hit: Bool[np.ndarray, " d"], annotations: int) -> Float[np.ndarray, " 101"]:
    """Precision at the recall points, of predictions in order of score; zeros where nothing was hit."""
    if not hit.any():
        return np.zeros(RECALL_POINTS)
    true_positives = np.cumsum(hit)
    values = true_positives / np.arange(1, len(hit) + 1)
    return np.interp(_RECALLS, true_positives / annotations, values, right=0)


def _confidence(
    hit: Bool[np.ndarray, " d"], score: Float[np.ndarray, " d"], annotations: int
) -> Float[np.ndarray, " 101"]:
    """The score at which each recall point is reached, 0 where it is not."""
    if not hit.any():
        return np.zeros(RECALL_POINTS)
    return np.interp(_RECALLS, np.cumsum(hit) / annotations, score, right=0)


_RECALLS = np.linspace(0, 1, RECALL_POINTS)


def _pair_errors(name: str, gt: DetectionBoxes, det: DetectionBoxes) -> dict[str, Float[np.ndarray, " m"]]:
    """Errors of M predictions of one class against the annotations they were matched to; NaN where unknown."""
    smallest = np.minimum(gt.wlh, det.wlh).prod(axis=1)  # shared volume, centres and headings laid together
    union = gt.wlh.prod(axis=1) + det.wlh.prod(axis=1) - smallest
    period = np.pi if name in HALF_TURN_CLASSES else 2 * np.pi
    turn = np.remainder(gt.yaw - det.yaw + period / 2, period) - period / 2
    return {
        "trans_err": norm_of_rows(det.translation[:, :2] - gt.translation[:, :2]),
        "scale_err": 1 - smallest / union,
        "orient_err": np.abs(turn),
        "vel_err": norm_of_rows(det.velocity - gt.velocity),
        "attr_err": np.where(gt.attribute == NO_ATTRIBUTE, np.nan, gt.attribute != det.attribute),
    }


def _class_error(
    values: Float[np.ndarray, " m"],
    score: Float[np.ndarray, " m"],
    confidence: Float[np.ndarray, " 101"],
    config: DetectionConfig,
) -> float:
    """Mean of one error over the recall points from the first that counts to the last that is reached; else 1.

    values, score: of M matches in order of score. confidence: (101,) from `_confidence`.
    """
    reached = np.flatnonzero(confidence)
    if len(reached) == 0 or reached[-1] < config.first_point:
        return 1.0
    means = cumulative_mean(values)
    curve = np.interp(confidence[::-1], score[::-1], means[::-1])[::-1]
    return float(curve[config.first_point : reached[-1] + 1].mean())


def cumulative_mean(values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Mean of the values up to each, NaN left out: 0 before the first that is known, ones where none is."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    return np.nancumsum(values) / np.maximum(np.cumsum(known), 1)


def _setting_notes(
    names: tuple[str, ...], racks: BicycleRacks | None, config: DetectionConfig, predictions: int
) -> list[str]:
    """Sentences on what was evaluated."""
    notes: list[str] = []
    if set(names) != set(CLASSES):
        notes.append(f"Not the official mAP and NDS, which are over ten classes: these are over {', '.join(names)}.")
    if config != OFFICIAL:
        notes.append("Not the official mAP and NDS, as constants differ from detection_cvpr_2019.")
    if racks is None:
        notes.append("Bicycle racks are not known: bicycles and motorcycles in them count, unlike officially.")
    if predictions == 0:
        notes.append("No sample has a prediction: AP is 0 and errors are 1, where the official program just stops.")
    return notes


def _class_notes(name: str, annotations: int, measured: dict[str, np.ndarray]) -> list[str]:
    """Sentences on one class's numbers that are not what they seem."""
    if annotations == 0:
        return [f"{name}: no annotation counts, so AP is 0 and errors are 1 by definition."]
    unknown = [
        error
        for error, values in measured.items()
        if error not in UNDEFINED_ERRORS.get(name, ()) and len(values) and np.isnan(values).all()
    ]
    return [f"{name}: {error} is 1, as no matched annotation has such a value." for error in unknown]


# ------------------------------------------------------------------------------------------------------ command line


def evaluated_tokens(tables: Tables, data_root: Path, split: str | Path | None) -> list[str]:
    """Tokens of the samples to evaluate.

    split: the name of a split, as the data set takes it; a file with sample tokens or scene names, one a line; or None
    for all samples of the tables.

    Raises:
        UserError: there is no such split, or the file names something that the tables do not have.
    """
    from distill3d.data.nuscenes.dataset import chosen_samples, split_or_file

    return [tables.sample_token(row) for row in chosen_samples(tables, data_root, split_or_file(split))]


def run_eval_nuscenes(
    data_root: Path,
    version: str,
    predictions: Path,
    split: str | Path | None,
    json: Path | None,
    classes: Sequence[str] | None = None,
) -> None:
    """Evaluate a submission file, print table and notes, write the JSON if asked.

    Args:
        data_root: holds the folder ``version`` with the tables.
        version: as "v1.0-trainval".
        predictions: submission file.
        split: as in `evaluated_tokens`; the file must hold exactly its samples.
        json: where to write the numbers.
        classes: as in `evaluate`.

    Raises:
        UserError: a file is absent or malformed, or the submission does not hold exactly the samples to evaluate.
    """
    from rich.console import Console

    from distill3d.data.nuscenes.tables import load_tables

    if json is not None:
        refuse_foreign(json)
    tables = load_tables(data_root, version)
    truth = ground_truth(tables, evaluated_tokens(tables, data_root, split))
    boxes = read_submission(predictions, truth.boxes.samples).seen_from(truth.ego_position)
    result = evaluate(truth.boxes, boxes, racks=truth.racks, classes=classes)
    console = Console()
    console.print(result.table())
    for note in result.notes:
        console.print(note, markup=False, highlight=False)
    if json is not None:
        write_output_text(json, jsonlib.dumps(result.to_json(), indent=1) + "\n")
