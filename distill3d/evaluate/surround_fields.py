"""Which field of a student's boxes around a vehicle is better than its baseline's: place, size, heading, velocity?

As ``evaluate.fields`` asks it of one camera (Ma et al., CVPR 2021, arXiv:2103.16237: one field of every predicted box
is replaced, the rest stays, and AP is measured anew), here with nuScenes' metric.  A box is split into

* ``distance``: r, from the vehicle on the ground.  The box moves along its line of sight: its direction stays.
* ``direction``: the bearing b about the vehicle, and the height above the ground.  The distance stays.
* ``size``: width, length, height about the same centre.
* ``heading``: yaw.
* ``velocity``, ``attribute``.
* ``score``: the order of the boxes, as in ``evaluate.fields``.

With the vehicle at o the centre is o + r (cos b, sin b).  AP asks for places, classes and scores alone; size, heading,
velocity and attribute move nothing but NDS, by the errors of the true positives.  Matched are the nearest centres of
one class; those that show one thing may be up to ``REACH`` apart.

Effects are not additive, see there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from distill3d.evaluate.fields import Exchange, Spread, Swaps, dealt_in_order, inverted, partners_of, spread_of
from distill3d.evaluate.greedy import match_in_order
from distill3d.evaluate.matching import MISSED
from distill3d.evaluate.nuscenes import HALF_TURN_CLASSES, OFFICIAL, UNDEFINED_ERRORS, GroundTruth, evaluate, near_pairs
from distill3d.evaluate.nuscenes_boxes import DetectionBoxes
from distill3d.evaluate.surround_transfer import SurroundFound, SurroundLabelled, as_predictions, counted_objects

SurroundField = Literal["distance", "direction", "size", "heading", "velocity", "attribute", "score"]
SURROUND_FIELDS: tuple[SurroundField, ...] = get_args(SurroundField)
#: Where the box stands.
PLACE: tuple[SurroundField, ...] = ("distance", "direction")
#: What is replaced at a time: each field alone, the place as a whole, all.
REPLACED: tuple[tuple[SurroundField, ...], ...] = (*((one,) for one in SURROUND_FIELDS), PLACE, SURROUND_FIELDS)
#: What is measured beside the AP of each class; percent, as that.
SCORES = ("NDS", "mAP")
#: m: the widest distance at which the metric matches.
REACH = max(OFFICIAL.distances)

#: Errors of found objects, with their units.  ``across`` is the distance times the angle between the lines of sight.
#: ``heading`` is that of the box's axis, 0 to 90; half a turn is counted as ``flipped`` instead.
SURROUND_UNITS = {
    "along": "m", "across": "m", "vertical": "m", "width": "m", "length": "m", "height": "m", "heading": "degrees",
    "velocity": "m/s",
}  # fmt: skip

Scores = dict[str, float]


@dataclass(frozen=True)
class SurroundErrors:
    """How far the boxes of one detector are off, field by field."""

    compared: int  # objects that the errors are of
    errors: dict[str, Spread]  # absolute, by the names in SURROUND_UNITS; NaN where no object has such a value
    flipped: float  # share of the compared whose heading is off by more than 90 degrees; NaN without any


# --------------------------------------------------------------------------------------------------------------- errors


def errors_by_class(
    objects: SurroundLabelled, parts: dict[str, SurroundFound], classes: Sequence[str]
) -> dict[str, dict[str, SurroundErrors]]:
    """Of each class, and of ``all``, the errors of each part, over the objects that all of the parts found.

    Headings of cones and velocities of cones and barriers do not count, as in the official evaluation.
    """
    common = np.all([part.found for part in parts.values()], axis=0)
    rows = np.flatnonzero(common)
    of_part = {name: _errors(objects, part, rows) for name, part in parts.items()}
    name = objects.name[rows]
    chosen = {"all": np.ones(len(rows), dtype=bool)} | {one: name == one for one in classes}
    return {
        kind: {part: _summed_up(errors, members) for part, errors in of_part.items()}
        for kind, members in chosen.items()
    }


def _summed_up(errors: dict[str, Float[np.ndarray, " n"]], members: np.ndarray) -> SurroundErrors:
    known = {name: values[members][np.isfinite(values[members])] for name, values in errors.items()}
    flipped = known.pop("flipped")
    return SurroundErrors(
        int(members.sum()),
        {name: spread_of(values) for name, values in known.items()},
        float(flipped.mean()) if len(flipped) else float("nan"),
    )


def _errors(
    objects: SurroundLabelled, part: SurroundFound, rows: Int[np.ndarray, " n"]
) -> dict[str, Float[np.ndarray, " n"]]:
    """Absolute errors by the names in SURROUND_UNITS and, as ``flipped``, 1 where a heading is off by more than a
    quarter turn; NaN where there is no such value."""
    said, true = part.at(rows), objects.boxes[rows]
    (r, b), (true_r, true_b) = (_polar(boxes, objects.ego_position) for boxes in (said, true))
    turn = np.abs(np.degrees(_wrapped(said.yaw - true.yaw)))
    axis = np.minimum(turn, 180 - turn)
    name = np.array(true.classes)[true.label]
    still, round_ = (
        np.isin(name, [one for one, errors in UNDEFINED_ERRORS.items() if error in errors])
        for error in ("vel_err", "orient_err")
    )
    size = np.abs(said.wlh - true.wlh)
    return {
        "along": np.abs(r - true_r),
        "across": true_r * np.abs(_wrapped(b - true_b)),
        "vertical": np.abs(said.translation[:, 2] - true.translation[:, 2]),
        **dict(zip(("width", "length", "height"), size.T, strict=True)),
        "heading": np.where(round_, np.nan, axis),
        "velocity": np.where(still, np.nan, np.linalg.norm(said.velocity - true.velocity, axis=1)),
        "flipped": np.where(round_ | np.isin(name, HALF_TURN_CLASSES), np.nan, turn > 90),
    }


def _polar(
    boxes: DetectionBoxes, ego_position: Float[np.ndarray, "s 3"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Distance (m) and bearing (rad, in the world) from the vehicle."""
    x, y = (boxes.translation[:, :2] - ego_position[boxes.sample, :2]).T
    return np.hypot(x, y), np.arctan2(y, x)


def _wrapped(angle: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.remainder(angle + np.pi, 2 * np.pi) - np.pi


# ---------------------------------------------------------------------------------------------------------------- swaps


def match_around(one: DetectionBoxes, other: DetectionBoxes, reach: float = REACH) -> Int[np.ndarray, " n"]:
    """The row in ``other`` of the box that shows the same thing as each of N boxes, or ``MISSED``.

    Within a sample and a class the nearest centres on the ground come first; each box is used at most once, and none
    ``reach`` (m) or farther away.  Neither side chooses, so the match read backwards is that of the sets exchanged (but
    for equal distances: first in the file).

    Raises:
        ValueError: other samples or classes in one than in the other.
    """
    if one.samples != other.samples or one.classes != other.classes:
        raise ValueError("both sets of boxes must number the same samples and classes")
    group, other_group = (boxes.sample * len(one.classes) + boxes.label for boxes in (one, other))
    order, other_order = np.argsort(group, kind="stable"), np.argsort(other_group, kind="stable")
    pairs = list(
        near_pairs(
            other.translation[other_order, :2], other_group[other_order], one.translation[order, :2], group[order],
            reach=reach, groups=len(one.samples) * len(one.classes),
        )
    )  # fmt: skip
    if not pairs:
        return np.full(len(one), MISSED)
    a, b, distance = (np.concatenate(column) for column in zip(*pairs, strict=True))
    a, b = order[a], other_order[b]
    nearest = np.lexsort((b, a, distance, group[a]))
    a, b = a[nearest], b[nearest]
    taken = match_in_order(group[a], a, b, np.ones((len(a), 1), dtype=bool))[:, 0]
    return partners_of(a[taken], b[taken], len(one))


def swapped_around(
    boxes: DetectionBoxes, other: DetectionBoxes, match: Int[np.ndarray, " n"], fields: Collection[SurroundField],
    ego_position: Float[np.ndarray, "s 3"],
) -> DetectionBoxes:  # fmt: skip
    """N boxes with the given fields taken from those that they are matched to; what each field is stands on top.

    match: (N,) row in ``other``, or ``MISSED``: such a box stays as it is.  ego_position: of the vehicle in each of the
    S samples, m.  Distances from the vehicle are those of the new places.
    """
    rows = np.flatnonzero(match != MISSED)
    own, new = boxes[rows], other[match[rows]]
    changed: dict[str, np.ndarray] = {}
    if {"distance", "direction"} & set(fields):
        (r, b), (new_r, new_b) = (_polar(one, ego_position) for one in (own, new))
        place = own.translation.copy()
        # As a difference, so that what is replaced by itself stays the same to the last bit.
        before = _from_polar(r, b)
        after = _from_polar(new_r if "distance" in fields else r, new_b if "direction" in fields else b)
        place[:, :2] += after - before
        if "direction" in fields:
            place[:, 2] = new.translation[:, 2]
        changed["translation"] = place
    columns = {"size": "wlh", "heading": "yaw", "velocity": "velocity", "attribute": "attribute"}
    changed |= {column: getattr(new, column) for field, column in columns.items() if field in fields}
    if "score" in fields:
        changed["score"] = dealt_in_order(new.score, own.score, own.label)
    result = {name: getattr(boxes, name).copy() for name in changed}
    for name, values in changed.items():
        result[name][rows] = values
    return replace(boxes, **result).seen_from(ego_position)


def _from_polar(r: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 2"]:
    return np.stack((r * np.cos(b), r * np.sin(b)), axis=1)


def perfect_around(objects: DetectionBoxes, boxes: DetectionBoxes) -> tuple[DetectionBoxes, Int[np.ndarray, " n"]]:
    """What a perfect detector would say of the same N boxes, to be swapped in, and which of them it says it of.

    A box that belongs to an object (``match_around``) gets the object's values, and for a score minus the distance
    between the two: the order in which perfect confidence ranks the boxes as they are.  All others keep their values,
    and come after these in their own order.  The match is (N,) the row itself, as all boxes take part in the order.
    """
    match = match_around(boxes, objects)
    rows = np.flatnonzero(match != MISSED)
    true = objects[match[rows]]
    apart = np.linalg.norm(boxes.translation[rows, :2] - true.translation[:, :2], axis=1)
    score = boxes.score - boxes.score.max(initial=0.0) - 1 - REACH
    columns = {name: getattr(boxes, name).copy() for name in ("translation", "wlh", "yaw", "velocity", "attribute")}
    for name, values in columns.items():
        values[rows] = getattr(true, name)
    score[rows] = -apart
    return replace(boxes, score=score, **columns), np.arange(len(boxes))


# ---------------------------------------------------------------------------------------------------------- attribution


def attribution_around(
    truth: GroundTruth, baseline: DetectionBoxes, student: DetectionBoxes, classes: Sequence[str]
) -> Exchange[SurroundField, str]:
    """NDS, mAP and the AP of each class, in percent, with each field exchanged alone, with the place, with all of them,
    and of the whole sets: both ways, and against the objects.

    baseline, student: boxes of any score in the global frame.  The gains are not additive, nor do they prove a cause,
    see ``evaluate.fields.attribution``.  The headroom's ``end`` is of the objects themselves.

    Raises:
        ValueError: other samples or classes in one than in the others.
    """
    ego = truth.ego_position
    baseline, student = baseline.seen_from(ego), student.seen_from(ego)
    objects = counted_objects(truth, classes)
    match = match_around(baseline, student)
    perfect, itself = perfect_around(objects.boxes, baseline)
    start, end = (scores_of(truth, boxes, classes) for boxes in (baseline, student))

    def swaps(
        boxes: DetectionBoxes, other: DetectionBoxes, match: Int[np.ndarray, " n"], start: Scores, end: Scores
    ) -> Swaps[SurroundField, str]:
        replaced = {
            fields: scores_of(truth, swapped_around(boxes, other, match, fields, ego), classes) for fields in REPLACED
        }
        return Swaps(start, replaced, end, len(match), int((match != MISSED).sum()), len(other))

    return Exchange(
        forward=swaps(baseline, student, match, start, end),
        backward=swaps(student, baseline, inverted(match, len(student)), end, start),
        oracle=swaps(baseline, perfect, itself, start, scores_of(truth, as_predictions(objects), classes)),
    )


def scores_of(truth: GroundTruth, boxes: DetectionBoxes, classes: Sequence[str]) -> Scores:
    """NDS, mAP and the AP of each class, in percent."""
    result = evaluate(truth.boxes, boxes, racks=truth.racks, classes=classes)
    ap = result.ap.mean(axis=1)
    return {"NDS": 100 * result.nds, "mAP": 100 * result.mean_ap} | {
        name: 100 * float(value) for name, value in zip(result.classes, ap, strict=True)
    }
