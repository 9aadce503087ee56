"""Regions around boxes against loops over boxes and cells, and the ways in which their rules differ."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distill3d.detectors.base import BevGeometry, FeatureMap, ImageGeometry
from distill3d.distill.masks import SliceRule, box_mask, gaussian_mask, gaussian_weight, image_stride
from distill3d.layers.image.heatmap import gaussian_radius

SIZE = (6, 9)  # cells
STRIDE = 8

coordinate = st.floats(-60, 130).map(lambda v: round(v, 2))
box = st.tuples(coordinate, coordinate, st.floats(0, 90), st.floats(0, 70)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
images = st.lists(st.lists(st.tuples(box, st.booleans()), min_size=3, max_size=3), min_size=1, max_size=2)


def unpack(drawn: list) -> tuple[Tensor, Tensor]:
    boxes = torch.tensor([[b for b, _ in image] for image in drawn], dtype=torch.float64)
    return boxes, torch.tensor([[k for _, k in image] for image in drawn])


@given(images, st.sampled_from(["python", "clamp"]))
def test_box_mask_equals_slicing(drawn: list, rule: SliceRule) -> None:
    boxes, keep = unpack(drawn)
    expected = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for b in range(len(boxes)):
        for i in range(boxes.shape[1]):
            if keep[b, i]:
                x1, y1, x2, y2 = (int(v / STRIDE) for v in boxes[b, i].tolist())
                if rule == "clamp":
                    x1, y1, x2, y2 = (max(v, 0) for v in (x1, y1, x2, y2))
                expected[b, y1:y2, x1:x2] = True
    assert torch.equal(box_mask(boxes, keep, STRIDE, SIZE, rule), expected)


@given(images)
def test_gaussian_mask_equals_squares(drawn: list) -> None:
    boxes, keep = unpack(drawn)
    expected = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for b in range(len(boxes)):
        for i in range(boxes.shape[1]):
            x1, y1, x2, y2 = boxes[b, i] / STRIDE
            radius = max(0, int(gaussian_radius(y2 - y1, x2 - x1)))
            u, v = int((x1 + x2) / 2), int((y1 + y2) / 2)
            for row in range(SIZE[0]):
                for column in range(SIZE[1]):
                    if keep[b, i] and abs(row - v) <= radius and abs(column - u) <= radius:
                        expected[b, row, column] = True
    assert torch.equal(gaussian_mask(boxes, keep, STRIDE, SIZE), expected)
    weight = gaussian_weight(boxes, keep, STRIDE, SIZE)
    assert torch.equal(weight > 0, expected)
    assert float(weight.max()) <= 1


def test_rules_at_the_border() -> None:
    """An object cut by the left border: released slicing loses it, clamping keeps its visible part."""
    boxes = torch.tensor([[[-20.0, 8.0, 30.0, 32.0]]])
    keep = torch.tensor([[True]])
    assert not box_mask(boxes, keep, STRIDE, SIZE, "python").any()
    clamped = box_mask(boxes, keep, STRIDE, SIZE, "clamp")
    assert clamped.sum() == 3 * 3
    assert clamped[0, 1:4, 0:3].all()


def test_overlapping_boxes_count_once_and_small_ones_vanish() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 16.0, 16.0], [0.0, 0.0, 16.0, 16.0], [33.0, 33.0, 38.0, 38.0]]])
    mask = box_mask(boxes, torch.ones(1, 3, dtype=torch.bool), STRIDE, SIZE)
    assert mask.dtype == torch.bool
    assert mask.sum() == 4


def test_no_box() -> None:
    boxes, keep = torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.bool)
    for mask in (
        box_mask(boxes, keep, 8, SIZE),
        gaussian_mask(boxes, keep, 8, SIZE),
        gaussian_weight(boxes, keep, 8, SIZE),
    ):
        assert mask.shape == (2, *SIZE)
        assert not mask.any()
    # rows of zeros that do count mark the first cell, as in released code
    assert gaussian_mask(boxes, ~keep, 8, SIZE).nonzero().tolist() == [[0, 0, 0], [1, 0, 0]]


def test_stride_needs_the_image() -> None:
    maps = torch.zeros(1, 1, 2, 2)
    assert image_stride(FeatureMap(maps, ImageGeometry(16))) == 16
    with pytest.raises(ValueError, match="need a map on the image"):
        image_stride(FeatureMap(maps, BevGeometry((0, 0, 1, 1), 0.5)))
