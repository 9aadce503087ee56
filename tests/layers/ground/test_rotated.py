"""Overlaps of rotated boxes against shapely, and suppression against a loop over boxes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Polygon
from torch import Tensor

from distill3d.layers.ground import rotated

# x, y, z, length, width, height, yaw.  Multiples of 1/4 and of 45 degrees make shared faces and corners common.
coarse = st.tuples(
    *[st.integers(-8, 8).map(lambda n: n / 4)] * 3,
    *[st.integers(1, 16).map(lambda n: n / 4)] * 3,
    st.integers(-8, 8).map(lambda n: n * math.pi / 4),
)
fine = st.tuples(*[st.floats(-3, 3)] * 3, *[st.floats(0.01, 6)] * 3, st.floats(-7, 7))
box_lists = st.lists(st.one_of(coarse, fine), max_size=6)


def rows(boxes: list, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(boxes, dtype=dtype).reshape(-1, 7)


def polygon(box: Tensor) -> Polygon:
    x, y, _, length, width, _, yaw = box.tolist()
    cos, sin = math.cos(yaw), math.sin(yaw)
    half = [(i * length / 2, j * width / 2) for i, j in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
    return Polygon([(x + cos * p - sin * q, y + sin * p + cos * q) for p, q in half])


def slow_iou(a: Tensor, b: Tensor, volume: bool) -> float:
    shared = polygon(a).intersection(polygon(b)).area
    of_a, of_b = float(a[3] * a[4]), float(b[3] * b[4])
    if volume:
        shared *= max(0.0, min(float(v[2] + v[5] / 2) for v in (a, b)) - max(float(v[2] - v[5] / 2) for v in (a, b)))
        of_a, of_b = of_a * float(a[5]), of_b * float(b[5])
    return shared / max(of_a + of_b - shared, rotated.SMALLEST_UNION)


def scattered(count: int, seed: int, spread: float = 4.0) -> Tensor:
    """Car-like boxes around a few places (float32)."""
    generator = torch.Generator().manual_seed(seed)
    places = 60 * torch.rand(max(1, count // 20), 2, generator=generator)
    which = torch.randint(len(places), (count,), generator=generator)
    jitter = torch.randn(count, 7, generator=generator) * torch.tensor([spread, spread, 0.5, 0.3, 0.1, 0.1, 3.0])
    boxes = jitter + torch.tensor([0, 0, -1, 3.9, 1.6, 1.5, 0])
    boxes[:, :2] += places[which]
    return boxes


@given(box_lists, box_lists)
def test_iou_equals_shapely(a: list, b: list) -> None:
    first, second = rows(a), rows(b)
    for volume, function in ((False, rotated.bev_iou), (True, rotated.iou_3d)):
        expected = [[slow_iou(p, q, volume) for q in second] for p in first]
        got = function(first, second)
        assert got.shape == (len(a), len(b))
        torch.testing.assert_close(
            got, torch.tensor(expected, dtype=torch.float64).reshape(got.shape), rtol=0, atol=1e-9
        )


@given(box_lists, box_lists)
def test_float32_keeps_five_digits(a: list, b: list) -> None:
    far = torch.tensor([60.0, -30, 0, 0, 0, 0, 0])  # where a LiDAR still sees cars
    for function in (rotated.bev_iou, rotated.iou_3d):
        # float32 rows, so that both look at the very same boxes
        first, second = rows(a, torch.float32) + far, rows(b, torch.float32) + far
        single, double = function(first, second), function(first.double(), second.double())
        smallest = min((float(r[3:6].min()) for r in (*first, *second)), default=1.0)
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5 / min(smallest, 1.0))


OCTAGON = 2 * (math.sqrt(2) - 1)  # unit square and unit square turned by 45 degrees


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3), 8, id="identical"),
        pytest.param((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3 + math.pi), 8, id="half a turn"),
        pytest.param((0, 0, 1, 1, 0), (0, 0, 1, 1, math.pi / 4), OCTAGON, id="octagon"),
        pytest.param((0, 0, 2, 2, 0), (2, 0, 2, 2, 0), 0, id="shared edge"),
        pytest.param((0, 0, 2, 2, 0), (5, 0, 2, 2, 1), 0, id="apart"),
        pytest.param((0, 0, 9, 9, 0), (1, 1, 1, 2, 1), 2, id="inside"),
        pytest.param((0, 0, 4, 4, 0), (0, 0, 0, 4, 0), 0, id="empty"),
        pytest.param((0, 0, -4, 2, 0), (0, 0, 4, -2, 0), 8, id="extents by magnitude"),
    ],
)
def test_known_intersections(a: tuple, b: tuple, expected: float) -> None:
    pair = (torch.tensor([v], dtype=torch.float64) for v in (a, b))
    assert float(rotated.rectangle_intersection(*pair)) == pytest.approx(expected, abs=1e-12)


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = scattered(60, 0)
    whole = rotated.bev_iou(boxes, boxes[:45]), rotated.rotated_nms(boxes, boxes[:, 0], 0.1)
    monkeypatch.setattr(rotated, "PAIRS_AT_ONCE", 7)
    monkeypatch.setattr(rotated, "DISTANCES_AT_ONCE", 130)
    pieces = rotated.bev_iou(boxes, boxes[:45]), rotated.rotated_nms(boxes, boxes[:, 0], 0.1)
    torch.testing.assert_close(pieces[0], whole[0], rtol=0, atol=1e-6)
    assert torch.equal(pieces[1], whole[1])
    assert (whole[0] > 0).sum() > 45  # more than each box with itself


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_overlap_nothing(bad: float) -> None:
    boxes = rows([(0, 0, 0, 4, 2, 1, 0), (0, 0, 0, bad, 2, 1, 0), (0, bad, 0, 4, 2, 1, 0)])
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[0, 0] = 1
    assert torch.equal(rotated.iou_3d(boxes, boxes), expected)


# -------------------------------------------------------------------------------------------------- nearest rectangles


@pytest.mark.parametrize(
    ("degrees", "along_x"), [(0, True), (44, True), (46, False), (90, False), (134, False), (136, True), (180, True),
                             (-46, False), (-91, False), (-180, True), (315.5, True), (765.5, False)],
)  # fmt: skip
def test_nearest_axis(degrees: float, along_x: bool) -> None:
    box = rows([(10, 20, 0, 4, 2, 1, math.radians(degrees))])
    expected = [8, 19, 12, 21] if along_x else [9, 18, 11, 22]
    torch.testing.assert_close(rotated.nearest_rectangle(box)[0], torch.tensor(expected, dtype=torch.float64))


@given(box_lists, box_lists)
def test_nearest_iou_is_that_of_the_turned_rectangles(a: list, b: list) -> None:
    first, second = rows(a), rows(b)

    def turned(boxes: Tensor) -> Tensor:
        quarter = torch.round(boxes[:, 6] / (math.pi / 2)) * math.pi / 2
        return torch.cat((boxes[:, :6], quarter[:, None]), 1)

    def clear(boxes: Tensor) -> Tensor:
        """Not halfway between the axes, where either may be the nearest."""
        return ((boxes[:, 6] / (math.pi / 2)) % 1 - 0.5).abs() > 1e-9

    first, second = first[clear(first)], second[clear(second)]
    expected = rotated.bev_iou(turned(first), turned(second))
    torch.testing.assert_close(rotated.nearest_bev_iou(first, second), expected, rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------------ NMS


def slow_nms(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    overlap = rotated.bev_iou(boxes, boxes)
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -float(scores[i])):  # stable: ties in order of index
        if all(overlap[k, i] <= threshold for k in kept):
            kept.append(i)
    return kept


@given(st.integers(0, 120), st.integers(0, 2**31), st.sampled_from([0.01, 0.3, 0.7]), st.sampled_from([2, 5, 1000]))
def test_suppression_equals_a_loop(count: int, seed: int, threshold: float, levels: int) -> None:
    boxes = scattered(count, seed)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (count,), generator=generator) / levels  # few levels: many ties
    kept = rotated.rotated_nms(boxes, scores, threshold)
    assert kept.tolist() == slow_nms(boxes, scores, threshold)
    assert rotated.rotated_nms(boxes, scores, threshold, 3).tolist() == kept[:3].tolist()


def test_what_is_suppressed_does_not_suppress() -> None:
    """A long chain, each overlapping its neighbours only: every other one survives."""
    boxes = rows([(3.0 * i, 0, 0, 4, 2, 1, 0) for i in range(101)])
    kept = rotated.rotated_nms(boxes, -torch.arange(101.0), 0.01)
    assert kept.tolist() == list(range(0, 101, 2))


def test_suppression_of_many() -> None:
    boxes = scattered(4096, 1)
    kept = rotated.rotated_nms(boxes, torch.rand(4096, generator=torch.Generator().manual_seed(2)), 0.01, 500)
    overlap = rotated.bev_iou(boxes[kept], boxes[kept]).fill_diagonal_(0)
    assert 50 < len(kept) <= 500 and overlap.max() <= 0.01
