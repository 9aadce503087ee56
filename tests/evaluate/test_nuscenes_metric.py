"""The nuScenes metric against a plain loop over boxes, and its corner cases one by one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill3d.boxes import NUSCENES_CLASSES
from distill3d.data.nuscenes.tables import pose_matrices
from distill3d.errors import UserError
from distill3d.evaluate.nuscenes import (
    OFFICIAL,
    TP_ERRORS,
    UNDEFINED_ERRORS,
    BicycleRacks,
    DetectionConfig,
    NuScenesResult,
    cumulative_mean,
    evaluate,
    in_racks,
)
from distill3d.evaluate.nuscenes_boxes import ATTRIBUTES, CLASSES, NO_ATTRIBUTE, DetectionBoxes, yaw_of

NO_RACKS = BicycleRacks(np.zeros(0, dtype=np.int64), np.zeros((0, 4, 4)), np.zeros((0, 3)))
CAR, BARRIER, BICYCLE, PEDESTRIAN, CONE = map(
    CLASSES.index, ("car", "barrier", "bicycle", "pedestrian", "traffic_cone")
)


def boxes(*rows: dict[str, Any], samples: int = 1) -> DetectionBoxes:
    """Boxes that are cars at the vehicle's place unless said otherwise, the vehicle at the origin."""
    base = {
        "sample": 0, "label": CAR, "translation": (0.0, 0.0, 0.0), "wlh": (2.0, 4.0, 1.5), "yaw": 0.0,
        "velocity": (0.0, 0.0), "score": 0.5, "attribute": 0, "num_pts": 1, "ego_distance": 0.0,
    }  # fmt: skip
    widths = {"translation": (3,), "wlh": (3,), "velocity": (2,)}
    whole = ("sample", "label", "attribute", "num_pts")
    columns = {
        key: np.array([(base | row)[key] for row in rows], dtype=np.int64 if key in whole else np.float64).reshape(
            len(rows), *widths.get(key, ())
        )
        for key in base
    }
    made = DetectionBoxes(samples=tuple(f"s{i}" for i in range(samples)), classes=CLASSES, **columns)
    return made.seen_from(np.zeros((samples, 3)))


def at(x: float, y: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"translation": (x, y, 0.0), **more}


def run(truth: DetectionBoxes, predictions: DetectionBoxes, **more: Any) -> NuScenesResult:
    return evaluate(truth, predictions, **{"racks": NO_RACKS, **more})


def random_boxes(rng: np.random.Generator, count: int, samples: int, annotated: bool) -> DetectionBoxes:
    """Few places, scores and labels, so that distances and scores tie and meet the thresholds exactly."""
    place = rng.integers(-8, 9, (count, 2)) / 2.0
    far = rng.random(count) < 0.1
    place[far] *= 15
    unknown = annotated & (rng.random(count) < 0.3)
    return DetectionBoxes(
        samples=tuple(f"s{i}" for i in range(samples)),
        classes=CLASSES,
        sample=np.sort(rng.integers(0, samples, count)),
        label=rng.choice([CAR, CAR, BARRIER, BICYCLE, CONE], count),
        translation=np.column_stack([place, np.zeros(count)]),
        wlh=rng.uniform(0.5, 4, (count, 3)),
        yaw=rng.uniform(-np.pi, np.pi, count),
        velocity=np.where(unknown[:, None], np.nan, rng.normal(0, 2, (count, 2))),
        score=rng.integers(0, 11, count) / 10.0,
        attribute=rng.integers(NO_ATTRIBUTE, len(ATTRIBUTES), count),
        num_pts=rng.integers(0, 4, count) if annotated else np.full(count, -1),
        ego_distance=np.linalg.norm(place, axis=1),
    )


def random_racks(rng: np.random.Generator, count: int, samples: int) -> BicycleRacks:
    turn = rng.normal(size=(count, 4)) * [1, 0.05, 0.05, 1]
    pose = pose_matrices(np.column_stack([rng.integers(-4, 5, (count, 2)), np.zeros(count)]), turn)
    return BicycleRacks(rng.integers(0, samples, count), pose, rng.uniform(1, 5, (count, 3)))


# ---------------------------------------------------------------------------------------------------- plain reference


def plain_evaluation(truth: DetectionBoxes, predictions: DetectionBoxes, racks: BicycleRacks) -> NuScenesResult:
    """AP and errors by loops over boxes, put into a result for its means."""
    gt, det = plain_filter(truth, racks), plain_filter(predictions, racks)
    ap = np.zeros((len(CLASSES), len(OFFICIAL.distances)))
    errors = np.zeros((len(CLASSES), len(TP_ERRORS)))
    for label, name in enumerate(CLASSES):
        for t, distance in enumerate(OFFICIAL.distances):
            ap[label, t], of_class = plain_class(truth, predictions, gt, det, label, distance)
            if distance == OFFICIAL.tp_distance:
                errors[label] = of_class
        for error in UNDEFINED_ERRORS.get(name, ()):
            errors[label, TP_ERRORS.index(error)] = np.nan
    return replace(run(truth, predictions, racks=racks), ap=ap, errors=errors)


def plain_filter(of: DetectionBoxes, racks: BicycleRacks) -> list[int]:
    kept = []
    for i in range(len(of)):
        name = CLASSES[of.label[i]]
        racked = False
        for r in range(len(racks.sample)):
            if name in ("bicycle", "motorcycle") and racks.sample[r] == of.sample[i]:
                x, y, z = np.linalg.inv(racks.pose[r]) @ [*of.translation[i], 1] @ np.eye(4)[:, :3]
                width, length, height = racks.wlh[r]
                racked |= bool(abs(x) <= length / 2 and abs(y) <= width / 2 and abs(z) <= height / 2)
        if of.ego_distance[i] < OFFICIAL.class_range[name] and of.num_pts[i] != 0 and not racked:
            kept.append(i)
    return kept


def plain_class(
    truth: DetectionBoxes, predictions: DetectionBoxes, gt: list[int], det: list[int], label: int, threshold: float
) -> tuple[float, list[float]]:
    gt = [i for i in gt if truth.label[i] == label]
    det = [i for i in det if predictions.label[i] == label]
    order = [i for _, i in sorted((predictions.score[i], i) for i in det)][::-1]
    taken: set[int] = set()
    hits, pairs = [], []
    for i in order:
        nearest, least = -1, math.inf
        for j in gt:
            dx, dy = (predictions.translation[i] - truth.translation[j])[:2]
            distance = math.sqrt(dx * dx + dy * dy)
            if truth.sample[j] == predictions.sample[i] and j not in taken and distance < least:
                nearest, least = j, distance
        hits.append(least < threshold)
        if least < threshold:
            taken.add(nearest)
            pairs.append((i, nearest, least))
    if not pairs:
        return 0.0, [1.0] * len(TP_ERRORS)
    recall = [sum(hits[: k + 1]) / len(gt) for k in range(len(hits))]
    precision = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits))]
    points = np.linspace(0, 1, 101)
    curve = np.interp(points, recall, precision, right=0)
    confidence = np.interp(points, recall, [predictions.score[i] for i in order], right=0)
    ap = sum(max(p - 0.1, 0) for p in curve[11:]) / 90 / 0.9
    last = max([k for k in range(101) if confidence[k] != 0], default=0)
    errors = []
    for error in TP_ERRORS:
        values = [plain_error(error, truth, j, predictions, i, least) for i, j, least in pairs]
        means, known = [], []
        for value in values:
            known += [value] if not math.isnan(value) else []
            means.append(sum(known) / len(known) if known else 0.0)
        means = means if known else [1.0] * len(means)
        scores = [predictions.score[i] for i, _, _ in pairs]
        carried = np.interp(confidence[::-1], scores[::-1], means[::-1])[::-1]
        errors.append(1.0 if last < 11 else float(np.mean(carried[11 : last + 1])))
    return float(ap), errors


def plain_error(
    error: str, truth: DetectionBoxes, j: int, predictions: DetectionBoxes, i: int, distance: float
) -> float:
    match error:
        case "trans_err":
            return distance
        case "scale_err":
            shared = math.prod(min(a, b) for a, b in zip(truth.wlh[j], predictions.wlh[i], strict=True))
            return 1 - shared / (math.prod(truth.wlh[j]) + math.prod(predictions.wlh[i]) - shared)
        case "orient_err":
            turns = (0, 1, 2) if truth.label[j] == BARRIER else (0, 2)
            difference = truth.yaw[j] - predictions.yaw[i]
            return min(abs(difference + sign * k * math.pi) for k in turns for sign in (-1, 1))
        case "vel_err":
            return float(np.linalg.norm(truth.velocity[j] - predictions.velocity[i]))
    if truth.attribute[j] == NO_ATTRIBUTE:
        return math.nan
    return float(truth.attribute[j] != predictions.attribute[i])


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(0, 25), st.integers(0, 40), st.integers(0, 3))
def test_equals_a_plain_loop(seed: int, samples: int, annotations: int, predictions: int, racks: int) -> None:
    rng = np.random.default_rng(seed)
    truth = random_boxes(rng, annotations, samples, annotated=True)
    found = random_boxes(rng, predictions, samples, annotated=False)
    rack = random_racks(rng, racks, samples)
    result, plain = run(truth, found, racks=rack), plain_evaluation(truth, found, rack)
    np.testing.assert_allclose(result.ap, plain.ap, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.errors, plain.errors, rtol=0, atol=1e-12)
    assert result.nds == pytest.approx(plain.nds, abs=1e-12)


def test_pairs_are_found_in_pieces_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    truth, found = random_boxes(rng, 60, 4, annotated=True), random_boxes(rng, 150, 4, annotated=False)
    whole = run(truth, found)
    monkeypatch.setattr("distill3d.evaluate.nuscenes._PAIRS_AT_ONCE", 7)
    assert run(truth, found).to_json() == whole.to_json()
    assert whole.mean_ap > 0


# ------------------------------------------------------------------------------------------------------- whole results


def test_classes_are_those_of_the_detectors() -> None:
    assert CLASSES == NUSCENES_CLASSES


def one_of_each() -> DetectionBoxes:
    return boxes(*(at(3.0 * k, label=k, yaw=0.3 * k, velocity=(1.0, -0.5), attribute=k % 8) for k in range(10)))


def test_perfect_predictions_score_one() -> None:
    truth = one_of_each()
    result = run(truth, truth)
    assert (result.mean_ap, result.nds) == (pytest.approx(1), pytest.approx(1))
    assert result.official and result.notes == ()
    assert np.isnan(result.errors[CONE]).tolist() == [False, False, True, True, True]
    assert np.isnan(result.errors[BARRIER]).tolist() == [False, False, False, True, True]


def test_a_class_without_annotations_has_ap_0_and_errors_1() -> None:
    truth = one_of_each()
    result = run(truth[truth.label != PEDESTRIAN], truth)
    assert result.mean_ap == pytest.approx(0.9)
    assert (result.ap[PEDESTRIAN] == 0).all() and (result.errors[PEDESTRIAN] == 1).all()
    assert any(note.startswith("pedestrian: no annotation") for note in result.notes)


def test_no_prediction_at_all_scores_zero_and_says_so() -> None:
    result = run(one_of_each(), boxes())
    assert (result.mean_ap, result.nds) == (0, 0)
    assert set(result.mean_errors.values()) == {1.0}
    assert any("the official program just stops" in note for note in result.notes)


def test_nothing_at_all_is_defined() -> None:
    assert run(boxes(samples=0), boxes(samples=0)).nds == 0


def test_json_holds_the_official_names_and_null_for_undefined() -> None:
    truth = one_of_each()
    written = json.loads(json.dumps(run(truth, truth).to_json(), allow_nan=False))
    assert written["label_tp_errors"]["traffic_cone"]["vel_err"] is None
    assert list(written["label_aps"]["car"]) == ["0.5", "1.0", "2.0", "4.0"]
    assert len(written["precision101"]["car"]["2.0"]) == 101
    assert written["settings"]["bike_racks"] is True


def test_some_classes_only_is_not_official() -> None:
    truth = one_of_each()
    result = run(truth, truth[truth.label == CAR], classes=("car", "bus"))
    assert result.mean_ap == pytest.approx(0.5)
    assert result.ground_truth.given == 2
    assert not result.official and "over car, bus" in result.notes[0]


def test_other_constants_are_not_official() -> None:
    truth = one_of_each()
    config = DetectionConfig(distances=(1.0, 2.0))
    result = run(truth, truth, config=config)
    assert result.ap.shape == (10, 2) and not result.official and "constants" in result.notes[0]


def test_without_racks_is_not_official() -> None:
    truth = one_of_each()
    result = run(truth, truth, racks=None)
    assert not result.official and not result.to_json()["settings"]["bike_racks"]


def test_an_error_of_none_of_the_classes_scores_0() -> None:
    truth = one_of_each()
    result = run(truth, truth, classes=("traffic_cone",))
    assert math.isnan(result.mean_errors["vel_err"]) and result.scores["vel_err"] == 0
    assert result.nds == pytest.approx(0.7)


@pytest.mark.parametrize("classes", [("van",), (), ("car", "car")])
def test_unfit_classes_are_refused(classes: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="class"):
        run(one_of_each(), one_of_each(), classes=classes)


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        (boxes(samples=1), boxes(samples=2), "same samples"),
        (replace(boxes({}), ego_distance=np.array([np.nan])), boxes({}), "distance"),
        (boxes({}), replace(boxes({}), ego_distance=np.array([np.nan])), "distance"),
    ],
)
def test_unfit_boxes_are_refused(truth: DetectionBoxes, found: DetectionBoxes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(truth, found)


@pytest.mark.parametrize(
    "change",
    [{"label": np.array([10])}, {"attribute": np.array([8])}, {"score": np.zeros(2)}, {"wlh": np.ones((1, 2))}],
)
def test_unfit_columns_are_refused(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(boxes({}), **change)


def test_the_errors_distance_must_be_one_of_the_distances() -> None:
    with pytest.raises(UserError, match="tp_distance"):
        DetectionConfig(tp_distance=3.0)


# ------------------------------------------------------------------------------------------------------------- matches


def test_of_equal_scores_the_later_chooses_first() -> None:
    result = run(boxes(at(0.0)), boxes(at(0.25), at(1.5)))
    assert result.errors[CAR, 0] == pytest.approx(1.5)


@pytest.mark.parametrize("far", [0.5, 1.0, 2.0, 4.0])
def test_a_pair_at_the_threshold_is_no_match(far: float) -> None:
    result = run(boxes(at(0.0)), boxes(at(far)))
    assert (result.ap[CAR] > 0).tolist() == [far < threshold for threshold in OFFICIAL.distances]


def test_a_prediction_takes_the_nearest_that_is_free() -> None:
    truth = boxes(at(0.0), at(3.0))
    result = run(truth, boxes(at(0.0, score=0.9), at(1.0, score=0.8)))
    # The second finds its nearest taken; the free one is 2 m away.
    assert (result.precision[CAR, :, 100] > 0).tolist() == [False, False, False, True]


def test_classes_and_samples_do_not_mix() -> None:
    truth = boxes(at(0.0), at(0.0, label=BICYCLE, sample=1), samples=2)
    assert run(truth, boxes(at(0.0, sample=1), at(0.0, label=BICYCLE), samples=2)).mean_ap == 0


def test_a_confidence_of_zero_is_not_reached() -> None:
    result = run(boxes(at(0.0)), boxes(at(0.5, score=0.0)))
    assert result.ap[CAR, 2] == pytest.approx(1) and result.errors[CAR, 0] == 1


@pytest.mark.parametrize(
    ("label", "yaw", "expected"),
    [
        (CAR, math.pi, math.pi),
        (CAR, -math.pi / 2, math.pi / 2),
        (CAR, 1.5 * math.pi, math.pi / 2),
        (BARRIER, math.pi, 0),
        (BARRIER, 2.0, math.pi - 2),
    ],
)
def test_orientation(label: int, yaw: float, expected: float) -> None:
    result = run(boxes(at(0.0, label=label)), boxes(at(0.0, label=label, yaw=yaw)))
    assert result.errors[label, 2] == pytest.approx(expected, abs=1e-12)


def test_scale_is_that_of_boxes_laid_together() -> None:
    result = run(boxes(at(0.0, wlh=(2, 4, 1))), boxes(at(1.0, wlh=(1, 4, 2), yaw=1.0)))
    assert result.errors[CAR, 1] == pytest.approx(1 - 4 / (8 + 8 - 4))


def test_unknown_velocities_and_attributes_are_left_out() -> None:
    truth = boxes(
        at(0.0, velocity=(np.nan, np.nan), attribute=NO_ATTRIBUTE), at(10.0, velocity=(3.0, 0.0), attribute=1)
    )
    result = run(truth, boxes(at(0.0, score=0.9), at(10.0, score=0.8)))
    # The running means are 0 before the first known value, and 3 and 1 from the second match on.
    assert 0 < result.errors[CAR, 3] < 3 and 0 < result.errors[CAR, 4] < 1
    later = run(truth, boxes(at(0.0, score=0.8), at(10.0, score=0.9)))
    assert later.errors[CAR, 3:].tolist() == [3, 1]


def test_no_known_velocity_at_all_is_an_error_of_one() -> None:
    result = run(boxes(at(0.0, velocity=(np.nan, np.nan))), boxes(at(0.0)))
    assert result.errors[CAR, 3] == 1
    assert any(note.startswith("car: vel_err is 1") for note in result.notes)


@pytest.mark.parametrize(
    ("values", "means"),
    [
        ([1, 2, 6], [1, 1.5, 3]),
        ([np.nan, 2, np.nan, 4], [0, 2, 2, 3]),
        ([np.nan, np.nan], [1, 1]),
        ([], []),
    ],
)
def test_cumulative_mean(values: list[float], means: list[float]) -> None:
    assert cumulative_mean(np.array(values, dtype=float)).tolist() == means


@pytest.mark.parametrize("scale", [1.0, 3.0, -1.0])
@given(st.floats(-3, 3))
def test_yaw_of_a_turn_about_up(scale: float, yaw: float) -> None:
    rotation = scale * np.array([[math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)]])
    assert yaw_of(rotation)[0] == pytest.approx(yaw, abs=1e-12)


# ------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(("label", "limit"), [(CAR, 50), (PEDESTRIAN, 40), (BICYCLE, 40), (CONE, 30), (BARRIER, 30)])
def test_boxes_at_the_range_are_dropped(label: int, limit: float) -> None:
    there = boxes(at(np.nextafter(limit, 0), label=label), at(limit, label=label), at(0.6 * limit, 0.8 * limit))
    result = run(there, there)
    assert result.kept[CLASSES[label]] == (1, 1)
    assert (result.ground_truth.given, result.predictions.in_range) == (3, 1 if label == CAR else 2)


def test_annotations_without_points_are_dropped() -> None:
    result = run(boxes(at(0.0, num_pts=0), at(5.0)), boxes(at(0.0, num_pts=-1)))
    assert result.kept["car"] == (1, 1) and result.mean_ap == 0
    assert (result.ground_truth.in_range, result.ground_truth.with_points) == (2, 1)


@pytest.mark.parametrize(
    ("place", "inside"),
    [
        ((0, 0, 0), True),
        ((3, 0, 0), True),
        ((3.001, 0, 0), False),
        ((0, -2, 0), True),
        ((0, 2.001, 0), False),
        ((3, 2, 1), True),
        ((0, 0, 1.001), False),
    ],
)
def test_racks_hold_their_faces(place: tuple[float, float, float], inside: bool) -> None:
    rack = BicycleRacks(np.array([1]), np.eye(4)[None], np.array([[4.0, 6.0, 2.0]]))
    there = boxes({"translation": place, "sample": 1}, {"translation": place, "sample": 0}, samples=2)
    assert in_racks(there, rack).tolist() == [inside, False]


def test_only_cycles_are_dropped_from_racks() -> None:
    rack = BicycleRacks(np.array([0]), np.eye(4)[None], np.array([[4.0, 6.0, 2.0]]))
    there = boxes(*(at(0.0, label=label) for label in range(10)), at(5.0, label=BICYCLE))
    result = run(there, there, racks=rack)
    assert result.kept == {name: (1, 1) if name != "motorcycle" else (0, 0) for name in CLASSES}
    assert (result.ground_truth.with_points, result.ground_truth.outside_racks) == (11, 9)
