"""Error against distance on cases small enough to know the answer."""

import numpy as np
import pytest

from distill3d.evaluate.kitti import Annotations
from distill3d.evaluate.matching import objects_of_interest
from distill3d.view.distance import (
    LEAST_OBJECTS,
    LEAST_SCORE,
    MATCH_RADIUS,
    bin_edges,
    error_by_distance,
    frame_errors,
    match_nearest,
)  # fmt: skip

LABEL = "{name} {truncation} {occlusion} 0 10 10 90 {bottom} 1.5 1.6 4 {x} 1.6 {z} 0"
RESULT = "{name} -1 -1 0 10 10 90 90 1.5 1.6 4 {x} 1.6 {z} 0 {score}"


def label(x: float, z: float, name: str = "Car", truncation: float = 0, occlusion: int = 0, bottom: float = 90) -> str:
    return LABEL.format(**locals())


def result(x: float, z: float, name: str = "Car", score: float = 0.9) -> str:
    return RESULT.format(**locals())


def read(lines: dict[str, list[str]], scored: bool) -> Annotations:
    return Annotations.from_lines({frame: "\n".join(rows) for frame, rows in lines.items()}, scored=scored)


@pytest.mark.parametrize(
    ("labels", "results", "found", "errors"),
    [
        ([label(0, 20)], [result(0, 21.5)], [True], [1.5]),
        ([label(0, 20)], [result(0, 18.5)], [True], [1.5]),
        ([label(0, 20)], [result(3, 20.5)], [True], [0.5]),  # the depth error leaves the sideways error out
        ([label(0, 20)], [], [False], [np.nan]),
        ([], [result(0, 20)], [], []),
        ([label(0, 20)], [result(0, 20 + MATCH_RADIUS)], [True], [MATCH_RADIUS]),
        ([label(0, 20)], [result(0, 20.01 + MATCH_RADIUS)], [False], [np.nan]),
        ([label(0, 20)], [result(0, 21, name="Pedestrian")], [False], [np.nan]),
        ([label(0, 20)], [result(0, 21, score=LEAST_SCORE - 0.01)], [False], [np.nan]),
        (
            [label(0, 20)],
            [result(0, 23), result(0, 21, score=LEAST_SCORE)],
            [True],
            [1.0],
        ),  # the nearest, not the surest
        # The nearest pair first: the second car must do with the detection that is left.
        ([label(0, 20), label(0, 22)], [result(0, 21.8), result(0, 19)], [True, True], [1.0, 0.2]),
        ([label(0, 20), label(0, 22)], [result(0, 21.8)], [False, True], [np.nan, 0.2]),
    ],
)
def test_matches(labels: list, results: list, found: list, errors: list) -> None:
    matches = match_nearest(read({"000000": labels}, False), read({"000000": results}, True))
    assert matches.found.tolist() == found
    assert matches.depth_error == pytest.approx(np.array(errors), nan_ok=True)


def test_frames_do_not_mix() -> None:
    labels = read({"000000": [label(0, 20)], "000001": [], "000002": [label(3, 4)]}, False)
    results = read({"000000": [], "000001": [result(0, 20)], "000002": [result(3, 4.5)]}, True)
    matches = match_nearest(labels, results)
    assert matches.found.tolist() == [False, True]
    assert matches.distance.tolist() == [20, 5]
    assert frame_errors(matches.frame, matches.offset, 3) == pytest.approx(
        np.array([MATCH_RADIUS, np.nan, 0.5]), nan_ok=True
    )
    with pytest.raises(ValueError, match="same frames"):
        match_nearest(labels, read({"000000": []}, True))


@pytest.mark.parametrize(
    ("line", "scale", "counts"),
    [
        (label(0, 20), 1.0, True),
        (label(0, 20, name="Van"), 1.0, False),
        (label(0, 20, occlusion=2), 1.0, True),
        (label(0, 20, occlusion=3), 1.0, False),
        (label(0, 20, truncation=0.5), 1.0, True),
        (label(0, 20, truncation=0.51), 1.0, False),
        (label(0, 20, bottom=35), 1.0, True),
        (label(0, 20, bottom=34.9), 1.0, False),
        (label(0, 20, bottom=34.9), 0.5, True),
    ],
)
def test_objects_that_count(line: str, scale: float, counts: bool) -> None:
    assert objects_of_interest(read({"000000": [line]}, False), "car", scale).tolist() == [counts]


def test_bins() -> None:
    near = [(label(0, 9.9), result(0, 10.1)) for _ in range(LEAST_OBJECTS)]
    far = [(label(0, 10), result(0, 12)) for _ in range(LEAST_OBJECTS)]
    lone = [(label(0, 25), result(0, 25))]
    missed = [(label(0, 10), "")]
    rows = {f"{i:06d}": row for i, row in enumerate([*near, *far, *lone, *missed])}
    matches = match_nearest(
        read({frame: [row[0]] for frame, row in rows.items()}, False),
        read({frame: [row[1]] for frame, row in rows.items()}, True),
    )
    edges = bin_edges([matches.distance])
    assert edges.tolist() == [0, 10, 20, 30]
    binned = error_by_distance(matches, edges)
    assert binned.objects.tolist() == [LEAST_OBJECTS, LEAST_OBJECTS + 1, 1]
    assert binned.depth_error == pytest.approx(np.array([0.2, 2.0, np.nan]), nan_ok=True)
    assert binned.found == pytest.approx(np.array([1.0, LEAST_OBJECTS / (LEAST_OBJECTS + 1), np.nan]), nan_ok=True)


@pytest.mark.parametrize("farthest", [0.0, 9.9, 10.0, 40.0, 79.9])
def test_the_last_bin_holds_the_farthest(farthest: float) -> None:
    edges = bin_edges([np.array([1.0]), np.array([farthest])])
    assert edges[-2] <= max(farthest, 1.0) < edges[-1]
