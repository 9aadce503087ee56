"""Anchor grids, codes, directions and assignment against the rules written out one box at a time."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill3d.layers.ground.rotated import iou_3d, nearest_bev_iou
from distill3d.layers.heads import anchors as A
from distill3d.layers.heads.anchors import BACKGROUND, IGNORED, KITTI_ANCHORS

EXTENT, CELLS = (2.0, -6.0, 12.0, 6.0), (26, 22)
GRID = A.anchor_grid(KITTI_ANCHORS, EXTENT, CELLS)
angles = st.floats(-20, 20)


def test_grid_of_the_released_range() -> None:
    grid = A.anchor_grid(KITTI_ANCHORS, (2, -30.08, 46.8, 30.08), (188, 140))
    assert grid.shape == (188, 140, 3, 2, 7) and grid.dtype == torch.float32
    torch.testing.assert_close(grid[0, 0, 0, 0], torch.tensor([2, -30.08, -1, 3.9, 1.6, 1.56, 0]))
    torch.testing.assert_close(grid[-1, -1, 2, 1], torch.tensor([46.8, 30.08, 0.265, 1.76, 0.6, 1.73, 1.57]))
    torch.testing.assert_close(grid[0, 1, 1, 0, 0] - grid[0, 0, 1, 0, 0], torch.tensor(44.8 / 139))
    torch.testing.assert_close(grid[1, 0, 1, 0, 1] - grid[0, 0, 1, 0, 1], torch.tensor(60.16 / 187))


# --------------------------------------------------------------------------------------------------------------- coding


def some_rows(seed: int, columns: int = 7, count: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = 10 * torch.randn(count, columns, generator=generator, dtype=torch.float64)
    values[:, 3:6] = values[:, 3:6].abs() / 4 + 0.1
    return values


@given(st.integers(0, 2**31), st.sampled_from([7, 9]), st.sampled_from(["difference", "sincos"]))
def test_codes_lead_back(seed: int, columns: int, yaw) -> None:
    boxes, anchors = some_rows(seed, columns), some_rows(seed + 1, columns)
    codes = A.encode(boxes, anchors, yaw)
    assert codes.shape == (len(boxes), columns + (yaw == "sincos"))
    back = A.decode(codes, anchors, yaw)
    turn = (back[:, 6] - boxes[:, 6]) / (2 * math.pi)
    torch.testing.assert_close(turn, turn.round() if yaw == "sincos" else torch.zeros_like(turn), rtol=0, atol=1e-9)
    rest = [i for i in range(columns) if i != 6]
    torch.testing.assert_close(back[:, rest], boxes[:, rest], rtol=1e-9, atol=1e-9)


def test_an_anchor_is_its_own_origin() -> None:
    assert (A.encode(GRID, GRID) == 0).all()
    torch.testing.assert_close(A.decode(torch.zeros_like(GRID), GRID), GRID)


def test_sizes_of_nothing_stay_finite() -> None:
    nothing = torch.zeros(2, 7)
    codes = A.encode(nothing, GRID[0, 0, 0])
    assert codes.isfinite().all()
    torch.testing.assert_close(A.decode(codes, GRID[0, 0, 0])[:, 3:6], torch.full((2, 3), A.SMALLEST_SIZE))
    assert nothing.eq(0).all()  # the input is not clamped in place


@given(angles, angles)
def test_direction_restores_half_turns(yaw: float, anchor_yaw: float) -> None:
    """The bin of the true yaw mends a code that is half a turn off."""
    box, anchor = some_rows(0, count=1), some_rows(1, count=1)
    box[0, 6], anchor[0, 6] = yaw, anchor_yaw
    codes = A.encode(box, anchor)
    logits = F.one_hot(A.direction_bin(box[:, 6]), A.DIRECTION_BINS).double()
    from_border = (yaw - A.DIRECTION_OFFSET) % math.pi
    if min(from_border, math.pi - from_border) < 1e-6:
        return  # on the border of two bins rounding decides
    for half_turns in (0, 1, -3):
        shifted = codes.clone()
        shifted[:, 6] += half_turns * math.pi
        back = A.decode_directed(shifted, logits, anchor)
        assert A.DIRECTION_OFFSET - 1e-9 <= back[0, 6] < A.DIRECTION_OFFSET + 2 * math.pi
        assert math.cos(float(back[0, 6]) - yaw) == pytest.approx(1, abs=1e-9)
        torch.testing.assert_close(back[:, :6], box[:, :6])


@pytest.mark.parametrize(
    ("degrees", "expected"), [(44.9, 1), (45.1, 0), (90, 0), (224.9, 0), (225.1, 1), (0, 1), (-134.9, 1), (-135.1, 0)]
)
def test_direction_bins(degrees: float, expected: int) -> None:
    turns = torch.tensor([-2, 0, 3], dtype=torch.float64) * 2 * math.pi
    assert A.direction_bin(math.radians(degrees) + turns).tolist() == [expected] * 3


# --------------------------------------------------------------------------------------------------------------- losses


@given(st.floats(-2, 2))
def test_smooth_l1(d: float) -> None:
    beta = 1 / 9
    expected = d * d / (2 * beta) if abs(d) < beta else abs(d) - beta / 2
    assert float(A.smooth_l1(torch.tensor([d], dtype=torch.float64))) == pytest.approx(expected, abs=1e-12)


def test_sine_difference_is_blind_to_half_turns_and_to_missing_targets() -> None:
    target = some_rows(2, 9)
    turned = target.clone()
    turned[:, 6] += math.pi
    difference = A.sine_difference(turned, target)
    torch.testing.assert_close(difference, torch.zeros_like(target), rtol=0, atol=1e-9)

    missing = target.clone()
    missing[:, 6:] = math.nan
    prediction = some_rows(3, 9).requires_grad_()
    A.smooth_l1(A.sine_difference(prediction, missing)).sum().backward()
    assert prediction.grad is not None
    assert (prediction.grad[:, :6] != 0).all() and (prediction.grad[:, 6:] == 0).all()


@given(st.floats(-8, 8), st.floats(0, 1))
def test_quality_focal_and_its_whole_gradient(logit: float, target: float) -> None:
    s, t = torch.tensor(logit, dtype=torch.float64, requires_grad=True), torch.tensor(target, dtype=torch.float64)
    p = 1 / (1 + math.exp(-logit))
    entropy = -target * math.log(p) - (1 - target) * math.log(1 - p)
    loss = A.quality_focal(s, t)
    assert loss.item() == pytest.approx((p - target) ** 2 * entropy, rel=1e-9, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, s)
    expected = (p - target) ** 3 + 2 * (p - target) * p * (1 - p) * entropy
    assert float(gradient) == pytest.approx(expected, rel=1e-9, abs=1e-12)


# ----------------------------------------------------------------------------------------------------------- assignment


def slow_assign(boxes: Tensor, classes: Tensor, claimed: str) -> tuple[Tensor, Tensor]:
    """The rule of one image in its own words, class by class with full matrices."""
    labels, rows = torch.full(GRID.shape[:4], BACKGROUND), torch.zeros(GRID.shape[:4], dtype=torch.int64)
    for c, kind in enumerate(KITTI_ANCHORS):
        mine = (classes == c).nonzero()[:, 0].tolist()
        if not mine:
            continue
        overlap = nearest_bev_iou(GRID[:, :, c].reshape(-1, 7), boxes[mine]).tolist()
        columns = [[line[j] for line in overlap] for j in range(len(mine))]
        highest = [max(column) for column in columns]
        of_class, from_row = [], []
        for line in overlap:
            best = max(line)
            own = line.index(best)
            claiming = [j for j, v in enumerate(line) if v == highest[j] > 0]
            foreground = bool(claiming) or torch.tensor(best) >= kind.matched
            of_class.append(1 + c if foreground else BACKGROUND if torch.tensor(best) < kind.unmatched else IGNORED)
            if claimed == "claiming" and claiming:
                own = max(claiming, key=lambda j, line=line: (line[j], -j))
            from_row.append(mine[own] if foreground else 0)
        labels[:, :, c] = torch.tensor(of_class).view(*CELLS, 2)
        rows[:, :, c] = torch.tensor(from_row).view(*CELLS, 2)
    return labels.flatten(), rows.flatten()


def random_objects(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Boxes near anchors, exactly on anchors, twice in one place, outside, and rows of padding among them."""
    generator = torch.Generator().manual_seed(seed)
    flat = GRID.flatten(0, 3)
    picked = torch.randint(len(flat), (count,), generator=generator)
    boxes, classes = flat[picked].clone(), picked // 2 % 3
    noise = torch.randn(count, 7, generator=generator) * torch.tensor([0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.5])
    kind = torch.rand(count, generator=generator)
    boxes += torch.where((kind < 0.6)[:, None], noise, 0)
    boxes[:, 3:6] = boxes[:, 3:6].abs() + 0.05
    boxes[kind > 0.9, 0] += 100  # no anchor near
    if count > 3:
        boxes[1], classes[1] = boxes[0], classes[0]
        # halfway between two anchors: both fit equally well
        boxes[2, :2] = (flat[picked[2], :2] + flat[(picked[2] + 6) % len(flat), :2]) / 2
        boxes[3], classes[3] = 0, IGNORED
    return boxes, classes


def assigned(objects: list[tuple[Tensor, Tensor]], claimed) -> tuple[Tensor, Tensor]:
    rows = max(len(c) for _, c in objects)
    boxes = torch.stack([F.pad(b, (0, 0, 0, rows - len(b))) for b, _ in objects])
    classes = torch.stack([F.pad(c, (0, rows - len(c)), value=IGNORED) for _, c in objects])
    return A.assign(GRID, KITTI_ANCHORS, boxes, classes, claimed)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 12)), min_size=1, max_size=3),
       st.sampled_from(["anchor", "claiming"]))  # fmt: skip
def test_assignment_equals_the_rule(images: list[tuple[int, int]], claimed) -> None:
    objects = [random_objects(seed, count) for seed, count in images]
    labels, matched = assigned(objects, claimed)
    for i, (boxes, classes) in enumerate(objects):
        expected = slow_assign(boxes, classes, claimed)
        assert torch.equal(labels[i], expected[0]) and torch.equal(matched[i], expected[1])


def test_assignment_of_200_boxes() -> None:
    objects = [random_objects(7, 200), random_objects(8, 1)]
    labels, matched = assigned(objects, "anchor")
    for i, (boxes, classes) in enumerate(objects):
        expected = slow_assign(boxes, classes, "anchor")
        assert torch.equal(labels[i], expected[0]) and torch.equal(matched[i], expected[1])
    assert {IGNORED, BACKGROUND, 1, 2, 3} == set(labels[0].tolist())


def test_claimed_anchors_differ_by_style() -> None:
    """A box claims an anchor that fits a second box better, which has a still better one: whose is it to learn?"""
    anchor, neighbour = GRID[10, 10, 0, 0], GRID[10, 11, 0, 0]
    large, between = anchor.clone(), 0.4 * anchor + 0.6 * neighbour
    large[3:5] += torch.tensor([0.6, 0.4])
    boxes, classes = torch.stack((large, between))[None], torch.zeros(1, 2, dtype=torch.int64)
    at = ((10 * CELLS[1] + 10) * 3 + 0) * 2
    rows = {}
    for claimed in ("anchor", "claiming"):
        labels, matched = A.assign(GRID, KITTI_ANCHORS, boxes, classes, claimed)
        rows[claimed] = int(matched[0, at])
        assert labels[0, at] == 1
    assert rows == {"anchor": 1, "claiming": 0}


@pytest.mark.parametrize(
    "classes", [torch.full((2, 3), IGNORED), torch.zeros(2, 0, dtype=torch.int64)], ids=["padding", "no rows"]
)
def test_without_boxes_all_is_background(classes: Tensor) -> None:
    labels, matched = A.assign(GRID, KITTI_ANCHORS, torch.zeros(*classes.shape, 7), classes)
    assert labels.shape == (2, GRID[..., 0].numel()) and (labels == BACKGROUND).all() and (matched == 0).all()


def test_an_absent_class_is_background() -> None:
    labels, _ = A.assign(GRID, KITTI_ANCHORS, GRID[5, 5, 1, 0][None, None], torch.tensor([[1]]))
    by_class = labels.view(*GRID.shape[:4])
    assert (by_class[:, :, [0, 2]] == BACKGROUND).all() and by_class[5, 5, 1, 0] == 2


def test_thresholds_are_those_of_the_class() -> None:
    box = GRID[8, 8, 0, 0].clone()
    box[0] += 0.7  # IoU with its anchor: (3.9 - 0.7) / (3.9 + 0.7) = 0.696; others fit better
    at = ((8 * CELLS[1] + 8) * 3 + 0) * 2
    for matched, unmatched, label in ((0.69, 0.2, 1), (0.7, 0.69, IGNORED), (0.8, 0.7, BACKGROUND)):
        kinds = (replace(KITTI_ANCHORS[0], matched=matched, unmatched=unmatched), *KITTI_ANCHORS[1:])
        labels, _ = A.assign(GRID, kinds, box[None, None], torch.tensor([[0]]))
        assert labels[0, at] == label


@given(st.integers(0, 2**31), st.integers(0, 8))
def test_overlap_quality_equals_full_matrices(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted = GRID.flatten(0, 3)[torch.randint(3000, (2, 150), generator=generator)]
    predicted = predicted + 0.2 * torch.randn(predicted.shape, generator=generator)
    boxes, classes = random_objects(seed, count)
    boxes, classes = torch.stack((boxes, boxes.flip(0))), torch.stack((classes, classes.flip(0)))
    quality = A.overlap_quality(predicted, boxes, classes, 3)
    for i in range(2):
        real = classes[i] >= 0
        overlap, kinds = iou_3d(predicted[i], boxes[i][real]), classes[i][real]
        expected = torch.zeros(150, 3)
        for n, line in enumerate(overlap.tolist()):
            if line and max(line) > 0:
                expected[n, kinds[line.index(max(line))]] = max(line)
        assert torch.equal(quality[i], expected)
