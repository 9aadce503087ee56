"""Overlaps against shapely, against areas known on paper, and under motions that must not matter."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Polygon

from distill3d.evaluate import iou

# u, v, extent along, extent across, angle. Multiples of 1/4 and of 45 degrees make shared edges and corners common.
coarse = st.tuples(
    *[st.integers(-8, 8).map(lambda n: n / 4)] * 2,
    *[st.integers(1, 16).map(lambda n: n / 4)] * 2,
    st.integers(-8, 8).map(lambda n: n * math.pi / 4),
)
fine = st.tuples(*[st.floats(-3, 3)] * 2, *[st.floats(1e-3, 6)] * 2, st.floats(-7, 7))
nudge = st.sampled_from([0.0, 1e-16, 1e-12, -1e-9, 1e-5])


@st.composite
def rectangle_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    a = np.array(draw(st.one_of(coarse, fine)))
    b = np.array(draw(st.one_of(coarse, fine, st.just(a))))
    return a, b + [draw(nudge) for _ in range(5)]


def polygon(row: np.ndarray) -> Polygon:
    u, v, along, across, angle = row
    cos, sin = math.cos(angle), math.sin(angle)
    signs = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
    half = [(i * along / 2, j * across / 2) for i, j in signs]
    return Polygon([(u + cos * p - sin * q, v + sin * p + cos * q) for p, q in half])


def area(a: np.ndarray, b: np.ndarray) -> float:
    return float(iou.rectangle_intersection(np.array([a]), np.array([b]))[0])


@given(rectangle_pairs())
def test_intersection_equals_shapely(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    assert area(a, b) == pytest.approx(polygon(a).intersection(polygon(b)).area, abs=1e-9)


@given(rectangle_pairs(), st.floats(-50, 50), st.floats(-50, 50), st.floats(-4, 4))
def test_intersection_ignores_order_and_rigid_motion(
    pair: tuple[np.ndarray, np.ndarray], shift_u: float, shift_v: float, turn: float
) -> None:
    cos, sin = math.cos(turn), math.sin(turn)

    def moved(row: np.ndarray) -> np.ndarray:
        u, v = cos * row[0] - sin * row[1] + shift_u, sin * row[0] + cos * row[1] + shift_v
        return np.array([u, v, row[2], row[3], row[4] + turn])

    a, b = pair
    assert area(a, b) == pytest.approx(area(b, a), abs=1e-9)
    assert area(moved(a), moved(b)) == pytest.approx(area(a, b), abs=1e-9)


OCTAGON = 2 * (math.sqrt(2) - 1)  # unit square and unit square turned by 45 degrees


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3), 8, id="identical"),
        pytest.param((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3 + math.pi), 8, id="half a turn"),
        pytest.param((0, 0, 4, 2, 0.3), (0, 0, 2, 4, 0.3 + math.pi / 2), 8, id="quarter turn, extents swapped"),
        pytest.param((0, 0, 4, 2, 0), (0, 0, 2, 4, 0), 4, id="cross"),
        pytest.param((5, 5, 1, 1, 0.7), (5, 5, 9, 9, -0.2), 1, id="contained"),
        pytest.param((0, 0, 1, 1, 0), (0, 0, 1, 1, math.pi / 4), OCTAGON, id="octagon"),
        pytest.param((0, 0, 2, 2, 0), (2, 0, 2, 2, 0), 0, id="shared edge"),
        pytest.param((0, 0, 2, 2, 0), (2, 2, 2, 2, 0), 0, id="shared corner"),
        pytest.param((0, 0, 2, 2, 0), (0.5, 0, 1, 2, 0), 2, id="three edges in common"),
        pytest.param((0, 0, 2, 2, 0), (9, 0, 2, 2, 1), 0, id="apart"),
        pytest.param((0, 0, 2, 0, 0), (0, 0, 2, 2, 0), 0, id="no width"),
        pytest.param((0, 0, 2, 2, 0), (0, 0, 0, 2, 0.4), 0, id="no length"),
        pytest.param((0, 0, 0, 0, 0), (0, 0, 0, 0, 0), 0, id="two points"),
        pytest.param((0, 0, -2, -1, 0), (0, 0, 2, 1, 0), 2, id="negative extents count by magnitude"),
        pytest.param((0, 0, 5e-324, 1, 0), (0, 0, 2, 2, 0), 0, id="smallest number"),
    ],
)
def test_intersection_known_on_paper(a: tuple[float, ...], b: tuple[float, ...], expected: float) -> None:
    assert area(np.array(a), np.array(b)) == pytest.approx(expected, abs=1e-12)
    assert area(np.array(b), np.array(a)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "expected_iou", "expected_coverage"),
    [
        pytest.param((0, 0, 10, 10), (0, 0, 10, 10), 1, 1, id="identical"),
        pytest.param((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3, 1 / 2, id="half"),
        pytest.param((2, 2, 4, 4), (0, 0, 10, 10), 0.04, 1, id="contained"),
        pytest.param((0, 0, 10, 10), (2, 2, 4, 4), 0.04, 0.04, id="containing"),
        pytest.param((0, 0, 10, 10), (10, 0, 20, 10), 0, 0, id="shared edge"),
        pytest.param((0, 0, 10, 10), (20, 20, 30, 30), 0, 0, id="apart: both sides negative"),
        pytest.param((5, 0, 5, 10), (0, 0, 10, 10), 0, 0, id="no width"),
        pytest.param((5, 5, 5, 5), (5, 5, 5, 5), 0, 0, id="two points"),
    ],
)
def test_image_overlaps(
    a: tuple[float, ...], b: tuple[float, ...], expected_iou: float, expected_coverage: float
) -> None:
    rows = np.array([a], dtype=float), np.array([b], dtype=float)
    assert iou.image_iou(*rows)[0] == pytest.approx(expected_iou, abs=1e-15)
    assert iou.image_coverage(*rows)[0] == pytest.approx(expected_coverage, abs=1e-15)


BOX = (1.5, 2.0, 4.0, 0.0, 1.6, 20.0, 0.0)  # h, w, l, x, y (bottom), z, rotation_y


@pytest.mark.parametrize(
    ("b", "bev", "space"),
    [
        pytest.param(BOX, 1, 1, id="identical"),
        pytest.param((1.5, 2.0, 4.0, 2.0, 1.6, 20.0, 0.0), 1 / 3, 1 / 3, id="half a length along x"),
        pytest.param((1.5, 2.0, 4.0, 0.0, 1.6, 21.0, 0.0), 1 / 3, 1 / 3, id="half a width along z"),
        pytest.param((1.5, 2.0, 4.0, 0.0, 0.85, 20.0, 0.0), 1, 1 / 3, id="half a height up"),
        pytest.param((3.0, 2.0, 4.0, 0.0, 1.6, 20.0, 0.0), 1, 1 / 2, id="same bottom, twice as high"),
        pytest.param((1.5, 2.0, 4.0, 0.0, -0.1, 20.0, 0.0), 1, 0, id="above it"),
        pytest.param((1.5, 2.0, 4.0, 0.0, 1.6, 20.0, math.pi / 2), 1 / 3, 1 / 3, id="across"),
        pytest.param((1.5, 0.0, 4.0, 0.0, 1.6, 20.0, 0.0), 0, 0, id="no width"),
        pytest.param((0.0, 2.0, 4.0, 0.0, 1.6, 20.0, 0.0), 1, 0, id="no height"),
    ],
)
def test_ground_and_volume_overlaps(b: tuple[float, ...], bev: float, space: float) -> None:
    rows = np.array([BOX]), np.array([b])
    assert iou.bev_iou(*rows)[0] == pytest.approx(bev, abs=1e-12)
    assert iou.iou_3d(*rows)[0] == pytest.approx(space, abs=1e-12)


def test_coverage_is_relative_to_the_first_box() -> None:
    lower_half = (0.75, 1.0, 4.0, 0.0, 1.6, 20.0, 0.0)
    bev, space = iou.bev_and_3d_coverage(np.array([BOX, lower_half]), np.array([lower_half, BOX]))
    assert bev == pytest.approx([0.5, 1.0])
    assert space == pytest.approx([0.25, 1.0])


@given(st.floats(-3.2, 3.2))
def test_length_points_where_kitti_says(rotation: float) -> None:
    # KITTI: X = cos(ry) x + sin(ry) z, Z = -sin(ry) x + cos(ry) z, and the length lies along the box's own x.
    pole = np.array([[1.0, 0.02, 10.0, 0.0, 1.0, 20.0, rotation]])
    tip = np.array([[1.0, 0.1, 0.1, 4 * math.cos(rotation), 1.0, 20.0 - 4 * math.sin(rotation), rotation]])
    assert iou.bev_intersection(pole, tip)[0] == pytest.approx(0.02 * 0.1)


def test_empty_arrays() -> None:
    assert iou.image_iou(np.zeros((0, 4)), np.zeros((0, 4))).shape == (0,)
    assert iou.iou_3d(np.zeros((0, 7)), np.zeros((0, 7))).shape == (0,)


@given(st.lists(st.integers(0, 4), max_size=12), st.lists(st.integers(0, 4), max_size=12))
def test_pairs_within_groups(group_a: list[int], group_b: list[int]) -> None:
    a, b = np.array(sorted(group_a), dtype=int), np.array(sorted(group_b), dtype=int)
    expected = [(i, j) for i in range(len(a)) for j in range(len(b)) if a[i] == b[j]]
    found = [(int(i), int(j)) for i, j in zip(*iou.pairs_within_groups(a, b, 5), strict=True)]
    assert found == expected
