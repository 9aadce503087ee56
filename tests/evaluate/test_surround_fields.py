"""Surround views: which objects count as found, fields of boxes exchanged one at a time, and who is found guilty."""

from dataclasses import fields as columns_of
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill3d.evaluate.matching import MISSED
from distill3d.evaluate.nuscenes import BicycleRacks, GroundTruth, evaluate
from distill3d.evaluate.nuscenes_boxes import CLASSES, NO_ATTRIBUTE, PREDICTED_POINTS, DetectionBoxes
from distill3d.evaluate.surround_fields import (
    PLACE,
    REACH,
    SURROUND_FIELDS,
    SURROUND_UNITS,
    SurroundField,
    attribution_around,
    errors_by_class,
    match_around,
    perfect_around,
    scores_of,
    swapped_around,
)
from distill3d.evaluate.surround_transfer import (
    SurroundTransferSettings,
    as_predictions,
    counted_objects,
    find_around,
    kitti_form,
)
from distill3d.evaluate.transfer import analyse

CAR, BARRIER, CONE = (CLASSES.index(name) for name in ("car", "barrier", "traffic_cone"))
SAMPLES, SLOTS = 8, 10
NO_RACKS = BicycleRacks(np.zeros(0, dtype=int), np.zeros((0, 4, 4)), np.zeros((0, 3)))
JUDGED = ("car", "barrier")
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=12, deadline=None)


def ego(samples: int = SAMPLES) -> np.ndarray:
    """The vehicle far from the world's origin, elsewhere in each sample."""
    return np.column_stack([600 + 5.0 * np.arange(samples), 1600 - 3.0 * np.arange(samples), np.zeros(samples)])


def truth(seed: int, samples: int = SAMPLES) -> GroundTruth:
    """Cars and barriers on a ring around the vehicle, at least 6 m apart."""
    draw, n = np.random.default_rng(seed), samples * SLOTS
    sample = np.repeat(np.arange(samples), SLOTS)
    r, b = draw.uniform(15, 25, n), 2 * np.pi * (np.arange(n) % SLOTS) / SLOTS
    place = ego(samples)[sample] + np.column_stack([r * np.cos(b), r * np.sin(b), draw.normal(0, 0.3, n)])
    boxes = DetectionBoxes(
        samples=tuple(f"s{i}" for i in range(samples)), classes=CLASSES, sample=sample,
        label=draw.choice([CAR, CAR, BARRIER], n), translation=place, wlh=draw.uniform(1.5, 3, (n, 3)),
        yaw=draw.uniform(-3, 3, n), velocity=draw.normal(0, 2, (n, 2)), score=np.full(n, -1.0),
        attribute=draw.integers(0, 3, n), num_pts=draw.integers(1, 200, n), ego_distance=np.zeros(n),
    )  # fmt: skip
    return GroundTruth(boxes.seen_from(ego(samples)), NO_RACKS, ego(samples))


def blurred(
    world: GroundTruth, seed: int, wrong: tuple[SurroundField, ...] = SURROUND_FIELDS, share: float = 1.0
) -> DetectionBoxes:
    """What a detector might say of the objects that is wrong in some fields; its scores say nothing."""
    draw, boxes = np.random.default_rng([seed, 1]), world.boxes
    n, here = len(boxes), ego(len(boxes.samples))[boxes.sample]
    offset = boxes.translation - here
    r, b = np.hypot(offset[:, 0], offset[:, 1]), np.arctan2(offset[:, 1], offset[:, 0])
    r = r + draw.normal(0, 1.0, n) * ("distance" in wrong)
    b = b + draw.normal(0, 0.04, n) * ("direction" in wrong)
    place = np.column_stack([r * np.cos(b), r * np.sin(b), offset[:, 2]]) + here
    said = replace(
        boxes, translation=place, score=(draw.permutation(n) + 1) / (n + 1), num_pts=np.full(n, PREDICTED_POINTS)
    )  # fmt: skip
    if "size" in wrong:
        said = replace(said, wlh=boxes.wlh * np.exp(draw.normal(0, 0.2, (n, 3))))
    if "heading" in wrong:
        said = replace(said, yaw=boxes.yaw + draw.normal(0, 0.5, n))
    if "velocity" in wrong:
        said = replace(said, velocity=boxes.velocity + draw.normal(0, 1, (n, 2)))
    if "attribute" in wrong:
        said = replace(said, attribute=draw.integers(0, 3, n))
    return said[np.flatnonzero(draw.random(n) < share)].seen_from(world.ego_position)


def assert_equal(one: DetectionBoxes, other: DetectionBoxes, *but: str) -> None:
    for column in columns_of(DetectionBoxes):
        if column.name not in but:
            np.testing.assert_array_equal(getattr(one, column.name), getattr(other, column.name), column.name)


def polar(boxes: DetectionBoxes) -> tuple[np.ndarray, np.ndarray]:
    x, y = (boxes.translation[:, :2] - ego()[boxes.sample, :2]).T
    return np.hypot(x, y), np.arctan2(y, x)


# ---------------------------------------------------------------------------------------------------------------- found


@few
@given(seeds)
def test_found_are_the_true_positives_of_the_official_evaluation(seed: int) -> None:
    world, said = truth(seed), blurred(truth(seed), seed, share=0.7)
    objects = counted_objects(world, JUDGED)
    found = find_around(world, said, objects, 2.0)
    result = evaluate(world.boxes, said, racks=world.racks, classes=JUDGED)
    assert len(objects) == sum(kept for kept, _ in result.kept.values())
    # The last recall that is reached is the share that was found.
    for k, name in enumerate(JUDGED):
        members = objects.name == name
        reached = np.flatnonzero(result.precision[k, 2]).max(initial=0) / 100
        assert reached == pytest.approx(found.found[members].mean(), abs=0.01)
    rows = np.flatnonzero(found.found)
    assert (found.centre_error[rows] < 2.0 + 1e-9).all() and (found.depth_error <= found.centre_error + 1e-9)[
        rows
    ].all()
    assert len(set(found.row[rows].tolist())) == len(rows)


def test_nothing_found_nothing_there() -> None:
    world = truth(0)
    nothing = blurred(world, 0)[np.zeros(0, dtype=int)]
    objects = counted_objects(world, JUDGED)
    found = find_around(world, nothing, objects, 2.0)
    assert not found.found.any() and (found.row == MISSED).all()
    settings_ = SurroundTransferSettings(JUDGED, resamples=20)
    analysis = analyse(objects, found, found, None, None, settings_)
    assert analysis.total.counts["missed"] == len(objects)
    errors = errors_by_class(objects, {"baseline": found}, JUDGED)
    assert errors["all"]["baseline"].compared == 0 and np.isnan(errors["all"]["baseline"].errors["along"].mean)
    none = counted_objects(world, ("bus",))
    empty = find_around(world, blurred(world, 0), none, 2.0)
    assert analyse(none, empty, empty, None, None, settings_).total.objects == 0


def test_what_does_not_fit_is_refused() -> None:
    world, said = truth(0), blurred(truth(0), 0)
    objects = counted_objects(world, JUDGED)
    with pytest.raises(ValueError, match="reach must be one of"):
        find_around(world, said, objects, 3.0)
    with pytest.raises(ValueError, match="same samples"):
        find_around(world, replace(said, samples=tuple(f"t{i}" for i in range(SAMPLES))), objects, 2.0)
    with pytest.raises(ValueError, match="same samples"):
        match_around(said, replace(said, samples=tuple(f"t{i}" for i in range(SAMPLES))))


def test_boxes_in_kittis_form_overlap_as_they_do() -> None:
    """A box turned by a right angle about its centre overlaps itself in w x w x h."""
    from distill3d.evaluate.iou import iou_3d

    boxes = truth(3).boxes
    boxes = replace(boxes, translation=boxes.translation - ego()[boxes.sample])
    turned = replace(boxes, yaw=boxes.yaw + np.pi / 2)
    width, length, _ = boxes.wlh.T
    smaller = np.minimum(width, length) ** 2
    np.testing.assert_allclose(iou_3d(kitti_form(boxes), kitti_form(turned)), smaller / (2 * width * length - smaller))
    moved = replace(
        boxes, translation=boxes.translation + np.column_stack([np.cos(boxes.yaw), np.sin(boxes.yaw), 0 * width])
    )
    np.testing.assert_allclose(iou_3d(kitti_form(boxes), kitti_form(moved)), (length - 1) / (length + 1))


def test_points_and_motion_sort_the_objects() -> None:
    world = truth(1)
    boxes = world.boxes
    velocity, points = boxes.velocity.copy(), boxes.num_pts.copy()
    velocity[:3], points[:4] = ((np.nan, np.nan), (0.1, 0.1), (3, 0)), (5, 6, 20, 101)
    objects = counted_objects(replace(world, boxes=replace(boxes, velocity=velocity, num_pts=points)), JUDGED)
    by = {one.key: one.index for one in objects.own_groupings()}
    assert by["points"][:4].tolist() == [0, 1, 1, 3] and by["motion"][:3].tolist() == [-1, 0, 1]


# --------------------------------------------------------------------------------------------------------------- errors


@few
@given(seeds)
def test_errors_are_of_the_field_that_is_wrong(seed: int) -> None:
    world = truth(seed)
    objects = counted_objects(world, JUDGED)
    of_field = {"distance": {"along"}, "direction": {"across"}, "size": {"width", "length", "height"},
                "heading": {"heading"}, "velocity": {"velocity"}}  # fmt: skip
    for name, touched in of_field.items():
        part = find_around(world, blurred(world, seed, (name,)), objects, 2.0)  # pyright: ignore[reportArgumentType]
        errors = errors_by_class(objects, {"baseline": part}, JUDGED)
        assert errors["all"]["baseline"].compared == part.found.sum() > 0
        wrong = {unit for unit, spread in errors["all"]["baseline"].errors.items() if spread.mean > 1e-6}
        assert wrong == touched
        assert np.isnan(errors["barrier"]["baseline"].errors["velocity"].mean)  # barriers have none
        assert errors.keys() == {"all", *JUDGED} and errors["car"]["baseline"].errors.keys() == SURROUND_UNITS.keys()


def test_half_a_turn_is_flipped_and_no_error() -> None:
    world = truth(5)
    said = blurred(world, 5, ())
    part = find_around(world, replace(said, yaw=said.yaw + np.pi), counted_objects(world, JUDGED), 2.0)
    errors = errors_by_class(counted_objects(world, JUDGED), {"baseline": part}, JUDGED)
    assert errors["all"]["baseline"].errors["heading"].mean == pytest.approx(0, abs=1e-9)
    assert errors["car"]["baseline"].flipped == 1 and np.isnan(errors["barrier"]["baseline"].flipped)


# ---------------------------------------------------------------------------------------------------------------- swaps


@few
@given(seeds)
def test_matches_are_mutual_and_nearest_first(seed: int) -> None:
    world = truth(seed)
    one, other = blurred(world, seed, share=0.8), blurred(world, seed + 1, share=0.8)
    match, back = match_around(one, other), match_around(other, one)
    rows = np.flatnonzero(match != MISSED)
    np.testing.assert_array_equal(back[match[rows]], rows)
    assert (back != MISSED).sum() == len(rows) > 0
    np.testing.assert_array_equal(one.label[rows], other.label[match[rows]])
    np.testing.assert_array_equal(one.sample[rows], other.sample[match[rows]])
    assert (np.hypot(*(one.translation[rows] - other.translation[match[rows]]).T[:2]) < REACH).all()
    # Objects are farther apart than any error: what belongs to one object is matched.
    shuffled = np.random.default_rng(seed).permutation(len(other))
    again = match_around(one, other[shuffled])
    np.testing.assert_array_equal(np.where(again == MISSED, MISSED, shuffled[again]), match)


@few
@given(seeds)
def test_one_field_changes_and_the_others_stay(seed: int) -> None:
    world = truth(seed)
    one, other = blurred(world, seed, share=0.8), blurred(world, seed + 1, share=0.8)
    match = match_around(one, other)
    rows = np.flatnonzero(match != MISSED)
    rest = np.flatnonzero(match == MISSED)
    columns = {"distance": ("translation", "ego_distance"), "direction": ("translation", "ego_distance"),
               "size": ("wlh",), "heading": ("yaw",), "velocity": ("velocity",), "attribute": ("attribute",),
               "score": ("score",)}  # fmt: skip
    for name in SURROUND_FIELDS:
        got = swapped_around(one, other, match, (name,), ego())
        assert_equal(got, one, *columns[name])
        assert_equal(got[rest], one[rest])
        r, b = polar(got[rows])
        (own_r, own_b), (new_r, new_b) = polar(one[rows]), polar(other[match[rows]])
        np.testing.assert_allclose(r, new_r if name == "distance" else own_r, atol=1e-6)
        turned = np.remainder(b - (new_b if name == "direction" else own_b) + np.pi, 2 * np.pi) - np.pi
        np.testing.assert_allclose(turned, 0, atol=1e-6)
    everything = swapped_around(one, other, match, SURROUND_FIELDS, ego())
    np.testing.assert_allclose(everything.translation[rows], other.translation[match[rows]], atol=1e-6)
    for label in np.unique(one.label):  # scores are dealt in the other's order
        members = rows[one.label[rows] == label]
        np.testing.assert_array_equal(np.sort(everything.score[members]), np.sort(one.score[members]))
        order = np.argsort(other.score[match[members]])
        assert (np.diff(everything.score[members][order]) > 0).all()


@few
@given(seeds)
def test_what_is_replaced_by_itself_stays_to_the_last_bit(seed: int) -> None:
    one = blurred(truth(seed), seed)
    assert_equal(swapped_around(one, one, np.arange(len(one)), SURROUND_FIELDS, ego()), one)
    nobody = np.full(len(one), MISSED)
    assert_equal(swapped_around(one, one, nobody, SURROUND_FIELDS, ego()), one)


# ---------------------------------------------------------------------------------------------------------- attribution


@pytest.mark.parametrize("wrong", ["distance", "direction", "size", "heading", "velocity", "attribute"])
def test_the_field_that_is_wrong_is_found_guilty(wrong: SurroundField) -> None:
    """A student that is right where the baseline is wrong in one field, on both ways and against the truth."""
    world = truth(11)
    baseline = blurred(world, 11, (wrong,))
    student = replace(blurred(world, 11, ()), score=baseline.score)
    exchange = attribution_around(world, baseline, student, JUDGED)
    assert exchange.forward.matched == exchange.forward.boxes == len(baseline)
    score = "mAP" if wrong in PLACE else "NDS"
    total = exchange.forward.total(score)
    assert total > 0.5
    assert exchange.both_ways(score, wrong) == pytest.approx(total) == exchange.forward.gain(score, wrong)
    assert exchange.oracle.gain(score, wrong) == pytest.approx(total)
    for other in SURROUND_FIELDS:
        if other not in (wrong, "score"):
            assert exchange.both_ways(score, other) == pytest.approx(0, abs=1e-6)
    if wrong not in PLACE:
        assert exchange.forward.total("mAP") == 0
    assert exchange.forward.interaction(score) == pytest.approx(0, abs=1e-6)
    assert exchange.remainder(score) == pytest.approx(0, abs=1e-6)


@settings(max_examples=4, deadline=None)
@given(seeds)
def test_gains_and_remainders_sum_to_the_whole(seed: int) -> None:
    world = truth(seed)
    one, other = blurred(world, seed, share=0.8), blurred(world, seed + 1, share=0.8)
    exchange = attribution_around(world, one, other, JUDGED)
    for swaps in (exchange.forward, exchange.backward, exchange.oracle):
        assert swaps.start.keys() == swaps.end.keys() == {"NDS", "mAP", *JUDGED}
        for column in swaps.start:
            parts = sum(swaps.gain(column, name) for name in SURROUND_FIELDS)
            assert parts + swaps.interaction(column) + swaps.unmatched(column) == pytest.approx(swaps.total(column))
    assert exchange.forward.end == exchange.backward.start == scores_of(world, other, JUDGED)
    assert exchange.oracle.end["mAP"] == pytest.approx(100)


def test_perfect_boxes_are_the_objects() -> None:
    world = truth(2)
    objects, said = counted_objects(world, JUDGED), blurred(world, 2)
    far = replace(said, translation=said.translation + [200.0, 0, 0])  # belongs to nothing
    both = DetectionBoxes(
        said.samples, said.classes,
        *(np.concatenate([getattr(part, c.name) for part in (said, far)]) for c in columns_of(DetectionBoxes)[2:]),
    )  # fmt: skip
    perfect, itself = perfect_around(objects.boxes, both)
    match = match_around(both, objects.boxes)
    assert (match[: len(said)] != MISSED).all() and (match[len(said) :] == MISSED).all()
    np.testing.assert_array_equal(perfect.translation[: len(said)], objects.boxes.translation[match[: len(said)]])
    np.testing.assert_array_equal(perfect.wlh[len(said) :], far.wlh)
    assert perfect.score[: len(said)].min() > perfect.score[len(said) :].max()
    np.testing.assert_array_equal(itself, np.arange(len(both)))
    sure = as_predictions(objects)
    assert (sure.score == 1).all() and scores_of(world, sure, JUDGED)["mAP"] == pytest.approx(100)


def test_no_boxes_on_either_side() -> None:
    world = truth(4)
    said = blurred(world, 4)
    nothing = said[np.zeros(0, dtype=int)]
    exchange = attribution_around(world, nothing, said, JUDGED)
    assert exchange.forward.matched == 0 and exchange.forward.unmatched("mAP") == exchange.forward.total("mAP") > 0
    none = replace(world, boxes=world.boxes[np.zeros(0, dtype=int)])
    assert attribution_around(none, said, said, JUDGED).forward.total("NDS") == 0


def test_unknown_velocities_of_objects_stay_unknown() -> None:
    world = truth(6)
    unknown = replace(world, boxes=replace(world.boxes, velocity=np.full_like(world.boxes.velocity, np.nan)))
    exchange = attribution_around(unknown, blurred(world, 6), blurred(world, 7), JUDGED)
    assert all(np.isfinite(list(scores.values())).all() for scores in exchange.oracle.replaced.values())
    assert NO_ATTRIBUTE not in world.boxes.attribute
