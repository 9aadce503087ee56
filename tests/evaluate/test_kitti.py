"""The KITTI evaluation against the algorithm written out frame by frame, and case by case for its rules."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill3d.errors import UserError
from distill3d.evaluate import iou
from distill3d.evaluate.kitti import (
    CLASSES,
    MAX_OCCLUSION,
    MAX_TRUNCATION,
    METRICS,
    MIN_HEIGHT,
    MIN_OVERLAP,
    NEIGHBOUR,
    Annotations,
    Result,
    evaluate,
    evaluate_folders,
    recall_thresholds,
    run_eval_kitti,
)

many = settings(max_examples=40, deadline=None)
DONT_CARE = "DontCare -1 -1 -10 {} {} {} {} -1 -1 -1 -1000 -1000 -1000 -10"


def label(
    name: str = "Car",
    box: tuple[float, float, float, float] = (100, 100, 200, 160),
    x: float = 0.0,
    truncation: float = 0.0,
    occlusion: int = 0,
    alpha: float = 0.0,
    size: str = "1.5 1.6 4.0",
) -> str:
    return f"{name} {truncation} {occlusion} {alpha} {box[0]} {box[1]} {box[2]} {box[3]} {size} {x} 1.6 20 0"


def result(*args: Any, score: float = 0.5, **kwargs: Any) -> str:
    return f"{label(*args, **kwargs)} {score}"


def annotations(*frames: list[str], scored: bool) -> Annotations:
    return Annotations.from_lines({f"{i:06d}": "\n".join(lines) for i, lines in enumerate(frames)}, scored=scored)


def run(labels: list[str], results: list[str], **options: Any) -> Result:
    """One frame."""
    return evaluate(annotations(labels, scored=False), annotations(results, scored=True), **options)


def moderate(result: Result, name: Any = "car", metric: Any = "3d", overlap: Any = "strict") -> tuple[float, float]:
    """Precision at recall 0 and AP, both at moderate: with one counted label, (1, 0) or (p, 0)."""
    return float(result.precision(name, metric, overlap)[1, 0]), result.ap(name, metric, overlap)[1]


# ------------------------------------------------ the algorithm, frame by frame


def written_out(labels: Annotations, det: Annotations, name: Any, metric: str, level: int, least: float) -> np.ndarray:
    """(41,) precision by the rules of the official program, with a loop for every word `for`."""

    def overlap(d: int, g: int) -> float:
        if metric in ("bbox", "aos"):
            return iou.image_iou(det.box2d[d : d + 1], labels.box2d[g : g + 1])[0]
        function = iou.bev_iou if metric == "bev" else iou.iou_3d
        return function(det.box3d[d : d + 1], labels.box3d[g : g + 1])[0]

    def gt_state(g: int) -> int:
        kind, height = labels.name[g].lower(), labels.box2d[g, 3] - labels.box2d[g, 1]
        hard = (
            labels.occlusion[g] > MAX_OCCLUSION[level]
            or labels.truncation[g] > MAX_TRUNCATION[level]
            or height < MIN_HEIGHT[level]
        )
        return (1 if hard else 0) if kind == name else (1 if kind == NEIGHBOUR.get(name) else -1)

    def det_state(d: int) -> int:
        if int(abs(det.box2d[d, 3] - det.box2d[d, 1])) < MIN_HEIGHT[level]:
            return 1
        return 0 if det.name[d].lower() == name else -1

    def statistics(frame: int, threshold: float | None) -> tuple[list[float], int, float]:
        gts = [g for g in np.flatnonzero(labels.frame == frame) if gt_state(g) != -1]
        dets = [d for d in np.flatnonzero(det.frame == frame) if det_state(d) != -1]
        if threshold is not None:
            dets = [d for d in dets if det.score[d] >= threshold]
        assigned: set[int] = set()
        true_scores: list[float] = []
        similarity = 0.0
        for g in gts:
            held = None
            for d in dets:
                if d in assigned or not overlap(d, g) > least:
                    continue
                if threshold is None:
                    if held is None or det.score[d] > det.score[held]:
                        held = d
                elif det_state(d) == 0:
                    if held is None or det_state(held) == 1 or overlap(d, g) > overlap(held, g):
                        held = d
                elif held is None:
                    held = d
            if held is None:
                continue
            assigned.add(held)
            if gt_state(g) == 0 and det_state(held) == 0:
                true_scores.append(det.score[held])
                similarity += (1 + np.cos(labels.alpha[g] - det.alpha[held])) / 2
        wrong = [d for d in dets if det_state(d) == 0 and d not in assigned]
        if metric in ("bbox", "aos"):
            regions = [g for g in np.flatnonzero(labels.frame == frame) if labels.name[g].lower() == "dontcare"]
            rows = [(det.box2d[d : d + 1], labels.box2d[regions]) for d in wrong]
            wrong = [1 for a, b in rows if not (iou.image_coverage(np.repeat(a, len(b), 0), b) > least).any()]
        return true_scores, len(wrong), similarity

    frames = range(len(labels.frames))
    counted = sum(gt_state(g) == 0 for g in range(len(labels.frame)) if labels.name[g].lower() == name)
    scores = sorted((s for frame in frames for s in statistics(frame, None)[0]), reverse=True)
    thresholds: list[float] = []
    current = 0.0
    for i, score in enumerate(scores):
        last = i == len(scores) - 1
        left, right = (i + 1) / counted, (i + 1 if last else i + 2) / counted
        if right - current < current - left and not last:
            continue
        thresholds.append(score)
        current += 1 / 40
    precision = np.zeros(41)
    for i, threshold in enumerate(thresholds[:41]):
        per_frame = [statistics(frame, threshold) for frame in frames]
        true, false = sum(len(row[0]) for row in per_frame), sum(row[1] for row in per_frame)
        gain = sum(row[2] for row in per_frame) if metric == "aos" else true
        precision[i] = gain / (true + false) if true + false else 0
    return np.array([precision[i:].max() for i in range(41)])


NAMES = ["Car", "Car", "Car", "van", "Pedestrian", "Person_sitting", "Cyclist", "Truck", "DontCare"]


def crowded_scene(seed: int, frames: int = 4) -> tuple[Annotations, Annotations]:
    """Few places, sizes and scores, so that ties, exact heights, duplicates and rivals are the rule."""
    rng = np.random.default_rng(seed)

    def place(name: str, spread: float) -> dict[str, Any]:
        slot, height = rng.integers(0, 4), rng.choice([24.0, 24.5, 25.0, 25.5, 39.9, 40.0, 40.5, 60.0])
        left = 100 + 30 * slot + rng.normal(0, 12 * spread)
        return {
            "name": name,
            "box": (left, 100, left + 80, 100 + height),
            "x": 2.0 * slot + rng.normal(0, spread),
            "alpha": round(rng.uniform(-3, 3), 2),
        }

    label_frames, result_frames = [], []
    for _ in range(frames):
        chosen = rng.choice(NAMES, size=rng.integers(0, 9))
        label_frames.append(
            [
                DONT_CARE.format(*place(name, 0.1)["box"])
                if name == "DontCare"
                else label(
                    **place(name, 0.0),
                    truncation=rng.choice([0, 0.15, 0.3, 0.6]),
                    occlusion=rng.choice([0, 0, 1, 2, 3]),
                )
                for name in chosen
            ]
        )
        chosen = rng.choice(["Car", "car", "Car", "Pedestrian", "Cyclist", "Van"], size=rng.integers(0, 14))
        spread = rng.choice([0.0, 0.3])
        result_frames.append([result(**place(name, spread), score=rng.choice([0.2, 0.5, 0.7])) for name in chosen])
    return annotations(*label_frames, scored=False), annotations(*result_frames, scored=True)


@many
@given(st.integers(0, 10**6))
def test_equals_the_algorithm_written_out(seed: int) -> None:
    labels, predictions = crowded_scene(seed)
    outcome = evaluate(labels, predictions)
    for overlap, minima in MIN_OVERLAP.items():
        for name, metric in outcome.evaluated:
            if not outcome.evaluated[name, metric]:
                assert name not in {kind.lower() for kind in predictions.name}
                continue
            least = minima[name]["bbox" if metric == "aos" else metric]
            for level in range(3):
                expected = written_out(labels, predictions, name, metric, level, least)
                found = outcome.precision(name, metric, overlap)[level]
                np.testing.assert_allclose(found, expected, atol=1e-12, err_msg=f"{name} {metric} {overlap} {level}")


@many
@given(st.integers(0, 10**6))
def test_ranges_and_order_of_overlaps(seed: int) -> None:
    outcome = evaluate(*crowded_scene(seed))
    for name in CLASSES:
        for metric in METRICS:
            curve = outcome.precision(name, metric)
            assert curve.shape == (3, 41)
            assert (0 <= curve).all() and (curve <= 1 + 1e-12).all()
            assert (np.diff(curve, axis=1) <= 1e-12).all()
        assert (outcome.precision(name, "aos") <= outcome.precision(name, "bbox") + 1e-12).all()
        assert np.array_equal(outcome.precision(name, "bbox", "loose"), outcome.precision(name, "bbox", "strict"))


@many
@given(st.integers(0, 10**6), st.permutations(range(4)))
def test_order_of_frames_does_not_matter(seed: int, order: list[int]) -> None:
    labels, predictions = crowded_scene(seed)
    frames = [labels.frames[i] for i in order]
    before, after = evaluate(labels, predictions), evaluate(labels, predictions, frames=frames)
    for key, curve in before.curves["strict"].items():
        np.testing.assert_allclose(after.curves["strict"][key], curve, atol=1e-12)


@pytest.mark.parametrize(
    ("scores", "ground_truths", "expected"),
    [
        pytest.param([], 5, [], id="none"),
        pytest.param([0.3], 1, [0.3], id="one"),
        pytest.param([0.2, 0.9, 0.5], 3, [0.9, 0.5, 0.2], id="sorted, descending"),
        pytest.param([0.5, 0.5], 4, [0.5, 0.5], id="ties stay"),
        pytest.param(list(range(400)), 400, [399, *range(390, -1, -10), 0], id="evenly spaced in recall"),
    ],
)
def test_recall_thresholds(scores: list[float], ground_truths: int, expected: list[float]) -> None:
    found = recall_thresholds(np.array(scores, dtype=float), ground_truths)
    assert len(found) <= 41
    assert found.tolist() == expected[:41]


# ----------------------------------------------------------------- rule by rule

FULL_HEIGHT = (100, 100, 200, 160)
FAR = {"box": (600, 100, 700, 160), "x": 15.0}


def of_height(height: float) -> tuple[float, float, float, float]:
    return (100, 100, 200, 100 + height)


@pytest.mark.parametrize(
    ("labels", "results", "first_precision"),
    [
        pytest.param([label()], [result()], 1.0, id="hit"),
        pytest.param([label()], [result(), result(**FAR)], 0.5, id="hit and false alarm"),
        pytest.param([label()], [result(), result()], 0.5, id="duplicate is a false alarm"),
        pytest.param([label()], [result(), result("Van", **FAR)], 1.0, id="other classes raise no false alarm"),
        pytest.param([label()], [result(score=0.9), result(score=0.4, **FAR)], 1.0, id="weaker false alarm is cut off"),
        pytest.param([label()], [result("CAR")], 1.0, id="names in any case"),
        pytest.param([label()], [result("vehicle")], 0.0, id="unknown name"),
        pytest.param([label(), label("Van", **FAR)], [result(), result(**FAR)], 1.0, id="Van absorbs"),
        pytest.param([label(), label("Truck", **FAR)], [result(), result(**FAR)], 0.5, id="Truck does not absorb"),
        pytest.param([label(), label(occlusion=2, **FAR)], [result(), result(**FAR)], 1.0, id="hard label absorbs"),
        pytest.param([label(), label(truncation=0.31, **FAR)], [result(), result(**FAR)], 1.0, id="truncated absorbs"),
        pytest.param([label(truncation=-1)], [result()], 1.0, id="truncation -1 is not hard"),
        pytest.param([label(occlusion=3)], [result()], 0.0, id="occlusion 3 is always hard"),
        pytest.param([label()], [result(), result(box=(600, 100, 700, 124), x=15.0)], 1.0, id="small false alarm"),
        pytest.param([], [result()], 0.0, id="nothing labelled"),
        pytest.param([label()], [], 0.0, id="nothing detected"),
    ],
)
def test_matching_rules_in_3d(labels: list[str], results: list[str], first_precision: float) -> None:
    assert moderate(run(labels, results))[0] == pytest.approx(first_precision)


def test_sitting_person_absorbs_for_pedestrians_only() -> None:
    labels = [label("Pedestrian"), label("Cyclist"), label("Person_sitting", **FAR)]
    outcome = run(labels, [result("Pedestrian"), result("Pedestrian", **FAR)])
    assert moderate(outcome, "pedestrian")[0] == 1.0
    outcome = run(labels, [result("Cyclist"), result("Cyclist", **FAR)])
    assert moderate(outcome, "cyclist")[0] == 0.5


def test_a_small_detection_of_another_class_takes_the_label_away() -> None:
    # In pass A the surer small pedestrian takes the car; nothing is left to set a threshold.
    small = result("Pedestrian", box=of_height(20), score=0.9)
    assert moderate(run([label()], [result(), small]))[0] == 0.0
    assert moderate(run([label()], [result(), small.replace("0.9", "0.1")]))[0] == 1.0


def test_own_detections_come_before_small_ones() -> None:
    # The second frame makes 0.3 a threshold, which the small detection of the first frame reaches as well.
    small_first = [result(box=of_height(20), score=0.4), result(score=0.5)]
    labels = annotations([label()], [label()], scored=False)
    outcome = evaluate(labels, annotations(small_first, [result(score=0.3)], scored=True))
    assert outcome.precision("car", "3d")[1, :3] == pytest.approx([1, 1, 0])


def test_ties_go_to_the_first_in_the_file() -> None:
    # Two labels, two equal scores: the first label takes the first candidate that fits it, whatever the overlap.
    near, both = result(x=0.3, score=0.5), result(x=0.0, score=0.5)
    assert moderate(run([label(), label(x=0.6)], [near, both]))[0] == pytest.approx(1.0)
    # The surest is taken in pass A, but the best overlap in pass B: the threshold is 0.9, and at it one hit remains.
    assert moderate(run([label()], [result(x=0.2, score=0.9), result(score=0.5)]))[0] == 1.0


@pytest.mark.parametrize(
    ("coverage_box", "metric", "first_precision"),
    [
        pytest.param((590, 90, 710, 170), "bbox", 1.0, id="inside"),
        pytest.param((600, 100, 671, 160), "bbox", 1.0, id="covered by more than 0.7"),
        pytest.param((600, 100, 670, 160), "bbox", 0.5, id="covered by exactly 0.7"),
        pytest.param((590, 90, 710, 170), "3d", 0.5, id="not in 3D"),
    ],
)
def test_dont_care_regions(coverage_box: tuple[float, ...], metric: str, first_precision: float) -> None:
    outcome = run([label(), DONT_CARE.format(*coverage_box)], [result(), result(**FAR)])
    assert moderate(outcome, "car", metric)[0] == pytest.approx(first_precision)


def test_overlap_must_exceed_the_minimum() -> None:
    half, more = (100, 100, 150, 160), (100, 100, 151, 160)
    for box, expected in ((half, 0.0), (more, 1.0)):
        outcome = run([label("Pedestrian")], [result("Pedestrian", box=box)])
        assert moderate(outcome, "pedestrian", "bbox")[0] == expected


@pytest.mark.parametrize(
    ("height", "detected_height", "counted", "found"),
    [  # counted and found at easy, moderate
        pytest.param(40, 40, (1, 1), (1, 1), id="exactly 40"),
        pytest.param(39.99, 40, (0, 1), (0, 1), id="label just under 40"),
        pytest.param(40, 39.99, (1, 1), (0, 1), id="detection just under 40"),
        pytest.param(25, 25, (0, 1), (0, 1), id="exactly 25"),
        pytest.param(24.99, 25, (0, 0), (0, 0), id="label just under 25"),
        pytest.param(25, 24.99, (0, 1), (0, 0), id="detection just under 25"),
    ],
)
def test_heights(height: float, detected_height: float, counted: tuple[int, int], found: tuple[int, int]) -> None:
    outcome = run([label(box=of_height(height))], [result(box=of_height(detected_height))])
    assert outcome.explanation.classes["car"].counted[:2] == counted
    assert tuple(outcome.precision("car", "bbox")[:2, 0]) == found


@pytest.mark.parametrize(("height", "counted"), [(25, 0), (25.01, 1)])
def test_python_style_ignores_labels_of_exactly_the_least_height(height: float, counted: int) -> None:
    outcome = run([label(box=of_height(height))], [result()], style="python")
    assert outcome.explanation.classes["car"].counted[1] == counted


def test_placeholder_boxes_meet_dont_care_in_the_official_program_only() -> None:
    # A detection without a 3D box shares the placeholder with DontCare regions.
    flat = "Car -1 -1 0 600 100 700 160 -1 -1 -1 -1000 -1000 -1000 -10 0.9"
    labels = [label(), DONT_CARE.format(0, 0, 1, 1)]
    for style, expected in (("c++", 1.0), ("python", 0.5)):
        assert moderate(run(labels, [result(), flat], style=style), "car", "bev")[0] == expected


@pytest.mark.parametrize(
    ("scale", "height", "counted"),
    [
        pytest.param(1.0, 24.9, 0, id="full size, too small"),
        pytest.param(0.5, 12.5, 1, id="half size, exactly 25 at full size"),
        pytest.param(0.5, 12.4, 0, id="half size, too small"),
        pytest.param(0.3, 7.5, 1, id="least height 7.5"),
        pytest.param(0.3, 7.4, 0, id="under 7.5"),
        pytest.param(2.0, 49.0, 0, id="double size"),
    ],
)
def test_min_height_scale(scale: float, height: float, counted: int) -> None:
    outcome = run([label(box=of_height(height))], [result(box=of_height(height))], min_height_scale=scale)
    assert outcome.explanation.classes["car"].counted[1] == counted
    assert moderate(outcome, "car", "bbox")[0] == counted
    assert f"min_height_scale {scale:g}" in str(outcome.table().title)
    assert outcome.to_json()["settings"]["min_height_scale"] == scale


@many
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.25, 2.0]))
def test_scaled_images_give_the_same_numbers(seed: int, scale: float) -> None:
    labels, predictions = crowded_scene(seed)
    smaller = [replace(rows, box2d=rows.box2d * scale) for rows in (labels, predictions)]
    full, reduced = evaluate(labels, predictions), evaluate(*smaller, min_height_scale=scale)
    for key, curve in full.curves["strict"].items():
        np.testing.assert_allclose(reduced.curves["strict"][key], curve, atol=1e-12)


@pytest.mark.parametrize("options", [{"min_height_scale": 0}, {"min_height_scale": float("nan")}, {"style": "matlab"}])
def test_meaningless_options(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        run([label()], [result()], **options)


def test_no_orientation_without_alpha() -> None:
    outcome = run([label()], [result(), result(alpha=-10, **FAR)])
    assert not outcome.evaluated["car", "aos"] and outcome.evaluated["car", "bbox"]
    assert outcome.ap("car", "aos") == (0, 0, 0)
    assert "No aos: 1 of 2 detections" in outcome.explanation.text()


def test_orientation_counts_the_angle() -> None:
    outcome = run([label(alpha=0.2)], [result(alpha=0.2 + np.pi / 2)])
    assert moderate(outcome, "car", "aos")[0] == pytest.approx(0.5)
    assert moderate(outcome, "car", "bbox")[0] == 1.0


@pytest.mark.parametrize(
    ("line", "metric"),
    [
        ("Car -1 -1 0 -1 -1 -1 -1 1.5 1.6 4.0 0 1.6 20 0 0.5", "bbox"),
        ("Car -1 -1 0 100 100 200 160 -1 -1 -1 -1000 -1000 -1000 -10 0.5", "bev"),
        ("Car -1 -1 0 100 100 200 160 -1 -1 -1 -1000 -1000 -1000 -10 0.5", "3d"),
    ],
)
def test_only_what_has_a_valid_detection_is_evaluated(line: str, metric: Any) -> None:
    outcome = run([label()], [line])
    done = {key for key in METRICS if outcome.evaluated["car", key]}
    assert metric not in done and done
    absent = ", ".join(key for key in METRICS if key not in {*done, "aos"})
    assert f"car: {absent} not evaluated, as no detection has such a box" in outcome.explanation.text()
    assert not any(outcome.evaluated["cyclist", key] for key in METRICS)


@many
@given(st.integers(0, 10**6))
def test_labels_against_themselves(seed: int) -> None:
    labels, _ = crowded_scene(seed)
    rng = np.random.default_rng(seed)
    rows = labels.rows(np.char.lower(labels.name) != "dontcare")
    # Apart from each other, so that every label can only meet itself; orientation known.
    spread = replace(rows, xyz=rows.xyz + np.arange(len(rows.frame))[:, None] * [50.0, 0, 0])
    spread = replace(spread, box2d=spread.box2d + np.arange(len(rows.frame))[:, None] * [200.0, 0, 200.0, 0])
    outcome = evaluate(spread, replace(spread, score=rng.random(len(rows.frame))))
    for name, row in outcome.explanation.classes.items():
        for level, counted in enumerate(row.counted):
            for metric in METRICS:
                # One threshold per true positive up to 41: fewer labels than that end the curve early, and 40 do not.
                ones = outcome.precision(name, metric)[level]
                assert ones[: min(counted, 41)] == pytest.approx(1.0)
                assert not ones[counted:].any()


def test_many_labels_against_themselves_give_100() -> None:
    labels = annotations(*[[label(), label("Pedestrian", **FAR), label("Van")]] * 60, scored=False)
    outcome = evaluate(labels, replace(labels, score=np.linspace(1, 0, len(labels.frame))))
    for metric in METRICS:
        assert outcome.ap("car", metric) == pytest.approx((100, 100, 100))
        assert outcome.ap("pedestrian", metric) == pytest.approx((100, 100, 100))
        assert outcome.ap("cyclist", metric) == (0, 0, 0)


# ------------------------------------------------------------------------ files


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three frames: a hit, an empty pair of files, a false alarm."""
    labels, results = tmp_path / "label_2", tmp_path / "results"
    labels.mkdir()
    results.mkdir()
    for frame, (label_text, result_text) in enumerate(
        [(label() + "  \n", result() + " \r\n\n"), ("", ""), (label(), result(**FAR, score=0.1))]
    ):
        (labels / f"{frame:06d}.txt").write_text(label_text)
        (results / f"{frame:06d}.txt").write_text(result_text)
    return labels, results


def test_folders_equal_memory(folders: tuple[Path, Path]) -> None:
    labels, results = folders
    from_files = evaluate_folders(labels, results)
    in_memory = evaluate(
        Annotations.from_folder(labels, scored=False),
        annotations([result()], [], [result(**FAR, score=0.1)], scored=True),
    )
    assert from_files.explanation == in_memory.explanation
    for key, curve in in_memory.curves["strict"].items():
        assert np.array_equal(from_files.curves["strict"][key], curve)
    assert from_files.explanation.frames == 3
    assert moderate(from_files)[0] == 1.0


def test_official_layout_is_found(folders: tuple[Path, Path]) -> None:
    labels, results = folders
    (results.parent / "run").mkdir()
    results.rename(results.parent / "run" / "data")
    assert evaluate_folders(labels, results.parent / "run").explanation.frames == 3


def test_split_chooses_frames(folders: tuple[Path, Path], tmp_path: Path) -> None:
    labels, results = folders
    split = tmp_path / "val.txt"
    split.write_text("000002\n000000")  # without a last line break
    (results / "notes.txt").write_text("not a frame")
    outcome = evaluate_folders(labels, results, split)
    assert outcome.explanation.frames == 2
    assert outcome.explanation.results_outside_split == ("000001",)
    assert outcome.explanation.other_files == ("notes",)
    assert "Result files outside the split, not evaluated: 1 (first: 000001)" in outcome.explanation.text()


def test_without_split_what_is_there_is_evaluated(folders: tuple[Path, Path]) -> None:
    labels, results = folders
    (results / "000001.txt").unlink()
    outcome = evaluate_folders(labels, results)
    assert outcome.explanation.labels_without_results == ("000001",)
    assert "Label files without a result file, not evaluated: 1 (first: 000001)" in outcome.explanation.text()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "results/000000.txt",
            result() + "\n" + label(),
            r"000000\.txt:2: .*16 fields, found 15 \(the score is mis",
        ),
        ("results/000000.txt", result() + " 1", r"000000\.txt:1: expected 16 fields, found 17"),
        ("results/000002.txt", "\n" + result(score=float("nan")), r"000002\.txt:2: score is 'nan'"),
        ("results/000002.txt", result(score=float("inf")), r"000002\.txt:1: score is 'inf'"),
        ("results/000002.txt", result(x="left"), r"000002\.txt:1: x is 'left'"),  # type: ignore[arg-type]
        ("label_2/000001.txt", result(), r"000001\.txt:1: expected 15 fields, found 16"),
        ("label_2/000000.txt", None, r"1 of 3 frames have no label file .* 000000\.txt"),
        ("results", None, r"results: no such folder"),
        ("label_2", None, r"label_2: no such folder"),
        ("results/*", None, r"results holds no result files"),
    ],
)
def test_mistakes_in_files(folders: tuple[Path, Path], file: str, content: str | None, message: str) -> None:
    root = folders[0].parent
    if content is not None:
        (root / file).write_text(content)
    for path in root.glob(file) if content is None else ():
        path.rename(root / f"away_{path.name}")
    with pytest.raises(UserError, match=message):
        evaluate_folders(*folders)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000000\n000007\n000008\n", r"2 of 3 frames have no result file .* 000007\.txt"),
        ("\n", "names no frame"),
        (None, "no such file"),
    ],
)
def test_mistakes_in_splits(folders: tuple[Path, Path], tmp_path: Path, text: str | None, message: str) -> None:
    split = tmp_path / "val.txt"
    if text is not None:
        split.write_text(text)
    with pytest.raises(UserError, match=message):
        evaluate_folders(*folders, split)


def test_missing_frames_in_memory() -> None:
    labels, predictions = annotations([label()], scored=False), annotations([result()], [result()], scored=True)
    with pytest.raises(UserError, match="1 of 2 frames have no labels, the first is 000001"):
        evaluate(labels, predictions)
    with pytest.raises(UserError, match="1 of 2 frames have no result, the first is 000001"):
        evaluate(predictions, labels, frames=predictions.frames)


def test_annotations_are_validated() -> None:
    rows = annotations([result()], scored=True)
    with pytest.raises(UserError, match="frame 000000: score must be finite"):
        replace(rows, score=np.array([np.nan]))
    with pytest.raises(ValueError, match="box2d must have shape"):
        replace(rows, box2d=np.zeros((1, 5)))
    with pytest.raises(ValueError, match="frame must index"):
        replace(rows, frame=np.array([3]))


def test_everything_empty() -> None:
    outcome = run([], [])
    assert not any(outcome.evaluated.values())
    assert not any(curve.any() for table in outcome.curves.values() for curve in table.values())


# ------------------------------------------------------------------ explanation


@pytest.mark.parametrize(
    ("labels", "results", "sentence"),
    [
        pytest.param([label()], [], "car: no AP (-), as no detection has this name", id="no detection"),
        pytest.param([], [], "car: no AP (-), as no label is of this class and no detection has", id="nothing at all"),
        pytest.param([], [result()], "car: AP is zero as no label is of this class", id="no label"),
        pytest.param([label()], [result("cra")], "'cra' x 1 (did you mean 'car'?)", id="misspelt"),
        pytest.param([label()], [result("vehicle")], "'vehicle' x 1 (known are car, ", id="foreign name"),
        pytest.param([label(occlusion=3)], [result()], "none of 1 labels counts", id="all occluded"),
        pytest.param([label()], [result(box=of_height(20))], "all 1 detections are lower than 25 px", id="small"),
        pytest.param([label()], [result(x=10.0)], "lies 10.00 m from the nearest label", id="far off"),
        pytest.param([label()], [result().replace(" 1.6 20", " 0.85 20")], "bottom of the box", id="centre for bottom"),
        pytest.param([label()], [result(size="4.0 1.6 1.5")], "height, width, length", id="sizes reversed"),
        pytest.param([label()], [result(box=(50, 50, 100, 80))], "scaled to full size", id="reduced image"),
        pytest.param([label()], [result(), result()], "all 2 scores are equal", id="equal scores"),
        pytest.param([label(box=of_height(30))], [result()], "where no label counts: easy", id="none at easy"),
    ],
)
def test_zeros_are_explained(labels: list[str], results: list[str], sentence: str) -> None:
    assert sentence in run(labels, results).explanation.text()


def test_zero_for_frames_that_never_meet() -> None:
    labels, predictions = annotations([label()], [], scored=False), annotations([], [result()], scored=True)
    assert "do the frames agree?" in evaluate(labels, predictions).explanation.text()


def test_nothing_to_explain_where_all_is_well() -> None:
    labels = annotations(*[[label(name) for name in ("Car", "Pedestrian", "Cyclist")]] * 50, scored=False)
    predictions = replace(labels, score=np.linspace(1, 0, len(labels.frame)))
    assert evaluate(labels, predictions).explanation.notes == ()


def test_few_labels_cap_the_ap() -> None:
    labels = annotations(*[[label()]] * 11, scored=False)
    outcome = evaluate(labels, replace(labels, score=np.linspace(1, 0, 11)))
    assert outcome.ap("car", "3d") == pytest.approx((25, 25, 25))
    assert "car: with 11/11/11 labels that count AP cannot exceed 25/25/25 %" in outcome.explanation.text()


def test_reasons_are_counted() -> None:
    labels = [label(), label(occlusion=1), label(truncation=0.2), label(box=of_height(30)), label("Van")]
    row = run(labels, [result(), result(box=of_height(10))]).explanation.classes["car"]
    assert (row.labels, row.neighbours, row.detections) == (4, 1, 2)
    assert (row.counted, row.occluded, row.truncated, row.too_small) == ((1, 4, 4), (1, 0, 0), (1, 0, 0), (1, 0, 0))
    assert row.small_detections == (1, 1, 1)
    assert run([label()], [result("Van"), result("Truck"), result("Van")]).explanation.other_names == {
        "Truck": 1,
        "Van": 2,
    }


def test_command_prints_and_writes(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new" / "result.json"
    run_eval_kitti(*folders, None, target, 1.0, "c++")
    printed = capsys.readouterr().out
    assert "3 frames" in printed and "min_height_scale 1" in printed and "moderate" in printed
    document = json.loads(target.read_text())
    keys = [f"{name}_{metric}" for name in CLASSES for metric in METRICS]
    for overlap in ("strict", "loose"):
        assert list(document[overlap]) == keys
        for entry in document[overlap].values():
            assert set(entry) == {"AP_R40", "precision41"}
            assert np.shape(entry["AP_R40"]) == (3,) and np.shape(entry["precision41"]) == (3, 41)
            assert entry["AP_R40"] == pytest.approx(np.mean(np.array(entry["precision41"])[:, 1:], axis=1) * 100)
    assert document["explanation"]["classes"]["car"]["labels"] == 2
