"""Transfer, object by object: tables of small cases, and what must hold of any predictions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill3d.evaluate.kitti import Annotations
from distill3d.evaluate.matching import MISSED, match_in_image
from distill3d.evaluate.transfer import (
    GAINED,
    LOST,
    NEGATIVE,
    NEITHER,
    NEUTRAL,
    OUTCOMES,
    POSITIVE,
    Analysis,
    TransferSettings,
    analyse,
    find,
    judge,
    labelled_objects,
    largest,
    net_difference,
)

NAN = np.nan
SMALL = TransferSettings(least_objects=3, least_frames=2, resamples=200)


def line(
    left: float, z: float, score: float | None = None, name: str = "Car", occlusion: int = 0, width: float = 40
) -> str:
    """A car whose image box is 40 x 40 px from ``left`` on, at depth z."""
    head = f"{name} 0 {occlusion} 0 {left} 10 {left + width} 50 1.5 1.6 4 {left / 10} 1.6 {z} 0"
    return head if score is None else f"{head} {score}"


def read(frames: list[list[str]], scored: bool) -> Annotations:
    texts = {f"{i:06d}": "\n".join(rows) for i, rows in enumerate(frames)}
    return Annotations.from_lines(texts, scored=scored)


def run(
    labels: list[list[str]], baseline: list[list[str]], student: list[list[str]],
    teacher: list[list[str]] | None = None, log_scale: np.ndarray | None = None, settings: TransferSettings = SMALL,
) -> Analysis:  # fmt: skip
    truth = read(labels, False)
    objects = labelled_objects(truth, settings)
    found = [
        None if one is None else find(truth, read(one, True), objects, settings.least_overlap)
        for one in (baseline, student, teacher)
    ]
    assert found[0] is not None and found[1] is not None
    return analyse(objects, found[0], found[1], found[2], log_scale, settings)


# ---------------------------------------------------------------------------------------------------------- matching


@pytest.mark.parametrize(
    ("labels", "results", "expected"),
    [
        ([line(0, 20)], [line(0, 60, 0.1)], [0]),  # neither depth nor a low score keeps a box from its object
        ([line(0, 20)], [line(20, 20, 0.9)], [MISSED]),  # IoU 1/3
        ([line(0, 20)], [line(13, 20, 0.9)], [0]),  # IoU 27/53
        ([line(0, 20)], [line(0, 20, 0.9, name="Cyclist")], [MISSED]),
        ([line(0, 20, name="Van")], [line(0, 20, 0.9)], [0]),  # forgiven: it is spent, and not free for a neighbour
        ([line(0, 20)], [], [MISSED]),
        ([], [line(0, 20, 0.9)], []),
        ([line(0, 20)], [line(2, 20, 0.5), line(9, 20, 0.6)], [1]),  # the surer one, though it lies farther off
        ([line(0, 20)], [line(2, 20, 0.5), line(1, 20, 0.5)], [0]),  # equally sure: the first in the file
        ([line(0, 20), line(8, 20)], [line(6, 20, 0.9), line(8, 20, 0.5)], [1, 0]),  # the surer chooses
        ([line(0, 20), line(4, 20)], [line(4, 20, 0.9), line(4, 20, 0.8), line(4, 20, 0.7)], [1, 0]),  # one to one
        ([line(0, 20, name="DontCare")], [line(0, 20, 0.9)], [MISSED]),
    ],
)
def test_match(labels: list[str], results: list[str], expected: list[int]) -> None:
    assert match_in_image(read([labels], False), read([results], True), 0.5).tolist() == expected


def test_frames_do_not_mix() -> None:
    labels, results = [[line(0, 20)], [], [line(0, 30)]], [[], [line(0, 20, 0.9)], [line(0, 31, 0.9)]]
    assert match_in_image(read(labels, False), read(results, True), 0.5).tolist() == [MISSED, 1]
    with pytest.raises(ValueError, match="same frames"):
        match_in_image(read(labels, False), read([[]], True), 0.5)


boxes = st.lists(st.tuples(st.integers(0, 60), st.integers(5, 60), st.sampled_from([0.3, 0.5, 0.9])), max_size=5)
frame_lists = st.lists(st.tuples(boxes, boxes, boxes), min_size=1, max_size=4)


def as_lines(frames: list, which: int, scored: bool) -> list[list[str]]:
    return [[line(u, z, score if scored else None) for u, z, score in frame[which]] for frame in frames]


@given(frame_lists)
def test_matching_is_one_to_one(frames: list) -> None:
    labels, results = read(as_lines(frames, 0, False), False), read(as_lines(frames, 1, True), True)
    match = match_in_image(labels, results, 0.5)
    used = match[match != MISSED]
    assert len(set(used.tolist())) == len(used)
    assert np.array_equal(results.frame[used], labels.frame[match != MISSED])


# ---------------------------------------------------------------------------------------------------------- outcomes


@pytest.mark.parametrize(
    ("baseline", "student", "outcome"),
    [
        (1.0, 0.5, POSITIVE),
        (0.5, 1.0, NEGATIVE),
        (1.0, 1.0, NEUTRAL),
        (1.0, 0.7, NEUTRAL),  # 0.3 m of the 0.4 m that 2 % of 20 m are
        (0.6, 1.0, NEUTRAL),  # exactly the margin is not more than it
        (0.6, 1.01, NEGATIVE),
        (NAN, 9.0, GAINED),
        (9.0, NAN, LOST),
        (NAN, NAN, NEITHER),
    ],
)
def test_judge(baseline: float, student: float, outcome: int) -> None:
    assert judge(np.array([20.0]), np.array([baseline]), np.array([student]), 0.02).tolist() == [outcome]


def test_what_is_told_of_an_object() -> None:
    labels = [["DontCare -1 -1 -10 0 0 5 5 -1 -1 -1 -1000 -1000 -1000 -10", line(0, 20), line(80, 30, occlusion=3)]]
    result = "Car -1 -1 0 0 10 40 50 1.7 1.6 4 3 1.6 24 0 0.9"
    analysis = run(labels, [[]], [[result]])
    objects, student = analysis.objects, analysis.parts["student"]
    assert objects.line.tolist() == [1] and objects.distance.tolist() == [20.0]  # occlusion 3 does not count
    assert student.depth_error.tolist() == [4.0]
    assert student.centre_error == pytest.approx([np.sqrt(3**2 + 0.1**2 + 4**2)])  # bottoms agree, heights do not
    assert student.iou_3d.tolist() == [0.0] and not analysis.parts["baseline"].found.any()
    assert analysis.total.counts == dict.fromkeys(OUTCOMES, 0) | {"gained": 1}


@given(frame_lists)
def test_counts_add_up(frames: list) -> None:
    analysis = run(as_lines(frames, 0, False), as_lines(frames, 1, True), as_lines(frames, 2, True),
                   as_lines(frames, 1, True))  # fmt: skip
    count = len(analysis.objects)
    for total in (analysis.total, *(sum_of(bins) for grouping, bins in analysis.groups if (grouping.index >= 0).all())):
        assert sum(total.counts.values()) == total.objects == count
    assert analysis.total.both == sum(analysis.total.counts[name] for name in ("positive", "neutral", "negative"))
    found = analysis.total.found
    assert found["baseline"] == analysis.total.both + analysis.total.counts["lost"]
    assert found["student"] == analysis.total.both + analysis.total.counts["gained"]


def sum_of(bins: tuple) -> object:
    class Sum:
        objects = sum(one.objects for one in bins)
        counts = {name: sum(one.counts[name] for one in bins) for name in OUTCOMES}

    return Sum


@given(frame_lists)
def test_a_student_like_its_baseline_transfers_nothing(frames: list) -> None:
    same = as_lines(frames, 1, True)
    analysis = run(as_lines(frames, 0, False), same, same, same)
    assert set(analysis.outcome.tolist()) <= {NEUTRAL, NEITHER}
    for estimate in (analysis.total.depth, analysis.total.finding):
        assert estimate is None or (estimate.value, estimate.error, estimate.beyond_noise) == (0, 0, False)


@given(frame_lists)
def test_a_perfect_student_does_no_harm(frames: list) -> None:
    truth = [[(20 * k, z, s) for k, (_, z, s) in enumerate(frame[0])] for frame in frames]
    labels = [[line(5 * u, z) for u, z, _ in frame] for frame in truth]
    perfect = [[line(5 * u, z, s) for u, z, s in frame] for frame in truth]
    analysis = run(labels, as_lines(frames, 1, True), perfect)
    assert not set(analysis.outcome.tolist()) & {NEGATIVE, LOST, NEITHER}
    assert np.all(analysis.parts["student"].iou_3d > 1 - 1e-9)


@given(frame_lists)
def test_roles_swapped_the_signs_turn(frames: list) -> None:
    labels, one, two = (as_lines(frames, n, n > 0) for n in range(3))
    there, back = run(labels, one, two).total.counts, run(labels, two, one).total.counts
    turned = {"positive": "negative", "negative": "positive", "gained": "lost", "lost": "gained"}
    assert back == {name: there[turned.get(name, name)] for name in OUTCOMES}


def test_empty_frames() -> None:
    analysis = run([[], []], [[], []], [[], [line(0, 20, 0.5)]], [[], []])
    assert analysis.total.objects == 0 and analysis.total.depth is None and analysis.total.finding is None
    assert analysis.contrasts == () and largest(analysis, POSITIVE, 3) == []
    assert net_difference(analysis, analysis) is None


# ------------------------------------------------------------------------------------------------- bins and estimates


def world(frames: int, better: int) -> tuple[list, list, list]:
    """One car a frame, 20 m away; the baseline is 2 m off, the student 0 m in the first ``better`` frames, else 4 m."""
    labels = [[line(0, 20)] for _ in range(frames)]
    student = [[line(0, 20 if n < better else 24, 0.9)] for n in range(frames)]
    return labels, [[line(0, 22, 0.9)] for _ in range(frames)], student


@pytest.mark.parametrize(("better", "beyond"), [(30, True), (22, True), (15, False), (0, True)])
def test_noise_is_called_noise(better: int, beyond: bool) -> None:
    """The standard error equals the one known for the mean of +1 and -1, sqrt((1 - mean^2) / frames)."""
    depth = run(*world(30, better), settings=TransferSettings()).total.depth
    assert depth is not None and depth.value == pytest.approx((2 * better - 30) / 30)
    assert depth.error == pytest.approx(np.sqrt((1 - depth.value**2) / 30), rel=0.1, abs=1e-9)
    assert depth.beyond_noise is beyond
    assert depth.low <= depth.value <= depth.high


def test_cars_of_one_frame_are_one_witness() -> None:
    """Every car four times over in its own frame: the same certainty, where counting objects would halve the error."""
    once = world(30, 22)
    often = [[fourfold(frame) for frame in part] for part in once]
    a = run(*once, settings=TransferSettings()).total.depth
    b = run(*often, settings=TransferSettings()).total.depth
    assert a is not None and b is not None
    assert (b.value, b.error, b.low) == pytest.approx((a.value, a.error, a.low))


def fourfold(frame: list[str]) -> list[str]:
    """Each line four times, side by side in the image."""
    rows = []
    for row in frame:
        words = row.split()
        for k in range(4):
            rows.append(" ".join([*words[:4], str(100 * k), words[5], str(100 * k + 40), *words[7:]]))
    return rows


@pytest.mark.parametrize(
    ("objects", "frames", "told"), [(19, 19, False), (20, 20, True), (20, 9, False), (20, 10, True)]
)
def test_few_are_not_judged(objects: int, frames: int, told: bool) -> None:
    labels = [[] for _ in range(frames)]
    for n in range(objects):
        labels[n % frames].append(line(100 * (n // frames), 20))
    results = [[f"{row} 0.9" for row in frame] for frame in labels]
    total = run(labels, results, results, settings=TransferSettings()).total
    assert (total.objects, total.frames) == (objects, frames)
    assert (total.depth is not None) is told and (total.finding is not None) is told


def test_bins_by_distance_and_occlusion() -> None:
    depths, occlusions = [9.9, 10, 59.9, 60, 200], [0, 1, 2, 0, -1]
    labels = [[line(0, z, occlusion=o)] for z, o in zip(depths, occlusions, strict=True)]
    analysis = run(labels, [[]] * 5, [[]] * 5)
    bins = {grouping.key: grouping for grouping, _ in analysis.groups}
    assert set(bins) == {"distance", "occlusion"}  # nothing is told of a teacher that is not there
    assert [bins["distance"].labels[i] for i in bins["distance"].index] == [
        "0–10", "10–20", "50–60", "over 60", "over 60"
    ]  # fmt: skip
    assert bins["occlusion"].index.tolist() == [0, 1, 2, 0, -1]


def test_bins_by_teacher() -> None:
    errors = [0.1, 0.3, 0.5, 5.0, None]  # of 20 m, where the margin is 0.4 m
    labels = [[line(0, 20)]] * 5
    teacher = [[] if e is None else [line(0, 20 + e, 0.9)] for e in errors]
    baseline = [[line(0, 20.5, 0.9)]] * 5
    analysis = run(labels, baseline, baseline, teacher, np.array([0.0, 1.0, 2.0, 3.0, NAN]))
    groups = {grouping.key: (grouping, bins) for grouping, bins in analysis.groups}
    own, versus = groups["teacher_error"][0], groups["teacher_versus_baseline"][0]
    assert [own.labels[i] for i in own.index] == ["up to 1", "1–2", "2–4", "over 4", "missed"]
    assert [versus.labels[i] for i in versus.index] == [
        "level", "level", "level", "teacher worse", "baseline only"
    ]  # fmt: skip
    grouping, bins = groups["teacher_uncertainty"]
    assert grouping.index.tolist() == [0, 1, 2, 3, -1]  # no value is no bin, and not the value 0
    assert [one.objects for one in bins] == [1, 1, 1, 1]


def test_harm_where_the_teacher_is_wrong() -> None:
    """Students that copy their teacher: the contrast of right and wrong teachers is the full range."""
    labels, baseline, student = world(40, 20)
    analysis = run(labels, baseline, student, student, np.arange(40.0), TransferSettings())
    right, sure = analysis.contrasts
    assert (right.key, sure.key) == ("teacher_right", "teacher_sure")
    for contrast in (right, sure):
        assert [v.value for v in contrast.values] == [1.0, -1.0] and contrast.counts == (20, 20)
        assert contrast.difference.value == 2.0 and contrast.difference.beyond_noise


def test_being_unsure_because_of_distance_is_no_contrast() -> None:
    """Near cars gain, far cars lose, the teacher is unsure of all far ones: within a distance nothing differs."""
    labels = [[line(0, 8 if n % 2 else 55)] for n in range(80)]
    baseline = [[line(0, 10 if n % 2 else 57, 0.9)] for n in range(80)]
    student = [[line(0, 8 if n % 2 else 59, 0.9)] for n in range(80)]
    scale = np.array([(n // 2 % 2) + (0 if n % 2 else 10.0) for n in range(80)])
    analysis = run(labels, baseline, student, log_scale=scale, settings=TransferSettings())
    (sure,) = analysis.contrasts
    assert sure.difference.value == 0 and not sure.difference.beyond_noise


def test_lead_over_an_untaught_twin() -> None:
    labels, baseline, student = world(30, 22)
    taught, untaught = run(labels, baseline, student), run(labels, baseline, baseline)
    ahead, level = net_difference(taught, untaught), net_difference(taught, taught)
    assert ahead is not None and taught.total.depth is not None
    assert ahead.value == pytest.approx(taught.total.depth.value)
    assert level is not None and (level.value, level.error) == (0, 0)


def test_largest_changes() -> None:
    labels = [[line(0, 20), line(100, 20)], [line(0, 20)], [line(0, 20)]]
    baseline = [[line(0, 22, 0.9), line(100, 23, 0.9)], [line(0, 24, 0.9)], [line(0, 20, 0.9)]]
    student = [[f"{row} 0.9" for row in frame] for frame in labels[:2]] + [[line(0, 29, 0.9)]]
    analysis = run(labels, baseline, student)
    assert largest(analysis, POSITIVE, 4) == [2, 1]  # one per frame
    assert largest(analysis, POSITIVE, 1) == [2]
    assert largest(analysis, NEGATIVE, 4) == [3]


def test_margins_are_ordered() -> None:
    rows = run(*world(30, 22)).margins
    assert [row.margin for row in rows] == sorted(row.margin for row in rows)
    assert all(a.positive + a.negative >= b.positive + b.negative for a, b in zip(rows[:-1], rows[1:], strict=True))


def test_chance_alone_looks_like_transfer_only_where_it_is_said_to() -> None:
    """Three detectors that know nothing of each other: sorted by teacher against baseline the student seems to follow
    the teacher, for the baseline's bad luck is in the sorting; the contrasts show nothing."""
    rng = np.random.default_rng(0)
    labels = [[line(100 * k, 20) for k in range(5)] for _ in range(200)]
    baseline, student, teacher = (
        [[line(100 * k, 20 + rng.normal(), 0.9) for k in range(5)] for _ in labels] for _ in range(3)
    )
    analysis = run(labels, baseline, student, teacher, rng.normal(size=1000), TransferSettings())
    bins = {grouping.key: bins for grouping, bins in analysis.groups}
    better, _, worse = (one.depth for one in bins["teacher_versus_baseline"][:3])
    assert better is not None and better.value > 0.3 and better.beyond_noise
    assert worse is not None and worse.value < -0.2 and worse.beyond_noise
    assert analysis.total.depth is not None and not analysis.total.depth.beyond_noise
    assert len(analysis.contrasts) == 2 and not any(c.difference.beyond_noise for c in analysis.contrasts)
