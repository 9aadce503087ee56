"""Fields of boxes exchanged one at a time: what must change and what must stay, and who is found guilty."""

from dataclasses import fields as columns_of
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distill3d.errors import UserError
from distill3d.evaluate.fields import (
    COLUMNS,
    FIELDS,
    LOCATION,
    REPLACED,
    UNITS,
    Field,
    FieldErrors,
    FieldSettings,
    attribution,
    field_errors,
    match_boxes,
    oracle,
    read_projections,
    swapped,
)
from distill3d.evaluate.iou import image_iou
from distill3d.evaluate.kitti import Annotations, evaluate
from distill3d.evaluate.matching import MISSED

#: KITTI's left colour camera: its centre is not the origin.
PROJECTION = np.array([[721.5, 0, 609.6, 44.9], [0, 721.5, 172.9, 0.2], [0, 0, 1, 0.003]])
FOCAL = 721.5
SLOTS = 6  # cars of a frame, side by side, so that their image boxes do not meet
CARS = FieldSettings()
few = settings(max_examples=15)
seeds = st.integers(0, 2**32 - 1)


def cameras(boxes: Annotations) -> np.ndarray:
    return np.repeat(PROJECTION[None], len(boxes.frames), axis=0)


def centre(boxes: Annotations) -> np.ndarray:
    return boxes.xyz - boxes.hwl[:, :1] * [0, 0.5, 0]


def projected(boxes: Annotations) -> np.ndarray:
    """Divided by the point's own depth, as the detectors read it back."""
    homogeneous = np.column_stack([centre(boxes), np.ones(len(boxes.frame))]) @ PROJECTION.T
    return homogeneous[:, :2] / boxes.xyz[:, 2:]


def placed(boxes: Annotations, uv: np.ndarray, z: np.ndarray) -> Annotations:
    """The boxes with their geometric centres elsewhere."""
    u, v = uv.T
    x = ((u - PROJECTION[0, 2]) * z - PROJECTION[0, 3]) / FOCAL
    y = ((v - PROJECTION[1, 2]) * z - PROJECTION[1, 3]) / FOCAL
    return replace(boxes, xyz=np.stack([x, y + boxes.hwl[:, 0] / 2, z], axis=1))


def truth(seed: int, frames: int = 8) -> Annotations:
    """Six cars in every frame, easy to see, with scores that all differ."""
    draw, n = np.random.default_rng(seed), frames * SLOTS
    left = 20.0 + 180 * (np.arange(n) % SLOTS)
    z = draw.uniform(8, 35, n)
    cars = Annotations(
        frames=tuple(f"{i:06d}" for i in range(frames)),
        frame=np.repeat(np.arange(frames), SLOTS),
        name=np.full(n, "Car"),
        truncation=np.zeros(n),
        occlusion=np.zeros(n),
        alpha=draw.uniform(-3, 3, n),
        box2d=np.stack([left, np.full(n, 120.0), left + 90, np.full(n, 190.0)], axis=1),
        hwl=np.array([1.5, 1.6, 4.0]) + draw.uniform(-0.2, 0.2, (n, 3)),
        xyz=np.zeros((n, 3)),
        ry=draw.uniform(-3, 3, n),
        score=draw.permutation(n) / n + 0.01,
    )
    return placed(cars, np.stack([left + 45 + draw.normal(0, 5, n), draw.uniform(150, 165, n)], axis=1), z)


def blurred(boxes: Annotations, seed: int, wrong: tuple = FIELDS) -> Annotations:
    """What a detector might say of the boxes that is wrong in some fields; its scores say nothing."""
    draw, n = np.random.default_rng([seed, 1]), len(boxes.frame)
    uv, z, turn = projected(boxes), boxes.xyz[:, 2], draw.normal(0, 0.6, n)
    if "size" in wrong:
        boxes = replace(boxes, hwl=boxes.hwl * np.exp(draw.normal(0, 0.2, (n, 3))))
    if "heading" in wrong:
        boxes = replace(boxes, ry=boxes.ry + turn, alpha=boxes.alpha + turn)
    if "box_2d" in wrong:
        boxes = replace(boxes, box2d=boxes.box2d + draw.normal(0, 4, (n, 4)))
    if "score" in wrong:
        boxes = replace(boxes, score=draw.permutation(n) / n + 3)
    moved = uv + draw.normal(0, 12, (n, 2)) * ("projected_centre" in wrong)
    return placed(boxes, moved, z * np.exp(draw.normal(0, 0.1, n) * ("depth" in wrong)))


def some(boxes: Annotations, seed: int) -> Annotations:
    """Without about every fourth."""
    return boxes.rows(np.random.default_rng([seed, 2]).random(len(boxes.frame)) < 0.75)


def car(z: float = 20, left: float = 500, height: float = 50, name: str = "Car", score: float = 0.5, frame: int = 0,
        frames: int = 1) -> Annotations:  # fmt: skip
    """One box of a frame."""
    line = f"{name} 0 0 0 {left} 100 {left + 80} {100 + height} 1.5 1.6 4 1 1.6 {z} 0.3 {score}"
    return Annotations.from_lines({f"{i:06d}": line * (i == frame) for i in range(frames)}, scored=True)


def together(*parts: Annotations) -> Annotations:
    """The boxes of all parts, sorted by frame."""
    stacked = {
        column.name: np.concatenate([getattr(part, column.name) for part in parts])
        for column in columns_of(Annotations)[1:]
    }
    both = Annotations(parts[0].frames, **stacked)
    return both.rows(np.argsort(both.frame, kind="stable"))


def same(one: Annotations, other: Annotations, but: set[str] | frozenset[str] = frozenset()) -> bool:
    names = {column.name for column in columns_of(Annotations)[1:]} - but
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


# ------------------------------------------------------------------------------------------------------------- matching


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([car()], [car(z=60, score=0.01)], [0]),  # neither depth nor score has a say
        ([car()], [car(left=520)], [0]),  # IoU 60 / 100
        ([car()], [car(left=540)], [MISSED]),  # IoU 40 / 120
        ([car()], [car(name="Cyclist")], [MISSED]),
        ([car()], [car(name="car")], [0]),
        ([car()], [car(z=-1)], [MISSED]),
        ([car(z=0)], [car()], [MISSED]),
        ([car()], [car(left=515), car(left=505)], [1]),  # the greatest overlap, not the first
        ([car(left=515), car(left=505)], [car()], [MISSED, 0]),
        ([car(), car(left=510)], [car(left=508), car(left=509)], [0, 1]),
        ([car(), car(left=510)], [car(left=512), car(left=510)], [0, 1]),
        ([car(frames=2)], [car(frame=1, frames=2)], [MISSED]),
    ],
)
def test_match(one: list[Annotations], other: list[Annotations], expected: list[int]) -> None:
    assert match_boxes(together(*one), together(*other), 0.5).tolist() == expected


@few
@given(seeds)
def test_matching_is_one_to_one_and_the_same_from_both_sides(seed: int) -> None:
    whole = truth(seed)
    whole = together(whole, replace(whole, box2d=whole.box2d + 15))  # two boxes for everything
    one, other = (some(blurred(whole, seed + i), seed + i) for i in range(2))
    there, back = match_boxes(one, other, 0.5), match_boxes(other, one, 0.5)
    rows = np.flatnonzero(there != MISSED)
    assert np.array_equal(back[there[rows]], rows) and (back != MISSED).sum() == len(rows) > 0
    assert np.array_equal(one.frame[rows], other.frame[there[rows]])
    assert (image_iou(one.box2d[rows], other.box2d[there[rows]]) >= 0.5).all()


def test_other_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="same frames"):
        match_boxes(car(), car(frames=2), 0.5)
    with pytest.raises(ValueError, match="1 projections, one for each frame, not 2"):
        attribution(car(), car(), car(), cameras(car(frames=2)), CARS)


# ---------------------------------------------------------------------------------------------------------------- swaps

VALUES = {
    "depth": lambda boxes: boxes.xyz[:, 2],
    "projected_centre": projected,
    "heading": lambda boxes: np.stack([boxes.ry, boxes.alpha]),
    "size": lambda boxes: boxes.hwl,
    "score": lambda boxes: np.argsort(boxes.score),
    "box_2d": lambda boxes: boxes.box2d,
}


@few
@given(seeds, st.sets(st.sampled_from(FIELDS)))
def test_a_field_is_replaced_and_the_others_stay(seed: int, replaced: set) -> None:
    """All twelve statements: each field is the other's where it was asked for, and the own one where not."""
    own, other = (blurred(truth(seed), seed + i) for i in range(2))
    match = match_boxes(own, other, 0.5)
    assume(np.array_equal(match, np.arange(len(match))))  # one blur in some hundred leaves a box alone
    new = swapped(own, other, match, replaced, cameras(own))
    for field, value in VALUES.items():
        assert value(new) == pytest.approx(value(other if field in replaced else own), abs=1e-9), field
    assert np.array_equal(np.sort(new.score), np.sort(own.score))  # the order is the other's, the scale is not


@pytest.mark.parametrize("fields", REPLACED)
@pytest.mark.parametrize("scene", [truth(0), car(z=-1000), truth(0).rows(np.arange(0))], ids=["cars", "2D", "none"])
def test_a_box_swapped_with_itself_stays_to_the_last_bit(fields: tuple, scene: Annotations) -> None:
    tied = replace(scene, score=np.round(scene.score, 1))
    assert same(swapped(tied, tied, match_boxes(tied, tied, 0.5), fields, cameras(tied)), tied)


@few
@given(seeds)
def test_boxes_without_a_partner_stay(seed: int) -> None:
    own, other = some(blurred(truth(seed), seed), seed), some(blurred(truth(seed), seed + 1), seed + 1)
    match = match_boxes(own, other, 0.5)
    new = swapped(own, other, match, FIELDS, cameras(own))
    alone = match == MISSED
    assert alone.any() and same(new.rows(alone), own.rows(alone))
    assert new.box3d[~alone] == pytest.approx(other.box3d[match[~alone]], abs=1e-9)
    assert same(new.rows(~alone), other.rows(match[~alone]), but={"xyz", "score"})


@pytest.mark.parametrize("factor", [0.25, 0.9, 3.0])
def test_depth_moves_a_box_along_its_ray(factor: float) -> None:
    """With the camera at the origin the centre is scaled; heading and size know nothing of it."""
    own, projection = car(z=20), PROJECTION * [1, 1, 1, 0]
    new = swapped(own, car(z=20 * factor), np.array([0]), ("depth",), projection[None])
    assert centre(new) == pytest.approx(factor * centre(own), abs=1e-12)
    assert same(new, own, but={"xyz"})


def test_a_new_size_keeps_the_centre() -> None:
    own = car()
    new = swapped(own, replace(own, hwl=own.hwl + [[1.0, 2.0, 3.0]]), np.array([0]), ("size",), cameras(own))
    assert new.hwl.tolist() == [[2.5, 3.6, 7.0]] and centre(new) == pytest.approx(centre(own), abs=1e-12)


def test_half_a_turn_flips_the_box_and_no_overlap() -> None:
    labels = truth(3)
    flipped = replace(labels, ry=labels.ry + np.pi, alpha=labels.alpha + np.pi)
    found = attribution(labels, labels, flipped, cameras(labels), CARS)
    assert swapped(labels, flipped, np.arange(48), ("heading",), cameras(labels)).ry == pytest.approx(labels.ry + np.pi)
    assert all(found.forward.gain(column, "heading") == 0 for column in COLUMNS)
    assert found.errors["student"].flipped == 1 and found.errors["baseline"].flipped == 0
    assert found.errors["student"].errors["heading"].mean == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ([10, 30, 20], [0.1, 0.9, 0.5]),
        ([1, 2, 3], [0.1, 0.5, 0.9]),
        ([0.5, 0.1, 0.9], [0.5, 0.1, 0.9]),
        ([1, 1, 2], [0.1, 0.1, 0.9]),  # who is equal stays equal
        ([2, 1, 1], [0.9, 0.1, 0.1]),
    ],
)
def test_scores_are_dealt_in_the_others_order(by: list[float], expected: list[float]) -> None:
    """A cyclist beside the cars has scores of its own."""
    own = together(*(car(left=100 * i, score=score) for i, score in enumerate([0.5, 0.1, 0.9])),
                   car(left=300, score=0.7, name="Cyclist"))  # fmt: skip
    other = replace(own, score=np.array([*by, -5.0]))
    assert swapped(own, other, np.arange(4), ("score",), cameras(own)).score.tolist() == [*expected, 0.7]


# ---------------------------------------------------------------------------------------------------------- attribution


@pytest.mark.parametrize("guilty", ["depth", "projected_centre", "heading", "size", "score"])
def test_the_field_that_is_wrong_is_found(guilty: Field) -> None:
    """The baseline is wrong in one field, the student in none: the field has the whole gain, both ways and in truth."""
    labels = truth(5)
    aside = replace(labels, box2d=labels.box2d + [[90, 0, 90, 0]], xyz=labels.xyz + [60, 0, 0])  # no object there
    student = together(labels, replace(aside, score=labels.score / 1000))
    baseline = blurred(student, 5, (guilty,))
    found = attribution(labels, baseline, student, cameras(labels), CARS)
    for column in COLUMNS:
        total = found.forward.total(column)
        assert total > (10 if column == ("3d", "strict") else -1e-9) and found.forward.end[column] == 100
        for swaps, sign in ((found.forward, 1), (found.backward, -1)):
            assert swaps.total(column) == sign * total and swaps.unmatched(column) == 0
            for field in FIELDS:
                expected = sign * total if field == guilty else 0
                assert swaps.gain(column, field) == pytest.approx(expected, abs=1e-9), field
            in_place = sign * total if guilty in LOCATION else 0
            assert swaps.gain(column, *LOCATION) == pytest.approx(in_place, abs=1e-9)
        if guilty != "score":  # the truth also knows which boxes are false
            assert found.oracle.gain(column, guilty) == pytest.approx(total)
        assert found.oracle.replaced[FIELDS][column] == pytest.approx(100)
        assert found.both_ways(column, guilty) == pytest.approx(total)
        assert found.remainder(column) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_all_fields_of_a_perfect_student_give_its_ap(seed: int) -> None:
    labels = truth(seed)
    baseline = blurred(labels, seed)
    found = attribution(labels, baseline, labels, cameras(labels), CARS)
    assert found.forward.matched == found.forward.boxes == found.forward.other_boxes == len(labels.frame)
    for column in COLUMNS:
        assert found.forward.replaced[FIELDS][column] == found.forward.end[column] == 100
        assert found.oracle.replaced[FIELDS][column] == found.oracle.end[column] == 100
        assert found.forward.start[column] < 50
    assert found.errors["student"].errors["depth"].mean == 0 < found.errors["baseline"].errors["depth"].mean


def test_what_is_reported_adds_up() -> None:
    labels = truth(7)
    baseline, student = some(blurred(labels, 7), 1), some(blurred(labels, 8, ("depth", "score")), 2)
    found = attribution(labels, baseline, student, cameras(labels), CARS)
    exchanged = attribution(labels, student, baseline, cameras(labels), CARS)
    assert (exchanged.forward, exchanged.backward) == (found.backward, found.forward)
    assert found.forward.matched == found.backward.matched < min(found.forward.boxes, found.backward.boxes)
    common = {errors.compared for errors in found.errors.values()}
    assert len(common) == 1 and max(common) < min(errors.found for errors in found.errors.values())
    result = evaluate(labels, student)
    for column in COLUMNS:
        assert found.forward.end[column] == found.backward.start[column] == result.ap("car", *column)[1]
        for swaps in (found.forward, found.backward, found.oracle):
            parts = sum(swaps.gain(column, field) for field in FIELDS)
            assert parts + swaps.interaction(column) + swaps.unmatched(column) == pytest.approx(swaps.total(column))
        for fields in REPLACED:
            assert exchanged.both_ways(column, *fields) == pytest.approx(-found.both_ways(column, *fields))
        shares = sum(found.both_ways(column, field) for field in FIELDS)
        assert shares + found.remainder(column) == pytest.approx(found.forward.total(column))


def test_the_scale_of_scores_does_not_matter() -> None:
    """A student that says the same on another scale of scores is judged the same."""
    labels = truth(9)
    baseline, student = some(blurred(labels, 9), 1), some(blurred(labels, 10, ("depth",)), 2)
    other = replace(student, score=np.exp(3 * student.score) - 100)
    one, two = (attribution(labels, baseline, s, cameras(labels), CARS) for s in (student, other))
    assert (one.forward, one.backward, one.oracle, one.errors) == (two.forward, two.backward, two.oracle, two.errors)


@pytest.mark.parametrize(
    ("chosen", "ap", "objects"),
    [
        (FieldSettings("cyclist", "hard"), 0, 0),
        (FieldSettings("cyclist", "moderate", min_height_scale=0.25), 0, 48),
        (FieldSettings("cyclist", "hard", min_height_scale=0.25), 100, 48),
        (FieldSettings("car", "hard", min_height_scale=0.25), 0, 0),
    ],
)
def test_settings_reach_the_evaluation(chosen: FieldSettings, ap: float, objects: int) -> None:
    """At a quarter of the size, boxes count by a quarter of the height; the class and the difficulty are as asked."""
    labels = replace(truth(11), name=np.full(48, "Cyclist"), occlusion=np.full(48, 2.0))
    small = replace(labels, box2d=labels.box2d / 4)
    student = blurred(small, 1, ("depth",))
    found = attribution(small, student, small, cameras(small), chosen)
    assert found.settings is chosen and found.frames == 8
    assert found.forward.end["3d", "strict"] == ap and found.errors["student"].objects == objects


def test_the_oracle_ranks_boxes_by_what_they_are() -> None:
    """A box without an object, or of one behind the camera, comes last and stays; one of a van becomes the van."""
    labels = together(car(), car(left=300, name="Van"), car(left=900, z=-1))
    boxes = together(car(z=20.5, score=0.1), car(z=19, left=300, score=0.2), car(left=800, score=0.9),
                     car(left=700, score=0.8), car(left=900, score=7.0))  # fmt: skip
    told = oracle(labels, boxes, 0.5)
    others = np.arange(2, 5)
    assert np.array_equal(told.xyz[:2], labels.xyz[:2])
    assert same(told.rows(others), boxes.rows(others), but={"score"})
    assert 1 > told.score[0] > told.score[1] > 0 and np.argsort(-told.score).tolist() == [0, 1, 4, 2, 3]
    assert told.name.tolist() == boxes.name.tolist()


# --------------------------------------------------------------------------------------------------------------- errors


def numbers(found: FieldErrors, which: str = "mean") -> dict[str, float]:
    return {name: getattr(spread, which) for name, spread in found.errors.items()}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {}),
        ({"z": 2.0}, {"depth": 2.0, "relative_depth": 10.0}),
        ({"z": -1.0}, {"depth": 1.0, "relative_depth": 5.0}),
        ({"uv": (3, -4)}, {"projected_centre": 5.0, "lateral": 3 * 20 / FOCAL, "vertical": 4 * 20 / FOCAL}),
        (
            {"uv": (3, -4), "z": 20.0},  # metres aside are those at the true depth
            {"depth": 20.0, "relative_depth": 100.0, "projected_centre": 5.0, "lateral": 3 * 20 / FOCAL,
             "vertical": 4 * 20 / FOCAL},
        ),
        ({"ry": np.radians(-30)}, {"heading": 30.0}),
        ({"ry": np.radians(350)}, {"heading": 10.0}),
        ({"ry": np.radians(170)}, {"heading": 10.0, "flipped": 1.0}),
        ({"hwl": [0.1, -0.2, 0.3]}, {"height": 0.1, "width": 0.2, "length": 0.3}),
    ],
)  # fmt: skip
def test_errors(change: dict, expected: dict[str, float]) -> None:
    """A box off by something known, and off in nothing else."""
    label = car(z=20)
    box = replace(label, hwl=label.hwl + [change.get("hwl", [0.0, 0.0, 0.0])], ry=label.ry + change.get("ry", 0))
    box = placed(box, projected(label) + change.get("uv", (0, 0)), label.xyz[:, 2] + change.get("z", 0))
    found = field_errors(label, box, cameras(label), CARS)
    assert {**numbers(found), "flipped": found.flipped} == pytest.approx(
        {**dict.fromkeys(UNITS, 0.0), "flipped": 0.0, **expected}, abs=1e-9
    )
    assert numbers(found, "median") == numbers(found) and (found.objects, found.found, found.compared) == (1, 1, 1)


def test_mean_and_median_and_what_both_found() -> None:
    labels = together(*(car(z=20, left=100 * i) for i in range(5)))
    one = together(*(car(z=20 + off, left=100 * i) for i, off in enumerate([0, 1, 8])), car(z=-3, left=300))
    other = together(*(car(z=20, left=100 * i) for i in range(1, 5)))
    alone = field_errors(labels, one, cameras(labels), CARS)
    assert (alone.objects, alone.found, alone.compared) == (5, 3, 3)
    assert (alone.errors["depth"].median, alone.errors["depth"].mean) == (1.0, 3.0)
    both = field_errors(labels, one, cameras(labels), CARS, beside=other)
    assert (both.objects, both.found, both.compared, both.errors["depth"].mean) == (5, 3, 2, 4.5)


TRUE, FALSE = [car(left=100 * i, score=0.1 * i + 0.1) for i in range(5)], 1000


@pytest.mark.parametrize(
    ("boxes", "rate", "found", "false"),
    [
        (TRUE, 0, 5, 0),
        ([*TRUE, car(left=FALSE, score=0.32)], 0, 2, 1),  # 0.4 and 0.5 are surer than the false one
        ([*TRUE, car(left=FALSE, score=0.32)], 1, 5, 1),
        ([*TRUE, car(left=FALSE, score=0.5)], 0, 0, 1),  # the surest are as sure as it
        ([*TRUE, car(left=FALSE, score=0.35), car(left=FALSE, score=0.15)], 1, 4, 2),
        ([*TRUE, car(left=0, score=0.05)], 0, 5, 1),  # a second box of one object is false
        ([*TRUE, car(left=FALSE, score=0.9, name="Cyclist")], 0, 5, 0),
        ([*TRUE, car(left=FALSE, score=0.9, height=20)], 0, 5, 0),  # too small to count
        ([*TRUE, car(left=600, score=0.9)], 0, 5, 0),  # of a van
        ([*TRUE, car(left=800, score=0.9)], 0, 5, 0),  # in a region where nothing is labelled
        ([car(left=FALSE, score=0.9)], 0, 0, 1),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_found_at_a_rate_of_false_boxes(
    boxes: list[Annotations], rate: float, found: int, false: int, scale: float
) -> None:
    labels = together(*TRUE, car(left=600, name="Van"), car(left=800, name="DontCare"))
    predictions = together(*boxes)
    predictions = replace(predictions, score=scale * predictions.score - 7)
    errors = field_errors(labels, predictions, cameras(labels), FieldSettings(false_positives=rate))
    assert (errors.objects, errors.found_at_rate, errors.false_boxes) == (5, found, false)


# --------------------------------------------------------------------------------------------------- nothing to look at


NOTHING = truth(0, 1).rows(np.arange(0))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("labels", "baseline", "student"),
    [
        (NOTHING, NOTHING, NOTHING),
        (NOTHING, truth(0, 1), truth(1, 1)),
        (truth(0, 1), NOTHING, truth(0, 1)),
        (truth(0, 1), truth(0, 1), NOTHING),
        (truth(0, 1), car(z=-1000), truth(0, 1)),  # boxes in the image only
        (truth(0, 1), car(name="Cyclist"), truth(0, 1)),
        (car(name="DontCare"), car(), car()),
        (truth(0, 0), truth(0, 0), truth(0, 0)),
    ],
    ids=["nothing", "no objects", "no baseline", "no student", "no 3D", "other class", "no label", "no frames"],
)
def test_nothing_is_no_error(labels: Annotations, baseline: Annotations, student: Annotations) -> None:
    found = attribution(labels, baseline, student, cameras(labels), CARS)
    everything = [swaps.gain(column, *fields) for swaps in (found.forward, found.backward, found.oracle)
                  for column in COLUMNS for fields in REPLACED]  # fmt: skip
    assert np.isfinite(everything).all()
    for part, boxes in (("baseline", baseline), ("student", student)):
        errors = found.errors[part]
        assert errors.compared == 0 and np.isnan([*numbers(errors).values(), errors.flipped]).all()
        assert errors.found == (len(labels.frame) if boxes.frame.size == labels.frame.size == SLOTS else 0)
    for column in COLUMNS:
        assert found.forward.start[column] == 0 or not len(student.frame)


def test_projections_are_read_frame_by_frame(tmp_path: Path) -> None:
    line = "P2: {} 0 600 45 0 700 170 0.2 0 0 1 0.003\nR0_rect: 1 0 0 0 1 0 0 0 1\n"
    for frame, focal in (("000001", 700), ("000000", 720)):
        text = line.format(focal) + "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
        (tmp_path / f"{frame}.txt").write_text(text)
    assert read_projections(tmp_path, ("000001", "000000"))[:, 0, 0].tolist() == [700, 720]
    assert read_projections(tmp_path, ()).shape == (0, 3, 4)
    with pytest.raises(UserError, match=r"000002\.txt"):
        read_projections(tmp_path, ("000002",))
